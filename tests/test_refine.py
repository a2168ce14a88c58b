import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from conftest import detections_of, identity_network
from pycocotools.coco import COCO

from posefix_jax.checkpoints import save_refiner
from posefix_jax.models import DecodeConfig, RefinerSpec
from posefix_jax.refine import RefineOptions, refine, refine_rows
from posefix_jax.refiner import Refiner
from posefix_jax.types import PosefixError


@pytest.fixture(scope="module")
def identity(tiny_spec) -> Refiner:
    spec = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, tiny_spec.trained_joints, DecodeConfig("soft-argmax"))
    return Refiner(identity_network(spec), {}, spec, batch_size=8)


def shift_network(spec: RefinerSpec):
    """Says that every joint is two heatmap cells right of and below its input (mirrored: left of)."""
    network = identity_network(spec)

    def shifted(variables, image, crop_xy, present):
        return network(variables, image, crop_xy + np.array([8, 8], np.float32), present)

    return shifted


@pytest.fixture
def job(people, tmp_path):
    truth, images = people
    detections = tmp_path / "d.json"
    detections.write_text(json.dumps(detections_of(truth)))
    return RefineOptions(detections=detections, images=images, out=tmp_path / "r.json")


def rows_of(path: Path) -> list[dict]:
    return json.loads(Path(path).read_text())


def joints_of(row) -> np.ndarray:
    return np.asarray(row["keypoints"], float).reshape(17, 3)


def change(job, **fields):
    return RefineOptions(**{**vars(job), **fields})


def test_identity_gives_back_its_input(identity, job, people):
    """Through crop, flip and un-crop within 0.01 px; order, rows and other keys untouched; pycocotools loads it."""
    report = refine_rows(identity, job)
    before, after = rows_of(job.detections), rows_of(job.out)
    assert report["refined"] == len(before) == len(after) and not report["passed_through"]
    for a, b in zip(before, after, strict=True):
        assert {k: v for k, v in a.items() if k != "keypoints"} == {k: v for k, v in b.items() if k != "keypoints"}
        present = joints_of(a)[:, 2] > 0
        assert np.abs(joints_of(a) - joints_of(b))[present].max() < 0.01
    truth = COCO(str(people[0]))
    assert len(truth.loadRes(str(job.out)).anns) == len(after)


def test_missing_joints(identity, job):
    """Filled in by default, with a score; left alone when asked; they take no part in the crop."""
    rows = rows_of(job.detections)
    for row in rows:
        row["keypoints"][0:3] = [9999.0, -9999.0, 0]
    job.detections.write_text(json.dumps(rows))
    refine_rows(identity, change(job, missing="keep"))
    kept = joints_of(rows_of(job.out)[0])
    assert kept[0].tolist() == [9999.0, -9999.0, 0]
    refine_rows(identity, change(job, out=job.out.with_name("filled.json")))
    filled = joints_of(rows_of(job.out.with_name("filled.json"))[0])
    assert 0 < filled[0, 2] <= 1 and abs(filled[0, :2]).max() < 400
    present = kept[:, 2] > 0
    np.testing.assert_allclose(filled[present], kept[present], atol=0.01)


def test_rescoring_ranks_what_the_refiner_expects_to_be_better(identity, job):
    """Scores shrink by the expected KS, which lies between 0 and 1; rows that pass through keep theirs."""
    rows = rows_of(job.detections)
    rows[1]["image_id"] = 77
    job.detections.write_text(json.dumps(rows))
    refine_rows(identity, change(job, rescore=True))
    after = rows_of(job.out)
    assert after[1]["score"] == rows[1]["score"]
    ratios = [b["score"] / a["score"] for i, (a, b) in enumerate(zip(rows, after, strict=True)) if i != 1]
    assert all(0 < ratio < 1 for ratio in ratios) and len(set(ratios)) == len(ratios)


def test_oks_nms_leaves_out_the_worse_of_two_that_are_one(identity, job):
    """Only within a photograph, only refined rows, best score first; the others keep their order; the report tells."""
    rows = rows_of(job.detections)
    double = {**rows[0], "score": rows[0]["score"] / 2}
    elsewhere = {**rows[0], "image_id": rows[-1]["image_id"]}
    other_kind = {**rows[0], "category_id": 2}
    job.detections.write_text(json.dumps([double, *rows, elsewhere, other_kind]))
    report = refine_rows(identity, change(job, oks_nms=0.9))
    assert [(entry["row"], entry["reason"]) for entry in report["left_out"]] == [(0, "OKS-NMS")]
    after = rows_of(job.out)
    assert [row["track"] for row in after] == [row["track"] for row in [*rows, elsewhere, other_kind]]


def test_rows_that_cannot_be_refined_pass_through(identity, job):
    rows = rows_of(job.detections)
    rows[0]["category_id"] = 2
    rows[1]["keypoints"][4] = float("nan")
    rows[2]["image_id"] = 77
    rows[3]["keypoints"] = [0] * 51
    rows[4]["keypoints"][2::3] = [-1] * 17
    job.detections.write_text(json.dumps(rows))
    report = refine_rows(identity, job)
    assert [(entry["row"], entry["reason"]) for entry in report["passed_through"]] == [
        (0, "category 2, not 1"),
        (1, "a value is not finite"),
        (2, "photograph missing"),
        (3, "no usable joint"),
        (4, "no usable joint"),
    ]
    assert rows_of(job.out.with_name("r.json.report.json")) == json.loads(json.dumps(report))
    after = rows_of(job.out)
    assert len(after) == len(rows)
    for a, b in list(zip(rows, after, strict=True))[:5]:
        np.testing.assert_equal(b, a)
    with pytest.raises(PosefixError, match="row 0 cannot be refined: category 2"):
        refine_rows(identity, change(job, strict=True, out=job.out.with_name("strict.json")))
    assert not job.out.with_name("strict.json").exists()


def test_unreadable_and_odd_photographs(identity, job, tmp_path):
    """Broken: listed. Grayscale, 16 bit, alpha, JPEG: refined."""
    images = tmp_path / "odd"
    images.mkdir()
    (images / "1.jpg").write_bytes(b"\xff\xd8 broken")
    noise = np.random.default_rng(0).integers(0, 255, (240, 320), dtype=np.uint8)
    cv2.imwrite(str(images / "2.png"), noise.astype(np.uint16) * 257)
    cv2.imwrite(str(images / "3.png"), np.dstack([noise] * 4))
    report = refine_rows(identity, change(job, images=images))
    assert {entry["image_id"] for entry in report["passed_through"]} == {1}
    assert all(entry["reason"].startswith("photograph unreadable") for entry in report["passed_through"])
    assert report["refined"] == 4


def test_exif_is_ignored_unless_asked(tmp_path):
    from posefix_jax.data.images import read_image

    plain = np.zeros((20, 40, 3), np.uint8)
    ok, data = cv2.imencode(".jpg", plain)
    assert ok
    # An APP1 segment whose one entry says orientation 6: turn by 90 degrees.
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    turned = data.tobytes()[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data.tobytes()[2:]
    (tmp_path / "a.jpg").write_bytes(turned)
    assert read_image(tmp_path / "a.jpg").shape == (20, 40, 3)
    assert read_image(tmp_path / "a.jpg", exif=True).shape == (40, 20, 3)


def test_people_beyond_the_photograph(identity):
    """Larger than the photograph, partly outside, wholly outside: refined in the same frame, finite."""
    image = np.zeros((50, 60, 3), np.uint8)
    rng = np.random.default_rng(0)
    poses = np.stack(
        [rng.uniform(low, high, (17, 2)) for low, high in ((-500, 600), (30, 120), (300, 400), (5, 5.001))]
    )
    refined = identity.refine(image, poses)
    np.testing.assert_allclose(refined[..., :2], poses, atol=0.05)
    assert (refined[..., 2] == 1).all()


def test_flip_is_undone(tiny_spec):
    """A network that pushes right in the crop it sees pushes left in the mirrored one: averaged, x stays, y moves."""
    spec = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, tiny_spec.trained_joints, DecodeConfig("soft-argmax"))
    image, pose = np.zeros((200, 200, 3), np.uint8), np.random.default_rng(0).uniform(60, 140, (1, 17, 2))
    pose[0, :2] = [[50, 50], [150, 150]]
    scale = 150 / 64  # extent 100, x 1.2 x 1.25, over 64 crop pixels
    for flip, expected in ((False, (8, 8)), (True, (0, 8))):
        refined = Refiner(shift_network(spec), {}, spec, flip=flip, batch_size=8).refine(image, pose)
        moved = (refined[0, :, :2] - pose[0]) / scale
        np.testing.assert_allclose(moved, np.broadcast_to(expected, (17, 2)), atol=1e-3)


def test_untrained_joints_and_good_joints_stay(tiny_spec):
    """Exactly: not trained, or the map promises no more than the margin."""
    image, pose = np.zeros((200, 200, 3), np.uint8), np.random.default_rng(0).uniform(60, 140, (1, 17, 2))
    trained = tuple(i >= 5 for i in range(17))
    spec = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, trained, DecodeConfig("ks"))
    refined = Refiner(shift_network(spec), {}, spec, flip=False, batch_size=8).refine(image, pose)
    assert (refined[0, :5, :2] == pose[0, :5]).all() and (refined[0, 5:, :2] != pose[0, 5:]).all()
    careful = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, trained, DecodeConfig("ks", keep_margin=1.0))
    sure = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, trained, DecodeConfig("ks", min_ks=1.0))
    for spec in (careful, sure):
        kept = Refiner(shift_network(spec), {}, spec, flip=False, batch_size=8).refine(image, pose)
        assert (kept[..., :2] == pose).all()


def test_decoder_keeps_a_good_input(tiny_spec):
    """The ks decoder leaves a joint on the peak of its map exactly where it was.

    The margin is that of a map of 16 x 16 cells: half a cell is much for an eye.
    """
    image, pose = np.zeros((200, 200, 3), np.uint8), np.random.default_rng(0).uniform(60, 140, (1, 17, 2))
    spec = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, tiny_spec.trained_joints, DecodeConfig(keep_margin=0.3))
    refined = Refiner(identity_network(spec), {}, spec, batch_size=8).refine(image, pose)
    assert (refined[..., :2] == pose).all()


def test_output_is_no_folder_and_not_the_input(identity, job):
    with pytest.raises(PosefixError, match="detections file itself"):
        refine_rows(identity, change(job, out=job.detections))
    with pytest.raises(PosefixError, match="is a folder"):
        refine_rows(identity, change(job, out=job.detections.parent))


def test_file_names_and_joints_of_the_annotations_count(identity, job, people):
    """Any COCO file with images will do; one whose joints are others in another order is refused."""
    content = json.loads(people[0].read_text())
    names = job.detections.with_name("names.json")
    names.write_text(json.dumps({"images": content["images"]}))
    assert refine_rows(identity, change(job, annotations=names))["refined"] == 6
    content["categories"][0]["keypoints"] = content["categories"][0]["keypoints"][::-1]
    names.write_text(json.dumps(content))
    with pytest.raises(PosefixError, match="take a refiner of that skeleton"):
        refine_rows(identity, change(job, annotations=names))


def test_python_refuses_what_does_not_fit(identity):
    with pytest.raises(PosefixError, match=r"poses must be \[N, 17"):
        identity.refine(np.zeros((9, 9, 3), np.uint8), np.zeros((1, 16, 2)))
    with pytest.raises(PosefixError, match="uint8"):
        identity.refine(np.zeros((9, 9, 3)), np.zeros((1, 17, 2)))
    assert identity.refine(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 17, 3))).shape == (0, 17, 3)


def test_goes_on_where_it_stopped(identity, job, monkeypatch):
    """Interrupted after the first batch: OUT is not there, and the second attempt sends only the rest."""
    job.detections.write_text(json.dumps(rows_of(job.detections) * 4))  # 24 rows, three batches
    start, sent = Refiner.start, []

    def third_time_unlucky(self, crops):
        sent.append(len(crops))
        if len(sent) == 3:
            raise KeyboardInterrupt
        return start(self, crops)

    monkeypatch.setattr(Refiner, "start", third_time_unlucky)
    with pytest.raises(KeyboardInterrupt):
        refine_rows(identity, job)
    assert not job.out.exists() and job.out.with_name("r.json.partial").exists()
    refine_rows(identity, job)
    # One batch had come back when the third was sent; the other two are sent again.
    assert sum(sent[3:]) == 16 and not job.out.with_name("r.json.partial").exists()
    undisturbed = change(job, out=job.out.with_name("whole.json"))
    refine_rows(identity, undisturbed)
    assert job.out.read_bytes() == undisturbed.out.read_bytes()


def test_checkpoint_round_trip(tiny_spec, job, tmp_path):
    """Saved, loaded by the job, equal to the network that was saved, to 16 bits."""
    h, w = tiny_spec.model.crop_hw
    shapes = np.zeros((1, h, w, 3), np.float32), np.zeros((1, 17, 2), np.float32), np.ones((1, 17), bool)
    variables = jax.jit(tiny_spec.network().init)(jax.random.key(0), *shapes)
    save_refiner(tmp_path / "ckpt", variables, tiny_spec, dtype=np.float16)
    loaded = Refiner.load(tmp_path / "ckpt", batch_size=8)
    assert loaded.spec == tiny_spec
    rows = rows_of(job.detections)
    refine(change(job, checkpoint=tmp_path / "ckpt", batch_size=8, pictures=2))
    assert len(rows_of(job.out)) == len(rows)
    assert len(list(job.out.with_name("r.json.pictures").glob("*.png"))) == 2
    with pytest.raises(PosefixError, match="exists"):
        save_refiner(tmp_path / "ckpt", variables, tiny_spec)


def test_killed_job_leaves_no_half_file(people, tmp_path):
    """SIGKILL of a real process amid its work, then the same command: the rest is done, the output is whole."""
    truth, images = people
    detections, out = tmp_path / "d.json", tmp_path / "r.json"
    detections.write_text(json.dumps(detections_of(truth) * 20))
    partial = out.with_name("r.json.partial")
    command = [sys.executable, "-m", "posefix_jax.cli", "refine", "--detections", str(detections)]
    command += ["--images", str(images), "--out", str(out), "--batch-size", "8"]
    process = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not partial.exists() or len(partial.read_bytes().splitlines()) < 9):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists() and not out.exists()
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(out)) == 120 and not partial.exists()
