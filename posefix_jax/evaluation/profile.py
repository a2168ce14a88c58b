"""The profile of an estimator from matched poses: its errors, what they cost, and what its scores are worth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.errors import Matched
from posefix_jax.evaluation.intervals import clustered
from posefix_jax.evaluation.oks import keypoint_similarity
from posefix_jax.types import KINDS, ErrorKind

STATES = (*(kind.name.lower() for kind in KINDS), "absent")
"""The states of a labelled joint of a matched person; `states_of` gives the index."""
ERRORS = STATES[1:]
TOGETHER = 4
"""Joints of one kind in one person from which they count as co-occurring."""
MEDIUM_AREA, LARGE_AREA = 32**2, 96**2
"""Areas at which COCO's medium and large people begin, pixels squared (pycocotools)."""


@dataclass(frozen=True)
class Share:
    """The share of a kind among the labelled joints of one bin of a division, with its 95% interval (`clustered`).

    Attributes:
      by: the division: `total`, `group`, `joint`, ...
      bin: name of the bin.
      kind: one of `STATES`.
      count, total: joints of the kind, and all labelled joints, in the bin.
      share: count / total.
      low, high: ends of the interval.
    """

    by: str
    bin: str
    kind: str
    count: int
    total: int
    share: float
    low: float
    high: float


def states_of(matched: Matched) -> np.ndarray:
    """[M, K] index into `STATES`; -1 if the joint is not labelled."""
    left_out = np.where(matched.labelled, len(KINDS), -1)
    return np.where(matched.kind == ErrorKind.ABSENT, left_out, matched.kind)


def shares(matched: Matched, skeleton: Skeleton) -> list[Share]:
    """How often each state occurs: in total, by group, joint, number of labelled joints, overlap and size. No empty bins."""
    states = states_of(matched)
    found = []
    for by, name, where in _divisions(matched, skeleton):
        of_person = np.stack([((states == state) & where).sum(axis=1) for state in range(len(STATES))], axis=1)
        total = int(of_person.sum())
        if not total:
            continue
        low, high = clustered(of_person, of_person.sum(axis=1, keepdims=True))
        for kind, n, a, b in zip(STATES, of_person.sum(axis=0), low, high, strict=True):
            found.append(Share(by, name, kind, int(n), total, float(n / total), float(a), float(b)))
    return found


def _divisions_of_joints(skeleton: Skeleton) -> Iterator[tuple[str, str, np.ndarray]]:
    """(division, bin, [1, K] mask): in total, by group and by joint."""
    groups = np.array(skeleton.groups)
    yield "total", "all", np.ones((1, len(groups)), bool)
    for group in dict.fromkeys(skeleton.groups):
        yield "group", group, (groups == group)[None]
    for joint, name in enumerate(skeleton.joints):
        yield "joint", name, (np.arange(len(groups)) == joint)[None]


def _divisions(matched: Matched, skeleton: Skeleton) -> Iterator[tuple[str, str, np.ndarray]]:
    """(division, bin, [M, 1] or [1, K] mask)."""
    yield from _divisions_of_joints(skeleton)
    of_person = {
        "labelled joints": (matched.num_labelled, {"<= 5": (0, 5), "6-10": (6, 10), "> 10": (11, np.inf)}),
        "overlap": (matched.overlap, {"0": (0, 0), "1-2": (1, 2), ">= 3": (3, np.inf)}),
    }
    for by, (value, bins) in of_person.items():
        for name, (low, high) in bins.items():
            yield by, name, ((value >= low) & (value <= high))[:, None]
    size = (matched.area >= MEDIUM_AREA).astype(int) + (matched.area > LARGE_AREA)
    for index, name in enumerate(("small", "medium", "large")):
        yield "size", name, (size == index)[:, None]


def together(matched: Matched) -> dict[str, Share]:
    """By error kind: of the joints of that kind, the share in people with `TOGETHER` or more of them."""
    states = states_of(matched)
    found = {}
    for index, kind in enumerate(STATES[1:], start=1):
        of_person = (states == index).sum(axis=1)
        with_others = np.where(of_person >= TOGETHER, of_person, 0)
        total, count = int(of_person.sum()), int(with_others.sum())
        low, high = clustered(with_others, of_person)
        share = count / total if total else 0.0
        found[kind] = Share("together", f">= {TOGETHER}", kind, count, total, share, float(low), float(high))
    return found


def with_joints(detections: Sequence[Pose], joints: np.ndarray) -> list[Pose]:
    """The same detections with other joints, [R, K, 3]."""
    return [pose._replace(joints=one) for pose, one in zip(detections, joints, strict=True)]


def corrections(matched: Matched, poses: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Moves the joints of one error kind to their true place and leaves all others.

    Args:
      matched: of these poses.
      poses: [R, K, 3] image x, y, score.

    Yields:
      (name, corrected poses) for each kind of `ERRORS`; for `all errors` at once; and for `every joint`, the good ones too.
    """
    states = states_of(matched)
    wanted = {kind: states == index for index, kind in enumerate(STATES[1:], start=1)}
    wanted |= {"all errors": states > 0, "every joint": states >= 0}
    for name, where in wanted.items():
        corrected = poses.copy()
        corrected[matched.row, :, :2] = np.where(where[..., None], matched.true_xy, poses[matched.row, :, :2])
        yield name, corrected


def true_scores(matched: Matched, count: int) -> np.ndarray:
    """[count] the best possible scores of the rows: OKS with the matched person, 0 without one."""
    scores = np.zeros(count)
    scores[matched.row] = matched.oks
    return scores


def calibration(matched: Matched, bins: int = 10) -> dict:
    """How well the scores of the matched detections tell their quality.

    Returns:
      `bins`: mean score, mean OKS and count by score decile (equal scores share a bin). `error`: the expected calibration
      error, the mean over detections of |mean score - mean OKS| of their bin; None if scores leave 0..1. `rank`:
      Spearman's rank correlation of score and OKS; None if one of them is constant.
    """
    score, oks = matched.score, matched.oks
    if not len(score):
        return {"bins": [], "error": None, "rank": None}
    edges = np.unique(np.quantile(score, np.linspace(0, 1, bins + 1)))
    place = np.searchsorted(edges[1:-1], score, side="right")
    rows = [
        {"score": float(score[at].mean()), "oks": float(oks[at].mean()), "count": int(at.sum())}
        for at in (place == index for index in range(bins))
        if at.any()
    ]
    off = sum(row["count"] * abs(row["score"] - row["oks"]) for row in rows) / len(score)
    a, b = _ranks(score), _ranks(oks)
    rank = float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else None
    return {"bins": rows, "error": off if 0 <= score.min() and score.max() <= 1 else None, "rank": rank}


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks; equal values get their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def transitions(before: Matched, after: Matched, labelled: np.ndarray) -> np.ndarray:
    """Counts labelled joints by their state before (rows) and after (columns).

    Args:
      before, after: matches of the two files.
      labelled: [P, K] of all true people, indexed by `Matched.person`.

    Returns:
      [7, 7]: `STATES`, and last, joints of a person without a match.
    """
    sides = []
    for matched in (before, after):
        states = np.where(labelled, len(STATES), -1)
        states[matched.person] = states_of(matched)
        sides.append(states[labelled])
    counts = np.zeros((len(STATES) + 1, len(STATES) + 1), int)
    np.add.at(counts, tuple(sides), 1)
    return counts


def oks_changes(before: Matched, after: Matched) -> np.ndarray:
    """[C, 2] person and change of OKS (after - before), for people matched before and after."""
    both, i, j = np.intersect1d(before.person, after.person, return_indices=True)
    return np.column_stack([both, after.oks[j] - before.oks[i]])


def ks_changes(before: Matched, after: Matched, skeleton: Skeleton) -> list[dict]:
    """Mean KS of labelled joints before and after, for people matched in both: in total, by group and by joint.

    An absent joint has KS 0.

    Returns:
      Rows of `by`, `bin`, `joints` (how many), `before`, `after`.
    """
    _, i, j = np.intersect1d(before.person, after.person, return_indices=True)
    labelled = before.labelled[i]
    ks = [
        np.where(side.present, keypoint_similarity(side.xy, side.true_xy, side.area, skeleton), 0.0)[pairs]
        for side, pairs in ((before, i), (after, j))
    ]
    found = []
    for by, name, where in _divisions_of_joints(skeleton):
        of = labelled & where
        if of.any():
            means = {side: float(values[of].mean()) for side, values in zip(("before", "after"), ks, strict=True)}
            found.append({"by": by, "bin": name, "joints": int(of.sum()), **means})
    return found
