"""What every format of poses must pass: nothing is lost on the way in and out, and only what changed is written."""

import gzip
import json
import tarfile
import zipfile
from pathlib import Path

import cv2
import fsspec
import fuzz
import numpy as np
import pytest
from conftest import shift_network
from format_samples import (
    HEIGHT,
    RECORDED,
    WIDTH,
    bodies,
    files_of,
    flat,
    part_of,
    read,
    recorded,
    row_of,
    samples,
    write_rows,
)

from posefix_jax.core.joint_sets import COCO, SKELETONS
from posefix_jax.core.models import DecodeConfig, RefinerSpec
from posefix_jax.data.formats import Edit
from posefix_jax.data.image_sources import Images
from posefix_jax.data.images import UnreadableImage, decode_image
from posefix_jax.data.pose_files import open_pose_file
from posefix_jax.refining.convert import ConvertOptions, convert
from posefix_jax.refining.refine_files import RefineOptions, refine_rows
from posefix_jax.refining.refiner import Refiner
from posefix_jax.types import PosefixError

BINARY = ("parquet", "npz", *RECORDED)


@pytest.fixture(params=[*samples(), *BINARY])
def sample(request, tmp_path) -> tuple[str, Path, object]:
    """A format's name, the file or folder, the skeleton."""
    folder = tmp_path / "in"
    folder.mkdir()
    if request.param == "parquet":
        import pyarrow
        import pyarrow.parquet

        poses = bodies(COCO)
        table = {
            "image_id": [1, 1, 2],
            "keypoints": [flat(p) for p in poses],
            "score": [0.5] * 3,
            "note": ["é", "", None],
        }
        pyarrow.parquet.write_table(pyarrow.table(table), folder / "t.parquet")
        return request.param, folder / "t.parquet", COCO
    if request.param == "npz":
        poses = bodies(COCO).astype(np.float32)
        more = {"image_id": np.array([1, 1, 2]), "scores": np.full(3, 0.5), "note": np.array(["é", "", "x"])}
        np.savez_compressed(folder / "t.npz", keypoints=poses, **more, feature=np.arange(3000.0).reshape(3, 1000))
        return request.param, folder / "t.npz", COCO
    if request.param in RECORDED:
        (folder / "t.h5").write_bytes(recorded(RECORDED[request.param]))
        return request.param, folder / "t.h5", COCO
    files, skeleton = samples()[request.param]
    for name, text in files:
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return request.param, folder if len(files) > 1 else folder / files[0][0], skeleton


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.name.endswith(".gz") else data


def test_found_out_and_read(sample):
    """By content alone; the people are those that were written."""
    name, path, skeleton = sample
    documents = [open_pose_file(str(file), skeleton=None, preferred=COCO) for file in files_of(path)]
    assert {document.skeleton.joints for document in documents if not document.empty} == {skeleton.joints}
    people = read(path)
    assert len(people) == 3
    for (_, joints, _), expected in zip(people, bodies(skeleton), strict=True):
        expected = part_of(expected) if documents[0].format.fraction else expected
        present = expected[:, 2] > 0
        np.testing.assert_allclose(joints[present, :2], expected[present, :2], atol=2e-6 * WIDTH, rtol=0)
        assert (joints[:, 2] > 0).tolist() == present.tolist()


def test_written_back_unchanged(sample):
    """Every byte, spacing and digits included."""
    name, path, _ = sample
    if name in BINARY:
        pytest.skip("a binary file is compared by its values, in test_refined_by_an_identity")
    for file in files_of(path):
        document = open_pose_file(str(file), skeleton=None, preferred=COCO)
        text = "".join(e.lead + document.format.edited(document, Edit(e)) for e in document.elements())
        assert text.encode() == content(file)


def test_one_joint_changes_its_own_characters(sample):
    """And nothing else: read again, the other joints are equal, to the last bit."""
    name, path, _ = sample
    if name in BINARY:
        pytest.skip("a binary file has no characters")
    file = files_of(path)[0]
    document = open_pose_file(str(file), skeleton=None, preferred=COCO)
    out, before = "", []
    for element in document.elements():
        changes = {}
        for i, pose in enumerate(element.poses):
            before.append(pose.joints)
            joints = pose.joints.copy()
            joints[4, :2] = 0.25, 0.5
            changes[i] = joints
        out += element.lead + document.format.edited(document, Edit(element, changes))
    copy = file.with_name("copy" + "".join(file.suffixes))
    copy.write_bytes(gzip.compress(out.encode()) if file.name.endswith(".gz") else out.encode())
    after = [
        pose.joints for e in open_pose_file(str(copy), skeleton=None, preferred=COCO).elements() for pose in e.poses
    ]
    others = np.arange(len(before[0])) != 4
    for old, new in zip(before, after, strict=True):
        assert new[4, :2].tolist() == [0.25, 0.5]
        np.testing.assert_array_equal(new[others], old[others])
    if file.name.endswith((".json", ".json.gz")):
        assert json_without_numbers(json.loads(out)) == json_without_numbers(json.loads(content(file)))


def json_without_numbers(value):
    if isinstance(value, dict):
        return {key: json_without_numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [json_without_numbers(v) for v in value]
    return 0 if isinstance(value, float) else value


def test_refined_by_an_identity(sample, identity, photographs, tmp_path):
    """A refiner that moves nothing gives the file back within 0.01 px, a file for a file, every row refined."""
    name, path, _ = sample
    out = tmp_path / "out" / path.name if path.is_file() else tmp_path / "out"
    report = refine_rows(
        identity, RefineOptions((str(path),), str(photographs), out, missing="keep", part_rows=1, batch_size=8)
    )
    assert (report["rows"], report["refined"], report["reasons"]) == (3, 3, {})
    assert [p.relative_to(out) for p in files_of(out)] == [p.relative_to(path) for p in files_of(path)]
    fraction = open_pose_file(str(files_of(path)[0]), skeleton=None, preferred=COCO).format.fraction
    unit = np.array([WIDTH, HEIGHT, 1]) if fraction else 1
    for (image, before, track), (image2, after, track2) in zip(read(path), read(out), strict=True):
        assert (image, track) == (image2, track2)
        present = before[:, 2] > 0
        np.testing.assert_allclose((after * unit)[present, :2], (before * unit)[present, :2], atol=0.01)
        np.testing.assert_array_equal(before[~present], after[~present])


def test_joints_that_were_missing_are_filled_in(sample, identity, photographs, tmp_path):
    """Where the refiner knows them; in each format's own way to say that a joint is there."""
    name, path, skeleton = sample
    out = tmp_path / "out.json" if path.is_file() else tmp_path / "out"
    refine_rows(identity, RefineOptions((str(path),), str(photographs), out, batch_size=8))
    knows = skeleton.joints[-1] in COCO.joints
    assert (read(out)[1][1][-1, 2] > 0) == knows


def test_joints_that_the_refiner_lacks_pass_through(tiny_spec, photographs, tmp_path):
    """A network that moves all its joints leaves OpenPose's neck, mid-hip and feet where they were."""
    spec = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, tiny_spec.trained_joints, DecodeConfig("soft-argmax"))
    files, skeleton = samples()["openpose"]
    (tmp_path / "in").mkdir()
    for name, text in files:
        (tmp_path / "in" / name).write_text(text)
    refiner = Refiner(shift_network(spec), {}, spec, flip=False, batch_size=8)
    refine_rows(refiner, RefineOptions((str(tmp_path / "in"),), str(photographs), tmp_path / "out"))
    ours = np.isin(skeleton.joints, COCO.joints)
    for (_, before, _), (_, after, _) in zip(read(tmp_path / "in"), read(tmp_path / "out"), strict=True):
        there = before[:, 2] > 0
        np.testing.assert_array_equal(after[~ours], before[~ours])
        assert (after[ours & there, :2] != before[ours & there, :2]).any(axis=1).all()


def packed(photographs: Path, kind: str, folder: Path) -> str:
    """The photographs in another kind of place."""
    files = sorted(photographs.glob("*.png"))
    if kind == "zip":
        with zipfile.ZipFile(folder / "i.zip", "w") as archive:
            for file in files:
                archive.write(file, f"deep/{file.name}")
        return str(folder / "i.zip")
    if kind == "shards":
        for i, file in enumerate(files):
            with tarfile.open(folder / f"s-{i}.tar", "w") as archive:
                archive.add(file, file.name)
        return str(folder / "s-*.tar")
    if kind == "url":
        memory = fsspec.filesystem("memory")
        for file in files:
            memory.pipe(f"/photographs/{file.name}", file.read_bytes())
        return "memory://photographs"
    video = cv2.VideoWriter(str(folder / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (WIDTH, HEIGHT))
    for i in range(40):
        video.write(np.full((HEIGHT, WIDTH, 3), 5 * i, np.uint8))
    video.release()
    return str(folder / "v.avi")


@pytest.mark.parametrize("kind", ["zip", "shards", "url", "video"])
def test_photographs_from_other_places(kind, identity, photographs, tmp_path):
    source = tmp_path / "r.json"
    source.write_text(samples()["coco"][0][0][1])
    place = packed(photographs, kind, tmp_path)
    options = RefineOptions((str(source),), place, tmp_path / "out.json", batch_size=8)
    assert refine_rows(identity, options)["refined"] == 3
    images = Images(place)
    if kind == "video":
        for frame in (3, 4, 39, 2, 30, 0, 38):
            assert abs(float(images.read(images.find(frame)).mean()) - 5 * frame) < 3
        assert images.find(40) is None and images.find("clip_000012") == 12
    else:
        assert images.read(images.find(2)).mean() == 80
        assert images.find(7) is None


def test_input_from_a_url_and_from_patterns(identity, photographs, tmp_path):
    text = samples()["coco"][0][0][1]
    fsspec.filesystem("memory").pipe("/poses/r.json", text.encode())
    refine_rows(identity, RefineOptions(("memory://poses/r.json",), str(photographs), tmp_path / "a.json"))
    for name in ("b1.json", "b2.json"):
        (tmp_path / name).write_text(text)
    refine_rows(identity, RefineOptions((str(tmp_path / "b*.json"),), str(photographs), tmp_path / "b"))
    for name in ("b1.json", "b2.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a.json").read_bytes()


def test_rows_of_one_photograph_that_stand_apart(identity, photographs, tmp_path):
    """What compares them, or writes them into one file, says so instead of doing half of it."""
    rows = json.loads(samples()["coco"][0][0][1])
    source = tmp_path / "r.json"
    source.write_text(json.dumps([rows[0], rows[2], rows[1]]))
    options = RefineOptions((str(source),), str(photographs), tmp_path / "o.json", part_rows=1, oks_nms=0.9)
    with pytest.raises(PosefixError, match="sort the file by image_id"):
        refine_rows(identity, options)
    with pytest.raises(PosefixError, match="would share one yolo file; sort the rows"):
        convert(ConvertOptions((str(source),), tmp_path / "o", "yolo", images=str(photographs)))
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.writing").exists()


def test_every_skeleton_is_what_it_says():
    assert {s.name: s.num_joints for s in SKELETONS.values()} == {
        "coco": 17, "posetrack": 17, "posetrack17": 15, "crowdpose": 14, "openpose18": 18, "openpose25": 25,
        "blazepose": 33, "halpe26": 26, "mpii": 16, "coco-wholebody": 133, "ap10k": 17,
        "openpose25b": 25, "aic": 14, "humanart21": 21, "jhmdb": 15, "h36m": 17, "mhp": 16, "halpe136": 136,
    }  # fmt: skip


@pytest.mark.slow
def test_what_swells_is_refused(tmp_path):
    """A few kB that unpack to gigabytes of nothing, a line or an element without end: one line, in little memory."""
    cases = {
        "space.json.gz": b"[" + b" " * (80 << 20),
        "element.json.gz": b'[{"image_id": 1, "keypoints": [' + b"1," * (40 << 20),
        "line.txt.gz": b"0 " * (2 << 20),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(gzip.compress(data, 1))
        with pytest.raises(PosefixError, match="white space|broken JSON|a line of more than"):
            for _ in open_pose_file(str(tmp_path / name), skeleton=None, preferred=COCO).elements():
                pass
    image = fuzz.bomb(40000)
    with pytest.raises(UnreadableImage, match="raise the environment's OPENCV_IO_MAX_IMAGE_PIXELS"):
        decode_image(image)


def test_damaged_archives(photographs, tmp_path):
    """Members that are damaged, lie outside, or are no files: unreadable or not there; an archive that is none: said."""
    file = sorted(photographs.glob("*.png"))[0]
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file, "../../1.png")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "a.zip").write_bytes(data)
    images = Images(tmp_path / "a.zip")
    with pytest.raises(UnreadableImage):
        images.read(images.find(1))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.add(file, "../3.png")
    images = Images(tmp_path / "a.tar")
    assert images.find(2) is None and images.read(images.find(3)).shape == (HEIGHT, WIDTH, 3)
    for name in ("b.zip", "b.tar", "b.avi"):
        (tmp_path / name).write_bytes(b"none of these" * 100)
        with pytest.raises(PosefixError, match=name):
            Images(tmp_path / name)
    with pytest.raises(PosefixError, match="compressed tar"):
        Images(tmp_path / "c.tar.gz")


def test_files_without_people_take_after_the_others(identity, photographs, tmp_path):
    """In a folder of one file a photograph, some show nobody; files of two kinds are refused."""
    (tmp_path / "in").mkdir()
    files, _ = samples()["mmpose-image"]
    for name, text in [("0.json", "[]"), *files, ("3.json", " [ ]\n")]:
        (tmp_path / "in" / name).write_text(text)
    report = refine_rows(identity, RefineOptions((str(tmp_path / "in"),), str(photographs), tmp_path / "out"))
    assert report["rows"] == 3
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir() if p.name in ("0.json", "3.json")} == {
        "0.json": "[]",
        "3.json": " [ ]\n",
    }
    (tmp_path / "in" / "9.json").write_text(samples()["coco"][0][0][1])
    with pytest.raises(PosefixError, match="9.json is a coco file .* refine them separately"):
        refine_rows(identity, RefineOptions((str(tmp_path / "in"),), str(photographs), tmp_path / "out2"))


def test_left_out_rows_leave_valid_files(identity, photographs, tmp_path):
    """The first row of a file that is not the job's first, of lines, of annotations before one without keypoints."""
    a, b, _ = bodies(COCO)
    low, high, other = row_of(1, a, 0.1), row_of(1, a, 0.9), row_of(2, b)
    write_rows(tmp_path / "in" / "a.json", [other])
    write_rows(tmp_path / "in" / "b.json", [low, high, other])
    options = {"oks_nms": 0.9, "batch_size": 8}
    refine_rows(identity, RefineOptions((str(tmp_path / "in"),), str(photographs), tmp_path / "o", **options))
    assert [[r["score"] for r in json.loads((tmp_path / "o" / f"{n}.json").read_text())] for n in "ab"] == [
        [0.5],
        [0.9, 0.5],
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(r) for r in (low, high)))
    refine_rows(identity, RefineOptions((str(tmp_path / "l.jsonl"),), str(photographs), tmp_path / "l", **options))
    assert [json.loads(line)["score"] for line in (tmp_path / "l").read_text().splitlines()] == [0.9]
    truth = {"images": [], "annotations": [low, {**high, "keypoints": []}, high]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    refine_rows(identity, RefineOptions((str(tmp_path / "gt.json"),), str(photographs), tmp_path / "gt", **options))
    assert [r["score"] for r in json.loads((tmp_path / "gt").read_text())["annotations"]] == [0.9, 0.9]


def test_a_photograph_of_the_same_name_elsewhere_is_another(identity, photographs, tmp_path):
    """Names with folders match whole: frames of two videos are called alike. So do files of poses in subfolders."""
    data = (photographs / "000000000001.png").read_bytes()
    (tmp_path / "i" / "a").mkdir(parents=True)
    (tmp_path / "i" / "a" / "f1.png").write_bytes(data)
    pose = bodies(COCO)[0]
    rows = write_rows(tmp_path / "r.json", [row_of("v/a/f1.png", pose), row_of("v/b/f1.png", pose)])
    images = str(tmp_path / "i")
    assert refine_rows(identity, RefineOptions((rows,), images, tmp_path / "o"))["reasons"] == {"photograph missing": 1}
    for video in "ab":
        text = samples()["yolo"][0][1][1]
        (tmp_path / "y" / video).mkdir(parents=True)
        (tmp_path / "y" / video / "f1.txt").write_text(text)
    report = refine_rows(identity, RefineOptions((f"{tmp_path}/./y/",), images, tmp_path / "oy"))
    assert report["reasons"] == {"photograph missing": 1}
    assert sorted(p.relative_to(tmp_path / "oy").as_posix() for p in files_of(tmp_path / "oy")) == [
        "a/f1.txt",
        "b/f1.txt",
    ]
    names = {"annotations": [row_of(1, pose)], "categories": []}
    for i, name in enumerate(("p.png", "q.png")):
        write_rows(tmp_path / "n" / f"{i}.json", {"images": [{"id": 1, "file_name": name}], **names})
    with pytest.raises(PosefixError, match="image id 1 is q.png, in a file before it p.png"):
        refine_rows(identity, RefineOptions((str(tmp_path / "n"),), images, tmp_path / "on"))


def test_parts_that_another_job_left_are_not_taken(identity, photographs, tmp_path):
    """Though the manifest is gone, or another job is still at work in the same place."""
    poses = bodies(COCO)
    one, two = (
        write_rows(tmp_path / f"{name}.json", [row_of(image, p) for image, p in zip((1, 2, 3), some, strict=True)])
        for name, some in (("one", poses), ("two", poses[::-1]))
    )
    options = {"part_rows": 1, "batch_size": 8}
    refine_rows(identity, RefineOptions((one,), str(photographs), tmp_path / "o", shard="0/2", **options))
    (tmp_path / "o.parts" / "manifest.json").unlink()
    refine_rows(identity, RefineOptions((two,), str(photographs), tmp_path / "o", **options))
    refine_rows(identity, RefineOptions((two,), str(photographs), tmp_path / "calm", **options))
    assert (tmp_path / "o").read_bytes() == (tmp_path / "calm").read_bytes()


def test_layouts_are_known_by_the_first_person(identity, photographs, tmp_path):
    """Not by frames that show nobody before it; MMPose's demo writes a photograph's people into `instance_info`."""
    halpe = SKELETONS["halpe26"]
    a = bodies(halpe)[0]
    person = {"keypoints": a[:, :2].tolist(), "keypoint_scores": a[:, 2].tolist()}
    frames = [{"frame_id": 1, "instances": []}, {"frame_id": 2, "instances": [person]}]
    marks = [{"x": 0.1 * i % 1, "y": 0.5, "visibility": 1} for i in range(33)]
    files = {
        "f.json": {"instance_info": frames},
        "results_1.json": {"meta_info": {}, "instance_info": [person]},
        "m.json": [{"image_id": 1, "landmarks": []}, {"image_id": 2, "landmarks": [marks]}],
        "gt.json": {"annotations": [{"image_id": 1, "keypoints": []}, row_of(1, a)], "images": []},
    }
    for name, content in files.items():
        source = write_rows(tmp_path / name, content)
        report = refine_rows(identity, RefineOptions((source,), str(photographs), tmp_path / f"{name}.out"))
        assert (report["rows"], report["refined"]) == (1, 1)


def test_other_arrays_of_an_archive_stay(identity, photographs, tmp_path):
    """Byte for byte, whatever they are; a joint is filled in in its array's own type; joint scores have an array."""
    poses = bodies(COCO)
    arrays = {
        "note": np.array(["é", "", "x"]),
        "keypoints": poses[..., :2].astype(">f4"),
        "frame": np.array([1, 1, 2], np.uint8),
        "keypoint_scores": poses[..., 2].astype(np.float16),
        "feature": np.arange(30.0).reshape(3, 10),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    options = RefineOptions(
        (str(tmp_path / "a.npz"),), str(photographs), tmp_path / "out.npz", batch_size=8, part_rows=1
    )
    assert refine_rows(identity, options)["refined"] == 3
    with zipfile.ZipFile(tmp_path / "a.npz") as before, zipfile.ZipFile(tmp_path / "out.npz") as after:
        assert before.namelist() == after.namelist()
        for name in ("note.npy", "frame.npy", "feature.npy"):
            assert before.read(name) == after.read(name)
    out = np.load(tmp_path / "out.npz")
    assert all(out[name].dtype == array.dtype and out[name].shape == array.shape for name, array in arrays.items())
    assert arrays["keypoint_scores"][1, -1] == 0 < out["keypoint_scores"][1, -1]
    np.testing.assert_allclose(out["keypoints"][0], arrays["keypoints"][0], atol=0.01)


def test_binary_files_are_compressed_and_written_even_if_empty(identity, photographs, tmp_path):
    """A folder comes out as the same files, of the same kinds."""
    import pyarrow
    import pyarrow.parquet

    poses, ids = bodies(COCO), np.array([1, 1, 2])
    lists = pyarrow.list_(pyarrow.float64())
    for name, rows in (("full", 3), ("none", 0)):
        np.savez(tmp_path / f"{name}.npz", keypoints=poses[:rows], image_id=ids[:rows])
        columns = {"image_id": ids[:rows], "keypoints": pyarrow.array([flat(pose) for pose in poses[:rows]], lists)}
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet")
    for suffix in ("npz", "parquet"):
        folder, out = tmp_path / f"{suffix}.in", tmp_path / f"{suffix}.out"
        folder.mkdir()
        for name in ("full", "none"):
            (folder / f"{name}.{suffix}").write_bytes((tmp_path / f"{name}.{suffix}").read_bytes())
        (folder / f"full.{suffix}.gz").write_bytes(gzip.compress((tmp_path / f"full.{suffix}").read_bytes()))
        refine_rows(identity, RefineOptions((str(folder),), str(photographs), out, batch_size=8))
        assert [path.name for path in files_of(out)] == [path.name for path in files_of(folder)]
        assert len(read(out)) == 6 and gzip.decompress((out / f"full.{suffix}.gz").read_bytes())


def test_what_a_format_cannot_hold_is_said_before_anything_is_refined(identity, photographs, tmp_path):
    pose = bodies(COCO)[0]
    for rows, to, message in (
        (
            [row_of(1, np.where(pose == pose[0, 0], np.inf, pose))],
            "mmpose",
            "a value is not finite; mmpose cannot hold",
        ),
        ([row_of(77, pose), row_of(1, pose)], "yolo", "row 0: the photograph 77 is missing"),
        ([row_of("a/1.jpg", pose), row_of("b/1.jpg", pose)], "openpose", "would share one openpose file"),
    ):
        source = write_rows(tmp_path / "r.json", rows)
        with pytest.raises(PosefixError, match=message):
            refine_rows(identity, RefineOptions((source,), str(photographs), tmp_path / "o", to=to))
        assert not (tmp_path / "o.parts").exists()
    named = write_rows(tmp_path / "r.json", [row_of("\ud800\u0000.x/..", pose)])
    convert(ConvertOptions((named,), tmp_path / "odd", "openpose"))
    assert len(list((tmp_path / "odd").iterdir())) == 1
