"""Nothing of the user's is deleted, replaced or written elsewhere, whatever names come in and whatever stands there."""

import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from conftest import change, detections_of, tree
from fsspec.implementations.memory import MemoryFile

from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.pose_files import open_pose_file
from posefix_jax.data.prepare import PrepareOptions, prepare
from posefix_jax.evaluation.analyze import AnalyzeOptions, analyze
from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate
from posefix_jax.evaluation.fit import FitOptions, fit
from posefix_jax.files import MARK, check_apart, claim, discard, inside, mark_of, whole_file
from posefix_jax.refining.convert import ConvertOptions, convert
from posefix_jax.refining.demo import DemoOptions, demo
from posefix_jax.refining.estimate import EstimateOptions, estimate
from posefix_jax.refining.refine_files import RefineOptions, refine_rows
from posefix_jax.refining.resumable_output import merge
from posefix_jax.types import PosefixError

OUTSIDE = ["../x.json", "/etc/x.json", "a/../../x.json", "..", ".", "", "a/\0.json", "../in-b/x.json"]


def refused(run, match: str, folder: Path) -> None:
    """One line that says what is wrong, and every file as it was."""
    before = tree(folder)
    with pytest.raises(PosefixError, match=match) as error:
        run()
    assert "\n" not in str(error.value)
    assert tree(folder) == before


# Names


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_is_refused(name, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(PosefixError, match="a listing: the name .* does not lie inside"):
        inside(tmp_path / "in", name, "a listing")


def test_a_name_inside_is_found_through_no_link(tmp_path):
    (tmp_path / "in").mkdir()
    assert inside(tmp_path / "in", "a/b.json", "a row") == tmp_path / "in" / "a" / "b.json"
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(PosefixError, match="does not lie inside"):
        inside(tmp_path / "in", "link/b.json", "a row")


class _Listing(http.server.BaseHTTPRequestHandler):
    """A web server's folder with an honest file and one that is named as if it lay above."""

    page, poses = b"", b"[]"

    def do_GET(self):
        body = self.page if self.path.endswith("/d/") else self.poses
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path.endswith("/d/") else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_a_web_listing_writes_nothing_outside(identity, job, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Listing)
    root = f"http://127.0.0.1:{server.server_port}/d/"
    _Listing.page = f'<a href="{root}good.json">a</a> <a href="{root}../../../ESC.json">b</a>'.encode()
    _Listing.poses = (tmp_path / "d.json").read_bytes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        deep = change(job, detections=(root,), out=tmp_path / "deep" / "er" / "out")
        refused(lambda: refine_rows(identity, deep), "ESC.json.*does not lie inside", tmp_path)
    finally:
        server.shutdown()
        server.server_close()


def test_an_object_stores_keys_write_nothing_outside(identity, job, tmp_path, monkeypatch):
    memory, data = fsspec.filesystem("memory"), (tmp_path / "d.json").read_bytes()
    for name in ("/keys/good.json", "/keys/../../ESC.json"):
        # `pipe` would resolve the name; a bucket takes it as it is.
        monkeypatch.setitem(memory.store, name, MemoryFile(memory, name, data))
    there = change(job, detections=("memory://keys",), out=tmp_path / "deep" / "out")
    refused(lambda: refine_rows(identity, there), "ESC.json.*does not lie inside", tmp_path)


@pytest.mark.parametrize("name", ["../../ESC", "/abs/ESC", "..", "a/../../../ESC.jpg"])
def test_a_rows_name_of_a_photograph_writes_nothing_outside(name, tmp_path):
    row = {"image_id": name, "category_id": 1, "keypoints": [5, 5, 1] * 17, "score": 1}
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.json").write_text(json.dumps([row]))
    out = tmp_path / "deep" / "out"
    convert(ConvertOptions((str(tmp_path / "deep" / "d.json"),), out, "openpose"))
    written = [path for path in tree(tmp_path) if not path.startswith("deep/out/")]
    assert written == ["deep/d.json", "deep/out.report.json"] and len(tree(out)) == 1


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archives_names_write_nothing_outside(kind, identity, job, people, tmp_path):
    """Photographs that are named as if they lay elsewhere are read, as any, and unpacked nowhere."""
    data, archive = (people[1] / f"{1:012d}.png").read_bytes(), tmp_path / f"i.{kind}"
    name = "../../000000000001.png"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(name, data)
    else:
        with tarfile.open(archive, "w") as packed:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    report = refine_rows(identity, change(job, images=str(archive), pictures=1))
    assert report["refined"] == 2 and report["reasons"] == {"photograph missing": 4}
    assert {path.split("/")[0] for path in tree(tmp_path)} <= {
        archive.name,
        "d.json",
        "r.json",
        "r.json.report.json",
    } | {"r.json.pictures"}


def test_a_manifests_shards_lie_in_its_folder(prepared, tmp_path):
    from posefix_jax.data.records import MANIFEST, Manifest

    manifest = json.loads((prepared / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "shards": ["../x.array_record"]}))
    with pytest.raises(PosefixError, match="does not lie inside"):
        Manifest.read(tmp_path)


# Folders and files of the user's


@pytest.mark.parametrize("files", [["notes.txt"], ["manifest.json"], ["manifest.json", "d.json"], ["0000000-a.part"]])
def test_a_users_folder_called_parts_stays(files, identity, job, tmp_path):
    parts = tmp_path / "r.json.parts"
    parts.mkdir()
    for name in files:
        (parts / name).write_text('{"job": "theirs"}')
    refused(lambda: refine_rows(identity, job), "r.json.parts exists and was not made by posefix refine", tmp_path)
    refused(lambda: merge(job.out), "no parts of a job", tmp_path)


def test_an_input_within_the_parts_is_refused(identity, job, tmp_path):
    parts = tmp_path / "r.json.parts"
    parts.mkdir()
    (tmp_path / "d.json").rename(parts / "d.json")
    inner = change(job, detections=(str(parts / "d.json"),))
    refused(lambda: refine_rows(identity, inner), "the input .* is there", tmp_path)


@pytest.mark.parametrize("spelling", ["{0}", "{1}/./{2}", "{1}/../{3}/{2}", "file://{0}", "link", "hard", "filecache"])
def test_no_output_is_an_input(spelling, identity, job, tmp_path):
    path = tmp_path / "q.json.report.json"
    (tmp_path / "d.json").rename(path)
    given = spelling.format(path, path.parent, path.name, path.parent.name)
    if spelling == "link":
        given = str(tmp_path / "link.json")
        Path(given).symlink_to(path)
    if spelling == "hard":
        given = str(tmp_path / "hard.json")
        os.link(path, given)
    if spelling == "filecache":
        given = f"filecache::file://{path}"
    same = change(job, detections=(given,), out=tmp_path / "q.json")
    refused(lambda: refine_rows(identity, same), "q.json.report.json is where output goes, but the input", tmp_path)


def test_no_other_input_is_an_output(identity, job, people, tmp_path):
    names = tmp_path / "names.json"
    names.write_bytes(people[0].read_bytes())
    refused(lambda: refine_rows(identity, change(job, annotations=names, out=names)), "input .* is there", tmp_path)
    skeleton = tmp_path / "s.json"
    skeleton.write_text(json.dumps(COCO.to_dict()))
    mine = change(job, skeleton=str(skeleton), out=skeleton)
    refused(lambda: refine_rows(identity, mine), "input .* is there", tmp_path)
    d, truth = tmp_path / "d.json", names
    refused(lambda: evaluate(EvaluateOptions(d, truth, out=d)), "input .* is there", tmp_path)
    refused(lambda: evaluate(EvaluateOptions(d, truth, out=truth)), "input .* is there", tmp_path)
    refused(lambda: fit(FitOptions((d,), truth, out=truth)), "input .* is there", tmp_path)
    boxes = EstimateOptions(boxes=truth, images=str(people[1]), out=truth)
    refused(lambda: estimate(boxes), "input .* is there", tmp_path)


def test_what_a_job_did_not_write_is_not_replaced(identity, job, tmp_path):
    """The other way round of `refine d.json --out r.json`, for one, would destroy the detections."""
    job.out.write_text("mine")
    refused(lambda: refine_rows(identity, job), "r.json exists and posefix did not write it", tmp_path)
    job.out.unlink()
    (tmp_path / "r.json.report.json").write_text('{"mine": 1}')
    refused(lambda: refine_rows(identity, job), "is not a report of posefix", tmp_path)
    (tmp_path / "r.json.report.json").unlink()
    (tmp_path / "r.json.pictures").mkdir()
    (tmp_path / "r.json.pictures" / "row-000000.png").write_text("mine")
    with pytest.raises(PosefixError, match="pictures exists and was not made by"):
        refine_rows(identity, change(job, pictures=1))
    assert (tmp_path / "r.json.pictures" / "row-000000.png").read_text() == "mine"


def test_what_a_job_wrote_is_replaced(identity, job, tmp_path):
    """The same command again, and with other options; its pictures are then this job's alone."""
    refine_rows(identity, change(job, pictures=2, min_score=0.5))
    first = tree(tmp_path / "r.json.pictures")
    refine_rows(identity, change(job, pictures=1, part_rows=3))
    assert len(first) == 3 and len(tree(tmp_path / "r.json.pictures")) == 2  # and the mark
    assert not (tmp_path / "r.json.parts").exists()


def test_links_and_devices_are_refused(identity, job, tmp_path):
    target = tmp_path / "target.json"
    target.write_text("mine")
    for place in (target, tmp_path / "nowhere.json"):
        link = tmp_path / "link.json"
        link.unlink(missing_ok=True)
        link.symlink_to(place)
        refused(lambda: refine_rows(identity, change(job, out=link)), "is a symbolic link to", tmp_path)  # noqa: B023
        assert link.is_symlink()
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: refine_rows(identity, change(job, out=tmp_path / "pipe")), "is a device or a pipe", tmp_path)
    with pytest.raises(PosefixError, match="/dev/null is a device"):
        refine_rows(identity, change(job, out=Path("/dev/null")))
    with pytest.raises(PosefixError, match="/dev/null is a device"), whole_file(Path("/dev/null")):
        pass
    assert not Path("/dev/null").is_file()


def test_prepare_replaces_only_what_it_wrote(people, tmp_path):
    truth, images = people
    out = tmp_path / "p"
    options = PrepareOptions(annotations=truth, images=images, out=out, patch=64)
    for name, content in (("manifest.json", '{"name": "a web page"}'), ("manifest.json", "[]"), ("notes.txt", "mine")):
        out.mkdir(exist_ok=True)
        (out / name).write_text(content)
        refused(lambda: prepare(options), "exists and was not written by prepare", tmp_path)
        (out / name).unlink()
    writing = tmp_path / "p.writing"
    writing.mkdir()
    (writing / "notes.txt").write_text("mine")
    refused(lambda: prepare(options), "p.writing exists and was not made by posefix prepare", tmp_path)
    (writing / "notes.txt").unlink()

    (first,) = prepare(options)
    assert set(tree(out)) == {"manifest.json", MARK, *first.shards} and not writing.exists()
    claim(writing, "posefix prepare")  # as a killed run leaves it
    (writing / "people-00000-of-00001.array_record").write_text("half")
    prepare(options)
    assert not writing.exists()
    (out / "notes.txt").write_text("mine")
    refused(lambda: prepare(options), "holds notes.txt, which prepare did not write", tmp_path)
    within = PrepareOptions(annotations=out / "truth.json", images=images, out=out)
    (out / "truth.json").write_bytes(truth.read_bytes())
    refused(lambda: prepare(within), "the input .* is there", tmp_path)


def test_other_folders_of_the_users_stay(people, tmp_path):
    truth, _ = people
    (tmp_path / "d.json").write_text(json.dumps(detections_of(truth)))
    for name in ("report", "demo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text("mine")
    page = AnalyzeOptions(tmp_path / "d.json", truth, out=tmp_path / "report", samples=5)
    refused(lambda: analyze(page), "report exists and was not made by posefix analyze", tmp_path)
    refused(lambda: demo(DemoOptions(out=tmp_path / "demo")), "demo exists and was not made by posefix demo", tmp_path)
    (tmp_path / "report" / "index.html").unlink()
    analyze(page)
    (tmp_path / "report" / "notes.txt").write_text("mine")
    analyze(page)
    assert (tmp_path / "report" / "notes.txt").read_text() == "mine"


def test_a_mark_is_of_one_command(tmp_path):
    claim(tmp_path / "a", "posefix study", "1")
    claim(tmp_path / "a", "posefix study", "1")
    with pytest.raises(PosefixError, match="was made by posefix study for something else"):
        claim(tmp_path / "a", "posefix demo", "1")
    with pytest.raises(PosefixError, match="for something else"):
        claim(tmp_path / "a", "posefix study", "2")
    (tmp_path / "a" / "x").write_text("x")
    discard(tmp_path / "a", "posefix demo")
    assert (tmp_path / "a" / "x").exists()
    claim(tmp_path / "a", "posefix study", "2", replace=True)
    assert not (tmp_path / "a" / "x").exists() and mark_of(tmp_path / "a")["digest"] == "2"
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(PosefixError, match="symbolic link"):
        claim(tmp_path / "link", "posefix study", "2")


def test_apart_sees_through_urls(tmp_path):
    (tmp_path / "a.zip").write_text("x")
    for given in (
        f"zip://b.json::{tmp_path}/a.zip",
        f"zip://b.json::file://{tmp_path}/a.zip",
        f"local://{tmp_path}/a.zip",
    ):
        with pytest.raises(PosefixError, match="the input"):
            check_apart([tmp_path / "a.zip"], [given])
    check_apart([tmp_path / "a.zip"], ["http://h/a.zip", "memory://a.zip", str(tmp_path / "b.zip")])


# Rows


TWICE = {"point": [{"id": [3], "x": [1], "y": [1]}] * 2}


def _row(**fields) -> dict:
    return {"image_id": 1, "category_id": 1, "keypoints": [9.0, 9.0, 1.0] * 17, "score": 1.0, **fields}


@pytest.mark.parametrize("joints", [14, 15, 17, 18, 33])
def test_nested_keypoints_are_refused(joints, identity, job, tmp_path):
    (tmp_path / "d.json").write_text(json.dumps([_row(keypoints=[[50.0 + i, 60.0, 0.9] for i in range(joints)])]))
    refused(lambda: refine_rows(identity, job), "row 0: keypoints: expected a flat list", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '[{"image_id": 1, "keypoints": %s, "keypoints": %s, "score": 1}]',
        '[{"image_id": 1, "keypoints": %s, "key\\u0070oints": %s, "score": 1}]',
        '{"instances": [{"keypoints": %s}], "image_id": 1, "instances": [{"keypoints": %s}]}',
        '{"images": [], "annotations": [{"image_id": 1, "keypoints": %s}], "annotations": [{"keypoints": %s}]}',
    ],
)
def test_a_name_that_stands_twice_is_refused(text, identity, job, tmp_path):
    (tmp_path / "d.json").write_text(text % (json.dumps([9] * 51), json.dumps([8] * 51)))
    refused(lambda: refine_rows(identity, job), "is used twice in an object", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "landmarks": [[{"x": 0.5, "y": 0.5}] * 33], "pose_landmarks": []}], "expected one of them"),
        (
            [{"image_id": 1, "landmarks": [{"x": [0.5], "y": [0.5], "visibility": [1]}] * 33}],
            "expected a list of lists",
        ),
        ({"annolist": [{"image": [{"name": "1"}], "annorect": [{"annopoints": [TWICE]}]}]}, "point id 3 twice"),
        ([_row(keypoints=["9"] * 51)], "no number"),
        ([{"image_id": 1, "instances": [{"keypoints": [[1, 2]] * 17, "keypoint_scores": [[1]] * 17}]}], "flat list"),
    ],
)
def test_a_row_that_could_be_half_rewritten_is_refused(content, message, identity, job, tmp_path):
    (tmp_path / "d.json").write_text(json.dumps(content))
    refused(lambda: refine_rows(identity, job), message, tmp_path)


def test_evaluate_refuses_nested_keypoints(people, tmp_path):
    (tmp_path / "d.json").write_text(json.dumps([_row(keypoints=[[9]] * 51)]))
    with pytest.raises(PosefixError, match="row 0: keypoints: expected a flat list of numbers"):
        evaluate(EvaluateOptions(tmp_path / "d.json", people[0]))


def test_a_joint_that_ultralytics_dropped_is_missing(identity, tmp_path):
    """Written `0 0 0.35`, it takes no part in the crop, is filled in, and stays as written where it is to be kept."""
    (tmp_path / "i").mkdir()
    cv2.imwrite(str(tmp_path / "i" / "a.png"), np.zeros((200, 400, 3), np.uint8))
    xy = [(0.5 + 0.01 * i, 0.4 + 0.02 * i) for i in range(17)]
    words = " ".join("0 0 0.35" if i in (3, 9) else f"{x:.4f} {y:.4f} 0.9" for i, (x, y) in enumerate(xy))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(f"0 0.6 0.6 0.2 0.4 {words}\n")
    (pose,) = [
        p
        for e in open_pose_file(str(tmp_path / "in" / "a.txt"), skeleton=None, preferred=COCO).elements()
        for p in e.poses
    ]
    assert np.flatnonzero(pose.joints[:, 2] == 0).tolist() == [3, 9]
    options = RefineOptions(
        (str(tmp_path / "in"),), str(tmp_path / "i"), tmp_path / "kept", missing="keep", batch_size=8
    )
    refine_rows(identity, options)
    kept = (tmp_path / "kept" / "a.txt").read_text().split()
    assert kept[5 + 9 : 5 + 12] == ["0", "0", "0.35"]
    before, after = (
        np.array(line[5:], float).reshape(17, 3) for line in ((tmp_path / "in" / "a.txt").read_text().split(), kept)
    )
    there = np.array([i not in (3, 9) for i in range(17)])
    np.testing.assert_allclose((after - before)[there, :2] * [400, 200], 0, atol=0.02)
    refine_rows(identity, change(options, missing="fill", out=tmp_path / "filled"))
    filled = np.array((tmp_path / "filled" / "a.txt").read_text().split()[5:], float).reshape(17, 3)
    assert (filled[[3, 9], :2] > 0.3).all()  # near the person, not in the corner
