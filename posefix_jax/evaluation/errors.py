"""Matches detections with true people, and names the error of each joint (Ronchi & Perona, ICCV 2017)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.taxonomy import classify_joints
from posefix_jax.data.coco import OVERLAP_IOU, Annotations, box_iou
from posefix_jax.data.detections import read_detections
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.categories import in_categories
from posefix_jax.evaluation.oks import keypoint_similarity
from posefix_jax.types import PosefixError

MIN_OKS = 0.1
"""The lowest OKS at which a detection is matched with a person (Ronchi & Perona, section 3)."""


class Matched(NamedTuple):
    """Pairs of a detection and its true person, in the order of the people. Image frame, pixels.

    M pairs, K joints, N the largest number of other people in a photograph. float64 unless stated otherwise.

    Attributes:
      row, person: [M] int, indices of the detections and of `Annotations.people`.
      oks, score: [M] OKS as in pycocotools (over every labelled joint, whatever its score), and the score of the row.
      xy, present: [M, K, 2] and [M, K] bool, the detection; a joint of score 0 or not finite is not present.
      true_xy, labelled, area: [M, K, 2], [M, K] bool and [M] (pixels squared), the person.
      num_labelled: [M] int, labelled joints of the person.
      overlap: [M] int, other people in the photograph whose box has an IoU of at least `OVERLAP_IOU` with the person's.
      others_xy, others_labelled, others_area: [M, N, K, 2], [M, N, K] and [M, N], the other true people in the
        photograph; no joint is labelled in the padding.
      others_overlap: [M, N] bool, whether they are among those that `overlap` counts.
      kind: [M, K] int32 `ErrorKind`; ABSENT if the joint is not present or not labelled.
    """

    row: np.ndarray
    person: np.ndarray
    oks: np.ndarray
    score: np.ndarray
    xy: np.ndarray
    present: np.ndarray
    true_xy: np.ndarray
    labelled: np.ndarray
    area: np.ndarray
    num_labelled: np.ndarray
    overlap: np.ndarray
    others_xy: np.ndarray
    others_labelled: np.ndarray
    others_area: np.ndarray
    others_overlap: np.ndarray
    kind: np.ndarray

    @property
    def absent(self) -> np.ndarray:
        """[M, K] labelled joints that the detection lacks."""
        return self.labelled & ~self.present


def match_file(path: Path, annotations: Annotations) -> tuple[list[Pose], Matched]:
    """Reads a file of poses in any format, and matches its poses with the people of the annotations.

    Returns:
      The poses with the annotations' joints and image ids, and `match_people` of them.

    Raises:
      PosefixError: it is not a file of poses, a pose does not fit the annotations, or none is on a person.
    """
    poses = read_scored(path, annotations)
    people, (poses,) = in_categories(
        annotations.everybody, [(path, poses)], known=annotations.categories, how="auto", annotations=annotations.path
    )
    return poses, match_some(replace(annotations, everybody=tuple(people)), poses, path)


def read_scored(path: Path, annotations: Annotations) -> list[Pose]:
    """The poses of a file or folder, each with a score: the row's own, or the mean of its `scores` (PoseTrack).

    If no joint of a row has a third value above 0, its `scores` stand for them.
    """
    poses = read_detections(
        path,
        images=annotations.images,
        skeleton=annotations.skeleton,
        annotations=annotations.path,
        joint_scores=True,
    )
    return [_with_score(pose) for pose in poses]


def _with_score(pose: Pose) -> Pose:
    if not pose.extras.get("scores"):
        return pose
    scores = np.asarray(pose.extras["scores"], np.float64)
    joints = np.array(pose.joints, np.float64)
    there = (joints != 0).any(axis=-1)
    if not (joints[:, 2] > 0).any():
        joints[:, 2] = np.where(there, np.maximum(scores, 0), 0)
    if pose.score is None or not np.isfinite(pose.score):
        pose = pose._replace(score=float(scores[there].mean()) if there.any() else 0.0)
    return pose._replace(joints=joints)


def match_some(annotations: Annotations, poses: Sequence[Pose], path: Path) -> Matched:
    """`match_people`; raises PosefixError if nobody is matched. `path` is named in the message."""
    matched = match_people(annotations, poses)
    if not len(matched.row):
        raise PosefixError(f"{path}: no pose in it lies on a person of {annotations.path} (OKS {MIN_OKS} or more)")
    return matched


def match_people(annotations: Annotations, detections: Sequence[Pose], *, min_oks: float = MIN_OKS) -> Matched:
    """Matches poses with true people, and classifies their joints.

    Within a photograph and a category, detections choose in the order of falling score; each gets the free person with the highest OKS, if
    that is at least `min_oks`. Crowds and people without a labelled joint are not matched. The result does not depend on the
    order of detections or people: of equal scores, the higher best OKS chooses first, then the content decides.

    Args:
      annotations: the true people.
      detections: poses of the annotations' photographs and joints, image pixels, finite, with scores.
      min_oks: the lowest OKS of a match.
    """
    skeleton = annotations.skeleton
    poses = joints_of(detections, skeleton)
    people = annotations.people
    true = np.array([person.joints for person in people]).reshape(-1, skeleton.num_joints, 3)
    area = np.array([person.area for person in people])
    boxes = np.array([person.box for person in people]).reshape(-1, 4)
    labelled = true[..., 2] > 0
    in_image, together, rows_in = defaultdict(list), defaultdict(list), defaultdict(list)
    for index, person in enumerate(people):
        in_image[person.image_id].append(index)
        together[person.image_id, person.category].append(index)
    for index, pose in enumerate(detections):
        rows_in[pose.image, annotations.categories[0] if pose.category is None else pose.category].append(index)
    score = np.array([pose.score for pose in detections], np.float64)
    matches = []
    for place, mine in together.items():
        if place in rows_in:
            found = _match(np.array(rows_in[place]), np.array(mine), poses, score, true, area, skeleton, min_oks)
            matches += [(person, row, oks) for row, person, oks in found]
    matches.sort()
    person = np.array([match[0] for match in matches], int)
    row = np.array([match[1] for match in matches], int)
    most = max((len(in_image[people[p].image_id]) for p in person), default=1) - 1
    others_xy = np.zeros((len(row), most, skeleton.num_joints, 2))
    others_labelled = np.zeros(others_xy.shape[:-1], bool)
    others_area = np.ones(others_xy.shape[:2])
    others_overlap = np.zeros(others_xy.shape[:2], bool)
    for m, p in enumerate(person):
        others = [other for other in in_image[people[p].image_id] if other != p]
        others_xy[m, : len(others)] = true[others, :, :2]
        others_labelled[m, : len(others)] = labelled[others]
        others_area[m, : len(others)] = area[others]
        others_overlap[m, : len(others)] = box_iou(boxes[p], boxes[others]) >= OVERLAP_IOU
    xy = poses[row, :, :2]
    present = poses[row, :, 2] > 0
    neighbors: dict[str, Any] = {"others_xy": others_xy, "others_labelled": others_labelled, "others_area": others_area}
    pair: dict[str, Any] = {"xy": xy, "present": present, "true_xy": true[person, :, :2], "labelled": labelled[person]}
    pair["area"] = area[person]
    return Matched(
        row=row,
        person=person,
        oks=np.array([match[2] for match in matches], np.float64),
        score=score[row],
        num_labelled=labelled[person].sum(axis=1),
        overlap=others_overlap.sum(axis=1),
        others_overlap=others_overlap,
        kind=classify_joints(**pair, **neighbors, skeleton=skeleton),
        **pair,
        **neighbors,
    )


def with_overlapping_neighbors(matched: Matched, skeleton: Skeleton) -> Matched:
    """The matches with swaps to overlapping people only; other joints on other people are misses.

    The people around whom the synthesizer draws swaps are these.
    """
    others_labelled = matched.others_labelled & matched.others_overlap[..., None]
    kind = classify_joints(
        matched.xy,
        matched.present,
        matched.true_xy,
        matched.labelled,
        matched.area,
        others_xy=matched.others_xy,
        others_labelled=others_labelled,
        others_area=matched.others_area,
        skeleton=skeleton,
    )
    return matched._replace(others_labelled=others_labelled, kind=kind)


def joints_of(detections: Sequence[Pose], skeleton: Skeleton) -> np.ndarray:
    """[R, K, 3] image x, y, score of the poses."""
    return np.array([pose.joints for pose in detections]).reshape(-1, skeleton.num_joints, 3)


def _match(
    rows: np.ndarray,
    people: np.ndarray,
    poses: np.ndarray,
    score: np.ndarray,
    true: np.ndarray,
    area: np.ndarray,
    skeleton: Skeleton,
    min_oks: float,
) -> Iterator[tuple[int, int, float]]:
    """(row, person, OKS) of each match in one photograph."""
    people = np.array(sorted(people, key=lambda p: (-area[p], true[p].tobytes())))
    labelled = true[people, :, 2] > 0
    with np.errstate(over="ignore"):
        ks = keypoint_similarity(poses[rows][:, None, :, :2], true[people, :, :2], area[people], skeleton)
    oks = np.where(labelled, ks, 0).sum(axis=-1) / labelled.sum(axis=-1)
    order = sorted(range(len(rows)), key=lambda d: (-score[rows[d]], -oks[d].max(), poses[rows[d]].tobytes()))
    free = np.ones(len(people), bool)
    for d in order:
        best = int(np.where(free, oks[d], -1).argmax())
        if free[best] and oks[d, best] >= min_oks:
            free[best] = False
            yield int(rows[d]), int(people[best]), float(oks[d, best])
