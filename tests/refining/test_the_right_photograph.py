"""Poses on photographs that are not theirs: told, undone where that is sure, refused where it is not."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import identity_network
from test_trust_of_files import TELLS

from posefix_jax.cli import main
from posefix_jax.data.image_sources import Images, PhotographNames
from posefix_jax.data.images import is_rotated
from posefix_jax.refining.refine_files import RefineOptions, mostly_skipped, refine_rows
from posefix_jax.refining.refiner import Refiner
from posefix_jax.types import PosefixError

SIZE = 96
FIGURE = np.array(
    [(0, -42), (2, -44), (-2, -44), (5, -43), (-5, -43), (12, -30), (-12, -30), (16, -15), (-16, -15), (18, 0), (-18, 0)]
    + [(8, 2), (-8, 2), (9, 25), (-9, 25), (9, 44), (-9, 44)]
) * [0.8, 0.8] + [24, 48]  # fmt: skip
"""A person in the left half of a photograph."""


def row(image, figure=FIGURE) -> dict:
    keypoints = np.column_stack([figure, np.full(17, 0.9)]).reshape(-1).tolist()
    return {"image_id": image, "category_id": 1, "keypoints": keypoints, "score": 0.5}


def half() -> np.ndarray:
    """A photograph whose left half is bright: a person is there."""
    image = np.full((SIZE, SIZE, 3), 10, np.uint8)
    image[:, : SIZE // 2] = 250
    return image


def with_orientation(image: np.ndarray, orientation: int) -> bytes:
    data = cv2.imencode(".jpg", image)[1].tobytes()
    tiff = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


@pytest.fixture
def refiner(tiny_spec) -> Refiner:
    """Its maps are at the input; where a crop is dark or left and right are exchanged, they are in a corner without it."""
    spec = replace(tiny_spec, decode=TELLS)
    network = identity_network(spec)

    def sees_people(variables, image, crop_xy, present):
        person = image.astype(jnp.float32).mean(axis=(1, 2, 3)) > 100
        person &= crop_xy[:, 5, 0] > crop_xy[:, 6, 0]
        seen = present[..., None] | person[:, None, None]
        return network(variables, image, jnp.where(seen & person[:, None, None], crop_xy, 2.0), present)

    return Refiner(sees_people, {}, spec, batch_size=8, identity="sees people")


@pytest.fixture
def job(tmp_path) -> RefineOptions:
    """Photographs 0 to 23, every second with a person."""
    (tmp_path / "photographs").mkdir()
    for i in range(24):
        image = half() if i % 2 == 0 else np.full((SIZE, SIZE, 3), 10, np.uint8)
        cv2.imwrite(str(tmp_path / f"photographs/frame_{i:06d}.png"), image)
    return RefineOptions((str(tmp_path / "d.json"),), str(tmp_path / "photographs"), tmp_path / "r.json", batch_size=8)


def write(job: RefineOptions, rows: list[dict]) -> RefineOptions:
    Path(job.detections[0]).write_text(json.dumps(rows))
    return job


def report_of(job: RefineOptions) -> dict:
    return json.loads(job.out.with_name(job.out.name + ".report.json").read_text())


def test_how_photographs_were_found_is_said(refiner, job, capsys):
    rows = [row(i) for i in range(0, 20, 2)] + [row("frame_000020.png"), row("other.png")]
    refine_rows(refiner, write(job, rows))
    assert report_of(job)["photographs"] == {"by number": 10, "by file name": 1, "missing": 1}
    said = capsys.readouterr().err
    assert "photographs of rows: 10 by number, 1 by file name, 1 missing (0 is frame_000000.png)" in said


def test_photographs_counted_from_another_number(refiner, job, capsys):
    """By the poses where some photographs have none; by the numbers alone where all have."""
    write(job, [row(i + 1) for i in range(0, 20, 2)])
    with pytest.raises(
        PosefixError, match=r"worse \(0.*than those numbered one lower .* give --first-frame 1, or --no-check"
    ):
        refine_rows(refiner, job)
    assert not list(job.out.parent.glob("r.json*"))
    assert refine_rows(refiner, replace(job, first_frame=1))["trust"]["fit"] > 0.9
    assert refine_rows(refiner, replace(job, check=False))["trust"]["fit"] < 0.5
    assert refine_rows(refiner, replace(job, first_frame=0))["trust"]["fit"] < 0.5  # said, so not doubted
    write(job, [row(i + 1) for i in range(24)])
    with pytest.raises(
        PosefixError, match=r"photographs 1 to 24, .* has 0 to 23: give --first-frame 1 if .* --first-frame 0"
    ):
        refine_rows(refiner, job)
    capsys.readouterr()
    report = refine_rows(refiner, replace(job, first_frame=1, check=False))
    assert report["rows"] == 24 and "(1 is frame_000000.png)" in capsys.readouterr().err
    report = refine_rows(refiner, replace(job, first_frame=0, check=False))
    assert report["photographs"] == {"by number": 23, "missing": 1}


def test_left_and_right_exchanged_and_mirrored_photographs(refiner, job):
    exchanged = FIGURE[[0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]]
    write(job, [row(i, exchanged) for i in range(0, 24, 2)])
    with pytest.raises(PosefixError, match="than with left and right exchanged .* give --skeleton FILE"):
        refine_rows(refiner, job)
    mirrored = (exchanged - [SIZE - 1, 0]) * [-1, 1]
    write(job, [row(i, mirrored) for i in range(0, 24, 2)])
    with pytest.raises(PosefixError, match="than mirrored ones .* the photographs that the estimator was given"):
        refine_rows(refiner, job)


@pytest.mark.parametrize("turned", [True, False])
def test_exif_is_as_the_poses_fit(refiner, job, turned, capsys):
    """Orientation 3 turns by 180 degrees. Not the sample's few rotated photographs decide, but the poses on them."""
    for i in range(4):
        image = half()[:, ::-1] if turned else half()
        (Path(job.images) / f"frame_{i:06d}.jpg").write_bytes(with_orientation(image, 3))
        (Path(job.images) / f"frame_{i:06d}.png").unlink()
    write(job, [row(i) for i in [*range(4), *range(4, 24, 2)]])
    refine_rows(refiner, job)
    entry = report_of(job)["exif"]
    assert entry["applied"] is turned and entry["from"] == "the poses" and entry["poses_measured"] == 4
    assert f"EXIF rotation is {'applied' if turned else 'ignored'}: 4 poses" in capsys.readouterr().err
    assert report_of(job)["trust"]["fit"] > 0.9
    told = replace(job, exif="ignore" if turned else "apply", check=False)
    refine_rows(refiner, told)
    assert report_of(told)["exif"] == {"applied": not turned, "from": "--exif"}


def test_exif_that_nothing_tells_is_said(tiny_spec, job, capsys):
    (Path(job.images) / "frame_000000.jpg").write_bytes(with_orientation(half(), 3))
    (Path(job.images) / "frame_000000.png").unlink()
    blind = Refiner(identity_network(tiny_spec), {}, tiny_spec, batch_size=8)
    refine_rows(blind, write(job, [row(0), row(2)]))
    assert "1 of 2 poses looked at are on photographs with an EXIF rotation" in capsys.readouterr().err
    assert report_of(job)["exif"]["applied"] is False


def test_rotation_is_what_opencv_makes_of_it():
    image = half()
    image[: SIZE // 2] = 130  # no orientation leaves it as it is
    assert [is_rotated(with_orientation(image, i)) for i in range(1, 9)] == [False] + 7 * [True]
    assert not is_rotated(cv2.imencode(".png", half())[1].tobytes()) and not is_rotated(b"Exif") and not is_rotated(b"")


def test_fractions_in_a_format_of_pixels(refiner, job):
    write(job, [row(i, FIGURE / SIZE) for i in range(0, 24, 2)])
    with pytest.raises(
        PosefixError, match="like fractions of the photograph's width and height; coco files have pixels"
    ):
        refine_rows(refiner, job)


def test_most_rows_skipped_is_exit_code_3(refiner, job, monkeypatch, capsys):
    """Rows of other categories are no surprise; --allow-missing says that missing photographs are none."""
    rows = [row(0), *(row(f"{i}.png") for i in range(3))]
    command = ["refine", job.detections[0], "--images", job.images, "--out", str(job.out)]
    monkeypatch.setattr(Refiner, "load", lambda *_, **__: refiner)
    write(job, rows)
    assert main(command) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("most poses could not be refined (exit code 3;")
    assert main([*command, "--allow-missing"]) == 0
    write(job, [row(0), *({**row(0), "category_id": 2} for _ in range(3))])
    assert main(command) == 0
    assert mostly_skipped({"refined": 1, "reasons": {"no usable joint": 2, "OKS-NMS": 9}})
    assert not mostly_skipped({"refined": 2, "reasons": {"no usable joint": 2}})


def test_numbers_of_photographs(tmp_path):
    names = PhotographNames(["a/im10.png", "im11.png", "12x.png"], first=1)
    assert names.numbers == (10, 12) and names.find(1) == "a/im10.png" and names.find(3) == "12x.png"
    assert names.find("im11.png") == "im11.png" and names.find(4) is None and names.find(1, 1) == "im11.png"
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for i in range(5):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    video = Images(tmp_path / "v.avi", first_frame=1)
    assert [video.find(i) for i in (0, 1, 5, 6)] == [None, 0, 4, None] and video.numbers == (0, 4)
    assert abs(int(video.read_named(3).mean()) - 80) < 8 and video.find(1, 1) == 1 and not video.is_rotated(0)
