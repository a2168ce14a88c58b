"""The paper's synthesiser: every joint errs by itself. Paper, section 4."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from posefix_jax.skeleton import Skeleton
from posefix_jax.synthesis.error_model import ErrorModel
from posefix_jax.types import ErrorKind


class SyntheticPose(NamedTuple):
    """A spoiled pose: `crop_xy` [K, 2], `present` [K], and the `ErrorKind` of each joint, `kind` [K]."""

    crop_xy: Array
    present: Array
    kind: Array


_RADII, _ANGLES = 4, 8
"""Candidates of a ring are a grid of 4 lengths x 8 angles, shifted as a whole by one random offset."""
_CELLS = _RADII * _ANGLES


def synthesize_pose(
    key: Key[Array, ""],
    crop_xy: Float[Array, "K 2"],
    labelled: Bool[Array, " K"],
    *,
    others_xy: Float[Array, "N K 2"],
    others_labelled: Bool[Array, "N K"],
    area: Float[Array, ""],
    skeleton: Skeleton,
    errors: ErrorModel,
    overlap: Int[Array, ""] | None = None,
) -> SyntheticPose:
    """Spoils one true pose the way an estimator would, and says what it did to each joint.

    Pure: equal arguments give an equal pose. One person; `vmap` to batch. The program does not grow with K.

    The sources of a joint are itself, its twin, and the same two of each neighbour. Every kind has rings around
    some of its sources; of a ring's candidates those remain that meet the kind's condition. A kind without a
    candidate gives its probability to the others in proportion. The candidate is then drawn among those that
    remain, so its length is uniform in the ring (not in the disc) wherever the condition does not cut.

    Args:
      key: consumed once; the caller folds in epoch and sample.
      crop_xy: true joints, crop pixels; (0, 0) is the centre of the top-left pixel.
      labelled: where False the joint is absent from the result, and is no source.
      others_xy: nearest people, padded to N, same frame.
      others_labelled: False on padding.
      area: the person's area, crop pixels squared; scales the KS radii.
      skeleton: static.
      errors: static; checked when built, so nothing raises here.
      overlap: people who overlap this one; by default those in `others_xy` with a labelled joint.

    Returns:
      Synthetic joints in crop pixels (0 where absent), their presence, and an `ErrorKind` each.
    """
    num_others = others_xy.shape[0]
    num_sources = 2 + 2 * num_others
    twin = skeleton.flip_index
    uniform = jax.random.uniform(key, (5, skeleton.num_joints))

    # Sources [S, K]: itself, own twin, the same joint of the others, the twin of the others.
    crop_xy = jnp.where(labelled[:, None], crop_xy, 0.0)
    others_xy = jnp.where(others_labelled[..., None], others_xy, 0.0)
    source_xy = jnp.concatenate([crop_xy[None], crop_xy[twin][None], others_xy, others_xy[:, twin]])
    has_twin = skeleton.has_twin
    exists = jnp.concatenate(
        [
            labelled[None],
            (labelled[twin] & has_twin)[None],
            others_labelled,
            others_labelled[:, twin] & has_twin,
        ]
    )

    # Slots [Q]: a ring (inner and outer KS) around a source, for a kind.
    itself, own_twin, foreign = 0, 1, list(range(2, num_sources))
    good, jitter, miss = errors.good_ks, errors.jitter_ks, errors.miss_ks
    slots = [
        (ErrorKind.GOOD, itself, 1.0, good),
        (ErrorKind.JITTER, itself, good, jitter),
        (ErrorKind.INVERSION, own_twin, errors.confusion_ks, jitter),
        *((ErrorKind.SWAP, source, errors.confusion_ks, jitter) for source in foreign),
        *((ErrorKind.MISS, source, jitter, miss) for source in range(num_sources)),
    ]
    slot_kind = np.array([slot[0] for slot in slots])
    slot_source = np.array([slot[1] for slot in slots])
    slot_weight = np.where((slot_kind == ErrorKind.MISS) & (slot_source != itself), errors.miss_weight, 1.0)

    falloff = 2 * np.asarray(skeleton.sigmas, np.float32)
    unit = falloff * jnp.sqrt(area)  # [K]; d(ks) = unit * sqrt(-2 ln ks)

    def radius_at(ks):
        return np.sqrt(-2 * np.log(np.array([slot[ks] for slot in slots]))).astype(np.float32)[:, None, None] * unit

    step = (jnp.arange(_RADII, dtype=jnp.float32)[:, None] + uniform[0]) / _RADII
    length = radius_at(2) + (radius_at(3) - radius_at(2)) * step  # [Q, R, K]
    angle = 2 * jnp.pi / _ANGLES * (jnp.arange(_ANGLES, dtype=jnp.float32)[:, None] + uniform[1])
    direction = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)  # [A, K, 2]

    # Squared distance of each candidate to source t, without building the candidate:
    # |s + r e - t|^2 = |s - t|^2 + 2 r e.(s - t) + r^2.
    between = source_xy[:, None] - source_xy[None, :]  # [S, T, K, 2]
    apart = (between**2).sum(axis=-1)
    along = jnp.einsum("stkc,akc->stak", between, direction)

    is_miss = slot_kind == ErrorKind.MISS
    is_swap = slot_kind == ErrorKind.SWAP
    jitter_radius = unit * np.sqrt(-2 * np.log(jitter)).astype(np.float32)
    allowed = jnp.broadcast_to(exists[slot_source][:, None, None], (len(slots), _RADII, _ANGLES, labelled.shape[0]))
    for target in range(num_sources):
        # Excess of the squared distance to the target over that to the candidate's own source, r^2.
        excess = (
            apart[slot_source, target][:, None, None] + 2 * length[:, :, None] * along[slot_source, target][:, None]
        )
        far_enough = jnp.where(
            is_miss[:, None, None, None],
            excess + length[:, :, None] ** 2 >= jitter_radius**2 * (1 - 1e-5),
            excess > 0,
        )
        # Who is its own source is trivially nearest; a swap minds only the person's own two joints.
        exempt = (slot_source == target) & ~is_miss | is_swap & (target >= 2)
        allowed &= far_enough | ~exists[target] | exempt[:, None, None, None]
    allowed = allowed.reshape(len(slots), _CELLS, -1)
    remaining = allowed.sum(axis=1, dtype=jnp.float32) * slot_weight.astype(np.float32)[:, None]  # [Q, K]

    count = labelled.sum()
    overlap = others_labelled.any(axis=-1).sum() if overlap is None else overlap
    crowded = sum(((count <= n) & (overlap >= o) for n, o in errors.crowded), jnp.asarray(False))
    bin_index = (count > np.array(errors.count_bins)).sum()
    rates = jnp.asarray(errors.table(skeleton))[:, bin_index, crowded.astype(jnp.int32)]  # [K, kinds]
    of_kind = slot_kind[:, None] == np.arange(5)  # [Q, kinds]
    available = (jnp.einsum("qk,qe->ke", remaining, of_kind.astype(np.float32)) > 0) & labelled[:, None]
    rates = jnp.where(available, rates, 0.0)

    kind = _draw(uniform[2], rates)
    slot = _draw(uniform[3], remaining.T * jnp.asarray(of_kind.T, jnp.float32)[kind])
    joint = np.arange(labelled.shape[0])
    cell = _draw(uniform[4], allowed[slot, :, joint].astype(jnp.float32))
    offset = length[slot, cell // _ANGLES, joint][:, None] * direction[cell % _ANGLES, joint]
    drawn_xy = source_xy[jnp.asarray(slot_source)[slot], joint] + offset
    # Nothing remains only where every candidate is ruled out (two people's joints coincide): then it is good.
    stuck = ~available.any(axis=-1)
    drawn_xy = jnp.where(stuck[:, None], crop_xy, drawn_xy)
    kind = jnp.where(stuck, int(ErrorKind.GOOD), kind)
    return SyntheticPose(
        crop_xy=jnp.where(labelled[:, None], drawn_xy, 0.0),
        present=labelled,
        kind=jnp.where(labelled, kind, int(ErrorKind.ABSENT)).astype(jnp.int32),
    )


def _draw(uniform: Float[Array, " K"], weights: Float[Array, "K M"]) -> Int[Array, " K"]:
    """One index a row, with probability in proportion to its weight; never one of weight 0 if another is not."""
    size = weights.shape[-1]
    cumulative = weights @ np.triu(np.ones((size, size), np.float32))
    passed = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=-1)
    last = size - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.minimum(passed, last)
