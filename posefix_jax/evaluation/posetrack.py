"""PoseTrack's multi-person pose estimation figure: AP of each joint by head size, their mean (its tool is poseval)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from posefix_jax.core.joint_sets import POSETRACK17
from posefix_jax.core.skeleton import joints_in
from posefix_jax.data.coco import Person
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.scores import Scores, Truth, mean_of
from posefix_jax.types import PosefixError

JOINTS = POSETRACK17.joints
GROUPS = {
    "Head": ("head_top", "head_bottom", "nose"),
    "Shou": ("left_shoulder", "right_shoulder"),
    "Elb": ("left_elbow", "right_elbow"),
    "Wri": ("left_wrist", "right_wrist"),
    "Hip": ("left_hip", "right_hip"),
    "Knee": ("left_knee", "right_knee"),
    "Ankl": ("left_ankle", "right_ankle"),
}
NEAR = 0.5
"""A joint is correct up to this many head sizes from the true joint."""


class _Points(NamedTuple):
    """The joints found in all frames: [n] score, index in `JOINTS`, whether it is correct, index of the unit."""

    score: np.ndarray
    joint: np.ndarray
    right: np.ndarray
    unit: np.ndarray


def posetrack_scores(truth: Truth, rows: Sequence[Pose]) -> Scores:
    """AP of each kind of joint, and Total, the mean of the 15 joint APs, in percent.

    A joint at x = y = 0 with a third value of 0 is absent, in truth and rows; any other is present. Frames without an
    annotated person are left out. Joints have a row's `scores`, else its `score`. A pose is assigned to the person for whom
    it has the largest share of correct joints, and a person to the best of such poses; ties go to the closer person, and to
    the pose with the higher score. Every joint of an unassigned pose is wrong. Joints of equal score are one step of the
    curve, so that the order of rows does not matter.

    Args:
      truth: people with head sizes, and images with ignore regions, image pixels.
      rows: poses of the truth's photographs and joints, image pixels.

    Returns:
      Scores whose main figure is Total. Units are sequences (`vid_id`) if there are several, else frames.

    Raises:
      PosefixError: the skeleton lacks one of the 15 joints, a person has no head size, or an ignore region is not a polygon.
    """
    places = joints_in(JOINTS, truth.skeleton.joints)
    if (places < 0).any():
        lacking = ", ".join(joint for joint, place in zip(JOINTS, places, strict=True) if place < 0)
        raise PosefixError(
            f"skeleton {truth.skeleton.name} has no {lacking}, which PoseTrack's figures need; use another --metric"
        )
    people, poses = defaultdict(list), defaultdict(list)
    for person in truth.people:
        people[person.image_id].append(person)
    for row in rows:
        poses[row.image].append(row)
    frames = [image for image in truth.images if people[image]]
    units, unit_of = _units(truth.images, frames)
    annotated = np.zeros((units, len(JOINTS)))
    found = []
    for image, unit in zip(frames, unit_of, strict=True):
        regions = _regions(truth.images[image])
        true_xy, labelled = _joints([person.joints for person in people[image]], places, regions)
        annotated[unit] += labelled.sum(axis=0)
        if not poses[image]:
            continue
        xy, present = _joints([row.joints for row in poses[image]], places, regions)
        score = np.array([_row_scores(row, places) for row in poses[image]])
        right = _right(xy, present, score, true_xy, labelled, _heads(people[image], labelled))
        row, joint = np.nonzero(present)
        found.append(_Points(score[row, joint], joint, right[row, joint], np.full(len(row), unit)))
    points = _Points(*(np.concatenate(field) for field in zip(*found, strict=True))) if found else None
    curves = [_Curve(points, joint) for joint in range(len(JOINTS))]

    def joint_aps(counts: np.ndarray) -> list[float]:
        totals = counts @ annotated
        return [curve.average_precision(counts, total) for curve, total in zip(curves, totals, strict=True)]

    aps = joint_aps(np.ones(units))
    figures = {name: mean_of([aps[JOINTS.index(joint)] for joint in joints]) for name, joints in GROUPS.items()}
    figures["Total"] = mean_of(aps)
    several = len({truth.images[image].get("vid_id") for image in frames}) > 1
    unit = "sequences" if several else "frames"
    return Scores(figures, "Total", units, unit, lambda counts: mean_of(joint_aps(counts)))


def _units(images: Mapping, frames: Sequence) -> tuple[int, list[int]]:
    """How many units there are, and which each frame belongs to."""
    videos = [images[frame].get("vid_id") for frame in frames]
    if len(set(videos)) < 2:
        return len(frames), list(range(len(frames)))
    number = {video: i for i, video in enumerate(dict.fromkeys(videos))}
    return len(number), [number[video] for video in videos]


def _joints(
    poses: Sequence[np.ndarray], places: np.ndarray, regions: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """[N, 15, 2] image pixels, and [N, 15] which joints are present and outside the regions."""
    joints = np.asarray(poses, np.float64)[:, places]
    xy = joints[..., :2]
    present = (joints != 0).any(axis=-1)
    for region in regions:
        present &= ~inside(xy, region)
    return xy, present


def _row_scores(row: Pose, places: np.ndarray) -> np.ndarray:
    """[15] scores of a row's joints."""
    if row.extras.get("scores"):
        return np.asarray(row.extras["scores"], np.float64)[places]
    return np.full(len(places), float(row.score or 0.0))


def _heads(people: Sequence[Person], labelled: np.ndarray) -> np.ndarray:
    """[P] head sizes; 1 for people without a labelled joint."""
    for person, joints in zip(people, labelled, strict=True):
        if joints.any() and person.head_size is None:
            raise PosefixError(
                f"annotation {person.annotation_id!r} (image {person.image_id!r}) has no bbox_head with a width and height, nor "
                "head_size; distances are in head sizes, expected PoseTrack's annotation files"
            )
    return np.array([person.head_size or 1.0 for person in people])


def _right(
    xy: np.ndarray,
    present: np.ndarray,
    score: np.ndarray,
    true_xy: np.ndarray,
    labelled: np.ndarray,
    heads: np.ndarray,
) -> np.ndarray:
    """[R, 15] which joints of the poses [R, 15, ...] are correct, given the people [P, 15, ...] of the frame."""
    distance = np.linalg.norm(xy[:, None] - true_xy, axis=-1) / heads[:, None]
    near = present[:, None] & labelled & (distance <= NEAR)
    share = near.sum(axis=-1) / np.maximum(labelled.sum(axis=-1), 1)  # [R, P]
    closeness = np.where(near, distance, 0).sum(axis=-1) / np.maximum(near.sum(axis=-1), 1)
    best = np.lexsort((closeness, -share), axis=1)[:, 0]
    rows = np.arange(len(xy))
    mean_score = np.where(present, score, 0).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    right = np.zeros(present.shape, bool)
    taken = set()
    for row in np.lexsort((-mean_score, -share[rows, best])).tolist():
        person = int(best[row])
        if share[row, person] > 0 and person not in taken:
            taken.add(person)
            right[row] = near[row, person]
    return right


class _Curve:
    """The precision-recall curve of one joint (VOC, all points), fast for any weights of units."""

    def __init__(self, points: _Points | None, joint: int):
        mine = np.flatnonzero(points.joint == joint) if points else np.zeros(0, int)
        mine = mine[np.argsort(-points.score[mine], kind="stable")] if points else mine
        scores = points.score[mine] if points else np.zeros(0)
        self.right = points.right[mine] if points else np.zeros(0, bool)
        self.unit = points.unit[mine] if points else np.zeros(0, int)
        self.ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(mine) else np.zeros(0, int)

    def average_precision(self, counts: np.ndarray, total: float) -> float:
        """Of 100; NaN where no such joint is annotated."""
        if not total:
            return np.nan
        weight = counts[self.unit]
        found = np.cumsum(weight)[self.ends]
        hits = np.cumsum(weight * self.right)[self.ends]
        precision = np.maximum.accumulate((hits / np.maximum(found, 1))[::-1])[::-1]
        return float(100 * (np.diff(hits, prepend=0) * precision).sum() / total)


def _regions(image: Mapping) -> list[np.ndarray]:
    """The ignore regions of a frame, [n, 2] corners each, image pixels."""
    xs, ys = (image.get(f"ignore_regions_{axis}") or [] for axis in "xy")
    try:
        regions = [
            np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], -1) for x, y in zip(xs, ys, strict=True)
        ]
        if any(region.ndim != 2 for region in regions):
            raise ValueError("a region is not a list of corners")
    except (TypeError, ValueError) as error:
        raise PosefixError(
            f"image {image['id']!r}: ignore_regions_x and ignore_regions_y must list the corners of the same polygons ({error})"
        ) from error
    return regions


def inside(xy: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Which [..., 2] points are inside a polygon of [n, 2] corners (even-odd rule); points on its edge are not."""
    if len(corners) < 3:
        return np.zeros(xy.shape[:-1], bool)
    x, y = xy[..., 0, None], xy[..., 1, None]
    (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, axis=0).T
    side = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
    crosses = (y0 > y) != (y1 > y)
    right_of = np.where(y1 > y0, side > 0, side < 0)  # the edge is right of the point
    on_edge = (side == 0) & (np.minimum(x0, x1) <= x) & (x <= np.maximum(x0, x1))
    on_edge &= (np.minimum(y0, y1) <= y) & (y <= np.maximum(y0, y1))
    return ((crosses & right_of).sum(axis=-1) % 2 == 1) & ~on_edge.any(axis=-1)
