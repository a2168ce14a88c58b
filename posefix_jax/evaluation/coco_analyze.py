"""What each kind of error costs in AP by the rules of coco-analyze, the code of Ronchi & Perona (ICCV 2017)."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.taxonomy import GOOD_KS, JITTER_KS, classify_joints
from posefix_jax.data.coco import Person
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.oks import areas_of, keypoint_similarity, run_cocoeval, truth_of
from posefix_jax.types import ErrorKind

MATCH_OKS = 0.1
AREAS = (32.0**2, 1e5**2)
"""People of other areas are ignored."""
KINDS = (ErrorKind.JITTER, ErrorKind.INVERSION, ErrorKind.SWAP, ErrorKind.MISS)


def coco_analyze_costs(
    images: Sequence, people: Sequence[Person], poses: Sequence[Pose], skeleton: Skeleton
) -> dict[str, float]:
    """The AP that correcting one kind of error would gain, as coco-analyze computes it.

    A joint is not moved to its true place but beside it, along x: a jitter to where its KS is 0.85, a miss to 0.5, an
    inversion or swap to the KS that it has with the wrong joint. These distances are sqrt(-2 ln KS area) sigma, as in the
    code, though KS itself has 2 sigma: the true KS there is the fourth root (0.96, 0.84). Every joint of a pose counts as
    present. AP is that of people of at least 32 x 32 pixels.

    Args:
      images: the ids of all photographs.
      people: all true people, ignored ones too.
      poses: poses of these photographs and joints, image pixels, with scores.
      skeleton: their joints.

    Returns:
      `AP` of the poses as they are, and the gain by kind.
    """
    truth = truth_of(images, people, skeleton)
    areas = areas_of(poses)
    kinds, corrected = _corrections(truth, people, poses, areas, skeleton)
    joints = np.array([pose.joints for pose in poses])

    def ap(joints: np.ndarray) -> float:
        moved = [pose._replace(joints=one) for pose, one in zip(poses, joints, strict=True)]
        precision = run_cocoeval(truth, moved, skeleton, areas, area_range=AREAS).eval["precision"]
        known = precision[precision > -1]
        return float(known.mean()) if known.size else -1.0

    before = ap(joints)
    costs = {"AP": before}
    for kind in KINDS:
        moved = joints.copy()
        moved[..., :2] = np.where((kinds == kind)[..., None], corrected, joints[..., :2])
        costs[kind.name.lower()] = ap(moved) - before
    return costs


def _corrections(
    truth: COCO, people: Sequence[Person], poses: Sequence[Pose], areas: Sequence[float], skeleton: Skeleton
) -> tuple[np.ndarray, np.ndarray]:
    """[R, K] kinds of error (ABSENT of poses without a person), and [R, K, 2] corrected places."""
    in_image = defaultdict(list)
    for person in people:
        in_image[person.image_id].append(person)
    kinds = np.full((len(poses), skeleton.num_joints), int(ErrorKind.ABSENT))
    corrected = np.array([pose.joints[:, :2] for pose in poses])
    matches = run_cocoeval(truth, poses, skeleton, areas, thresholds=[MATCH_OKS], area_range=AREAS).evalImgs
    for image in filter(None, matches):
        for row, match in zip(image["dtIds"], image["dtMatches"][0], strict=True):
            if not match or not people[int(match) - 1].count:
                continue
            person = people[int(match) - 1]
            others = [other for other in in_image[person.image_id] if other is not person]
            kinds[row - 1], ks = _kinds(poses[row - 1].joints[:, :2], person, others, skeleton)
            wanted = np.select(
                [kinds[row - 1] == ErrorKind.JITTER, kinds[row - 1] == ErrorKind.MISS], [GOOD_KS, JITTER_KS], ks
            )
            away = np.sqrt(np.maximum(-2 * np.log(np.maximum(wanted, 1e-300)) * person.area, 0)) * skeleton.sigmas
            corrected[row - 1] = person.joints[:, :2] + away[:, None] * [1, 0]
    return kinds, corrected


def _kinds(
    xy: np.ndarray, person: Person, others: Sequence[Person], skeleton: Skeleton
) -> tuple[np.ndarray, np.ndarray]:
    """[K] kinds, and [K] the highest KS with any true joint of the same kind or its twin."""
    twin = skeleton.flip_index
    true = np.array([other.joints for other in others]).reshape(-1, *person.joints.shape)
    others_area = np.array([other.area for other in others])
    kinds = classify_joints(
        xy,
        np.ones(len(xy), bool),
        person.joints[:, :2],
        person.labelled,
        np.float64(person.area),
        others_xy=true[..., :2],
        others_labelled=true[..., 2] > 0,
        others_area=others_area,
        skeleton=skeleton,
    )
    everybody = np.concatenate([person.joints[None], true])
    every_area = np.concatenate([[person.area], others_area])
    ks = [
        np.where(
            everybody[:, joints, 2] > 0,
            keypoint_similarity(xy, everybody[:, joints, :2], every_area, skeleton),
            0,
        )
        for joints in (slice(None), twin)
    ]
    return kinds, np.max(ks, axis=(0, 1))
