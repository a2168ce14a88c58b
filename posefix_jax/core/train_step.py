"""The training step, and the evaluation step on the same batches. Pure: no I/O, no hidden state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from posefix_jax.core import geometry, heatmaps, losses
from posefix_jax.core.augment import AugmentConfig, random_color, random_crop_affine, random_erase, warp
from posefix_jax.core.models import STRIDE, RefinerSpec
from posefix_jax.core.refine_step import make_refine_step
from posefix_jax.core.synthesis import Person, Synthesizer, SyntheticPose
from posefix_jax.core.taxonomy import similarity
from posefix_jax.types import ErrorKind, PosefixError


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
      average: averaged {params, batch_stats}, or None.
      skipped: number of batches whose loss or gradient was not finite. They changed nothing.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any
    skipped: Int[Array, ""]

    @property
    def variables(self) -> dict:
        """The variables to refine with: the averaged ones if they exist."""
        return self.average if self.average is not None else {"params": self.params, "batch_stats": self.batch_stats}


class Batch(NamedTuple):
    """A stack of person records. Coordinates and boxes are in patch pixels.

    Attributes:
      detected_xy, detected: M poses that real estimators found for the person; padding has no joint.
      pseudo_xy, pseudo: an estimator's joints where none is labelled (`posefix prepare --pseudo-poses`).
      weight: 0 for a record whose image could not be read.
      sample, epoch: what the random key of the record is derived from.
    """

    patch: UInt8[Array, "B P P 3"]
    patch_xy: Float[Array, "B K 2"]
    labelled: Bool[Array, "B K"]
    others_xy: Float[Array, "B N K 2"]
    others_labelled: Bool[Array, "B N K"]
    others_area: Float[Array, "B N"]
    overlap: Int[Array, " B"]
    detected_xy: Float[Array, "B M K 2"]
    detected: Bool[Array, "B M K"]
    pseudo_xy: Float[Array, "B K 2"]
    pseudo: Bool[Array, "B K"]
    box: Float[Array, "B 4"]
    area: Float[Array, " B"]
    weight: Float[Array, " B"]
    sample: Int[Array, " B"]
    epoch: Int[Array, " B"]


@dataclass(frozen=True)
class InputConfig:
    """The input pose during training. Static under `jit`."""

    withhold_pose: float = 0.0
    """share of samples without any input pose"""
    withhold_joint: float = 0.0
    """share of input joints that are removed"""
    self_share: float = 0.0
    """share of samples whose input is the network's own output for the synthetic pose; trains for repeated
    refinement"""
    box: Literal["pose", "annotation"] = "pose"
    """where to crop: pose (around the input pose, as in refinement) or annotation (the record's box, as in the
    paper)"""

    def __post_init__(self):
        for name in ("withhold_pose", "withhold_joint", "self_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise PosefixError(f"inputs.{name} must lie in 0..1, found {getattr(self, name)}")


def sample_keys(root: Key[Array, ""], epoch: Int[Array, " B"], sample: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key per sample, the same on any number of devices and hosts."""
    return jax.vmap(lambda e, s: jax.random.fold_in(jax.random.fold_in(root, e), s))(epoch, sample)


class TrainingPose(NamedTuple):
    """One augmented sample, in crop pixels.

    Attributes:
      crop: RGB, 0..255.
      crop_xy: true joints.
      valid: joints that count in the loss: labelled, trained and inside the crop.
      input: the synthetic pose.
      area: the person's area, crop pixels squared.
    """

    crop: Float[Array, "H W 3"]
    crop_xy: Float[Array, "K 2"]
    valid: Bool[Array, " K"]
    input: SyntheticPose
    area: Float[Array, ""]


def person_of(record: Batch, trained: Bool[ArrayLike, " K"], *, pseudo: bool = False) -> Person:
    """One record as a synthesizer sees it, in patch pixels. Joints that are not `trained` count as unlabelled.

    With `pseudo`, an estimator's joints stand for those that are not labelled.
    """
    labelled = record.labelled & trained
    known, xy = labelled, record.patch_xy
    if pseudo:
        known = labelled | (record.pseudo & ~record.labelled & trained)
        xy = jnp.where(labelled[:, None], xy, record.pseudo_xy)
    return Person(
        xy=xy,
        labelled=known,
        num_labelled=labelled.sum(),
        others_xy=record.others_xy,
        others_labelled=record.others_labelled & trained[None],
        others_area=record.others_area,
        area=record.area,
        overlap=record.overlap,
        detected_xy=record.detected_xy,
        detected=record.detected & trained[None],
    )


def _crop_box(patch_xy, around, crop_hw):
    """The crop region around the joints `around`, as in refinement. Without such a joint: the patch's top left
    corner."""
    box = geometry.crop_box_of_joints(patch_xy, around, crop_hw, xp=jnp)
    return jnp.where(around.any(), box, jnp.asarray([0.0, 0.0, crop_hw[1], crop_hw[0]], jnp.float32))


def make_training_pose(
    key: Key[Array, ""],
    record: Batch,
    *,
    spec: RefinerSpec,
    synthesize: Synthesizer,
    augment: AugmentConfig,
    inputs: InputConfig,
) -> TrainingPose:
    """Adds errors to the pose of one record and cuts an augmented crop. `vmap` to batch.

    Pseudo joints get errors too, and are part of the input only: they do not count in the loss.

    Args:
      key: consumed once.
      record: a `Batch` without its first axis.
      spec: static. Joints that it does not train count as unlabelled.
      synthesize, augment, inputs: static. With `inputs.box` "pose" the crop is placed around the synthetic pose, as
        refinement places it around an estimator's pose.
    """
    affine_key, color_key, error_key, choice_key, half_key, erase_key = jax.random.split(key, 6)
    strength = augment.strength(record.epoch)
    crop_hw = spec.model.crop_hw
    trained = jnp.asarray(spec.trained_joints)
    labelled = record.labelled & trained

    pose = _withhold(choice_key, synthesize(error_key, person_of(record, trained, pseudo=True)), inputs)
    if inputs.box == "pose":
        # A withheld pose has no joint: then the crop is placed around the true joints.
        some = pose.present.any()
        around = jnp.where(some, pose.present, labelled)
        if augment.half_body:
            around = _half_body(half_key, around, spec.skeleton, augment.half_body)
        box = _crop_box(jnp.where(some, pose.xy, record.patch_xy), around, crop_hw)
    else:
        box = geometry.crop_box(record.box, crop_hw, xp=jnp)
    affine, area_scale, mirror = random_crop_affine(
        affine_key, box, augment, crop_hw, spec.model.frame, strength=strength
    )

    def mirrored(values):
        return jnp.where(mirror, values[spec.skeleton.flip_index], values)

    def to_crop(patch_xy):
        return mirrored(geometry.apply_affine(affine, patch_xy))

    crop = random_color(color_key, warp(record.patch, affine, crop_hw), augment.colour, strength=strength)
    crop = random_erase(erase_key, crop, augment.erase, strength=strength)
    crop_xy, labelled = to_crop(record.patch_xy), mirrored(labelled)
    pose = SyntheticPose(to_crop(pose.xy), mirrored(pose.present), mirrored(pose.kind))
    inside = (crop_xy > -0.5) & (crop_xy < jnp.asarray(crop_hw[::-1], jnp.float32)[None] - 0.5)
    valid = labelled & inside.all(axis=-1) & (record.weight > 0)
    return TrainingPose(crop, crop_xy, valid, pose, record.area * area_scale)


def _half_body(key, around, skeleton, probability):
    """With this probability only the upper or the lower half of `around`, if that half has at least three joints."""
    use_key, half_key = jax.random.split(key)
    half = around & (jax.random.bernoulli(half_key) == jnp.asarray(skeleton.lower_body))
    use = jax.random.bernoulli(use_key, probability) & (half.sum() >= 3)
    return jnp.where(use, half, around)


def _withhold(key, pose: SyntheticPose, inputs: InputConfig) -> SyntheticPose:
    """Removes random joints, or the whole pose."""
    pose_key, joint_key = jax.random.split(key)
    present = pose.present
    if inputs.withhold_joint:
        present &= ~jax.random.bernoulli(joint_key, inputs.withhold_joint, present.shape)
    if inputs.withhold_pose:
        present &= ~jax.random.bernoulli(pose_key, inputs.withhold_pose)
    return pose._replace(present=present)


def _mean(values, valid):
    return jnp.where(valid, values, 0.0).sum() / jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)


def make_train_step(
    *,
    spec: RefinerSpec,
    synthesize: Synthesizer,
    augment: AugmentConfig,
    inputs: InputConfig,
    optimizer: optax.GradientTransformation,
    loss: losses.LossConfig = losses.INTEGRAL,
    average_decay: float = 0.0,
    skip_nonfinite: int = 0,
) -> Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, dict[str, Array]]]:
    """Builds the training step, to be jitted with a donated state: augment, add errors, render, forward, loss, update.

    Args:
      spec, synthesize, augment, inputs, loss: static.
      optimizer: the update rule.
      average_decay: in (0, 1), decay of the exponential average of parameters and batch statistics, with warm-up; 0 for
        none.
      skip_nonfinite: number of batches per run that may have a loss or gradient that is not finite. They change
        nothing. At the next one training halts and the step counter is frozen, so the state stays as it was before that
        batch, however late the host reads the metrics.

    Returns:
      A function of (state, batch, root key) that returns the next state and metrics. These are scalars over the global
      batch: loss terms, mean KS of input and output, gradient norm, and the state's `skipped`.
    """
    update = make_update_step(
        spec=spec, optimizer=optimizer, loss=loss, average_decay=average_decay, skip_nonfinite=skip_nonfinite
    )
    network = spec.network()

    def train_step(state: TrainState, batch: Batch, root: Key[Array, ""]):
        keys = sample_keys(root, batch.epoch, batch.sample)
        poses = jax.vmap(
            lambda key, record: make_training_pose(
                key, record, spec=spec, synthesize=synthesize, augment=augment, inputs=inputs
            )
        )(keys, batch)
        if inputs.self_share:
            poses = poses._replace(input=own_output(keys, state, poses))
        return update(state, poses)

    def own_output(keys, state: TrainState, poses: TrainingPose) -> SyntheticPose:
        """The synthetic poses, with a share of them replaced by what the network makes of them."""
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = network.apply(variables, poses.crop, poses.input.xy, poses.input.present)
        heat_xy = jax.vmap(heatmaps.mean_position)(logits)
        found_xy = geometry.heat_to_crop(heat_xy, STRIDE, spec.model.frame)
        use = jax.vmap(lambda key: jax.random.bernoulli(jax.random.split(key, 7)[6], inputs.self_share))(keys)[:, None]
        trained = jnp.asarray(spec.trained_joints)
        return SyntheticPose(
            jnp.where(use[..., None], found_xy, poses.input.xy),
            jnp.where(use, trained[None], poses.input.present),
            jnp.where(use, int(ErrorKind.ABSENT), poses.input.kind),
        )

    return train_step


def make_update_step(
    *,
    spec: RefinerSpec,
    optimizer: optax.GradientTransformation,
    loss: losses.LossConfig = losses.INTEGRAL,
    average_decay: float = 0.0,
    skip_nonfinite: int = 0,
) -> Callable[[TrainState, TrainingPose], tuple[TrainState, dict[str, Array]]]:
    """Builds the second half of the training step, which has no randomness: render, forward, loss, update.

    Arguments as in `make_train_step`; the function returned takes augmented samples instead of a batch and a key.
    """
    network = spec.network()

    def update_step(state: TrainState, poses: TrainingPose):
        target = geometry.crop_to_heat(poses.crop_xy, STRIDE, spec.model.frame)

        def loss_of(params):
            logits, updates = network.apply(
                {"params": params, "batch_stats": state.batch_stats},
                poses.crop,
                poses.input.xy,
                poses.input.present,
                train=True,
                mutable=["batch_stats", "intermediates"],
            )
            terms = losses.integral_loss(logits, target, poses.valid, loss)
            total = terms["heatmap"] + terms["coordinate"]
            for estimated in updates.get("intermediates", {}).get("estimated", ()):  # end-to-end only
                total += sum(losses.integral_loss(estimated, target, poses.valid, loss).values())
            return total, (terms, logits, updates["batch_stats"])

        (total, (terms, logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            done = state.step.astype(jnp.float32)
            decay = jnp.minimum(average_decay, (1 + done) / (10 + done))
            now = {"params": params, "batch_stats": batch_stats}
            average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, now)
        norm = optax.tree.norm(gradients)
        halted = state.skipped > skip_nonfinite
        bad = ~(jnp.isfinite(total) & jnp.isfinite(norm))
        skipped = state.skipped + (bad & ~halted).astype(jnp.int32)
        step = state.step + (skipped <= skip_nonfinite).astype(jnp.int32)
        after = (params, batch_stats, opt_state, average)
        before = (state.params, state.batch_stats, state.opt_state, state.average)
        after = jax.tree.map(lambda new, old: jnp.where(bad | halted, old, new), after, before)

        heat_xy = jax.vmap(heatmaps.mean_position)(logits)
        crop_xy = geometry.heat_to_crop(heat_xy, STRIDE, spec.model.frame)

        def mean_ks(xy, among):
            return _mean(similarity(((xy - poses.crop_xy) ** 2).sum(-1), poses.area, spec.skeleton, jnp), among)

        metrics = {
            "loss": total,
            "heatmap": terms["heatmap"],
            "coordinate": terms["coordinate"],
            "ks_input": mean_ks(poses.input.xy, poses.valid & poses.input.present),
            "ks_output": mean_ks(crop_xy, poses.valid),
            "gradient_norm": norm,
            "skipped": skipped,
        }
        return TrainState(step, *after, skipped), metrics

    return update_step


def crop_around(
    patch: UInt8[Array, "B P P 3"], patch_xy: Float[Array, "B K 2"], around: Bool[Array, "B K"], spec: RefinerSpec
) -> tuple[Float[Array, "B H W 3"], Float[Array, "B 2 3"]]:
    """Crops around the joints `around`, as refinement places them, and the maps from patch to crop pixels."""
    crop_hw, frame = spec.model.crop_hw, spec.model.frame

    def one(patch, patch_xy, around):
        affine = geometry.crop_affine(_crop_box(patch_xy, around, crop_hw), crop_hw, frame=frame, xp=jnp)
        return warp(patch, affine, crop_hw), affine

    return jax.vmap(one)(patch, patch_xy, around)


class Evaluated(NamedTuple):
    """Input and refined poses of a batch of records, in patch pixels."""

    input_xy: Float[Array, "B K 2"]
    present: Bool[Array, "B K"]
    refined_xy: Float[Array, "B K 2"]


def make_eval_step(
    *, spec: RefinerSpec, synthesize: Synthesizer | None
) -> Callable[[Any, Batch, Key[Array, ""]], Evaluated]:
    """Builds the evaluation step, to be jitted: (variables, batch, root key) -> `Evaluated`.

    It runs the refinement step, flip averaging included, on crops placed as in refinement.

    Args:
      spec: static.
      synthesize: draws the input pose by the sample's key; None takes the first stored detection.
    """
    network = spec.network()
    refine = make_refine_step(network.apply, spec)
    trained = jnp.asarray(spec.trained_joints)

    def input_pose(key, record: Batch):
        if synthesize is None:
            return record.detected_xy[0], record.detected[0]
        pose = synthesize(key, person_of(record, trained))
        return pose.xy, pose.present

    def eval_step(variables, batch: Batch, root: Key[Array, ""]) -> Evaluated:
        keys = sample_keys(root, batch.epoch, batch.sample)
        input_xy, present = jax.vmap(input_pose)(keys, batch)
        crops, affines = crop_around(batch.patch, input_xy, present & trained[None], spec)
        crop_xy = jax.vmap(geometry.apply_affine)(affines, input_xy)
        refined = refine(variables, crops, crop_xy, present)
        back = jax.vmap(lambda affine: geometry.invert_affine(affine, xp=jnp))(affines)
        refined_xy = jax.vmap(geometry.apply_affine)(back, refined.crop_xy)
        # The way to the crop and back rounds; a joint that keeps its input keeps it exactly.
        refined_xy = jnp.where(refined.moved[..., None], refined_xy, input_xy)
        return Evaluated(input_xy, present, refined_xy)

    return eval_step
