"""Poses from one format to another and back: what survives, and what is said of the rest."""

import json

import numpy as np
import pytest
from format_samples import bodies, files_of, flat, row_of, samples, wholebody_row, write_rows

from posefix_jax.core.joint_sets import COCO, OPENPOSE25, SKELETONS, WHOLEBODY, WHOLEBODY_KEYS
from posefix_jax.core.skeleton import to_skeleton
from posefix_jax.data.formats import WRITABLE
from posefix_jax.data.pose_files import open_pose_file
from posefix_jax.refining.convert import ConvertOptions, convert


def test_joints_that_end_in_a_conversion_are_named(tmp_path, capsys):
    """In a line and in the report; the empty lists of OpenPose's face and hands are no joints."""
    person = {
        "pose_keypoints_2d": flat(bodies(OPENPOSE25)[0]),
        "face_keypoints_2d": [],
        "hand_left_keypoints_2d": [1.5] * 63,
    }
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1_keypoints.json").write_text(json.dumps({"people": [person]}))
    convert(ConvertOptions((str(folder),), tmp_path / "a.json", "coco"))
    assert "joints that coco has no place for are left out: hand_left_keypoints_2d\n" in capsys.readouterr().err
    report = json.loads((tmp_path / "a.json.report.json").read_text())
    assert report["joints_left_out"] == ["hand_left_keypoints_2d"]
    write_rows(tmp_path / "h.json", [row_of(1, bodies(SKELETONS["halpe26"])[0])])
    convert(ConvertOptions((str(tmp_path / "h.json"),), tmp_path / "h.out", "openpose"))
    assert "joints that openpose has no place for are left out: head" in capsys.readouterr().err
    write_rows(tmp_path / "c.json", [row_of(1, bodies(COCO)[0])])
    convert(ConvertOptions((str(tmp_path / "c.json"),), tmp_path / "c.out", "openpose"))
    assert "left out" not in capsys.readouterr().err
    assert "joints_left_out" not in json.loads((tmp_path / "c.out.report.json").read_text())


@pytest.mark.parametrize("target", ["coco", "coco-annotations", "mmpose", "parquet", "csv", "npz"])
def test_feet_and_hands_survive_conversions(target, tmp_path):
    """All 133 joints of COCO-WholeBody, from its five lists and back into them."""
    poses = bodies(WHOLEBODY)
    (tmp_path / "w.json").write_text(
        json.dumps([wholebody_row(image, pose) for image, pose in zip((1, 1, 2), poses, strict=True)])
    )
    convert(ConvertOptions((str(tmp_path / "w.json"),), tmp_path / "there.json", target))
    convert(ConvertOptions((str(tmp_path / "there.json"),), tmp_path / "back.json", "coco-wholebody"))
    rows = json.loads((tmp_path / "back.json").read_text())
    for row, pose in zip(rows, poses, strict=True):
        again = np.concatenate([np.reshape(row[key], (-1, 3)) for key in WHOLEBODY_KEYS])
        np.testing.assert_allclose(again[:, :2], pose[:, :2], atol=1e-3)
        np.testing.assert_array_equal(again[:, 2] > 0, pose[:, 2] > 0)


@pytest.mark.parametrize("target", WRITABLE)
def test_converted_there_and_back(target, photographs, tmp_path):
    """COCO results to every format and back: the joints that the format has are the same."""
    source, there, back = (
        tmp_path / "r.json",
        tmp_path / ("there.json" if not WRITABLE[target].suffix else "there"),
        tmp_path / "back.json",
    )
    source.write_text(samples()["coco"][0][0][1])
    images = str(photographs)
    report = convert(ConvertOptions((str(source),), there, target, images=images))
    assert report["rows"] == 3
    convert(ConvertOptions((str(there),), back, "coco", images=images))
    rows, again = (json.loads(p.read_text()) for p in (source, back))
    kinds = {document.skeleton for document in [open_pose_file(str(files_of(there)[0]), skeleton=None, preferred=COCO)]}
    joints = kinds.pop().joints
    for row, new in zip(rows, again, strict=True):
        a, b = (np.array(r["keypoints"]).reshape(-1, 3) for r in (row, new))
        assert str(row["image_id"]) in str(new["image_id"])
        back_in_coco = to_skeleton(b, open_pose_file(str(back), skeleton=None, preferred=COCO).skeleton, COCO)
        kept = np.isin(COCO.joints, joints) & (a[:, 2] > 0)
        np.testing.assert_allclose(back_in_coco[kept, :2], a[kept, :2], atol=2e-3)


def test_necks_are_made_of_shoulders():
    pose = bodies(COCO)[0]
    body = to_skeleton(pose, COCO, OPENPOSE25)
    np.testing.assert_allclose(body[OPENPOSE25.joints.index("neck")], pose[5:7].mean(axis=0))
    assert body[OPENPOSE25.joints.index("left_heel")].tolist() == [0, 0, 0]
    lacking = np.where(np.arange(17)[:, None] == 5, 0, pose)
    assert to_skeleton(lacking, COCO, OPENPOSE25)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "source", ["openpose", "mmpose", "posetrack17", "yolo", "poseflow", "kinetics-skeleton", "annotations"]
)
def test_photographs_that_show_nobody_survive_conversions(source, photographs, tmp_path):
    """As an element without people, a file without people, or an entry of images, in every format that can say so."""
    (tmp_path / "in").mkdir()
    files, _ = samples()[source if source != "annotations" else "coco-annotations"]
    for name, text in files:
        if source == "mmpose":
            text = json.dumps([*json.loads(text), {"frame_id": 3, "instances": []}])
        if source == "annotations":
            value = json.loads(text)
            value["images"].append({"id": 3, "file_name": "000000000003.png"})
            text = json.dumps(value)
        (tmp_path / "in" / name).write_text(text)
    shown = {}
    for to in ("openpose", "mmpose", "posetrack17", "mediapipe", "yolo", "coco-annotations"):
        there = tmp_path / (to if WRITABLE[to].suffix else f"{to}.json")
        convert(ConvertOptions((str(tmp_path / "in"),), there, to, images=str(photographs)))
        if there.is_dir():
            shown[to] = [path for path in files_of(there) if "3" in path.name]
            assert all('"people": []' in path.read_text() or not path.read_text() for path in shown[to])
            continue
        text = there.read_text()
        value = [json.loads(line) for line in text.splitlines()] if to == "mediapipe" else json.loads(text)
        lists = {"posetrack17": "annolist", "coco-annotations": "images"}
        elements = value if isinstance(value, list) else value[lists[to]]
        people = {"mmpose": "instances", "posetrack17": "annorect", "mediapipe": "landmarks"}
        shown[to] = [e for e in elements if to == "coco-annotations" or not e[people[to]]]
        shown[to] = shown[to][2:] if to == "coco-annotations" else shown[to]
        again = there, tmp_path / f"{to}-again"
        convert(ConvertOptions((str(there),), again[1], "openpose", images=str(photographs)))
        assert len(files_of(again[1])) == 3
    assert {to: len(some) for to, some in shown.items()} == dict.fromkeys(shown, 1)
