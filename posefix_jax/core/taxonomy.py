"""How near a joint is to a true one, and which error it has. Ronchi & Perona, ICCV 2017."""

import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.types import ErrorKind

GOOD_KS, JITTER_KS = 0.85, 0.50
"""KS at which good ends, and at which jitter, inversion and swap end (Ronchi & Perona; the paper, section 4)."""


def similarity(distance_squared, area, skeleton: Skeleton, xp=np):
    """Keypoint similarity KS = exp(-d^2 / (2 area (2 sigma)^2)), the term of COCO's OKS.

    Args:
      distance_squared: [..., K], pixels squared.
      area: [...] the true person's, in the same pixels squared; below 1e-6 it counts as that.
      skeleton: static.
      xp: numpy, or jax.numpy on the device.
    """
    squared_sigmas = _as_last_axis(np.square(skeleton.sigmas), distance_squared.ndim)
    return xp.exp(-distance_squared / (8 * squared_sigmas * xp.maximum(area, 1e-6)[..., None]))


def _as_last_axis(values: np.ndarray, ndim: int) -> np.ndarray:
    """[K] as [1, ..., 1, K] of `ndim` axes: arrays of different rank are never combined on the device."""
    return values.reshape(*[1] * (ndim - 1), -1)


def classify_joints(
    xy,
    present,
    true_xy,
    labelled,
    area,
    *,
    others_xy,
    others_labelled,
    others_area,
    skeleton: Skeleton,
    good_ks: float = GOOD_KS,
    jitter_ks: float = JITTER_KS,
    xp=np,
):
    """The `ErrorKind` of each joint of a pose, by the true joint that it is most similar to.

    A joint is compared with itself, with its left/right twin, and with the same joint and its twin of every other
    person of the photograph, each by KS with that person's own area. The largest KS decides: with itself it is good
    or jitter, with the own twin inversion, with somebody else's joint swap; where it is below `jitter_ks`, miss.
    On a tie the earlier of that order decides.

    All coordinates are of one frame; K joints, N other people, any leading batch axes throughout.

    Args:
      xy: [..., K, 2] the pose.
      present: [..., K] whether the pose has the joint.
      true_xy, labelled: [..., K, 2] and [..., K] the true pose.
      area: [...] its area, pixels squared.
      others_xy, others_labelled, others_area: [..., N, K, 2], [..., N, K] and [..., N], the other true people.
      skeleton: static.
      xp: numpy, or jax.numpy on the device.

    Returns:
      [..., K] int32; ABSENT where the pose lacks the joint, or the truth has no label for it.
    """
    twin, has_twin = skeleton.flip_index, skeleton.has_twin

    def similar(to_xy, known, of_area):
        """KS, and below every KS where there is nothing to be similar to."""
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
