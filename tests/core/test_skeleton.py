import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from posefix_jax.core.joint_sets import (
    AP10K,
    BLAZEPOSE,
    COCO,
    CROWDPOSE,
    SKELETONS,
    WHOLEBODY,
    WHOLEBODY_KEYS,
    load_skeleton,
    skeleton_from_category,
)
from posefix_jax.core.skeleton import (
    JointMap,
    Skeleton,
    canonical,
    comparable_names,
    group_of,
    joints_in,
    limb_length,
    tell_joints,
    to_skeleton,
)
from posefix_jax.data.coco import read_annotations
from posefix_jax.types import PosefixError, warn_once


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda s: s.name)
def test_round_trip_and_flip(skeleton):
    assert Skeleton.from_dict(skeleton.to_dict()) == skeleton
    np.testing.assert_array_equal(skeleton.flip_index[skeleton.flip_index], np.arange(skeleton.num_joints))
    for joint, twin in enumerate(skeleton.flip_index):
        if skeleton.joints[joint].startswith("face-"):
            continue
        swapped = skeleton.joints[joint].replace("left_", "L").replace("right_", "left_").replace("L", "right_")
        assert skeleton.joints[twin] == swapped


def test_whole_body_is_five_parts():
    assert WHOLEBODY.num_joints == sum(WHOLEBODY_KEYS.values()) == 133 and WHOLEBODY.joints[:17] == COCO.joints
    assert WHOLEBODY.sigmas[:17] == COCO.sigmas and WHOLEBODY.sigmas[91:112] == WHOLEBODY.sigmas[112:]
    twins = dict(WHOLEBODY.flip_pairs) | {b: a for a, b in WHOLEBODY.flip_pairs}
    face = {name: int(name[5:]) for name in WHOLEBODY.joints if name.startswith("face-")}
    # Chin, the nose's ridge and tip, the lips' middles are their own mirror; the rest of the face is in pairs.
    alone = {23 + i for i in (8, 27, 28, 29, 30, 33, 51, 57, 62, 66)}
    assert {23 + i for i in face.values()} - set(twins) == alone
    assert twins[23 + 36] == 23 + 45 and twins[23 + 48] == 23 + 54 and twins[23] == 23 + 16
    assert set(WHOLEBODY.groups[23:91]) == {"face"} and set(WHOLEBODY.groups[91:]) == {"other"}


def test_matches_by_name():
    assert skeleton_from_category({"name": "dog", "keypoints": list(AP10K.joints)}) is AP10K
    assert AP10K.groups[7] == "wrist" and AP10K.groups[13] == "ankle"
    assert skeleton_from_category({"name": "person", "keypoints": list(COCO.joints)}) is COCO
    foreign = skeleton_from_category({"name": "fly", "keypoints": ["left_wing", "right_wing"], "skeleton": [[1, 2]]})
    assert foreign.flip_pairs == ((0, 1),) and foreign.limbs == ((0, 1),) and foreign.groups == ("other", "other")


@pytest.mark.parametrize("style", ["Left Eye", "left-eye", "LEFT_EYE", "leftEye", "eye_left", "l_eye", "LeftEye"])
def test_joints_are_matched_however_they_are_written(style):
    assert canonical(style) == "left_eye"
    assert joints_in(["left_eye", "nose"], ["Nose", style]).tolist() == [1, 0]


@pytest.mark.parametrize(
    "written",
    [
        lambda joint: joint.replace("_", " ").title(),
        lambda joint: joint.replace("_", "-"),
        str.upper,
        lambda joint: re.sub(r"_(.)", lambda end: end[1].upper(), joint),
    ],
)
@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_a_known_set_is_known_however_it_is_written(written, skeleton):
    """With its sigmas and its flip pairs; groups too, which the error model goes by."""
    category = {"name": "person", "keypoints": [written(joint) for joint in skeleton.joints]}
    assert skeleton_from_category(category) is skeleton
    assert [group_of(joint) for joint in category["keypoints"]] == list(skeleton.groups)


def test_names_that_only_their_spelling_tells_apart_are_taken_as_they_are():
    assert comparable_names(["tip a", "tip-a"]) == ("tip a", "tip-a")
    assert comparable_names(["head", "head_top"]) == ("head", "head_top")
    assert joints_in(["tip a"], ["tip-a", "tip a"]).tolist() == [-1]


def test_crowdpose_as_its_authors_write_it():
    """`head`, and limbs of COCO's 17 joints in its `skeleton` field."""
    joints = [*CROWDPOSE.joints[:12], "head", "neck"]
    limbs = [[a + 1, b + 1] for a, b in SKELETONS["coco"].limbs]
    assert skeleton_from_category({"name": "person", "keypoints": joints, "skeleton": limbs}) is CROWDPOSE


def test_limbs_that_do_not_fit_are_left_out_with_a_word(capsys):
    warn_once.cache_clear()
    limbs = [[1, 2], [0, 1], [2, 3], [1], "x", [1.5, 2], [True, 2]]
    skeleton = skeleton_from_category({"name": "odd", "keypoints": ["left_wing", "tail"], "skeleton": limbs})
    assert skeleton.limbs == ((0, 1),)
    said = capsys.readouterr().err
    assert said.startswith("posefix: warning: the skeleton of category 'odd' has limbs") and "[0, 1], [2, 3]" in said


def test_guessed_sigmas_are_said_aloud(capsys):
    """COCO's for joints of the same kind; in the file's own hand they are no guess."""
    warn_once.cache_clear()
    category = {"name": "dog", "keypoints": ["Left Wrist", "tail"]}
    skeleton = skeleton_from_category(category)
    assert skeleton.sigmas == (0.062, 0.08) and skeleton.sigmas_guessed
    assert Skeleton.from_dict(skeleton.to_dict()) == skeleton
    tell_joints(skeleton, "gt.json")
    said = capsys.readouterr().err
    assert "gt.json: the joints of 'dog' are not a known set" in said and "0.062 for Left Wrist; 0.08 for tail" in said
    known = skeleton_from_category({**category, "sigmas": [0.1, 0.2]})
    tell_joints(known, "gt.json")
    assert not known.sigmas_guessed
    assert capsys.readouterr().err == "gt.json: the 2 joints of dog (OKS sigmas: those of dog)\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": (0.1,)}, "need 17 sigmas"),
        ({"limbs": ((0, 17),)}, "outside"),
        ({"flip_pairs": ((1, 2), (2, 3))}, "two flip_pairs"),
        ({"joints": ("nose",) * 17}, "unique"),
    ],
)
def test_checks_itself(change, message):
    with pytest.raises(PosefixError, match=message):
        dataclasses.replace(COCO, **change)


def test_unknown_names_the_nearest(tmp_path):
    with pytest.raises(PosefixError, match="did you mean 'coco'"):
        load_skeleton("cocoo")
    with pytest.raises(PosefixError, match="No such file"):
        load_skeleton(str(tmp_path / "none.json"))


def test_the_tutorials_skeleton_is_one(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "skeletons.md").read_text()
    (tmp_path / "fly.json").write_text(text.split("```json")[1].split("```")[0])
    fly = load_skeleton(str(tmp_path / "fly.json"))
    assert fly.flip_pairs == ((2, 3), (4, 5)) and set(fly.groups) == {"head", "other"}
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "fly", "keypoints": list(fly.joints)}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    by_name = read_annotations(tmp_path / "truth.json").skeleton
    assert by_name.sigmas == (0.079,) + (0.08,) * 5 and by_name.sigmas_guessed  # a head is one of CrowdPose's
    assert read_annotations(tmp_path / "truth.json", fly).skeleton is fly
    with pytest.raises(PosefixError, match="truth.json: its joints are .* expected the same names in the same order"):
        read_annotations(tmp_path / "truth.json", COCO)


def test_joints_to_a_refiner_and_back():
    """By name; a joint that the file lacks is missing; one that did not move keeps its values, in the file's unit."""
    file = BLAZEPOSE
    joints = np.column_stack([np.arange(33) / 40, np.arange(33) / 50, np.ones(33)])
    joint_map, scale = JointMap(file, CROWDPOSE), np.array([400.0, 300.0, 1.0])
    old = joint_map.to_refiner(joints) * scale
    assert joint_map.shared.sum() == 12 and (old[~joint_map.shared] == 0).all()
    new = old.copy()
    new[CROWDPOSE.joints.index("left_wrist"), :2] += 4
    back = joint_map.to_file(joints, new, old, scale)
    wrist = file.joints.index("left_wrist")
    np.testing.assert_allclose(back[wrist], joints[wrist] + [0.01, 4 / 300, 0])
    assert np.array_equal(np.delete(back, wrist, axis=0), np.delete(joints, wrist, axis=0))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        *(("LEye", "left_eye"), ("Leye", "left_eye"), ("RBigToe", "right_big_toe"), ("Rknee", "right_knee")),
        *(("MidHip", "mid_hip"), ("lankle", "left_ankle"), ("tail", "tail"), ("legs", "legs"), ("rings", "rings")),
    ],
)
def test_sides_of_one_letter(written, name):
    assert canonical(written) == name


def test_the_names_of_other_data_sets_are_synonyms_where_a_set_has_one_of_them():
    assert joints_in(["left_ankle", "mid_hip", "neck"], ["left_foot", "root", "upper_neck"]).tolist() == [0, 1, 2]
    assert joints_in(["left_ankle"], ["left_foot", "left_ankle"]).tolist() == [1]
    assert joints_in(["nose", "left_eye"], ["nose0", "left_eye_1"]).tolist() == [0, 1]
    assert joints_in(["nose"], ["nose_1", "nose_2"]).tolist() == [-1]


def test_limbs_that_count_from_0():
    """As H36M's and ExLPose's files have them; a limb beyond the joints shows that the 0 is a fault."""
    names = {"name": "odd", "keypoints": ["left_wing", "right_wing", "tail"]}
    assert skeleton_from_category({**names, "skeleton": [[0, 1], [1, 2]]}).limbs == ((0, 1), (1, 2))
    assert skeleton_from_category({**names, "skeleton": [[0, 1], [1, 3]]}).limbs == ((0, 2),)


def standing(skeleton: Skeleton, count: int = 5) -> np.ndarray:
    """[n, K, 3] people who stand, in the joints of a skeleton."""
    body = "nose 50 10 left_eye 52 8 right_eye 48 8 left_ear 55 10 right_ear 45 10 left_shoulder 62 25 right_shoulder 38 25"
    body += " left_elbow 68 45 right_elbow 32 45 left_wrist 70 62 right_wrist 30 62 left_hip 58 65 right_hip 42 65"
    body += " left_knee 60 90 right_knee 40 90 left_ankle 61 115 right_ankle 39 115"
    words = body.split()
    pose = np.array([[float(x), float(y), 1] for x, y in zip(words[1::3], words[2::3], strict=True)])
    jitter = np.random.default_rng(0).normal(0, 2, (count, 17, 3)) * [1, 1, 0]
    return np.stack([to_skeleton(one, SKELETONS["coco"], skeleton) for one in pose + jitter])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("openpose25", "openpose25b"), ("openpose25b", "openpose25"), ("aic", "crowdpose"), ("crowdpose", "aic")],
)
def test_limbs_are_longer_in_a_wrong_order_of_the_joints(right, wrong):
    poses = standing(SKELETONS[right])
    assert limb_length(poses, SKELETONS[wrong]) > 1.15 * limb_length(poses, SKELETONS[right])
    poses[:, :, 2] = 0
    assert np.isnan(limb_length(poses, SKELETONS[right]))
