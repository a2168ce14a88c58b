"""The paper's synthesiser: a kind of error is drawn for every joint, then a place. Paper, section 4."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.synthesis.error_model import DRAW_ORDER, ErrorModel
from posefix_jax.types import ErrorKind


class SyntheticPose(NamedTuple):
    """A spoiled pose: `crop_xy` [K, 2], `present` [K], and the `ErrorKind` of each joint, `kind` [K]."""

    crop_xy: Array
    present: Array
    kind: Array


_LATTICE, _GENERATOR = 34, 21
"""Whether a ring has room is found with a Fibonacci lattice of 34 lengths and angles, shifted by one random offset."""
_CANDIDATES = 32
"""Independent candidates in the ring that was chosen, of which the first that meets the condition is taken."""


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
    some of its sources, and a condition. A kind that has no room gives its probability to the others in proportion.
    A kind is drawn, then one of its rings by its room, then independent candidates in it; the first that meets the
    condition is taken. So lengths are uniform in the ring (not in the disc) wherever the condition does not cut, as
    if drawn by rejection without end.

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
    uniform_key, candidate_key = jax.random.split(key)
    together_key = jax.random.split(key, 3)[2]  # the first two of three are those above
    uniform = jax.random.uniform(uniform_key, (4, skeleton.num_joints))

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

    falloff = 2 * np.asarray(skeleton.sigmas if not errors.sigma else [errors.sigma] * skeleton.num_joints, np.float32)
    unit = falloff * jnp.sqrt(area)  # [K]; d(ks) = unit * sqrt(-2 ln ks)

    inner, outer = (np.sqrt(-2 * np.log([slot[i] for slot in slots])).astype(np.float32) for i in (2, 3))
    between = source_xy[:, None] - source_xy[None, :]  # [S, T, K, 2]
    apart = (between**2).sum(axis=-1)
    jitter_radius = unit * np.sqrt(-2 * np.log(jitter)).astype(np.float32)

    def meets(kind, source, length, apart, along):
        """Whether candidates at `length` from their source meet the kind's condition.

        `apart(target)` is the squared distance of the source to the target, `along(target)` the dot product of the
        candidate's direction with the way from target to source.
        """
        is_miss, is_swap = kind == ErrorKind.MISS, kind == ErrorKind.SWAP
        allowed = True
        for target in range(num_sources):
            # The squared distance of candidate s + r e to target t is |s - t|^2 + 2 r e.(s - t) + r^2.
            excess = apart(target) + 2 * length * along(target)
            far_enough = jnp.where(is_miss, excess + length**2 >= jitter_radius**2 * (1 - 1e-5), excess > 0)
            # Who is its own source is trivially nearest; a swap minds only the person's own two joints.
            exempt = (source == target) & ~is_miss | is_swap & (target >= 2)
            allowed &= far_enough | ~exists[target] | exempt
        return allowed

    cells = np.arange(_LATTICE, dtype=np.float32)[:, None]
    rings = (inner[:, None, None], outer[:, None, None])
    share = (cells + uniform[0]) / _LATTICE  # [C, K] of the way from the inner to the outer radius
    quantiles = errors.length_table(skeleton)

    def length_share(kind, uniform):
        """A uniform number as the share of the way from the inner to the outer radius."""
        return uniform if quantiles is None else _quantile(jnp.asarray(quantiles), kind, uniform)

    length = unit * (rings[0] + (rings[1] - rings[0]) * length_share(slot_kind[:, None, None], share))  # [Q, C, K]
    direction = _direction((_GENERATOR * cells % _LATTICE + uniform[1]) / _LATTICE)  # [C, K, 2]
    along = jnp.einsum("stkx,ckx->stck", between, direction)
    allowed = exists[slot_source][:, None] & meets(
        slot_kind[:, None, None],
        slot_source[:, None, None],
        length,
        lambda target: apart[slot_source, target][:, None],
        lambda target: along[slot_source, target],
    )
    remaining = allowed.sum(axis=1, dtype=jnp.float32) * slot_weight.astype(np.float32)[:, None]  # [Q, K]

    count = labelled.sum()
    overlap = others_labelled.any(axis=-1).sum() if overlap is None else overlap
    rates = jnp.asarray(errors.table(skeleton))[:, *errors.bin_of(count, overlap)]  # [K, kinds]
    of_kind = slot_kind[:, None] == np.arange(5)  # [Q, kinds]
    available = (jnp.einsum("qk,qe->ke", remaining, of_kind.astype(np.float32)) > 0) & labelled[:, None]
    rates = jnp.where(available, rates, 0.0)

    kind = (
        _draw(uniform[2], rates) if not np.any(errors.together) else _draw_together(together_key, rates, twin, errors)
    )
    slot = _draw(uniform[3], remaining.T * jnp.asarray(of_kind.T, jnp.float32)[kind])
    joint = np.arange(labelled.shape[0])
    source = jnp.asarray(slot_source)[slot]

    # Independent candidates, one random word each (16 bits of length, 16 of angle); then the lattice again, for room
    # so narrow that none of those fits.
    words = _sequence(jax.random.bits(candidate_key, (skeleton.num_joints,)), _CANDIDATES)
    low, high = ((part.astype(jnp.float32) + 0.5) / 2**16 for part in (words & 0xFFFF, words >> 16))
    ring = (jnp.asarray(inner)[slot], jnp.asarray(outer)[slot])
    shares = length_share(kind[None], jnp.concatenate([low, share]))
    length = unit * (ring[0] + (ring[1] - ring[0]) * shares)
    direction = jnp.concatenate([_direction(high), direction])
    between, apart = between[source, :, joint], apart[source, :, joint]  # [K, T, 2], [K, T]
    fits = meets(
        kind,
        source,
        length,
        lambda target: apart[:, target],
        lambda target: (between[:, target] * direction).sum(axis=-1),
    )
    first = jnp.argmax(fits, axis=0)
    drawn_xy = source_xy[source, joint] + length[first, joint][:, None] * direction[first, joint]
    # Nothing remains only where every candidate is ruled out (two people's joints coincide): then it is good.
    stuck = ~available.any(axis=-1)
    drawn_xy = jnp.where(stuck[:, None], crop_xy, drawn_xy)
    kind = jnp.where(stuck, int(ErrorKind.GOOD), kind)
    return SyntheticPose(
        crop_xy=jnp.where(labelled[:, None], drawn_xy, 0.0),
        present=labelled,
        kind=jnp.where(labelled, kind, int(ErrorKind.ABSENT)).astype(jnp.int32),
    )


def _draw_together(key, rates: Float[Array, "K kinds"], twin: np.ndarray, errors: ErrorModel) -> Int[Array, " K"]:
    """A kind a joint with these probabilities, each kind tied over the joints of the person as `errors.together` says.

    Whether a joint has a kind, given that it has none of those before it in the order, is decided by a normal variable
    with a part that the person's joints share, a part that twins share, and one of its own. The probabilities hold
    exactly, whatever the correlation.
    """
    joints_key, person_key = jax.random.split(key)
    draws = jax.random.normal(joints_key, (len(DRAW_ORDER), 2, len(twin)))
    persons = jax.random.normal(person_key, (len(DRAW_ORDER),))
    pair = np.minimum(np.arange(len(twin)), twin)
    left = rates.sum(axis=-1)
    kind = jnp.full(len(twin), int(ErrorKind.GOOD))
    undecided = jnp.ones(len(twin), bool)
    for each, person, (own, shared) in zip(DRAW_ORDER, persons, draws, strict=True):
        all_joints, twins = errors.together[each - 1]
        alone = 1 - all_joints - twins
        behind = all_joints**0.5 * person + twins**0.5 * shared[pair] + alone**0.5 * own
        probability = rates[:, each] / jnp.maximum(left, 1e-9)
        has = undecided & (behind < jax.scipy.special.ndtri(jnp.clip(probability, 0.0, 1.0)))
        kind = jnp.where(has, int(each), kind)
        undecided &= ~has
        left = left - rates[:, each]
    # Rounding may leave over what has no room.
    has_room = jnp.take_along_axis(rates, kind[:, None], axis=1)[:, 0] > 0
    return jnp.where(has_room, kind, rates.argmax(axis=-1))


def _quantile(table: Float[Array, "kinds K Q"], kind, uniform):
    """The `uniform` quantile of each joint's row for its kind; `kind` broadcasts against `uniform` [..., K]."""
    steps = table.shape[-1] - 1
    below = jnp.clip((uniform * steps).astype(jnp.int32), 0, steps - 1)
    part = uniform * steps - below
    joint = np.arange(table.shape[1])
    kind, below, joint, part = jnp.broadcast_arrays(kind, below, joint, part)
    return table[kind, joint, below] * (1 - part) + table[kind, joint, below + 1] * part


def _sequence(seed: Array, count: int) -> Array:
    """[count, K] uint32 of the SplitMix generator from a seed each: a fraction of the cost of as many of jax's."""
    word = seed + np.arange(1, count + 1, dtype=np.uint32)[:, None] * np.uint32(0x9E3779B9)
    word = (word ^ (word >> 16)) * np.uint32(0x21F0AAAD)
    word = (word ^ (word >> 15)) * np.uint32(0x735A2D97)
    return word ^ (word >> 15)


def _direction(turn: Array) -> Array:
    """[..., 2] the unit vector at a share of a full turn."""
    return jnp.stack([jnp.cos(2 * jnp.pi * turn), jnp.sin(2 * jnp.pi * turn)], axis=-1)


def _draw(uniform: Float[Array, " K"], weights: Float[Array, "K M"]) -> Int[Array, " K"]:
    """One index a row, with probability in proportion to its weight; never one of weight 0 if another is not."""
    size = weights.shape[-1]
    cumulative = weights @ np.triu(np.ones((size, size), np.float32))
    passed = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=-1)
    last = size - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.minimum(passed, last)
