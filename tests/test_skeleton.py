import dataclasses

import numpy as np
import pytest

from posefix_jax.skeleton import COCO, SKELETONS, Skeleton, load_skeleton, skeleton_from_category
from posefix_jax.types import PosefixError


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda s: s.name)
def test_round_trip_and_flip(skeleton):
    assert Skeleton.from_dict(skeleton.to_dict()) == skeleton
    np.testing.assert_array_equal(skeleton.flip_index[skeleton.flip_index], np.arange(skeleton.num_joints))
    for joint, twin in enumerate(skeleton.flip_index):
        swapped = skeleton.joints[joint].replace("left_", "L").replace("right_", "left_").replace("L", "right_")
        assert skeleton.joints[twin] == swapped


def test_matches_by_name():
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
