"""The paper's synthesizer: draws a kind of error for every joint, then a place for it. Paper, section 4."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.synthesis.error_model import DRAW_ORDER, ErrorModel
from posefix_jax.types import ErrorKind


class SyntheticPose(NamedTuple):
    """A pose with errors, in the frame of the pose that was given (crop or patch pixels).

    Attributes:
      xy: the joints; (0, 0) where absent.
      present: False for an absent joint.
      kind: the `ErrorKind` of each joint.
    """

    xy: Float[Array, "*B K 2"]
    present: Bool[Array, "*B K"]
    kind: Int[Array, "*B K"]


_LATTICE, _GENERATOR = 34, 21
"""The room in a ring is measured with a Fibonacci lattice of 34 lengths and angles, shifted by one random offset."""
_CANDIDATES = 32
"""Independent candidates in the chosen ring. The first that meets the condition becomes the joint."""


def synthesize_pose(
    key: Key[Array, ""],
    xy: Float[Array, "K 2"],
    labelled: Bool[Array, " K"],
    *,
    others_xy: Float[Array, "N K 2"],
    others_labelled: Bool[Array, "N K"],
    area: Float[Array, ""],
    skeleton: Skeleton,
    errors: ErrorModel,
    overlap: Int[Array, ""] | None = None,
    others_area: Float[Array, " N"] | None = None,
    count: Int[Array, ""] | None = None,
) -> SyntheticPose:
    """Adds the errors of an estimator to a true pose, and says which error each joint got.

    Pure: equal arguments give an equal pose. One person; `vmap` to batch. The program does not grow with K.

    The sources of a joint are the joint itself, its twin, and the same two joints of each neighbor. Every kind of error
    has rings around some sources, and a condition. A kind without room passes its probability on to the others, in
    proportion. The function draws a kind, then one of its rings in proportion to their room, then independent
    candidates in that ring, and takes the first that meets the condition. Lengths are therefore uniform in the ring
    (not in the disc) where the condition cuts nothing off, as with rejection sampling that never gives up. A joint for
    which no kind of positive probability has room stays where it is and is good.

    Args:
      key: consumed once; the caller folds in epoch and sample.
      xy: true joints, in the frame of the result; (0, 0) is the center of the top-left pixel.
      labelled: where False the joint is absent from the result and is no source.
      others_xy: nearest people, padded to N, same frame.
      others_labelled: False on padding.
      area: the person's area, pixels squared of the same frame; scales the KS radii.
      skeleton: static.
      errors: static; checks itself when built, so nothing raises here.
      overlap: number of people who overlap this one; by default those in `others_xy` with a labelled joint.
      others_area: the neighbors' areas, which scale the radii around their joints, as in `taxonomy`; by default the
        person's own, as in the released code.
      count: number of labelled joints that chooses the error rates; by default that of `labelled`.

    Returns:
      The synthetic joints, their presence, and an `ErrorKind` each.
    """
    uniform_key, candidate_key = jax.random.split(key)
    correlation_key = jax.random.split(key, 3)[2]  # the first two of three equal the two above
    uniform = jax.random.uniform(uniform_key, (4, skeleton.num_joints))
    overlap = others_labelled.any(axis=-1).sum() if overlap is None else overlap

    slots = _make_slots(others_xy.shape[0], errors)
    others_area = jnp.broadcast_to(area, others_xy.shape[:1]) if others_area is None else others_area
    scene = _scene(xy, labelled, others_xy, others_labelled, area, others_area, skeleton, errors)
    lattice = _lattice(uniform[0], uniform[1])
    room = _room(scene, slots, lattice, skeleton, errors)
    count = labelled.sum() if count is None else count
    kind, slot, stuck = _draw(correlation_key, uniform[2:], room, slots, labelled, (count, overlap), skeleton, errors)
    drawn_xy = _place(candidate_key, kind, slot, scene, slots, lattice, skeleton, errors)
    drawn_xy = jnp.where(stuck[:, None], scene.source_xy[0], drawn_xy)
    kind = jnp.where(stuck, int(ErrorKind.GOOD), kind)
    return SyntheticPose(
        xy=jnp.where(labelled[:, None], drawn_xy, 0.0),
        present=labelled,
        kind=jnp.where(labelled, kind, int(ErrorKind.ABSENT)).astype(jnp.int32),
    )


class _Slots(NamedTuple):
    """The rings, [Q] each: static. A ring lies around a source, between two radii, for a kind of error."""

    kind: np.ndarray
    source: np.ndarray
    weight: np.ndarray
    inner: np.ndarray
    outer: np.ndarray
    """radii in units of `_Scene.unit`"""


class _Scene(NamedTuple):
    """The sources of a person's joints, and how they lie to each other."""

    source_xy: Float[Array, "S K 2"]
    """the joint itself, its twin, the same joint of each neighbor, the twin of each neighbor"""
    exists: Bool[Array, "S K"]
    between: Float[Array, "S S K 2"]
    """the first source less the second"""
    apart: Float[Array, "S S K"]
    """squared distance"""
    area: Float[Array, " S"]
    """of the person whose joint it is"""
    unit: Float[Array, "S K"]
    """the distance at which KS is exp(-1/2): d(ks) = unit sqrt(-2 ln ks)"""
    jitter_radius: Float[Array, "S K"]


class _Lattice(NamedTuple):
    """Points that cover any ring evenly: the share of the way from its inner to its outer radius, and a unit vector."""

    share: Float[Array, "C K"]
    direction: Float[Array, "C K 2"]


_ITSELF, _TWIN, _FOREIGN = 0, 1, 2
"""Indices of the sources; neighbors follow from `_FOREIGN` on."""


def _make_slots(num_others: int, errors: ErrorModel) -> _Slots:
    """All rings that a joint with so many neighbors may land in."""
    num_sources = _FOREIGN + 2 * num_others
    good, jitter, miss = errors.good_ks, errors.jitter_ks, errors.miss_ks
    slots = [
        (ErrorKind.GOOD, _ITSELF, 1.0, good),
        (ErrorKind.JITTER, _ITSELF, good, jitter),
        (ErrorKind.INVERSION, _TWIN, errors.confusion_ks, jitter),
        *((ErrorKind.SWAP, source, errors.confusion_ks, jitter) for source in range(_FOREIGN, num_sources)),
        *((ErrorKind.MISS, source, jitter, miss) for source in range(num_sources)),
    ]
    kind = np.array([slot[0] for slot in slots])
    source = np.array([slot[1] for slot in slots])
    weight = np.where((kind == ErrorKind.MISS) & (source != _ITSELF), errors.miss_weight, 1.0)
    inner, outer = (np.sqrt(-2 * np.log([slot[i] for slot in slots])).astype(np.float32) for i in (2, 3))
    return _Slots(kind, source, weight, inner, outer)


def _scene(
    xy, labelled, others_xy, others_labelled, area, others_area, skeleton: Skeleton, errors: ErrorModel
) -> _Scene:
    twin, has_twin = skeleton.flip_index, skeleton.has_twin
    xy = jnp.where(labelled[:, None], xy, 0.0)
    others_xy = jnp.where(others_labelled[..., None], others_xy, 0.0)
    source_xy = jnp.concatenate([xy[None], xy[twin][None], others_xy, others_xy[:, twin]])
    twin_labelled = labelled[twin] & has_twin
    exists = jnp.concatenate(
        [labelled[None], twin_labelled[None], others_labelled, others_labelled[:, twin] & has_twin[None]]
    )
    sigmas = skeleton.sigmas if not errors.sigma else [errors.sigma] * skeleton.num_joints
    area = jnp.maximum(jnp.concatenate([jnp.stack([area, area]), others_area, others_area]), 1e-6)
    unit = 2 * np.asarray(sigmas, np.float32)[None] * jnp.sqrt(area)[:, None]
    between = source_xy[:, None] - source_xy[None, :]
    jitter_radius = unit * np.sqrt(-2 * np.log(errors.jitter_ks)).astype(np.float32)
    return _Scene(source_xy, exists, between, (between**2).sum(axis=-1), area, unit, jitter_radius)


def _lattice(length_offset: Float[Array, " K"], angle_offset: Float[Array, " K"]) -> _Lattice:
    cells = np.arange(_LATTICE, dtype=np.float32)[:, None]
    share = (cells + length_offset[None]) / _LATTICE
    return _Lattice(share, _direction((_GENERATOR * cells % _LATTICE + angle_offset[None]) / _LATTICE))


def _room(
    scene: _Scene, slots: _Slots, lattice: _Lattice, skeleton: Skeleton, errors: ErrorModel
) -> Float[Array, "Q K"]:
    """The room in each ring: its weight times the lattice points in it that meet the condition of its kind."""
    kind, source = slots.kind[:, None, None], slots.source[:, None, None]
    inner, outer = slots.inner[:, None, None], slots.outer[:, None, None]
    unit = scene.unit[slots.source][:, None]
    length = _length(unit, kind, inner, outer, lattice.share[None], skeleton, errors)
    along = jnp.einsum("stkx,ckx->stck", scene.between, lattice.direction)
    meets = _meets(
        scene,
        kind,
        source,
        length,
        lambda target: scene.apart[slots.source, target][:, None],
        lambda target: along[slots.source, target],
    )
    allowed = scene.exists[slots.source][:, None] & meets
    return allowed.sum(axis=1, dtype=jnp.float32) * slots.weight.astype(np.float32)[:, None]


def _draw(
    key, uniform: Float[Array, "2 K"], room: Float[Array, "Q K"], slots: _Slots, labelled, person, skeleton, errors
) -> tuple[Int[Array, " K"], Int[Array, " K"], Bool[Array, " K"]]:
    """A kind of error and one of its rings for each joint, and whether no kind of positive probability has room.

    `person` is the number of labelled joints and that of overlapping people.
    """
    rates = jnp.asarray(errors.table(skeleton))[:, *errors.bin_of(*person)]  # [K, kinds]
    of_kind = slots.kind[:, None] == np.arange(5)  # [Q, kinds]
    has_room = ((room > 0)[:, :, None] & of_kind[:, None]).any(axis=0) & labelled[:, None]
    rates = jnp.where(has_room, rates, 0.0)
    if np.any(errors.together):
        kind = _draw_correlated(key, rates, skeleton.flip_index, errors)
    else:
        kind = _choose(uniform[0], rates)
    slot = _choose(uniform[1], room.T * jnp.asarray(of_kind.T, jnp.float32)[kind])
    return kind, slot, ~(rates > 0).any(axis=-1)


def _place(
    key, kind, slot, scene: _Scene, slots: _Slots, lattice: _Lattice, skeleton: Skeleton, errors: ErrorModel
) -> Float[Array, "K 2"]:
    """A place for each joint in its ring: the first of some independent candidates that meets the condition.

    The lattice points come after the candidates: they find a place in room so narrow that no candidate fits.
    """
    joint = np.arange(skeleton.num_joints)
    source = jnp.asarray(slots.source)[slot]
    # One random word per candidate: 16 bits of length, 16 of angle.
    words = _sequence(jax.random.bits(key, (skeleton.num_joints,)), _CANDIDATES)
    low, high = ((part.astype(jnp.float32) + 0.5) / 2**16 for part in (words & 0xFFFF, words >> 16))
    inner, outer = (jnp.asarray(radius)[slot][None, None] for radius in (slots.inner, slots.outer))
    share = jnp.concatenate([low, lattice.share])[None]
    unit = scene.unit[source, joint][None, None]
    length = _length(unit, kind[None, None], inner, outer, share, skeleton, errors)  # [1, C, K]
    direction = jnp.concatenate([_direction(high), lattice.direction])
    between, apart = scene.between[source, :, joint], scene.apart[source, :, joint]  # [K, T, 2], [K, T]
    meets = _meets(
        scene,
        kind[None, None],
        source[None, None],
        length,
        lambda target: apart[None, None, :, target],
        lambda target: (between[None, :, target] * direction).sum(axis=-1)[None],
    )
    length, first = length[0], jnp.argmax(meets[0], axis=0)
    return scene.source_xy[source, joint] + length[first, joint][:, None] * direction[first, joint]


def _length(unit, kind, inner, outer, uniform, skeleton: Skeleton, errors: ErrorModel) -> Array:
    """Uniform numbers [Q, C, K] as distances from the source, by the error model's lengths within a ring."""
    quantiles = errors.length_table(skeleton)
    share = uniform if quantiles is None else _quantile(jnp.asarray(quantiles), kind, uniform)
    return unit * (inner + (outer - inner) * share)


def _meets(scene: _Scene, kind, source, length, apart, along) -> Array:
    """Whether candidates [Q, C, K] at `length` from their source meet the condition of their kind.

    Args:
      apart: function of a target: squared distance of the source to it.
      along: function of a target: dot product of the candidate's direction with source less target.
    """
    is_miss, is_swap = kind == ErrorKind.MISS, kind == ErrorKind.SWAP
    source_area = scene.area[source]
    allowed = True
    for target in range(scene.source_xy.shape[0]):
        # The squared distance of candidate s + r e to target t is |s - t|^2 + 2 r e.(s - t) + r^2.
        excess = apart(target) + 2 * length * along(target)
        # KS goes by squared distance over area: the source is more similar than a target if d_t^2 / a_t > r^2 / a_s.
        less_similar = excess + length**2 * (1 - scene.area[target] / source_area) > 0
        least = scene.jitter_radius[target][None, None] ** 2 * (1 - 1e-5)
        far_enough = jnp.where(is_miss, excess + length**2 >= least, less_similar)
        # The own source is trivially nearest. A swap needs to be far from the person's own two joints only.
        exempt = (source == target) & ~is_miss | is_swap & (target >= _FOREIGN)
        allowed &= far_enough | ~scene.exists[target][None, None] | exempt
    return allowed


def _draw_correlated(
    key, rates: Float[Array, "K kinds"], twin: Int[ArrayLike, " K"], errors: ErrorModel
) -> Int[Array, " K"]:
    """A kind per joint with these probabilities, correlated within the person as `errors.together` says.

    Goes through the kinds in `DRAW_ORDER`. Whether a joint that has none of the kinds so far gets this one depends on a
    normal variable: the sum of a part that all joints of the person share, a part that twins share, and a part of its
    own. Each kind keeps its probability exactly, whatever the correlation.
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
    # By rounding, a joint may be left with a kind that has no room.
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


def _sequence(seed: UInt32[Array, " K"], count: int) -> UInt32[Array, "count K"]:
    """`count` words of the SplitMix generator per seed, at a fraction of the cost of `jax.random.bits`."""
    word = seed[None] + np.arange(1, count + 1, dtype=np.uint32)[:, None] * np.uint32(0x9E3779B9)
    word = (word ^ (word >> 16)) * np.uint32(0x21F0AAAD)
    word = (word ^ (word >> 15)) * np.uint32(0x735A2D97)
    return word ^ (word >> 15)


def _direction(turn: Float[Array, "*C K"]) -> Float[Array, "*C K 2"]:
    """The unit vector at a share of a full turn."""
    return jnp.stack([jnp.cos(2 * jnp.pi * turn), jnp.sin(2 * jnp.pi * turn)], axis=-1)


def _choose(uniform: Float[Array, " K"], weights: Float[Array, "K M"]) -> Int[Array, " K"]:
    """One index per row, with probability in proportion to its weight. Never one of weight 0 if the row has another."""
    size = weights.shape[-1]
    cumulative = weights @ np.triu(np.ones((size, size), np.float32))
    passed = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=-1)
    last = size - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.minimum(passed, last)
