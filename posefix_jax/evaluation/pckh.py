"""MPII's PCKh: the share of joints within half a head size of the true joint."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from posefix_jax.core.skeleton import joints_in
from posefix_jax.data.coco import Person
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.scores import Scores, Truth, mean_of
from posefix_jax.types import PosefixError

GROUPS = {
    "Head": ("head_top",),
    **{part: (f"left_{part.lower()}", f"right_{part.lower()}") for part in ("Shoulder", "Elbow", "Wrist")},
    **{part: (f"left_{part.lower()}", f"right_{part.lower()}") for part in ("Hip", "Knee", "Ankle")},
}
JOINTS = ("neck", *(joint for joints in GROUPS.values() for joint in joints))
"""The 14 joints that count: all of MPII's except pelvis and thorax. The neck counts only in the Mean."""
NEAR, CLOSE = 0.5, 0.1
"""Thresholds of PCKh@0.5 and PCKh@0.1, in head sizes."""


def pckh_scores(truth: Truth, rows: Sequence[Pose]) -> Scores:
    """PCKh@0.5 of each kind of joint, and the Mean of all labelled joints at 0.5 and at 0.1, in percent.

    A row with an `annotation_id` belongs to that person; if there are several, the one with the highest score counts. Other
    rows of a photograph are assigned to the people who have none: the pair with the largest share of correct joints first,
    then the closest. Rows that are left do not count. All joints of a person without a row are wrong, and so are joints at
    x = y = 0 with a third value of 0.

    Args:
      truth: people with head sizes, image pixels.
      rows: poses of the truth's photographs and joints, image pixels.

    Returns:
      Scores whose main figure is the Mean; units are photographs.

    Raises:
      PosefixError: the skeleton lacks one of the 14 joints, or a person has no head size.
    """
    places = joints_in(JOINTS, truth.skeleton.joints)
    if (places < 0).any():
        lacking = ", ".join(joint for joint, place in zip(JOINTS, places, strict=True) if place < 0)
        raise PosefixError(f"skeleton {truth.skeleton.name} has no {lacking}, which PCKh needs; use another --metric")
    unit_of = {image: unit for unit, image in enumerate(truth.images)}
    people, poses = defaultdict(list), defaultdict(list)
    for person in truth.people:
        if not person.crowd and person.labelled[places].any():
            if person.head_size is None:
                raise PosefixError(
                    f"annotation {person.annotation_id!r} (image {person.image_id!r}) has neither head_size nor a bbox_head "
                    "with a width and height; PCKh is in head sizes: add one of them (MPII: 0.6 times the diagonal of "
                    "the head's rectangle)"
                )
            people[person.image_id].append(person)
    for row in rows:
        poses[row.image].append(row)
    annotated, near, close = np.zeros((3, len(unit_of), len(JOINTS)))
    for image, group in people.items():
        unit = unit_of[image]
        labelled = np.array([person.labelled[places] for person in group])
        annotated[unit] = labelled.sum(axis=0)
        if not poses[image]:
            continue
        distance = np.where(labelled, _distances(group, poses[image], places), np.inf)  # [R, P, 14]
        for row, person in _pairs(group, poses[image], distance, labelled):
            near[unit] += distance[row, person] <= NEAR
            close[unit] += distance[row, person] <= CLOSE
    with np.errstate(invalid="ignore"):
        shares = dict(zip(JOINTS, 100 * near.sum(axis=0) / annotated.sum(axis=0), strict=True))
    figures = {name: mean_of([shares[joint] for joint in joints]) for name, joints in GROUPS.items()}

    def mean(hits: np.ndarray, counts: np.ndarray) -> float:
        total = (counts @ annotated).sum()
        return float(100 * (counts @ hits).sum() / total) if total else -1.0

    every = np.ones(len(unit_of))
    figures |= {"Mean": mean(near, every), "Mean@0.1": mean(close, every)}
    return Scores(figures, "Mean", len(unit_of), "photographs", lambda counts: mean(near, counts))


def _distances(people: Sequence[Person], rows: Sequence[Pose], places: np.ndarray) -> np.ndarray:
    """[R, P, 14] distances in head sizes of the people; infinite if a row lacks the joint."""
    true_xy = np.array([person.joints[places, :2] for person in people])
    heads = np.array([person.head_size for person in people])
    poses = np.array([row.joints[places] for row in rows], np.float64)
    distance = np.linalg.norm(poses[:, None, :, :2] - true_xy, axis=-1) / heads[:, None]
    return np.where((poses != 0).any(axis=-1)[:, None] & np.isfinite(distance), distance, np.inf)


def _pairs(
    people: Sequence[Person], rows: Sequence[Pose], distance: np.ndarray, labelled: np.ndarray
) -> list[tuple[int, int]]:
    """(row, person) indices that belong together."""
    share = (distance <= NEAR).sum(axis=-1) / labelled.sum(axis=-1)
    apart = np.minimum(np.where(labelled, distance, 0), 1).sum(axis=-1) / labelled.sum(axis=-1)
    scores = np.array([row.score for row in rows], np.float64)
    candidates = []
    for r, row in enumerate(rows):
        for p, person in enumerate(people):
            named = row.extras.get("annotation_id")
            if named is None:
                candidates.append((True, -share[r, p], apart[r, p], -scores[r], r, p))
            elif named == person.annotation_id:
                candidates.append((False, -scores[r], -share[r, p], apart[r, p], r, p))
    pairs, used, given = [], set(), set()
    for *_, r, p in sorted(candidates):
        if r not in used and p not in given:
            pairs.append((r, p))
            used.add(r)
            given.add(p)
    return pairs
