"""Alternatives to the paper's synthesizer, and mixtures. Each is a pure function of a key and a person."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from posefix_jax.core.skeleton import Skeleton, canonical
from posefix_jax.core.synthesis.error_model import ERROR_MODELS, PAPER, ErrorModel, read_error_model
from posefix_jax.core.synthesis.posefix import SyntheticPose, synthesize_pose
from posefix_jax.core.taxonomy import classify_joints
from posefix_jax.types import PosefixError, function_in_file, nearest_names


class Person(NamedTuple):
    """What a synthesizer may know about a person. All in one frame, that of the result; `vmap` to batch.

    Attributes:
      xy: true joints; (0, 0) is the center of the top-left pixel.
      labelled: where False the joint has no true place and `xy` must not be used.
      others_xy: nearest people, padded to N.
      others_labelled: False on padding.
      others_area: the neighbors' areas, pixels squared; any on padding.
      area: the person's area, pixels squared.
      overlap: number of people who overlap this one.
      detected_xy, detected: M poses that real estimators found for the person; padding has no joint.
      num_labelled: number of labelled joints, if `labelled` also has pseudo joints (`posefix prepare --pseudo-poses`).
    """

    xy: Float[Array, "K 2"]
    labelled: Bool[Array, " K"]
    others_xy: Float[Array, "N K 2"]
    others_labelled: Bool[Array, "N K"]
    others_area: Float[Array, " N"]
    area: Float[Array, ""]
    overlap: Int[Array, ""]
    detected_xy: Float[Array, "M K 2"]
    detected: Bool[Array, "M K"]
    num_labelled: Int[Array, ""] | None = None


Synthesizer = Callable[[Key[Array, ""], Person], SyntheticPose]
"""Adds errors to a person's true pose. A result without any joint means: no pose for this person."""


def from_model(errors: ErrorModel, skeleton: Skeleton) -> Synthesizer:
    """The paper's synthesizer with an error model.

    Raises:
      PosefixError: a joint has no row in the model.
    """
    errors.table(skeleton)

    def synthesize(key, person: Person) -> SyntheticPose:
        return synthesize_pose(
            key,
            person.xy,
            person.labelled,
            others_xy=person.others_xy,
            others_labelled=person.others_labelled,
            area=person.area,
            skeleton=skeleton,
            errors=errors,
            overlap=person.overlap,
            others_area=person.others_area,
            count=person.num_labelled,
        )

    return synthesize


def none(skeleton: Skeleton) -> Synthesizer:
    """No error: the true pose."""
    return lambda key, person: _classified(person.xy, person.labelled, person, skeleton)


def gaussian(skeleton: Skeleton, *, spread: float = 0.75) -> Synthesizer:
    """Isotropic normal noise on every joint.

    Args:
      skeleton: static.
      spread: standard deviation along each axis, in units of 2 sigma sqrt(area), in which KS is exp(-r^2 / 2). With
        0.75 half of the joints have a KS below 0.68.
    """

    def synthesize(key, person: Person) -> SyntheticPose:
        noise = jax.random.normal(key, person.xy.shape) * (spread * _unit(person, skeleton))[:, None]
        return _classified(person.xy + noise, person.labelled, person, skeleton)

    return synthesize


def dropout(skeleton: Skeleton, *, most: float = 0.5) -> Synthesizer:
    """Missing joints, each with a probability drawn per person, uniform in 0..`most`. The other joints are exact."""

    def synthesize(key, person: Person) -> SyntheticPose:
        share_key, joint_key = jax.random.split(key)
        share = most * jax.random.uniform(share_key)
        present = person.labelled & ~jax.random.bernoulli(joint_key, share, person.labelled.shape)
        return _classified(person.xy, present, person, skeleton)

    return synthesize


def empirical(skeleton: Skeleton) -> Synthesizer:
    """One of the person's detections, all equally likely (BUCTD draws poses of real estimators in this way).

    `posefix prepare --detections` stores them. The pose has all joints that the estimator found, unlabelled ones too;
    none for a person without detection.
    """

    def synthesize(key, person: Person) -> SyntheticPose:
        if not person.detected.shape[0]:
            return _classified(person.xy, jnp.zeros_like(person.labelled), person, skeleton)
        some = person.detected.any(axis=-1)
        which = jax.random.categorical(key, jnp.where(some, 0.0, -jnp.inf))
        return _classified(person.detected_xy[which], person.detected[which], person, skeleton)

    return synthesize


_EVENTS = ("limb on the other side", "arms or legs exchanged", "left and right exchanged", "limb displaced")


def limb(skeleton: Skeleton, *, share: float = 0.5) -> Synthesizer:
    """The paper's good and jittered joints, plus one error of a whole limb or side for a `share` of the people.

    The errors are equally likely: one arm or leg lies on the other one, both arms or both legs are exchanged, left and
    right of the whole body are exchanged, or one arm or leg is displaced as a whole by the distance of a miss.
    Independent draws per joint never produce such errors.
    """
    quiet = _without_confusion(PAPER)
    small = from_model(quiet, skeleton)
    groups = np.array(skeleton.groups)
    left = np.array([canonical(joint).startswith("left_") for joint in skeleton.joints])
    arm, leg = np.isin(groups, ("elbow", "wrist")), np.isin(groups, ("knee", "ankle"))
    limbs = np.stack([arm & left, arm & ~left, leg & left, leg & ~left])  # [4, K]
    both = np.stack([arm, arm, leg, leg])

    def synthesize(key, person: Person) -> SyntheticPose:
        base_key, use_key, event_key, limb_key, way_key = jax.random.split(key, 5)
        pose = small(base_key, person)
        event = jax.random.randint(event_key, (), 0, len(_EVENTS))
        which = jax.random.randint(limb_key, (), 0, len(limbs))
        one, pair = jnp.asarray(limbs)[which], jnp.asarray(both)[which]
        everything = jnp.ones_like(one)
        flipped = jnp.where(event == 0, one, jnp.where(event == 1, pair, everything)) & (event < 3)
        twin = skeleton.flip_index
        flipped &= person.labelled[twin] & skeleton.has_twin
        offset = pose.xy - person.xy
        xy = jnp.where(flipped[:, None], person.xy[twin] + offset, pose.xy)
        turn, length = jax.random.uniform(way_key, (2,))
        unit = jnp.where(one, _unit(person, skeleton), 0.0).max()
        inner, outer = ((-2 * np.log(ks)) ** 0.5 for ks in (PAPER.jitter_ks, PAPER.miss_ks))
        way = (
            unit
            * (inner + (outer - inner) * length)
            * jnp.stack([jnp.cos(2 * jnp.pi * turn), jnp.sin(2 * jnp.pi * turn)])
        )
        xy = jnp.where((one & (event == 3))[:, None], xy + way[None], xy)
        use = jax.random.bernoulli(use_key, share)
        return _classified(jnp.where(use, xy, pose.xy), person.labelled, person, skeleton)

    return synthesize


def poserefiner(skeleton: Skeleton) -> Synthesizer:
    """Hand-made rules in the manner of PoseRefiner (Fieraru et al., CVPR workshops 2018). The paper gives no rates.

    Half of the people have left and right of their arms, legs or both exchanged. A fifth of the crowded ones have a
    random half of their joints replaced by those of the nearest person. A tenth of all joints is missing. All others
    get normal noise, one in ten three times as much.
    """
    groups = np.array(skeleton.groups)
    arm = np.isin(groups, ("shoulder", "elbow", "wrist")) & skeleton.has_twin
    leg = np.isin(groups, ("hip", "knee", "ankle")) & skeleton.has_twin
    flips = np.stack([arm, leg, arm | leg])

    def synthesize(key, person: Person) -> SyntheticPose:
        flip_key, which_key, other_key, joint_key, drop_key, noise_key, far_key = jax.random.split(key, 7)
        twin = skeleton.flip_index
        flipped = jnp.asarray(flips)[jax.random.randint(which_key, (), 0, 3)] & jax.random.bernoulli(flip_key)
        xy = jnp.where((flipped & person.labelled[twin])[:, None], person.xy[twin], person.xy)
        if person.others_xy.shape[0]:
            swapped = jax.random.bernoulli(joint_key, 0.5, person.labelled.shape) & person.others_labelled[0]
            swapped &= jax.random.bernoulli(other_key, 0.2) & (person.overlap > 0)
            xy = jnp.where(swapped[:, None], person.others_xy[0], xy)
        far = jnp.where(jax.random.bernoulli(far_key, 0.1, person.labelled.shape), 3.0, 1.0)
        noise = jax.random.normal(noise_key, xy.shape) * (0.5 * far * _unit(person, skeleton))[:, None]
        present = person.labelled & ~jax.random.bernoulli(drop_key, 0.1, person.labelled.shape)
        return _classified(xy + noise, present, person, skeleton)

    return synthesize


VARIANTS: dict[str, Callable[[Skeleton], Synthesizer]] = {
    "none": none,
    "gaussian": gaussian,
    "dropout": dropout,
    "empirical": empirical,
    "limb": limb,
    "poserefiner": poserefiner,
}


def make_synthesizer(names: Sequence[str], weights: Sequence[float], skeleton: Skeleton) -> Synthesizer:
    """A mixture of synthesizers: draws one of them for each person, in proportion to its weight.

    One that returns no joint for a person is not drawn for that person.

    Args:
      names: keys of `ERROR_MODELS` or `VARIANTS`; `gaussian:0.3`, with its spread; a `.json` error model from `posefix analyze fit`; or a `.py` file
        that defines `synthesizer(skeleton)`, which returns a `Synthesizer`.
      weights: positive, one per name; empty: all equal.
      skeleton: static.

    Raises:
      PosefixError: an unknown name, a missing or invalid file, or weights that do not fit.
    """
    if not names or (weights and (len(weights) != len(names) or min(weights) <= 0)):
        raise PosefixError(
            f"expected at least one synthesizer, and one positive weight each or none; found errors {list(names)}, "
            f"weights {list(weights)}"
        )
    parts = [_named(name, skeleton) for name in names]
    log_weights = np.log(np.asarray(weights or [1.0] * len(names), np.float32))
    if len(parts) == 1:
        return parts[0]

    def synthesize(key, person: Person) -> SyntheticPose:
        choice_key, *keys = jax.random.split(key, 1 + len(parts))
        poses = [part(each, person) for part, each in zip(parts, keys, strict=True)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *poses)
        some = stacked.present.any(axis=-1)
        which = jax.random.categorical(choice_key, jnp.where(some, log_weights, -1e9))
        return jax.tree.map(lambda leaf: leaf[which], stacked)

    return synthesize


def error_model_of(name: str) -> ErrorModel | None:
    """The error model behind a name in `make_synthesizer`; None if it has none."""
    if name.endswith(".json"):
        return read_error_model(name)
    return ERROR_MODELS.get(name)


def _named(name: str, skeleton: Skeleton) -> Synthesizer:
    model = error_model_of(name)
    if model is not None:
        return from_model(model, skeleton)
    if name in VARIANTS:
        return VARIANTS[name](skeleton)
    kind, _, value = name.partition(":")
    if kind == "gaussian":
        try:
            return gaussian(skeleton, spread=float(value))
        except ValueError:
            raise PosefixError(f"{name!r}: expected gaussian:SPREAD, a number of 2 sigma sqrt(area)") from None
    if name.endswith(".py"):
        return _checked(function_in_file(Path(name), "synthesizer")(skeleton), name, skeleton)
    valid = (*ERROR_MODELS, *VARIANTS)
    raise PosefixError(f"unknown synthesizer {name!r}, and not a .json or .py file: {nearest_names(name, valid)}")


def _checked(synthesize: Synthesizer, name: str, skeleton: Skeleton) -> Synthesizer:
    """Traces a user's synthesizer once.

    Raises:
      PosefixError: it does not trace, or returns something else than a `SyntheticPose`.
    """
    k = skeleton.num_joints
    one, two = jnp.zeros((1, k, 2)), jnp.zeros((1, k), bool)
    person = Person(one[0], two[0], one, two, jnp.ones(1), jnp.float32(1), jnp.int32(0), one, two)
    expected = jax.eval_shape(none(skeleton), jax.random.key(0), person)
    try:
        found = jax.eval_shape(synthesize, jax.random.key(0), person)
    except Exception as error:
        raise PosefixError(f"{name}: its synthesizer does not trace: {type(error).__name__}: {error}") from error
    if not isinstance(found, SyntheticPose) or any(
        (a.shape, a.dtype) != (b.shape, b.dtype) for a, b in zip(expected, found, strict=True)
    ):
        shapes = ", ".join(f"{field} {leaf.dtype}{leaf.shape}" for field, leaf in expected._asdict().items())
        raise PosefixError(f"{name}: its synthesizer must return a SyntheticPose of {shapes}; found {found!r:.200}")
    return synthesize


def _unit(person: Person, skeleton: Skeleton) -> Float[Array, " K"]:
    """2 sigma sqrt(area): the distance at which KS is exp(-1/2)."""
    return 2 * jnp.asarray(skeleton.sigmas, jnp.float32) * jnp.sqrt(person.area)


def _without_confusion(model: ErrorModel) -> ErrorModel:
    """The model with jitter as its only error."""
    quiet = tuple(
        (group, (jitter, *[tuple((0.0, 0.0) for _ in row) for row in rest])) for group, (jitter, *rest) in model.rates
    )
    return replace(model, name=f"{model.name}, good and jitter", rates=quiet)


def _classified(xy, present, person: Person, skeleton: Skeleton) -> SyntheticPose:
    """A pose, and the kinds of error by its places."""
    kind = classify_joints(
        xy,
        present,
        person.xy,
        person.labelled,
        person.area,
        others_xy=person.others_xy,
        others_labelled=person.others_labelled,
        others_area=person.others_area,
        skeleton=skeleton,
        xp=jnp,
    )
    return SyntheticPose(jnp.where(present[:, None], xy, 0.0), present, kind)
