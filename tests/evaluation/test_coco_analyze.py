"""AP costs by coco-analyze's rules, worked out by hand: a person of one or two labelled joints, found by one pose."""

import math

import numpy as np
import pytest

from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.coco import Person
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.coco_analyze import coco_analyze_costs

LEFT, RIGHT = COCO.joints.index("left_wrist"), COCO.joints.index("right_wrist")
AREA = 100.0**2


def away(ks, sigma=COCO.sigmas[LEFT], area=AREA):
    """The distance at which a joint has this KS."""
    return 2 * sigma * math.sqrt(-2 * math.log(ks) * area)


def person(xy, image=1, area=AREA):
    joints = np.zeros((17, 3))
    for joint, place in xy.items():
        joints[joint] = (*place, 2)
    return Person(1, image, joints, (0.0, 0.0, 500.0, 500.0), area)


def pose(xy):
    joints = np.zeros((17, 3))
    joints[:, :2] = 5000  # of joints that are not labelled
    for joint, place in xy.items():
        joints[joint] = (*place, 1)
    return Pose(1, joints, score=1.0)


def share(ks):
    """AP of one pose of this OKS: the share of COCO's ten thresholds that it reaches."""
    return (np.linspace(0.5, 0.95, 10) <= ks).mean()


@pytest.mark.parametrize(
    "ks,kind,corrected",
    [(0.72, "jitter", 0.85), (0.2, "miss", 0.5), (0.9, None, 0.9)],
)
def test_a_joint_moves_beside_its_place(ks, kind, corrected):
    """To the KS named, but with sigma instead of 2 sigma: its fourth root, 0.96 and 0.84."""
    costs = coco_analyze_costs([1], [person({LEFT: (100, 100)})], [pose({LEFT: (100, 100 + away(ks))})], COCO)
    assert costs["AP"] == pytest.approx(share(ks))
    for name in ("jitter", "inversion", "swap", "miss"):
        gain = share(corrected**0.25) - share(ks) if name == kind else 0
        assert costs[name] == pytest.approx(gain), name


def test_an_inversion_and_a_swap_keep_their_ks_with_the_wrong_joint():
    """Two labelled joints, one exact and one at KS 0.6 of the other's place: OKS 1/2, corrected (1 + 0.6 ** 0.25) / 2."""
    mine = {LEFT: (100, 100), RIGHT: (400, 100)}
    beside = (100, 100 + away(0.6))
    costs = coco_analyze_costs([1], [person(mine)], [pose({LEFT: (100, 100), RIGHT: beside})], COCO)
    assert costs["AP"] == pytest.approx(share(0.5))
    assert costs["inversion"] == pytest.approx(share((1 + 0.6**0.25) / 2) - share(0.5)) and costs["swap"] == 0
    # Another person four times as large: 0.6 is by their own area, the distance by the person's.
    other = person({LEFT: (400, 300), RIGHT: (100, 300)}, area=4 * AREA)
    beside = (100, 300 + away(0.6, area=4 * AREA))
    costs = coco_analyze_costs([1], [person(mine), other], [pose({LEFT: (100, 100), RIGHT: beside})], COCO)
    gain = share((1 + 0.6**0.25) / 2) - share(0.5)
    at_half_recall = 51 / 101  # the other person is not found
    assert costs["swap"] == pytest.approx(gain * at_half_recall) and costs["inversion"] == 0


def test_small_people_are_ignored():
    small = person({LEFT: (100, 100)}, area=1000.0)
    costs = coco_analyze_costs([1], [small], [pose({LEFT: (100, 100)})], COCO)
    assert costs["AP"] == -1 and not any(costs[kind] for kind in ("jitter", "inversion", "swap", "miss"))
