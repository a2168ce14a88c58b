import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from posefix_jax.data.coco import read_annotations
from posefix_jax.skeleton import (
    AP10K,
    COCO,
    SKELETONS,
    WHOLEBODY,
    WHOLEBODY_KEYS,
    Skeleton,
    load_skeleton,
    skeleton_from_category,
)
from posefix_jax.types import PosefixError


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
    text = (Path(__file__).parents[1] / "docs" / "skeletons.md").read_text()
    (tmp_path / "fly.json").write_text(text.split("```json")[1].split("```")[0])
    fly = load_skeleton(str(tmp_path / "fly.json"))
    assert fly.flip_pairs == ((2, 3), (4, 5)) and set(fly.groups) == {"head", "other"}
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "fly", "keypoints": list(fly.joints)}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    assert read_annotations(tmp_path / "truth.json").skeleton.sigmas == (0.08,) * 6
    assert read_annotations(tmp_path / "truth.json", fly).skeleton is fly
    with pytest.raises(PosefixError, match="truth.json: its joints are .* expected the same names in the same order"):
        read_annotations(tmp_path / "truth.json", COCO)
