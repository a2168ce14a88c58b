import json
import shutil
import struct
from dataclasses import replace

import cv2
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from conftest import detections_of, make_people

from posefix_jax.core import geometry
from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.coco import box_iou, read_annotations
from posefix_jax.data.detections import read_detections
from posefix_jax.data.image_sources import Images
from posefix_jax.data.images import UnreadableImage, decode_jpeg, warp_affine
from posefix_jax.data.pipeline import People, evaluation_batches, to_arrays, training_batches
from posefix_jax.data.prepare import PrepareOptions, patch_side, prepare
from posefix_jax.data.records import Manifest, Record
from posefix_jax.types import PosefixError


def test_record_round_trip():
    rng = np.random.default_rng(0)
    record = Record(
        jpeg=b"\xff\xd8...",
        side=64,
        joints=rng.uniform(0, 64, (17, 3)).round(2).astype(np.float32),
        others=rng.uniform(0, 64, (2, 17, 3)).round(2).astype(np.float32),
        others_area=np.array([6.25, 100.0], np.float32),
        detected=np.zeros((0, 17, 3), np.float32),
        pseudo=rng.uniform(0, 64, (17, 3)).round(2).astype(np.float32),
        box=(1.0, 2.0, 3.0, 4.0),
        area=12.5,
        overlap=2,
        patch_to_image=(0.5, 10.0, 20.0),
        image_id=7,
        annotation_id=9,
    )
    again = Record.decode(record.encode())
    for key, value in vars(record).items():
        np.testing.assert_array_equal(getattr(again, key), value)
        assert np.shape(getattr(again, key)) == np.shape(value)
    old = {key: value for key, value in vars(record).items() if key not in ("jpeg", "others_area", "pseudo")}
    text = json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in old.items()}).encode()
    again = Record.decode(struct.pack("<I", len(text)) + text + record.jpeg)
    np.testing.assert_array_equal(again.others_area, [12.5, 12.5])  # the rule of the version that wrote it
    assert again.pseudo.shape == (17, 3) and not again.pseudo.any()
    for broken in (b"", b"\x00", record.encode()[:20], b"\xff\xff\xff\xff{}"):
        with pytest.raises(ValueError):
            Record.decode(broken)


def test_prepared_people_are_the_annotated_ones(people, prepared):
    """Every joint comes back to the photograph's frame; neighbors, overlap and detections are there."""
    truth = read_annotations(people[0])
    manifest = Manifest.read(prepared)
    source = People([prepared])
    assert manifest.people == len(source) == len(truth.people) == 6 and len(manifest.shards) == 2
    detected = 0
    for index in range(len(source)):
        record = source[index]
        person = next(p for p in truth.people if p.annotation_id == record.annotation_id)
        scale, x, y = record.patch_to_image
        back = record.joints[:, :2] * scale + (x, y)
        np.testing.assert_allclose(back[person.labelled], person.joints[person.labelled, :2], atol=0.02)
        np.testing.assert_array_equal(record.joints[:, 2] > 0, person.labelled)
        np.testing.assert_allclose(record.area * scale**2, person.area, rtol=1e-5)
        others = [p for p in truth.people if p.image_id == person.image_id and p is not person]
        iou = box_iou(np.array(person.box), np.array([p.box for p in others]))
        assert record.overlap == len(record.others) == (iou >= 0.1).sum()
        assert decode_jpeg(record.jpeg).shape == (record.side, record.side, 3)
        detected += len(record.detected)
    assert detected == manifest.detections >= 4


@pytest.mark.parametrize("crop_hw", [(256, 192), (160, 128), (64, 64)])
def test_patch_holds_every_augmented_crop(crop_hw):
    """Closed form: the corners of the largest, shifted crop stay inside at every rotation, for any box."""
    for box_wh in ((100.0, 200.0), (200.0, 100.0), (150.0, 150.0), (1.0, 300.0)):
        side = patch_side(np.array(box_wh))
        w, h = geometry.fit_aspect(np.array([0, 0, *box_wh]), crop_hw)[2:] * geometry.CROP_PADDING
        for degrees in range(-80, 81, 5):
            cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            reach_x = 1.3 * (abs(cos) * w + abs(sin) * h) / 2 + 0.1 * w
            reach_y = 1.3 * (abs(sin) * w + abs(cos) * h) / 2 + 0.1 * h
            assert max(reach_x, reach_y) <= side / 2 + 1e-6


def test_patch_shows_the_photograph_where_it_says(tmp_path):
    """A patch pixel is the photograph's at the mapped place: red is x, green is y, so a shift would show. Black outside."""
    truth, images = make_people(tmp_path)
    y, x = np.mgrid[:240, :320]
    gradient = np.stack([np.zeros_like(x), y, x * 240 // 320], axis=-1).astype(np.uint8)  # BGR
    for path in images.iterdir():
        cv2.imwrite(str(path), gradient)
    prepare(PrepareOptions(annotations=truth, images=images, out=tmp_path / "out", patch=96))
    people = People([tmp_path / "out"])
    inner = outer = 0
    for index in range(len(people)):
        record = people[index]
        patch = decode_jpeg(record.jpeg).astype(float)
        scale, left, top = record.patch_to_image
        x, y = left + scale * np.arange(record.side), top + scale * np.arange(record.side)
        inside = ((y > 24) & (y < 215))[:, None] & ((x > 24) & (x < 295))  # JPEG bleeds at the border
        outside = ((y < -9) | (y > 249))[:, None] | ((x < -9) | (x > 329))
        assert np.abs(patch[..., 0] - x * 240 / 320)[inside].max() < 16
        assert np.abs(patch[..., 1] - y[:, None])[inside].max() < 16
        assert np.abs((patch[..., 0] - x * 240 / 320)[inside].mean()) < 0.7
        assert np.abs((patch[..., 1] - y[:, None])[inside].mean()) < 0.7
        assert not outside.any() or patch[outside].max() < 16
        inner, outer = inner + inside.sum(), outer + outside.sum()
    assert inner > 10000 and outer > 1000


def test_pseudo_poses_stand_for_unlabelled_joints(tmp_path):
    """An estimator's joint with a score of 0.2 or more where none is labelled; whose person is found by the others."""
    truth, images = make_people(tmp_path)
    rows = detections_of(truth, noise=1.0)
    for row in rows:
        row["keypoints"][2::3] = [0.1 if joint % 2 else 0.9 for joint in range(17)]
    (tmp_path / "pseudo.json").write_text(json.dumps(rows))
    prepare(
        PrepareOptions(
            annotations=truth, images=images, out=tmp_path / "out", patch=96, pseudo_poses=tmp_path / "pseudo.json"
        )
    )
    people, annotations = People([tmp_path / "out"]), read_annotations(truth)
    stored = 0
    for index in range(len(people)):
        record = people[index]
        person = next(p for p in annotations.people if p.annotation_id == record.annotation_id)
        row = next(r for r, entry in zip(rows, annotations.people, strict=True) if entry is person)
        wanted = ~person.labelled & (np.arange(17) % 2 == 0)
        if not record.pseudo.any():
            continue  # a neighbor had the better box
        np.testing.assert_array_equal(record.pseudo[:, 2] > 0, wanted)
        scale, x, y = record.patch_to_image
        back = record.pseudo[:, :2] * scale + (x, y)
        np.testing.assert_allclose(back[wanted], np.reshape(row["keypoints"], (17, 3))[wanted, :2], atol=0.02)
        stored += wanted.sum()
    assert stored > 3
    arrays = next(evaluation_batches(people, batch_size=6))
    assert (arrays["pseudo"].sum(axis=1) > 0).any() and not (arrays["pseudo"] & arrays["labelled"]).any()


def test_unreadable_photograph_is_a_record_of_weight_zero(tmp_path):
    truth, images = make_people(tmp_path)
    (images / f"{1:012d}.png").write_bytes(b"not an image")
    (images / f"{2:012d}.png").unlink()
    (manifest,) = prepare(PrepareOptions(annotations=truth, images=images, out=tmp_path / "out", patch=96))
    assert manifest.people == 6 and len(manifest.unreadable) == 2
    batch = next(evaluation_batches(People([tmp_path / "out"]), batch_size=8))
    np.testing.assert_array_equal(batch["weight"], [0, 0, 0, 0, 1, 1, 0, 0])


def test_holdout_divides_photographs(tmp_path):
    truth, images = make_people(tmp_path, images=12)
    manifests = prepare(PrepareOptions(annotations=truth, images=images, out=tmp_path / "out", patch=96, holdout=0.4))
    assert sum(m.people for m in manifests) == 24
    ids = [
        {People([tmp_path / name])[i].image_id for i in range(m.people)}
        for name, m in zip(("out", "out-holdout"), manifests, strict=True)
    ]
    assert ids[0] and ids[1] and not ids[0] & ids[1]


def test_every_epoch_sees_everybody_once_on_any_number_of_processes(prepared):
    people = People([prepared])

    def samples(processes):
        parts = [
            training_batches(people, batch_size=4, seed=3, threads=1, process=p, processes=processes)
            for p in range(processes)
        ]
        batches = [[next(part) for part in parts] for _ in range(6)]
        return [
            [(int(e), int(s)) for local in batch for e, s in zip(local["epoch"], local["sample"], strict=True)]
            for batch in batches
        ]

    alone = samples(1)
    assert samples(2) == alone and samples(4) == alone
    flat = [pair for batch in alone for pair in batch]
    for epoch in range(4):
        assert sorted(s for e, s in flat if e == epoch) == list(range(6))
    assert flat[:6] != flat[6:12]


def test_evaluation_sees_everybody_once_on_any_number_of_processes(prepared):
    people = People([prepared])
    alone = list(evaluation_batches(people, batch_size=4))
    parts = [list(evaluation_batches(people, batch_size=4, process=p, processes=4)) for p in range(4)]
    for i, batch in enumerate(alone):
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[i][key] for part in parts]), value)
    assert sum(batch["weight"].sum() for batch in alone) == 6


def test_starts_at_any_batch(prepared):
    people = People([prepared])
    options = dict(batch_size=4, seed=0, threads=2)
    from_start = training_batches(people, **options)
    expected = [next(from_start)["sample"].tolist() for _ in range(6)]
    for process in range(2):
        later = training_batches(people, **options, start=3, process=process, processes=2)
        part = slice(2 * process, 2 * process + 2)
        assert [next(later)["sample"].tolist() for _ in range(3)] == [batch[part] for batch in expected[3:]]


def test_zoom_keeps_joints_on_their_pixels(prepared):
    people = People([prepared])
    record = people[0]
    people.patch = 2 * record.side
    arrays = to_arrays(people, 0, sample=0, epoch=0)
    assert arrays["patch"].shape == (2 * record.side,) * 2 + (3,)
    labelled = record.joints[:, 2] > 0
    np.testing.assert_allclose(arrays["patch_xy"][labelled], record.joints[labelled, :2] * 2 + 0.5, atol=1e-4)


def test_warp_shrinks_without_aliasing():
    """A checkerboard of single pixels becomes grey, and a ramp stays where it is."""
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255
    ramp = np.repeat(np.arange(256)[None], 256, axis=0)
    image = np.stack([board, ramp, ramp.T], axis=-1).astype(np.uint8)
    affine = np.array([[0.25, 0, 0.25 * 0.5 - 0.5], [0, 0.25, 0.25 * 0.5 - 0.5]])
    small = warp_affine(image, affine, (64, 64)).astype(float)[2:-2, 2:-2]
    assert np.abs(small[..., 0] - 127.5).max() < 3
    expected = (np.arange(64) * 4 + 1.5)[2:-2]
    assert np.abs(small[..., 1] - expected[None]).max() < 1.5 and np.abs(small[..., 2] - expected[:, None]).max() < 1.5


def test_photographs_are_found_by_what_rows_call_them(tmp_path):
    for name in ("000000000139.jpg", "im00012.png", "frame_7.txt", "deep/im00012.png", "a/7/000.jpg", "b/7/000.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    images = Images(tmp_path)
    assert images.find_all([139, 5]) == {139: "000000000139.jpg"}
    assert images.find("im00012") == "im00012.png"  # before one that lies deeper
    assert images.find("images/val/b/7/000.jpg") == "b/7/000.jpg"
    with pytest.raises(PosefixError, match="may be a/7/000.jpg or b/7/000.jpg"):
        images.find("000.jpg")
    assert images.find("c/7/000.jpg") is None and images.find("x/a/7/000") == "a/7/000.jpg"
    with pytest.raises(PosefixError, match="none of the photographs"):
        images.find_all([3])
    for outside in ("../secret.jpg", str(tmp_path.parent / "secret.jpg")):
        (tmp_path.parent / "secret.jpg").write_bytes(b"x")
        assert images.find(outside) is None and Images(tmp_path, {1: outside}).find(1) is None
    (tmp_path / "000000000139.jpg").unlink()
    (tmp_path / "a" / "7" / "000.jpg").unlink()
    (tmp_path / "b" / "7" / "000.jpg").unlink()
    assert Images(tmp_path).find(12) == "im00012.png"
    with pytest.raises(PosefixError, match="no such image folder"):
        Images(tmp_path / "none")
    with pytest.raises(UnreadableImage):
        images.read("im00012.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 1,', "broken JSON at byte 16"),
        ("[]", "no poses to work on"),
        ('{"images": [], "annotations": []}', "no poses"),
        ("3", r"expected \[ or \{"),
        ("[3]", "its first element is 3"),
        ('[{"keypoints": []}]', "row 0: has no image_id"),
        ('[{"image_id": 1, "keypoints": [1, 2, 3]}]', "3 keypoint values, expected 51"),
        ('[{"image_id": 1, "keypoints": [' + ", ".join(['"a"'] * 51) + "]}]", "is no number"),
        ('[{"image_id": 7, "score": 1, "keypoints": [' + ", ".join(["1"] * 51) + "]}]", "row 0 is of image 7"),
        ('[{"image_id": 1, "keypoints": [' + ", ".join(["1"] * 51) + "]}]", "row 0 has no score"),
    ],
)
def test_bad_results_are_named(tmp_path, content, message):
    path = tmp_path / "d.json"
    path.write_text(content)
    with pytest.raises(PosefixError, match=message):
        read_detections(path, images={1: {}}, skeleton=COCO, annotations=tmp_path)


def test_bad_annotations_are_named(tmp_path, people):
    results = tmp_path / "r.json"
    results.write_text(json.dumps(detections_of(people[0])))
    with pytest.raises(PosefixError, match="as a results file is"):
        read_annotations(results)
    with pytest.raises(PosefixError, match="No such file"):
        read_annotations(tmp_path / "none.json")
    content = json.loads(people[0].read_text())
    content["annotations"][1]["keypoints"] = [1, 2]
    results.write_text(json.dumps(content))
    with pytest.raises(
        PosefixError,
        match="annotation 1: keypoints: expected a flat list of x, y, score of every joint, found 2 values",
    ):
        read_annotations(results)


def test_prepare_keeps_what_is_not_its_own(tmp_path, people):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("...")
    with pytest.raises(PosefixError, match="not written by prepare"):
        prepare(PrepareOptions(annotations=people[0], images=people[1], out=tmp_path / "precious"))
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_prepare_that_fails_leaves_the_old_folder(tmp_path, people, monkeypatch):
    """Interrupted amid a re-run: the folder that was there is still there, whole."""
    from posefix_jax.data import prepare as module

    options = PrepareOptions(annotations=people[0], images=people[1], out=tmp_path / "out", patch=96)
    prepare(options)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "make_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(options)
    assert len(People([tmp_path / "out"])) == 6


def test_folders_mix_by_joint_name_as_often_as_asked(prepared, tmp_path):
    """The second folder has twelve joints in an order of its own; it comes every other epoch."""
    manifest = Manifest.read(prepared)
    joints = manifest.skeleton.joints
    few = [joints.index(name) for name in reversed(joints) if name not in ("nose", "left_eye", "left_ear")]
    other = tmp_path / "few"
    other.mkdir()
    skeleton = replace(
        manifest.skeleton, name="few", joints=tuple(joints[j] for j in few), flip_pairs=(), limbs=(),
        sigmas=(0.1,) * len(few), groups=("other",) * len(few),
    )  # fmt: skip
    source = People([prepared])
    writer = ArrayRecordWriter(str(other / "people.array_record"), "group_size:1")
    for i in range(len(source)):
        record = source[i]
        pick = {name: getattr(record, name)[..., few, :] for name in ("joints", "others", "detected")}
        writer.write(replace(record, **pick).encode())
    writer.close()
    labelled = tuple(manifest.labelled[j] for j in few)
    replace(manifest, skeleton=skeleton, shards=("people.array_record",), labelled=labelled).write(other)

    people = People([prepared, other], (2.0, 0.5))
    assert people.places == 12 + 3 and len(people) == 12 and people.skeleton.joints == joints
    a, b = people[2], people[6 + 2]
    shared = np.isin(np.arange(17), few)
    np.testing.assert_array_equal(b.joints[shared], a.joints[shared])
    assert not b.joints[~shared].any() and b.others.shape == a.others.shape and b.detected.shape == a.detected.shape
    nose = joints.index("nose")
    np.testing.assert_allclose(people.share_labelled[nose], manifest.labelled[nose] / 6 * 12 / 15)
    drawn = [people.index_at(np.arange(15), epoch) for epoch in range(2)]
    assert all(np.bincount(indices[:12], minlength=6)[:6].tolist() == [2] * 6 for indices in drawn)
    assert sorted([*drawn[0][12:], *drawn[1][12:]]) == list(range(6, 12))


def damaged(prepared, folder, how):
    shutil.copytree(prepared, folder)
    shard = sorted(folder.glob("*.array_record"))[1]
    shard.write_bytes(how(shard.read_bytes()))
    return shard


def test_a_truncated_shard_is_named(prepared, tmp_path):
    shard = damaged(prepared, tmp_path / "cut", lambda data: data[: len(data) // 2])
    with pytest.raises(PosefixError, match=f"{shard.name}: truncated"):
        People([tmp_path / "cut"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_is_named(prepared, tmp_path, workers):
    """Also when a worker process meets it."""
    shard = damaged(prepared, tmp_path / "hurt", lambda data: data[:3000] + bytes(60) + data[3060:])
    people = People([tmp_path / "hurt"])
    options = dict(batch_size=6, seed=0, threads=1, workers=workers)
    with pytest.raises((PosefixError, RuntimeError), match=f"{shard.name}: record [01] cannot be read"):
        next(training_batches(people, **options))


def test_a_picture_that_does_not_decode_has_no_weight_and_is_named(prepared, tmp_path, capfd):
    source = People([prepared])
    shutil.copytree(prepared, tmp_path / "torn")
    writer = ArrayRecordWriter(str(tmp_path / "torn" / "people.array_record"), "group_size:1")
    for i in range(6):
        writer.write(replace(source[i], jpeg=b"no jpeg" if i == 4 else source[i].jpeg).encode())
    writer.close()
    replace(source.manifests[0], shards=("people.array_record",)).write(tmp_path / "torn")
    people = People([tmp_path / "torn"])
    for _ in range(2):
        batch = next(evaluation_batches(people, batch_size=6))
    assert batch["weight"].tolist() == [1, 1, 1, 1, 0, 1]
    assert capfd.readouterr().err.count("people.array_record: record 4: its picture cannot be decoded") == 1


def test_a_worker_that_dies_is_an_error(prepared):
    """Not a hang."""
    from multiprocessing import active_children

    batches = training_batches(People([prepared]), batch_size=2, seed=0, threads=1, workers=1)
    next(batches)
    (worker,) = active_children()
    worker.kill()
    with pytest.raises(RuntimeError):
        for _ in range(100):
            next(batches)


def test_joints_that_are_written_otherwise_keep_their_twins(people, tmp_path):
    """So that training mirrors left and right."""
    truth, images = people
    content = json.loads(truth.read_text())
    content["categories"][0]["keypoints"] = [joint.replace("_", " ").title() for joint in COCO.joints]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (manifest,) = prepare(
        PrepareOptions(annotations=tmp_path / "truth.json", images=images, out=tmp_path / "p", patch=64)
    )
    assert Manifest.read(tmp_path / "p").skeleton == manifest.skeleton == COCO
