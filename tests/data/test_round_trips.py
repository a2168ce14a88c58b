"""Any people in any layout: read, changed and read again; and what counts as missing in each format."""

import json

import fsspec
import numpy as np
import pytest
from format_samples import json_values, read, samples
from hypothesis import given, settings
from hypothesis import strategies as st

from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.formats import Edit
from posefix_jax.data.pose_files import open_pose_file

NAN = float("nan")
ABSENT = {
    "coco": [(0, 0, 0.9), (5, 5, 0), (5, 5, -1), (NAN, 5, 0.9), (None, None, None), (5, 5, None)],
    "coco-annotations": [(5, 5, 0), (None, 5, 2)],
    "detectron2": [(0, 0, 0.9), (NAN, NAN, 0.9)],
    "openpose": [(0, 0, 0), (5, 5, 0), (None, 5, 1)],
    "mmpose": [(5, 5, 0), (NAN, 5, 0.9), (5, 5, None)],
    "mediapipe": [(0.1, 0.1, 0), (None, 0.1, 0.9)],
    "posetrack17": [(5, 5, 0), (None, 5, 1)],
    "ultralytics": [(0, 0, 0.4), (None, None, 0.4), (5, 5, 0)],
    "mpii": [(-1, -1, 0), (-1, -1, 1), (5, 5, 0)],
    "kinetics-skeleton": [(0, 0, 0), (0, 0, 0.4)],
    "alphapose-cmu": [(5, 5, 0), (NAN, 5, 1)],
    "poseflow": [(5, 5, 0)],
    "mediapipe-by-name": [(None, 0.5, 1), (0.5, 0.5, 0)],
}
"""What the tools of each format write for a joint that they did not find."""


@pytest.mark.parametrize(("form", "values"), [(form, values) for form, some in ABSENT.items() for values in some])
def test_joints_that_are_missing_by_the_rule_of_the_format(form, values, tmp_path):
    """Score 0; a file that is not changed keeps their characters, and one that is filled in loses them."""
    (name, text), *_ = samples()[form][0]
    document = json.loads(text.splitlines()[0] if name.endswith(".jsonl") else text)
    put_joint(document, dict(zip(("x", "y", "score"), values, strict=True)))
    path = tmp_path / name
    path.write_text(json.dumps(document))
    file = open_pose_file(str(path), skeleton=None, preferred=COCO)
    elements = list(file.elements())
    first = next(e for e in elements if e.poses)
    pose = first.poses[0]
    assert pose.joints[0, 2] <= 0 and (pose.joints[1:, 2] > 0).all() and np.isfinite(pose.joints).all()
    same = "".join(e.lead + file.format.edited(file, Edit(e, {0: pose.joints} if e is first else {})) for e in elements)
    assert same == path.read_text()
    joints = np.array(pose.joints)
    joints[0] = 0.5, 0.25, 0.75
    filled = "".join(e.lead + file.format.edited(file, Edit(e, {0: joints} if e is first else {})) for e in elements)
    path.write_text(filled)
    again = read(path)[0][1]
    assert again[0, :2].tolist() == [0.5, 0.25] and again[0, 2] > 0
    np.testing.assert_array_equal(again[1:], joints[1:])


def put_joint(value, joint: dict) -> bool:
    """Gives the first joint of the first person of a document other values, in any form of `samples`."""
    x, y, score = joint["x"], joint["y"], joint["score"]
    if isinstance(value, dict):
        if isinstance(value.get("keypoints"), dict):
            value["keypoints"] |= {
                key: [v, *value["keypoints"][key][1:]]
                for key, v in zip(("x", "y", "visible"), (x, y, score), strict=True)
            }
            return True
        if "joints_vis" in value:
            value["joints"][0], value["joints_vis"][0] = [x, y], score
            return True
        if "pose" in value:
            value["pose"][:2], value["score"][0] = [x, y], score
            return True
        for key in ("keypoints", "pose_keypoints_2d", "joints"):
            if isinstance(value.get(key), list) and not isinstance(value[key][0], str):
                if isinstance(value[key][0], list):
                    value[key][0], value["keypoint_scores"][0] = [x, y], score
                else:
                    value[key][:3] = x, y, score
                return True
        if "point" in value:
            value["point"][0] |= {"x": [x], "y": [y], "score": [score]}
            return True
        if "visibility" in value:
            value |= {"x": x, "y": y, "visibility": score}
            return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(put_joint(one, joint) for one in inner)


@pytest.mark.parametrize("form", samples())
@settings(max_examples=6, deadline=None)
@given(
    st.integers(1, 10**6),
    st.sampled_from([None, 0, 3]),
    st.lists(st.tuples(st.integers(0, 14), st.floats(1, 999)), max_size=4),
)
def test_any_file_of_any_format_round_trips(form, seed, indent, moves):
    """Any people in any layout: not changed, every character is there; moved, the joints are where they were moved to."""
    (name, text), *_ = samples(seed)[form][0]
    if name.endswith(".json"):
        text = json.dumps(json.loads(text), indent=indent)
    name = f"/{form}/{name.removesuffix('.gz')}"
    fsspec.filesystem("memory").pipe(name, text.encode())
    file = open_pose_file(f"memory:/{name}", skeleton=None, preferred=COCO)
    elements = list(file.elements())
    assert "".join(e.lead + file.format.edited(file, Edit(e)) for e in elements) == text
    moved, after = [], ""
    for element in elements:
        joints = {}
        for i, pose in enumerate(element.poses):
            joints[i] = np.array(pose.joints)
            for joint, value in moves:
                joints[i][joint] = round(value, 3), round(value / 2, 3), 0.5
            moved.append(joints[i])
        after += element.lead + file.format.edited(file, Edit(element, joints))
    fsspec.filesystem("memory").pipe(name, after.encode())
    again = [
        pose.joints
        for e in open_pose_file(f"memory:/{name}", skeleton=None, preferred=COCO).elements()
        for pose in e.poses
    ]
    for one, expected in zip(again, moved, strict=True):
        # Six digits in Ultralytics' labels; visibilities stand for a score.
        np.testing.assert_allclose(one[:, :2], expected[:, :2], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one[:, 2] > 0, expected[:, 2] > 0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_results_file_round_trips(data):
    """Rows with odd keys and numbers: read and written, every character is there, and the joints are those given."""
    number = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6)
    rows = [
        {
            **data.draw(st.dictionaries(st.text(), json_values, max_size=2)),
            "image_id": data.draw(st.integers(0, 9)),
            "keypoints": data.draw(st.lists(number, min_size=51, max_size=51)),
        }
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    for row in rows:
        row.pop("score", None)
    text = json.dumps(rows)
    fsspec.filesystem("memory").pipe("/any.json", text.encode())
    document = open_pose_file("memory://any.json", skeleton=None, preferred=COCO)
    elements = list(document.elements())
    assert "".join(e.lead + document.format.edited(document, Edit(e)) for e in elements) == text
    for row, element in zip(rows, elements, strict=False):
        expected = np.array(row["keypoints"], np.float64).reshape(-1, 3)
        expected[~expected[:, :2].any(axis=1), 2] = 0  # (0, 0) is how a result says that a joint is missing
        np.testing.assert_array_equal(element.poses[0].joints, expected)
