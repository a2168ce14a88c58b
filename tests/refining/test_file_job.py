"""The job and its resumable output alone: how rows are divided, what is written, what is refused."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.pose_files import PoseFiles
from posefix_jax.refining.file_job import FileJob
from posefix_jax.refining.resumable_output import JobManifest, Parts, merge
from posefix_jax.types import PosefixError

MANIFEST = JobManifest(
    job="a" * 64,
    rows=3,
    parts=2,
    shards=1,
    single=True,
    apart=False,
    format="coco",
    head="[",
    between=", ",
    tail="]\n",
    lists_images=False,
    joints=list(COCO.joints),
    report={"detections": "d.json"},
)


def header(first_row: int, rows: int, **more) -> dict:
    return {
        "first_row": first_row,
        "rows": rows,
        "refined": rows,
        "joints_moved": 1,
        "passed_through": [],
        "left_out": [],
    } | more


def test_parts_in_any_order_are_one_file(tmp_path):
    """Separators go between segments only, whichever part they come from; the report sums up the headers."""
    out = tmp_path / "r.json.gz"
    parts = Parts(out, MANIFEST)
    reason = {"row": 2, "image_id": 5, "reason": "photograph missing"}
    parts.write(1, header(2, 1, refined=0, passed_through=[reason]), [("", b', {"row": 2}')])
    assert parts.has(1) and not parts.has(0) and parts.header(1)["rows"] == 1
    with pytest.raises(PosefixError, match=r"1 of 2 parts are missing \(0\)"):
        merge(out)
    parts.write(0, header(0, 2), [("", b', {"row": 0}, {"row": 1}')])
    report = merge(out)
    assert json.loads(gzip.decompress(out.read_bytes())) == [{"row": 0}, {"row": 1}, {"row": 2}]
    assert report["rows"] == 3 and report["refined"] == 2 and report["reasons"] == {"photograph missing": 1}
    assert json.loads((tmp_path / "r.json.gz.report.json").read_text())["passed_through"] == [reason]
    assert not (tmp_path / "r.json.gz.parts").exists()


def test_parts_of_another_job_are_removed(tmp_path):
    out = tmp_path / "r.json"
    Parts(out, MANIFEST).write(0, header(0, 2), [])
    assert Parts(out, MANIFEST).has(0)
    assert not Parts(out, replace(MANIFEST, job="b" * 64)).has(0)
    with pytest.raises(PosefixError, match="another job has started to write there"):
        merge(out, "c" * 64)


def test_rows_that_are_missing_or_doubled_are_found(tmp_path):
    out = tmp_path / "r.json"
    parts = Parts(out, MANIFEST)
    for second, message in (
        (header(1, 2), "a row is doubled"),
        (header(3, 1), "a row is missing"),
        (header(2, 5), "7 rows in all"),
    ):
        parts.write(0, header(0, 2), [("", b", 0")])
        parts.write(1, second, [("", b", 1")])
        with pytest.raises(PosefixError, match=message):
            merge(out)
        assert not out.exists()


def test_a_file_per_photograph(tmp_path):
    """Segments of one name are one file, but where each photograph has its own a second one of the name is refused."""
    out = tmp_path / "out"
    manifest = replace(MANIFEST, single=False, head="", between="", tail="", rows=2)
    for apart, message in ((False, None), (True, "would share a.txt")):
        manifest = replace(manifest, apart=apart, job=f"{apart}")
        parts = Parts(tmp_path / f"out-{apart}", manifest)
        parts.write(0, header(0, 1), [("a.txt", b"0\n")])
        parts.write(1, header(1, 1), [("a.txt", b"1\n"), ("b/c.txt", b"2\n")])
        if message is None:
            merge(tmp_path / f"out-{apart}")
            assert (tmp_path / "out-False" / "a.txt").read_bytes() == b"0\n1\n"
            assert (tmp_path / "out-False" / "b" / "c.txt").read_bytes() == b"2\n"
        else:
            with pytest.raises(PosefixError, match=message):
                merge(tmp_path / f"out-{apart}")
    assert not out.exists()


def rows(*images: int) -> list[dict]:
    return [{"image_id": image, "category_id": 1, "keypoints": [1.0, 2.0, 1] * 17, "score": 0.5} for image in images]


def job_of(tmp_path: Path, content: list[dict], **options) -> FileJob:
    (tmp_path / "d.json").write_text(json.dumps(content))
    source = PoseFiles.open([(str(tmp_path / "d.json"), "")], skeleton=None, preferred=COCO)
    return FileJob(source, tmp_path / "r.json", **options)


def test_parts_end_with_a_photograph(tmp_path):
    """So that its rows are refined together, unless it has twice as many rows as a part."""
    job = job_of(tmp_path, rows(1, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4), rows_per_part=2)
    images = [[pose.image for pose in part.poses] for part in job.parts()]
    assert images == [[1, 1], [2, 2, 2], [3, 4, 4, 4], [4, 4, 4, 4]]
    assert [part.first_row for part in job.parts()] == [0, 2, 5, 9]
    assert [part.number for part in job.parts()] == [0, 1, 2, 3]


def test_a_job_that_changes_nothing_writes_its_input(tmp_path):
    """Byte for byte; the digest depends on settings and content, and every part is checked."""
    job, seen = job_of(tmp_path, rows(1, 2, 2, 3), rows_per_part=1), []
    store, count = job.start(settings={"a": 1}, check=lambda part: seen.append(part.number))
    assert count == 4 and seen == [0, 1, 2]
    assert job.start(settings={"a": 2})[0].job != store.job
    store, _ = job.start(settings={"a": 1})
    for part in job.parts():
        job.finish(part, store)
    assert merge(tmp_path / "r.json", store.job)["joints_moved"] == 0
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "d.json").read_bytes()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_replaced_while_the_job_runs_is_noticed(tmp_path, in_place):
    """Before a part that may mix both is written; the same command then begins anew."""
    job = job_of(tmp_path, rows(1, 2), rows_per_part=1)
    store, _ = job.start(settings={})
    parts = job.parts()
    job.finish(next(parts), store)
    if not in_place:
        (tmp_path / "d.json").unlink()
    again = job_of(tmp_path, rows(3, 4, 5), rows_per_part=1)
    with pytest.raises(PosefixError, match="d.json: changed while the job ran; run the same command again"):
        job.finish(next(parts), store)
    assert not list(tmp_path.glob("r.json.parts/0000001-*"))
    assert again.start(settings={})[0].job != store.job


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(PosefixError, match="d.json: no poses to work on"):
        job_of(tmp_path, [], rows_per_part=1).start(settings={})
