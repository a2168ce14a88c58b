"""The reader and the writer of pose files alone, and detections in the terms of annotations."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import detections_of, make_people
from test_skeleton import standing

from posefix_jax.core.joint_sets import COCO, OPENPOSE25, SKELETONS
from posefix_jax.data.detections import read_detections
from posefix_jax.data.formats import FORMATS, WRITABLE, Pose
from posefix_jax.data.image_sources import Images, PhotographNames
from posefix_jax.data.pose_files import PoseFiles, find_files
from posefix_jax.data.pose_writer import Part, PoseWriter
from posefix_jax.types import PosefixError, warn_once


def files_of(folder: Path, content: dict[str, object]) -> list[tuple[str, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value))
    return find_files([str(folder)], folder / "out")


def row(image, score=0.5, **more) -> dict:
    keypoints = [float(v) for i in range(17) for v in (10 + i, 20 + i, 1)]
    return {"image_id": image, "category_id": 1, "keypoints": keypoints, "score": score, **more}


def test_several_files_are_one_stream(tmp_path):
    """Rows of all files in order; an empty list takes after its neighbors; the digest is of the content."""
    files = files_of(tmp_path, {"a.json": [row(1), row(2)], "b.json": [], "c.json": [row(3)]})
    source = PoseFiles.open(files, skeleton=None, preferred=COCO)
    assert [file.name for file in source.files] == ["a.json", "b.json", "c.json"]
    assert source.format is FORMATS["coco"] and source.skeleton is COCO
    found = [(index, pose.image) for index, element in source.elements() for pose in element.poses]
    assert found == [(0, 1), (0, 2), (2, 3)]
    before = source.digest()
    (tmp_path / "c.json").write_text(json.dumps([row(4)]))
    assert PoseFiles.open(files, skeleton=None, preferred=COCO).digest() != before
    (tmp_path / "c.json").write_text(
        json.dumps([{"frame_id": 1, "instances": [{"keypoints": [[1, 2]] * 17, "keypoint_scores": [1] * 17}]}])
    )
    with pytest.raises(PosefixError, match="c.json is a mmpose file .* refine them separately"):
        PoseFiles.open(files, skeleton=None, preferred=COCO)


def part_of(source: PoseFiles) -> Part:
    elements = list(source.elements())
    return Part(0, 0, elements, [pose for _, element in elements for pose in element.poses])


def test_writer_edits_in_place(tmp_path):
    """New joints and scores in their own file; a row that is left out is gone, and the file is still valid."""
    files = files_of(tmp_path, {"a.json": [row(1, track="kept"), row(1), row(2)], "b.json": [row(3)]})
    source = PoseFiles.open(files, skeleton=None, preferred=COCO)
    writer = PoseWriter(source, tmp_path / "out", to=None, images=None)
    part = part_of(source)
    assert not writer.single and writer.has_score
    part.joints[1] = part.poses[1].joints + [0.25, 0, 0]
    part.scores[3] = 0.125
    part.dropped.add(0)
    segments = dict(writer.segments(part))
    a, b = (json.loads(segments[name]) for name in ("a.json", "b.json"))
    assert [entry["image_id"] for entry in a] == [1, 2] and a[0]["keypoints"][0] == 10.25
    assert a[1] == row(2) and b == [row(3, score=0.125)]


@pytest.mark.parametrize("name", WRITABLE)
def test_writer_writes_every_format(name, tmp_path):
    """A part in a format is read again as that format, with as many people at the same places."""
    images = make_people(tmp_path / "made")[1]
    source = PoseFiles.open(
        files_of(tmp_path / "in", {"a.json": [row(1), row(1), row(2)]}), skeleton=None, preferred=COCO
    )
    writer = PoseWriter(source, tmp_path / "out", to=name, images=Images(images))
    part = part_of(source)
    writer.check(part)
    (tmp_path / "there").mkdir()
    form = WRITABLE[name]
    for file, data in writer.segments(part):
        path = tmp_path / "there" / (file or f"one.{name if form.is_binary else 'json'}")
        with open(path, "wb") as opened, form.writer(opened) as write:
            write(form.head_of(writer.joints).encode())
            write(data if file or form.is_binary else data[len(form.between) :])
            write(form.tail_of(part.more.get("images", []), writer.joints).encode())
    again = PoseFiles.open(find_files([str(tmp_path / "there")], tmp_path), skeleton=None, preferred=COCO)
    people = [pose for _, element in again.elements() for pose in element.poses]
    scale = [320, 240] if form.fraction else [1, 1]
    wrist = again.skeleton.joints.index("left_wrist")
    assert again.format.name == name and len(people) == 3
    np.testing.assert_allclose([pose.joints[wrist, :2] * scale for pose in people], [(19, 29)] * 3, atol=0.01)


def test_photographs_by_what_rows_call_them():
    names = PhotographNames(["a/000000000139.jpg", "a/street.png", "b/street.png", "c/im7.jpg"])
    assert names.find(139) == "a/000000000139.jpg" and names.find("b/street.png") == "b/street.png"
    assert names.find("000000000139") == "a/000000000139.jpg" and names.find("other") is None
    with pytest.raises(PosefixError, match="may be a/street.png or b/street.png"):
        names.find("street.png")


def detections(tmp_path, content, images, skeleton=COCO, name="d.json", **more) -> list[Pose]:
    (tmp_path / name).write_text(json.dumps(content))
    return read_detections(tmp_path / name, images=images, skeleton=skeleton, annotations=Path("gt.json"), **more)


def test_detections_by_file_name_and_joint_name(tmp_path, capsys):
    """A MediaPipe file, by file name, in fractions, of 33 joints: the annotations' ids, pixels and 17 joints, said aloud."""
    warn_once.cache_clear()
    images = {7: {"id": 7, "file_name": "street/a.jpg", "width": 200, "height": 100}}
    marks = [{"x": 0.5, "y": 0.25, "visibility": 0.9}] * 33
    (pose,) = detections(tmp_path, [{"image_id": "a.jpg", "landmarks": marks}], images, scored=False)
    assert pose.image == 7 and pose.joints.shape == (17, 3)
    np.testing.assert_allclose(pose.joints, [(100, 25, 0.9)] * 17)
    assert "matched by name" in capsys.readouterr().err
    del images[7]["width"]
    with pytest.raises(
        PosefixError, match="fractions of the photograph's width and height, which the annotations lack"
    ):
        detections(tmp_path, [{"image_id": "a.jpg", "landmarks": marks}], images, scored=False)


def test_detections_that_do_not_fit(tmp_path, capsys):
    images = {1: {"id": 1}}
    with pytest.raises(PosefixError, match="row 1 is of image 2, which gt.json does not have"):
        detections(tmp_path, [row(1), row(2)], images)
    assert len(detections(tmp_path, [row(1), row(2)], images, skip_unknown=True)) == 1
    assert "1 poses are of photographs that gt.json does not have" in capsys.readouterr().err
    with pytest.raises(PosefixError, match="row 0 has no score that is a finite number"):
        detections(tmp_path, [row(1, score=None)], images)
    by_joint = row(1, score=None, scores=[0.5] * 17)
    with pytest.raises(PosefixError, match="row 0 has no score that is a finite number"):
        detections(tmp_path, [by_joint], images)
    assert len(detections(tmp_path, [by_joint], images, joint_scores=True)) == 1
    # 7 is no id here, though a file name has that number: another data set's 7, not this photograph.
    numbered = {1: {"id": 1, "file_name": "im00007.jpg"}}
    with pytest.raises(PosefixError, match="row 0 is of image 7, which gt.json does not have"):
        detections(tmp_path, [row(7)], numbered)
    assert detections(tmp_path, [row("im00007.jpg")], numbered)[0].image == 1
    broken = row(1)
    broken["keypoints"][0] = float("nan")
    (pose,) = detections(tmp_path, [broken], images)
    assert (pose.joints[0] == 0).all() and (pose.joints[1:, 2] == 1).all()
    foot = OPENPOSE25.joints.index("left_heel")
    people = [{"pose_keypoints_2d": [5.0, 6.0, 0.5] * 25}]
    (pose,) = detections(
        tmp_path, {"people": people}, {"0001": {"id": "0001"}}, name="0001_keypoints.json", scored=False
    )
    assert pose.image == "0001" and foot > 17 and (pose.joints == [5, 6, 0.5]).all()


def test_every_command_reads_every_format(tmp_path, people, capsys):
    """evaluate gives the same figures for the same poses as COCO results, MMPose, PoseTrack 2017 and Parquet."""
    from posefix_jax.cli import main

    truth, images = people
    (tmp_path / "d.json").write_text(json.dumps(detections_of(truth)))
    tables = {}
    for to in ("coco", "mmpose", "parquet", "yolo"):
        out = tmp_path / (f"{to}.{'parquet' if to == 'parquet' else 'json'}" if to != "yolo" else to)
        arguments = ["convert", str(tmp_path / "d.json"), "--to", to, "--out", str(out), "--images", str(images)]
        assert main([*arguments, "--annotations", str(truth)]) == 0, capsys.readouterr().err
        capsys.readouterr()
        shown = main(["evaluate", str(out), "--annotations", str(truth)]), capsys.readouterr()
        assert shown[0] == 0, shown[1].err
        tables[to] = shown[1].out
    assert len(set(tables.values())) == 1, tables


@pytest.mark.parametrize(("written", "read"), [("openpose25", "openpose25"), ("openpose25b", "openpose25b")])
def test_openposes_two_bodies_of_25_joints(tmp_path, written, read, capsys):
    """Nothing in a folder of OpenPose's says which; a file a person, so that only together they tell."""
    warn_once.cache_clear()
    poses = standing(SKELETONS[written])
    people = [{"people": [{"pose_keypoints_2d": pose.reshape(-1).tolist()}]} for pose in poses]
    files = files_of(tmp_path / "in", {f"{i}_keypoints.json": one for i, one in enumerate(people)})
    source = PoseFiles.open(files, skeleton=None, preferred=COCO)
    assert source.skeleton is SKELETONS[read]
    assert ("read with the joints of openpose25b" in capsys.readouterr().err) == (written != "openpose25")
    assert PoseFiles.open(files, skeleton=OPENPOSE25, preferred=COCO).skeleton is OPENPOSE25  # --skeleton overrules
    assert PoseFiles.open(files[:2], skeleton=None, preferred=COCO).skeleton is OPENPOSE25  # too few to tell


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.txt", "1. These are the poses of\n5 videos"),
        ("classes.txt", "person\n"),
        ("args.json", '{"epochs": 300, "imgsz": [640, 640], "model": "yolo.pt"}'),
        ("log.jsonl", '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n'),
        ("results.csv", "epoch,train/box_loss,lr/pg0\n1,0.5,0.1\n"),
        ("names.json", '["a", "b"]'),
        ("r.report.json", '{"made_by": "posefix", "joints_moved": 3, "passed_through": []}'),
    ],
)
def test_files_without_poses_in_a_folder_are_left_out_aloud(name, text, tmp_path, capsys):
    warn_once.cache_clear()
    files_of(tmp_path / "in", {"a.json": [row(1)], "b.json": [row(2)]})
    (tmp_path / "in" / name).write_text(text)
    source = PoseFiles.open(find_files([str(tmp_path / "in")], tmp_path / "out"), skeleton=None, preferred=COCO)
    assert [file.name for file in source.files] == ["a.json", "b.json"]
    said = capsys.readouterr().err
    assert name in said and "left out" in said and said.count("\n") == 1
    with pytest.raises(PosefixError, match=name):  # named itself, it is an error
        PoseFiles.open([(str(tmp_path / "in" / name), "")], skeleton=None, preferred=COCO)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("0.txt", "0 0.5 0.5 x 0.1 0.2\n"),
        ("c.json", '[{"img": "a.jpg", "kpts": [1, 2, 3]}]'),
        ("c.json", '[{"image_id": 1, "keypoints": [1, 2, 3'),
        ("c.json", '{"frames": [{"persons": [{"pose": []}]}]}'),
        ("t.csv", "image_id,nose_x,left_eye_x\n1,2,3\n"),
        ("t.csv", "image_id,keypoints\n1,2\n"),
    ],
)
def test_damaged_poses_in_a_folder_are_an_error(name, text, tmp_path):
    files_of(tmp_path / "in", {"a.json": [row(1)], "b.json": [row(2)]})
    (tmp_path / "in" / name).write_text(text)
    with pytest.raises(PosefixError, match=name):
        PoseFiles.open(find_files([str(tmp_path / "in")], tmp_path / "out"), skeleton=None, preferred=COCO)
