"""The figures of `posefix analyze`, and its page."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import detections_of
from test_errors import TRUE, scene

from posefix_jax.cli import main
from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.coco import read_annotations
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.errors import joints_of, match_file, match_people
from posefix_jax.evaluation.intervals import clustered, wilson
from posefix_jax.evaluation.oks import keypoint_scores, truth_of
from posefix_jax.evaluation.profile import calibration, corrections, shares, together, transitions, with_joints
from posefix_jax.types import ErrorKind


def test_corrected_poses_score_as_the_truth():
    annotations, rows = scene()
    rows.append(Pose(1, np.column_stack([TRUE + 5000, np.ones(17)]), score=0.95))
    matched, poses = match_people(annotations, rows), joints_of(rows, COCO)
    truth = truth_of(annotations.images, annotations.people, COCO)

    def ap(poses):
        return keypoint_scores(truth, with_joints(rows, poses), COCO).figures["AP"]

    corrected = {name: ap(made) for name, made in corrections(matched, poses)}
    true = poses.copy()
    for row, person in zip(matched.row, matched.person, strict=True):
        true[row] = annotations.people[person].joints
    assert corrected["every joint"] == ap(true) > 0.5
    kinds = ("jitter", "inversion", "swap", "miss", "absent")
    assert ap(poses) < max(corrected[kind] for kind in kinds) < corrected["all errors"] <= corrected["every joint"]


def test_shares_and_what_comes_together():
    annotations, rows = scene()
    matched = match_people(annotations, rows)
    rates = shares(matched, COCO)
    for by in ("total", "group", "joint", "labelled joints", "overlap", "size"):
        of = [share for share in rates if share.by == by]
        assert sum(share.count for share in of) == matched.labelled.sum()
        assert all(share.low <= share.share <= share.high for share in of)
    per_person = (matched.kind == ErrorKind.INVERSION).sum(axis=1)
    share = together(matched)["inversion"]
    assert (share.count, share.total) == (per_person[per_person >= 4].sum(), per_person.sum())
    labelled = np.array([person.labelled for person in annotations.people])
    table = transitions(matched, matched, labelled)
    assert table.sum() == labelled.sum() and (table == np.diag(np.diag(table))).all()
    # Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662; 0 of 20 is 0 to 0.1611.
    total = np.arange(1, 200)
    assert (wilson(0 * total, total)[0] == 0).all() and (wilson(total, total)[1] == 1).all()
    np.testing.assert_allclose(wilson([81, 0], [263, 20]), [[0.2553, 0], [0.3662, 0.1611]], atol=5e-5)


def test_intervals_are_wider_where_errors_come_together():
    """95 of 100 draws of people have the true share in their interval, whether a person's joints err together or not."""
    rng = np.random.default_rng(0)
    inside = []
    for all_joints in (False, True):
        draws = rng.random((400, 200, 1 if all_joints else 12)) < 0.1
        count = np.broadcast_to(draws, (400, 200, 12)).sum(axis=2)
        low, high = clustered(count.T, np.full_like(count.T, 12))
        inside.append(np.mean((low <= 0.1) & (0.1 <= high)))
    assert all(0.92 < share < 0.98 for share in inside), inside
    ones = (np.arange(50) < 8)[:, None]
    np.testing.assert_allclose(clustered(ones, np.ones_like(ones)), wilson([8], [50]), rtol=0.02)


def test_calibration():
    annotations, rows = scene()
    matched = match_people(annotations, rows)
    perfect = calibration(matched._replace(score=matched.oks))
    assert perfect["error"] == pytest.approx(0) and perfect["rank"] == pytest.approx(1)
    turned = calibration(matched._replace(score=matched.oks * -2))
    assert turned["error"] is None and turned["rank"] == pytest.approx(-1)
    assert calibration(matched._replace(score=np.full(len(matched.row), 0.5)))["rank"] is None


class Page(HTMLParser):
    """Checks that tags close in order and that nothing is fetched."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.count = [], {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        assert tag not in {"script", "link", "iframe"}
        for name, value in attributes:
            assert name not in {"xlink:href", "srcset"}
            assert name != "href" or value.startswith("#")
            assert name != "src" or value.startswith("data:image/jpeg;base64,")
            assert name in {"src", "xmlns"} or "//" not in (value or "")
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def files(people, tmp_path):
    for name, noise in (("d", 8.0), ("r", 3.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(detections_of(people[0], noise=noise)))
    return {"truth": people[0], "images": people[1], "d": tmp_path / "d.json", "r": tmp_path / "r.json"}


def analyze(files, *more, results="r", out="report"):
    where = files["d"].with_name(out)
    code = main([str(a) for a in ("analyze", files[results], "--annotations", files["truth"], "--out", where, *more)])
    return code, where


def test_before_and_after(files, capsys):
    code, out = analyze(files, "--against", files["d"], "--images", files["images"], "--pictures", 2, "--samples", 20)
    text = capsys.readouterr().out
    assert code == 0 and "AP changes by +" in text and "inversion" in text
    assert sorted(path.name for path in out.iterdir()) == [".posefix", "analysis.json", "errors.csv", "index.html"]
    html = (out / "index.html").read_text()
    page = Page(html)
    assert (
        page.count["img"] == 4
        and page.count["svg"] > 10
        and not re.search(r"https?:(?!//www.w3.org/2000/svg\")|url\((?!#)", html)
    )
    report = json.loads((out / "analysis.json").read_text())
    annotations = read_annotations(files["truth"])
    matched = match_file(files["r"], annotations)[1]
    good = next(s for s in report["after"]["shares"] if s["by"] == "total" and s["kind"] == "good")
    assert good["count"] == (matched.kind == ErrorKind.GOOD).sum()
    change = report["change"]
    assert change["AP"] == pytest.approx(report["after"]["figures"]["AP"] - report["before"]["figures"]["AP"])
    assert sum(change["oks_histogram"]["counts"]) == change["people"] == 6
    assert change["better"] + change["worse"] + change["same"] == 6
    distance = ((matched.xy - matched.true_xy) ** 2).sum(axis=-1)
    ks = np.exp(-distance / (2 * matched.area[:, None] * (2 * np.array(COCO.sigmas)) ** 2))
    total, by_joint = change["ks"][0], [of for of in change["ks"] if of["by"] == "joint"]
    assert total["after"] == pytest.approx(ks[matched.labelled].mean())
    assert total["after"] > total["before"]
    assert [of["joints"] for of in by_joint] == matched.labelled.sum(axis=0)[matched.labelled.any(axis=0)].tolist()
    assert "mean KS of labelled joints" in text and "Mean KS of labelled joints" in html
    rows = list(csv.DictReader((out / "errors.csv").read_text().splitlines()))
    assert len(rows) == sum(len(report[side]["shares"]) for side in ("before", "after"))
    assert {row["file"] for row in rows} == {"before", "after"}


def test_folders_and_scores_of_joints(files, tmp_path, capsys):
    """PoseTrack's way: a file of annotations and one of results per video; rows with `scores` alone."""
    assert analyze(files)[0] == 0
    wanted = json.loads((files["r"].with_name("report") / "analysis.json").read_text())["after"]
    truth, rows = (json.loads(files[name].read_text()) for name in ("truth", "r"))
    for row in rows:
        row["scores"] = [row.pop("score")] * 17
        row["keypoints"][2::3] = [0] * 17
    for image in truth["images"]:
        for folder, content in (
            ("gt", {**truth, "images": [image], "annotations": of(truth["annotations"], image)}),
            ("found", of(rows, image)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{image['id']}.json").write_text(json.dumps(content))
    folders = {"truth": tmp_path / "gt", "found": tmp_path / "found"}
    assert analyze({**files, **folders}, results="found", out="folders")[0] == 0
    found = json.loads((files["d"].with_name("folders") / "analysis.json").read_text())["after"]
    for name in ("figures", "shares", "ap_if", "people", "matched", "mean_oks"):
        assert found[name] == pytest.approx(wanted[name]) if name == "mean_oks" else found[name] == wanted[name], name


def of(entries, image):
    return [entry for entry in entries if entry["image_id"] == image["id"]]


def test_one_file_without_photographs(files, capsys):
    assert analyze(files, results="d")[0] == 0
    assert "page: " in capsys.readouterr().out
    page = Page((files["d"].with_name("report") / "index.html").read_text())
    assert "img" not in page.count


def test_people_in_photographs_that_are_not_listed_are_not_missed(files, capsys):
    """As in `evaluate`: they count neither in AP nor among the people without a pose."""
    reports = {}
    for name, keep in (("unlisted", True), ("without", False)):
        content = json.loads(files["truth"].read_text())
        gone = content["images"].pop()["id"]
        if not keep:
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]
        truth, rows = files["d"].with_name(f"{name}.json"), files["d"].with_name(f"{name}-d.json")
        truth.write_text(json.dumps(content))
        rows.write_text(json.dumps([row for row in json.loads(files["d"].read_text()) if row["image_id"] != gone]))
        code, out = analyze({**files, "truth": truth, "some": rows}, results="some", out=f"{name}-report")
        assert code == 0
        assert ("photographs that its `images` do not list" in capsys.readouterr().err) == keep
        reports[name] = json.loads((out / "analysis.json").read_text())["after"]
    assert reports["unlisted"] == reports["without"]


def test_the_commands_help(capsys):
    for arguments in (["analyze", "--help"], ["analyze", "fit", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert not stopped.value.code and "--annotations" in capsys.readouterr().out


def test_refused(files, capsys, tmp_path):
    def refused(*more, **options) -> str:
        code, out = analyze(files, *more, **options)
        lines = capsys.readouterr().err.strip().splitlines()
        assert code == 2 and len(lines) == 1 and lines[0].startswith("posefix: "), lines
        assert not out.is_dir()
        return lines[0]

    assert "No such file" in refused("--against", tmp_path / "none.json")
    assert "this is an annotation file" in refused("--against", files["truth"])
    assert "is a file; expected the name of a folder to write" in refused(out="d.json")
    assert "no such image folder" in refused("--images", tmp_path / "none")
    assert "--samples must be positive" in refused("--samples", 0)
    rows = json.loads(files["d"].read_text())
    for change, message in (
        ({"image_id": 99}, "bad.json: row 1 is of image 99"),
        ({"score": "high"}, "bad.json: row 1: score: expected a number, found 'high'"),
        ({"keypoints": [1, 2]}, "row 1: keypoints: expected a flat list of x, y, score of every joint, found 2 values"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps([rows[0], {**rows[1], **change}]))
        assert message in refused("--against", tmp_path / "bad.json")
    far = [{**row, "keypoints": [9e4] * 51} for row in rows]
    (tmp_path / "bad.json").write_text(json.dumps(far))
    assert "no pose in it lies on a person" in refused("--against", tmp_path / "bad.json")
