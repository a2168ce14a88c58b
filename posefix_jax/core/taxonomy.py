"""Similarity of a joint to a true one, and the kinds of pose error. Ronchi & Perona, ICCV 2017."""

from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.types import ErrorKind

GOOD_KS, JITTER_KS = 0.85, 0.50
"""Least KS of a good joint, and of jitter, inversion and swap (Ronchi & Perona; paper, section 4)."""


def similarity(
    distance_squared: Real[Any, "... K"], area: float | Real[Any, "..."], skeleton: Skeleton, xp: ModuleType = np
) -> Float[Any, "... K"]:
    """Keypoint similarity KS = exp(-d^2 / (2 area (2 sigma)^2)), the term of COCO's OKS.

    Args:
      distance_squared: pixels squared.
      area: the true person's area, same pixels squared. Areas below 1e-6 count as 1e-6.
      skeleton: static.
      xp: `numpy`, or `jax.numpy` on the device.
    """
    squared_sigmas = _as_last_axis(np.square(skeleton.sigmas), distance_squared.ndim)
    return xp.exp(-distance_squared / (8 * squared_sigmas * xp.maximum(area, 1e-6)[..., None]))


def _as_last_axis(values: np.ndarray, ndim: int) -> np.ndarray:
    """[K] as [1, ..., 1, K] of `ndim` axes: arrays of different rank are never combined on the device."""
    return values.reshape(*[1] * (ndim - 1), -1)


def classify_joints(
    xy: Real[Any, "... K 2"],
    present: Bool[Any, "... K"],
    true_xy: Real[Any, "... K 2"],
    labelled: Bool[Any, "... K"],
    area: float | Real[Any, "..."],
    *,
    others_xy: Real[Any, "... N K 2"],
    others_labelled: Bool[Any, "... N K"],
    others_area: Real[Any, "... N"],
    skeleton: Skeleton,
    good_ks: float = GOOD_KS,
    jitter_ks: float = JITTER_KS,
    xp: ModuleType = np,
) -> Int[Any, "... K"]:
    """The `ErrorKind` of each joint of a pose, by the true joint that it is most similar to.

    A joint is compared with its true place, with its left/right twin, and with the same joint and its twin of every
    other person in the photograph, each by KS with that person's own area. The largest KS decides. True place: good or
    jitter. Own twin: inversion. Another person's joint: swap. If the largest KS is below `jitter_ks`: miss. On a tie
    the first in this order wins.

    All coordinates are in one frame. Leading batch axes are allowed throughout.

    Args:
      xy, present: the pose, and which joints it has.
      true_xy, labelled, area: the true pose, which joints are annotated, and its area in pixels squared.
      others_xy, others_labelled, others_area: the other true people.
      skeleton: static.
      good_ks, jitter_ks: static; least KS of a good joint, and of any kind but a miss.
      xp: `numpy`, or `jax.numpy` on the device.

    Returns:
      int32; ABSENT where the pose lacks the joint or the truth has no label for it.
    """
    twin, has_twin = skeleton.flip_index, skeleton.has_twin

    def similar(to_xy, known, of_area):
        """KS, or -1 where the true joint is not known."""
        from_xy = xy if to_xy.ndim == xy.ndim else xy[..., None, :, :]
        return xp.where(known, similarity(((from_xy - to_xy) ** 2).sum(axis=-1), of_area, skeleton, xp), -1.0)

    itself = similar(true_xy, labelled, area)
    own_twin = similar(true_xy[..., twin, :], labelled[..., twin] & _as_last_axis(has_twin, labelled.ndim), area)
    foreign = xp.full_like(itself, -1.0)
    if others_xy.shape[-3]:
        same = similar(others_xy, others_labelled, others_area)
        twins_labelled = others_labelled[..., twin] & _as_last_axis(has_twin, others_labelled.ndim)
        twins = similar(others_xy[..., twin, :], twins_labelled, others_area)
        foreign = xp.maximum(same, twins).max(axis=-2)
    elsewhere = xp.maximum(own_twin, foreign)
    own = xp.where(itself >= good_ks, int(ErrorKind.GOOD), int(ErrorKind.JITTER))
    confused = xp.where(own_twin >= foreign, int(ErrorKind.INVERSION), int(ErrorKind.SWAP))
    kind = xp.where(itself >= elsewhere, own, confused)
    kind = xp.where(xp.maximum(itself, elsewhere) >= jitter_ks, kind, int(ErrorKind.MISS))
    return xp.where(labelled & present, kind, int(ErrorKind.ABSENT)).astype(np.int32)
