"""`posefix inspect`: what a file is, and what refine would make of it."""

import gzip
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import detections_of
from format_samples import samples

from posefix_jax.cli import main
from posefix_jax.refining.inspect_files import InspectOptions, inspect_files, text_of
from posefix_jax.types import PosefixError


@pytest.fixture
def place(people, tmp_path) -> Path:
    """A folder with d.json and a link to its photographs."""
    truth, images = people
    (tmp_path / "d.json").write_text(json.dumps(detections_of(truth)))
    (tmp_path / "photographs").symlink_to(images)
    return tmp_path


def look(place: Path, **options) -> dict:
    return inspect_files(InspectOptions((str(place / "d.json"),), **options))


def change(place: Path, function) -> None:
    rows = json.loads((place / "d.json").read_text())
    (place / "d.json").write_text(json.dumps([function(i, row) or row for i, row in enumerate(rows)]))


def test_a_file_and_its_photographs(place):
    report = look(place, images=str(place / "photographs"))
    assert (report["format"], report["rows"], report["complete"], report["problems"]) == ("coco", 6, True, [])
    assert (report["joints"]["name"], report["joints"]["told_by"], report["joints"]["sigmas"]) == (
        "coco",
        "their number",
        "known",
    )
    rows = json.loads((place / "d.json").read_text())
    xy = np.array([row["keypoints"] for row in rows]).reshape(-1, 3)
    xy = xy[xy[:, 2] > 0]
    assert report["coordinates"]["x"] == pytest.approx([xy[:, 0].min(), xy[:, 0].max()], abs=1e-3)
    sights = report["photographs"]
    assert sights["found"] == {"by number": 6} and sights["distinct"] == 3 and sights["rotated_by_exif"] == 0
    sizes = {int(p.stem): cv2.imread(str(p)).shape[:2] for p in (place / "photographs").iterdir()}
    inside = []
    for row in rows:
        height, width = sizes[row["image_id"]]
        inside += [0 <= x <= width and 0 <= y <= height for x, y, s in np.reshape(row["keypoints"], (-1, 3)) if s > 0]
    assert sights["joints_inside"] == pytest.approx(np.mean(inside), abs=1e-4)
    assert "would refine 6 and skip 0" in text_of(report) and "6 by number" in text_of(report)


def test_what_refine_would_skip(place):
    def spoil(i, row):
        if i == 0:
            row["category_id"] = 2
        if i == 1:
            row["keypoints"][2::3] = [0] * 17
        if i == 2:
            row["image_id"] = 77

    change(place, spoil)
    report = look(place, images=str(place / "photographs"))
    reasons = {"category 2, not 1": 1, "no usable joint": 1, "photograph missing": 1}
    assert report["skipped"] == reasons and report["categories"] == {"2": 1, "1": 5}
    text = text_of(report)
    assert "would refine 3 and skip 3" in text and "1 of category 2" in text


def test_what_refine_would_refuse(place):
    change(
        place,
        lambda i, row: row.update(keypoints=[v / 1000 if j % 3 < 2 else v for j, v in enumerate(row["keypoints"])]),
    )
    report = look(place)
    assert "like fractions" in report["problems"][0] and "refused      " in text_of(report)
    change(place, lambda i, row: row.update(image_id=f"{i}.png"))
    report = look(place, images=str(place / "photographs"))
    assert "none of the photographs was found" in report["problems"][1]


def test_the_first_rows_only(place):
    report = look(place, rows=4)
    assert report["rows"] == 4 and not report["complete"] and "--rows 0 for all" in text_of(report)
    assert look(place, rows=6)["complete"] and look(place, rows=0)["rows"] == 6
    with pytest.raises(PosefixError, match="--rows must not be negative"):
        look(place, rows=-1)


def test_every_format_and_what_says_its_joints(tmp_path):
    looked_at = {}
    for name, (files, _) in samples().items():
        (tmp_path / name).mkdir()
        for file, text in files:
            data = text.encode()
            (tmp_path / name / file).write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
        report = inspect_files(InspectOptions((str(tmp_path / name),)))
        looked_at[name] = report["joints"]["told_by"]
        assert report["rows"] and report["complete"] and text_of(report)
    expected = {
        "mediapipe": "the format",
        "csv": "their names",
        "coco-annotations": "their names",
        "coco": "their number",
    }
    assert {name: looked_at[name] for name in expected} == expected


def test_the_command(place, capsys):
    assert main(["inspect", str(place / "d.json"), "--images", str(place / "photographs"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 6
    (place / "d.json").write_text("[{")
    assert main(["inspect", str(place / "d.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
