import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import fuzz
import jax
import numpy as np
import pytest
from conftest import COMPILED, change, detections_of
from format_samples import sample_files
from pycocotools.coco import COCO

from posefix_jax.refining.engine import Engine
from posefix_jax.refining.refine_files import RefineOptions, refine, refine_rows
from posefix_jax.refining.refiner import Refiner
from posefix_jax.refining.resumable_output import merge
from posefix_jax.runtime.checkpoints import save_refiner
from posefix_jax.types import PosefixError


@pytest.fixture
def job(people, tmp_path):
    truth, images = people
    detections = tmp_path / "d.json"
    detections.write_text(json.dumps(detections_of(truth)))
    return RefineOptions(detections=(str(detections),), images=str(images), out=tmp_path / "r.json")


def source(job) -> Path:
    return Path(job.detections[0])


def report_of(job) -> dict:
    return json.loads(job.out.with_name(job.out.name + ".report.json").read_text())


def rows_of(path: Path) -> list[dict]:
    return json.loads(Path(path).read_text())


def joints_of(row) -> np.ndarray:
    return np.asarray(row["keypoints"], float).reshape(17, 3)


def test_identity_gives_back_its_input(identity, job, people):
    """Through crop, flip and un-crop within 0.01 px; order, rows and other keys untouched; pycocotools loads it."""
    report = refine_rows(identity, job)
    before, after = rows_of(source(job)), rows_of(job.out)
    assert report["refined"] == len(before) == len(after) and not report_of(job)["passed_through"]
    for a, b in zip(before, after, strict=True):
        assert {k: v for k, v in a.items() if k != "keypoints"} == {k: v for k, v in b.items() if k != "keypoints"}
        present = joints_of(a)[:, 2] > 0
        assert np.abs(joints_of(a) - joints_of(b))[present].max() < 0.01
    truth = COCO(str(people[0]))
    assert len(truth.loadRes(str(job.out)).anns) == len(after)


def test_missing_joints(identity, job):
    """Filled in by default, with a score; left alone when asked; they take no part in the crop."""
    rows = rows_of(source(job))
    for row in rows:
        row["keypoints"][0:3] = [9999.0, -9999.0, 0]
    source(job).write_text(json.dumps(rows))
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
    rows = rows_of(source(job))
    rows[1]["image_id"] = 77
    source(job).write_text(json.dumps(rows))
    refine_rows(identity, change(job, rescore=True))
    after = rows_of(job.out)
    assert after[1]["score"] == rows[1]["score"]
    ratios = [b["score"] / a["score"] for i, (a, b) in enumerate(zip(rows, after, strict=True)) if i != 1]
    assert all(0 < ratio < 1 for ratio in ratios) and len(set(ratios)) == len(ratios)


def test_oks_nms_leaves_out_the_worse_of_two_that_are_one(identity, job):
    """Only within a photograph, only refined rows, best score first; the others keep their order; the report tells."""
    rows = rows_of(source(job))
    double = {**rows[0], "score": rows[0]["score"] / 2}
    elsewhere = {**rows[0], "image_id": rows[-1]["image_id"]}
    other_kind = {**rows[0], "category_id": 2}
    source(job).write_text(json.dumps([double, *rows, elsewhere, other_kind]))
    refine_rows(identity, change(job, oks_nms=0.9))
    assert [(entry["row"], entry["reason"]) for entry in report_of(job)["left_out"]] == [(0, "OKS-NMS")]
    after = rows_of(job.out)
    assert [row["track"] for row in after] == [row["track"] for row in [*rows, elsewhere, other_kind]]


def test_rows_that_cannot_be_refined_pass_through(identity, job):
    rows = rows_of(source(job))
    rows[0]["category_id"] = 2
    rows[1]["keypoints"][4] = float("inf")
    rows[2]["image_id"] = 77
    rows[3]["keypoints"] = [0] * 51
    rows[4]["keypoints"][2::3] = [-1] * 17
    source(job).write_text(json.dumps(rows))
    report = refine_rows(identity, job)
    assert report["reasons"] == {"no usable joint": 2} | dict.fromkeys(
        ["category 2, not 1", "a value is not finite", "photograph missing"], 1
    )
    assert [(entry["row"], entry["reason"]) for entry in report_of(job)["passed_through"]] == [
        (0, "category 2, not 1"),
        (1, "a value is not finite"),
        (2, "photograph missing"),
        (3, "no usable joint"),
        (4, "no usable joint"),
    ]
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
    report = refine_rows(identity, change(job, images=str(images)))
    passed = report_of(job)["passed_through"]
    assert {entry["image_id"] for entry in passed} == {1}
    assert all(entry["reason"].startswith("photograph unreadable") for entry in passed)
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
    refined = identity.refine(image, poses).poses
    np.testing.assert_allclose(refined[..., :2], poses, atol=0.05)
    assert (refined[..., 2] == 1).all()


def test_output_is_no_folder_and_not_the_input(identity, job):
    with pytest.raises(PosefixError, match="the input .* is there"):
        refine_rows(identity, change(job, out=source(job)))
    with pytest.raises(PosefixError, match="the input .* is there"):
        refine_rows(identity, change(job, out=source(job).parent))
    (source(job).parent / "folder").mkdir()
    with pytest.raises(PosefixError, match="is a folder"):
        refine_rows(identity, change(job, out=source(job).parent / "folder"))


def test_file_names_of_the_annotations_count(identity, job, people):
    """Any COCO file with images will do."""
    names = source(job).with_name("names.json")
    names.write_text(json.dumps({"images": json.loads(people[0].read_text())["images"]}))
    assert refine_rows(identity, change(job, annotations=names))["refined"] == 6


def test_goes_on_where_it_stopped(identity, job, monkeypatch):
    """Interrupted in the third of three parts: OUT is not there, and the second attempt sends only what was not done."""
    source(job).write_text(json.dumps(sorted(rows_of(source(job)) * 4, key=lambda row: row["image_id"])))  # 24 rows
    job = change(job, part_rows=8)
    send, sent = Engine.send, []

    def third_time_unlucky(self, crops, trust=None):
        sent.append(len(crops))
        if len(sent) == 3:
            raise KeyboardInterrupt
        return send(self, crops, trust)

    monkeypatch.setattr(Engine, "send", third_time_unlucky)
    with pytest.raises(KeyboardInterrupt):
        refine_rows(identity, job)
    assert not job.out.exists() and len(list(job.out.with_name("r.json.parts").glob("*.part"))) == 1
    refine_rows(identity, job)
    # One part was whole when the third batch was sent; the other two are done again.
    assert sum(sent[3:]) == 16 and not job.out.with_name("r.json.parts").exists()
    undisturbed = change(job, out=job.out.with_name("whole.json"))
    refine_rows(identity, undisturbed)
    assert job.out.read_bytes() == undisturbed.out.read_bytes()


def test_shards_are_merged_and_checked(identity, job):
    """Three processes' shares, in any order, are the bytes of one; a part that is not there, or twice, is named."""
    source(job).write_text(json.dumps(sorted(rows_of(source(job)) * 4, key=lambda row: row["image_id"])))
    whole = change(job, part_rows=6, out=job.out.with_name("whole.json"))
    refine_rows(identity, whole)
    job = change(job, part_rows=6)
    for shard in (2, 0):
        assert refine_rows(identity, change(job, shard=f"{shard}/3"))["of"] == 24
    with pytest.raises(PosefixError, match=r"1 of 3 parts are missing \(1\); run again --shard 1/3"):
        merge(job.out)
    refine_rows(identity, change(job, shard="1/3"))
    parts = job.out.with_name("r.json.parts")
    first, second, _ = sorted(parts.glob("*.part"))
    second.rename(parts / "kept")
    second.write_bytes(first.read_bytes())
    with pytest.raises(PosefixError, match="begins with row 0, expected 8; a row is doubled"):
        merge(job.out)
    second.write_bytes(b"")
    with pytest.raises(PosefixError, match="damaged, its checksum does not fit"):
        merge(job.out)
    (parts / "kept").rename(second)
    assert merge(job.out)["refined"] == 24
    assert job.out.read_bytes() == whole.out.read_bytes() and not parts.exists()


def test_parts_of_another_job_do_not_count(identity, job):
    """Other options, other rows: begun anew, whatever lies in OUT.parts."""
    refine_rows(identity, change(job, shard="0/2"))
    source(job).write_text(json.dumps(rows_of(source(job))[:5]))
    assert refine_rows(identity, job)["rows"] == 5 and len(rows_of(job.out)) == 5


def test_a_full_disk_is_one_line_and_no_half_file(job):
    """The system refuses the write (here by a limit on the size of files): said so, and nothing lies there."""
    script = "; ".join(
        [
            "import resource, sys",
            "from posefix_jax.cli import main",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))",
            f"sys.exit(main(['convert', {str(source(job))!r}, '--to', 'mmpose', '--out', {str(job.out)!r}]))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("cannot write (File too large)"), done.stderr
    assert "Traceback" not in done.stderr and not job.out.exists() and not list(job.out.parent.rglob("*.writing"))


@pytest.mark.slow
def test_checkpoint_round_trip(tiny_spec, job, tmp_path):
    """Saved, loaded by the job, equal to the network that was saved, to 16 bits."""
    h, w = tiny_spec.model.crop_hw
    shapes = np.zeros((1, h, w, 3), np.float32), np.zeros((1, 17, 2), np.float32), np.ones((1, 17), bool)
    variables = jax.jit(tiny_spec.network().init)(jax.random.key(0), *shapes)
    save_refiner(tmp_path / "ckpt", variables, tiny_spec, dtype=np.float16)
    loaded = Refiner.load(tmp_path / "ckpt", batch_size=8)
    assert loaded.spec == tiny_spec
    rows = rows_of(source(job))
    refine(change(job, checkpoint=tmp_path / "ckpt", batch_size=8, pictures=2))
    assert len(rows_of(job.out)) == len(rows)
    assert len(list(job.out.with_name("r.json.pictures").glob("*.png"))) == 2
    with pytest.raises(PosefixError, match="exists"):
        save_refiner(tmp_path / "ckpt", variables, tiny_spec)


@pytest.mark.slow
def test_killed_job_leaves_no_half_file(people, tmp_path):
    """SIGKILL of a real process amid its work, then the same command: the rest is done, the output is whole."""
    truth, images = people
    detections, out = tmp_path / "d.json", tmp_path / "r.json"
    detections.write_text(json.dumps(sorted(detections_of(truth) * 20, key=lambda row: row["image_id"])))
    parts = out.with_name("r.json.parts")
    command = [sys.executable, "-m", "posefix_jax.cli", "refine", "--detections", str(detections)]
    command += ["--images", str(images), "--out", str(out), "--batch-size", "8", "--part-rows", "16"]
    environment = os.environ | COMPILED
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(parts.glob("*.part")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert parts.exists() and not out.exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(out)) == 120 and not parts.exists()


@pytest.mark.parametrize("part", range(4))
@pytest.mark.slow
def test_damaged_files_end_in_valid_output_or_one_line(part, identity, people, tmp_path):
    """500 of them (20,000 in benchmarks/files.py fuzz); never another exception, a lost row, a half file."""
    good = detections_of(people[0])[:4]
    others = sample_files()

    def run(detections, images, out):
        return refine_rows(identity, RefineOptions((str(detections),), str(images), out, batch_size=8))

    ends = []
    for seed in range(125 * part, 125 * (part + 1)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        ends.append(fuzz.judge(run, folder, seed, good, others))
    assert {fuzz.GOOD, fuzz.BAD} == set(ends)
