"""What runs on the devices: one training step, one evaluation step, one refinement step. Pure, no I/O."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from posefix_jax.core import geometry, heatmaps, losses
from posefix_jax.core.augment import AugmentConfig, random_colour, random_crop_affine, random_erase, warp
from posefix_jax.core.models import STRIDE, RefinerSpec
from posefix_jax.core.synthesis import Person, Synthesizer, SyntheticPose
from posefix_jax.core.taxonomy import similarity
from posefix_jax.types import ErrorKind, PosefixError

Network = Callable[..., Array]
"""(variables, image [B,H,W,3], crop_xy [B,K,2], present [B,K]) -> logits [B,h,w,K]"""


class TrainState(NamedTuple):
    """All that training changes.

    `average` holds averaged {params, batch_stats}, or is None; `skipped` counts the batches whose loss or gradient was
    not finite and that changed nothing.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any
    skipped: Int[Array, ""]

    @property
    def variables(self) -> dict:
        """What a refiner runs with: the averaged variables if there are any."""
        return self.average if self.average is not None else {"params": self.params, "batch_stats": self.batch_stats}


class Batch(NamedTuple):
    """Person records, stacked. Coordinates and boxes are patch pixels.

    `weight` is 0 for a record whose image could not be read. `detected_xy` holds M poses that real estimators
    gave for the person, all absent where there is none.
    """

    patch: UInt8[Array, "B P P 3"]
    patch_xy: Float[Array, "B K 2"]
    labelled: Bool[Array, "B K"]
    others_xy: Float[Array, "B N K 2"]
    others_labelled: Bool[Array, "B N K"]
    overlap: Int[Array, " B"]
    detected_xy: Float[Array, "B M K 2"]
    detected: Bool[Array, "B M K"]
    box: Float[Array, "B 4"]
    area: Float[Array, " B"]
    weight: Float[Array, " B"]
    sample: Int[Array, " B"]
    epoch: Int[Array, " B"]


@dataclass(frozen=True)
class InputConfig:
    """What the network sees as its input pose during training. Static under `jit`."""

    withhold_pose: float = 0.0
    """share of the samples that get no input pose at all"""
    withhold_joint: float = 0.0
    """share of the input joints left out"""
    self_share: float = 0.0
    """share of the samples whose input is the network's own output for the synthetic pose, for refining repeatedly"""
    box: Literal["pose", "annotation"] = "pose"
    """crop around: pose (the input's extent x 1.2, as in refinement) or annotation (the record's box, as in the paper)"""

    def __post_init__(self):
        for name in ("withhold_pose", "withhold_joint", "self_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise PosefixError(f"inputs.{name} must lie in 0..1, found {getattr(self, name)}")


def sample_keys(root: Key[Array, ""], epoch: Int[Array, " B"], sample: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key a sample, the same on any number of devices and hosts."""
    return jax.vmap(lambda e, s: jax.random.fold_in(jax.random.fold_in(root, e), s))(epoch, sample)


class TrainingPose(NamedTuple):
    """One augmented sample, crop pixels: the crop, the truth, and the spoiled input."""

    crop: Float[Array, "H W 3"]
    crop_xy: Float[Array, "K 2"]
    valid: Bool[Array, " K"]
    input: SyntheticPose
    area: Float[Array, ""]


def person_of(record: Batch, trained) -> Person:
    """What a synthesiser sees of one record, patch pixels; joints that are not `trained` [K] are unlabelled."""
    return Person(
        xy=record.patch_xy,
        labelled=record.labelled & trained,
        others_xy=record.others_xy,
        others_labelled=record.others_labelled & trained,
        area=record.area,
        overlap=record.overlap,
        detected_xy=record.detected_xy,
        detected=record.detected & trained,
    )


def _crop_box(patch_xy, around, crop_hw):
    """The crop region around a pose as in refinement; somewhere, if there is no joint to lay it around."""
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
    """Spoils one record (a `Batch` without its first axis) and cuts an augmented crop; `vmap` to batch.

    The crop is laid around the spoiled pose, as refinement lays it around an estimator's. Everything but `key` and
    `record` is static. Joints that the spec does not train are treated as unlabelled.
    """
    affine_key, colour_key, error_key, choice_key, half_key, erase_key = jax.random.split(key, 6)
    strength = augment.strength(record.epoch)
    crop_hw = spec.model.crop_hw
    trained = jnp.asarray(spec.trained_joints)
    labelled = record.labelled & trained

    pose = _withhold(choice_key, synthesize(error_key, person_of(record, trained)), inputs)
    if inputs.box == "pose":
        # A pose without a joint is one that was withheld: then the truth says where the person is.
        some = pose.present.any()
        around = jnp.where(some, pose.present, labelled)
        if augment.half_body:
            around = _half_body(half_key, around, spec.skeleton, augment.half_body)
        box = _crop_box(jnp.where(some, pose.crop_xy, record.patch_xy), around, crop_hw)
    else:
        box = geometry.crop_box(record.box, crop_hw, xp=jnp)
    affine, area_scale, mirror = random_crop_affine(
        affine_key, box, augment, crop_hw, spec.model.frame, strength=strength
    )

    def mirrored(values):
        return jnp.where(mirror, values[spec.skeleton.flip_index], values)

    def to_crop(patch_xy):
        return mirrored(geometry.apply_affine(affine, patch_xy))

    crop = random_colour(colour_key, warp(record.patch, affine, crop_hw), augment.colour, strength=strength)
    crop = random_erase(erase_key, crop, augment.erase, strength=strength)
    crop_xy, labelled = to_crop(record.patch_xy), mirrored(labelled)
    pose = SyntheticPose(to_crop(pose.crop_xy), mirrored(pose.present), mirrored(pose.kind))
    inside = (crop_xy > -0.5) & (crop_xy < jnp.asarray(crop_hw[::-1], jnp.float32) - 0.5)
    valid = labelled & inside.all(axis=-1) & (record.weight > 0)
    return TrainingPose(crop, crop_xy, valid, pose, record.area * area_scale)


def _half_body(key, around, skeleton, probability):
    """The joints of one half of the body, sometimes; of both where that half has fewer than three."""
    use_key, half_key = jax.random.split(key)
    half = around & (jax.random.bernoulli(half_key) == jnp.asarray(skeleton.lower_body))
    use = jax.random.bernoulli(use_key, probability) & (half.sum() >= 3)
    return jnp.where(use, half, around)


def _withhold(key, pose: SyntheticPose, inputs: InputConfig) -> SyntheticPose:
    """The pose, or joints of it, left out."""
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
    """The training step, to be jitted with a donated state: augment, spoil, render, forward, loss, update.

    Metrics are scalars over the global batch: loss terms, mean KS of input and output, gradient norm, and `skipped` as
    in the state. `average_decay` in (0, 1) averages parameters and batch statistics exponentially, warmed up.

    A batch whose loss or gradient is not finite changes nothing. The first `skip_nonfinite` of a run are passed over;
    at the next one the step count stands still for good, so that the state stays what it was before that batch however
    late the host looks.
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
        """For a share of the samples what the network now makes of the input, in the place of that."""
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = network.apply(variables, poses.crop, poses.input.crop_xy, poses.input.present)
        heat_xy = jax.vmap(lambda one: heatmaps.soft_argmax(heatmaps.probabilities(one)))(logits)
        found_xy = geometry.heat_to_crop(heat_xy, STRIDE, spec.model.frame)
        use = jax.vmap(lambda key: jax.random.bernoulli(jax.random.split(key, 7)[6], inputs.self_share))(keys)[:, None]
        trained = jnp.asarray(spec.trained_joints)
        return SyntheticPose(
            jnp.where(use[..., None], found_xy, poses.input.crop_xy),
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
    """The second half of the training step, without randomness: render, forward, loss, update."""
    network = spec.network()

    def update_step(state: TrainState, poses: TrainingPose):
        target = geometry.crop_to_heat(poses.crop_xy, STRIDE, spec.model.frame)

        def loss_of(params):
            logits, updates = network.apply(
                {"params": params, "batch_stats": state.batch_stats},
                poses.crop,
                poses.input.crop_xy,
                poses.input.present,
                train=True,
                mutable=["batch_stats", "intermediates"],
            )
            terms = losses.integral_loss(logits, target, poses.valid, loss)
            total = terms["heatmap"] + terms["coordinate"]
            for estimated in updates.get("intermediates", {}).get("estimated", ()):  # of a network of two stages
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
        skipped = state.skipped + (bad & ~halted)
        step = state.step + (skipped <= skip_nonfinite)
        after = (params, batch_stats, opt_state, average)
        before = (state.params, state.batch_stats, state.opt_state, state.average)
        after = jax.tree.map(lambda new, old: jnp.where(bad | halted, old, new), after, before)

        heat_xy = jax.vmap(lambda one: heatmaps.soft_argmax(heatmaps.probabilities(one)))(logits)
        crop_xy = geometry.heat_to_crop(heat_xy, STRIDE, spec.model.frame)

        def mean_ks(xy, among):
            return _mean(similarity(((xy - poses.crop_xy) ** 2).sum(-1), poses.area, spec.skeleton, jnp), among)

        metrics = {
            "loss": total,
            "heatmap": terms["heatmap"],
            "coordinate": terms["coordinate"],
            "ks_input": mean_ks(poses.input.crop_xy, poses.valid & poses.input.present),
            "ks_output": mean_ks(crop_xy, poses.valid),
            "gradient_norm": norm,
            "skipped": skipped,
        }
        return TrainState(step, *after, skipped), metrics

    return update_step


class Refined(NamedTuple):
    """A refined pose in crop pixels, with the expected KS of each input and output joint under the heatmap.

    `moved` is False for a joint that keeps its input.
    """

    crop_xy: Float[Array, "B K 2"]
    input_ks: Float[Array, "B K"]
    output_ks: Float[Array, "B K"]
    moved: Bool[Array, "B K"]


def make_refine_step(network: Network, spec: RefinerSpec, *, flip: bool = True, iterations: int = 1):
    """The refinement step, to be jitted: (variables, crops, crop_xy, present) -> `Refined`.

    Crops are [B, H, W, 3] in 0..255, RGB, any dtype; the pose is in crop pixels. With `flip` the mirrored crop is
    run too; the `ks` decoder averages the two maps, the `soft-argmax` one the two poses. Joints the spec does not
    train keep their input. Of several `iterations` each takes the pose of the one before, filled-in joints too, in the
    same crop; `input_ks` is then the first one's.
    """
    decode, skeleton, model = spec.decode, spec.skeleton, spec.model
    trained = jnp.asarray(spec.trained_joints)
    flip_index = skeleton.flip_index

    def once(variables, crops, crop_xy, present) -> Refined:
        seen = present & trained
        crop_xy = jnp.where(present[..., None], crop_xy, 0.0)
        if flip:
            mirrored_xy = geometry.mirror_crop(crop_xy, model.crop_hw[1])[:, flip_index]
            mirrored = crops[:, :, ::-1], mirrored_xy, seen[:, flip_index]
            # One pass over both: one program to trace. Side by side, so that a device keeps its own.
            pairs = [_pair(*each) for each in zip((crops, crop_xy, seen), mirrored, strict=True)]
            logits = network(variables, *pairs)
            maps = [logits.reshape(-1, 2, *logits.shape[1:])[:, side] for side in (0, 1)]
        else:
            maps = [network(variables, crops, crop_xy, seen)]
        if decode.method == "argmax":
            mean = maps[0] if not flip else (maps[0] + maps[1][:, :, ::-1][..., flip_index]) / 2
            out_xy = geometry.heat_to_crop(jax.vmap(heatmaps.argmax)(mean), STRIDE, model.frame)
        temperature = decode.temperature if decode.method == "ks" else 1.0
        maps = [jax.vmap(heatmaps.probabilities)(logits / temperature) for logits in maps]

        def mirror_back(xy):
            return geometry.mirror_crop(xy, model.crop_hw[1])[:, flip_index]

        if decode.method == "soft-argmax":
            poses = [geometry.heat_to_crop(jax.vmap(heatmaps.soft_argmax)(m), STRIDE, model.frame) for m in maps]
            out_xy = poses[0] if not flip else (poses[0] + mirror_back(poses[1])) / 2
        mean = maps[0]
        if flip and model.frame == "unbiased":  # only there do mirrored cells lie on cells
            mean = (mean + maps[1][:, :, ::-1][..., flip_index]) / 2
        area = jax.vmap(lambda xy, on: geometry.pose_area(xy, on, model.crop_hw, xp=jnp))(crop_xy, present)
        scale = 2 * jnp.asarray(skeleton.sigmas) * jnp.sqrt(area)[:, None] / STRIDE
        if decode.method == "ks":
            out_heat = jax.vmap(heatmaps.best_expected_ks)(mean, scale)
            out_xy = geometry.heat_to_crop(out_heat, STRIDE, model.frame)
        expected = jax.vmap(heatmaps.expected_ks)
        output_ks = expected(mean, geometry.crop_to_heat(out_xy, STRIDE, model.frame), scale)
        input_ks = expected(mean, geometry.crop_to_heat(crop_xy, STRIDE, model.frame), scale)
        input_ks = jnp.where(present, input_ks, 0.0)
        always = decode.method != "ks"
        better = always | (output_ks - input_ks > decode.keep_margin) & (output_ks >= decode.min_ks)
        moved = trained & (~present | better)
        return Refined(jnp.where(moved[..., None], out_xy, crop_xy), input_ks, output_ks, moved)

    def refine_step(variables, crops, crop_xy, present) -> Refined:
        crops = crops.astype(jnp.float32)
        first = last = once(variables, crops, crop_xy, present)
        moved = first.moved
        for _ in range(iterations - 1):
            last = once(variables, crops, last.crop_xy, present | moved)
            moved |= last.moved
            last = last._replace(output_ks=jnp.where(last.moved, last.output_ks, last.input_ks))
        return Refined(last.crop_xy, first.input_ks, last.output_ks, moved)

    return refine_step


def _pair(a: Array, b: Array) -> Array:
    """[2B, ...] with each of `a` before its one of `b`."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])


class Evaluated(NamedTuple):
    """Input and refined poses of a batch of records, patch pixels, and their expected KS."""

    input_xy: Float[Array, "B K 2"]
    present: Bool[Array, "B K"]
    refined_xy: Float[Array, "B K 2"]
    input_ks: Float[Array, "B K"]
    output_ks: Float[Array, "B K"]


def make_eval_step(*, spec: RefinerSpec, synthesize: Synthesizer | None):
    """The evaluation step, to be jitted: (variables, batch, root_key) -> `Evaluated`.

    The input is a synthetic pose drawn by the sample's key, or without a synthesiser the first stored detection; the
    crop is laid around it as in refinement, and the step is refinement's own, flip averaging included.
    """
    network = spec.network()
    refine = make_refine_step(network.apply, spec)
    crop_hw = spec.model.crop_hw
    trained = jnp.asarray(spec.trained_joints)

    def input_pose(key, record: Batch):
        if synthesize is None:
            return record.detected_xy[0], record.detected[0]
        pose = synthesize(key, person_of(record, trained))
        return pose.crop_xy, pose.present

    def crop_of(record, patch_xy, present):
        box = _crop_box(patch_xy, present & trained, crop_hw)
        affine = geometry.crop_affine(box, crop_hw, frame=spec.model.frame, xp=jnp)
        return warp(record.patch, affine, crop_hw), affine

    def eval_step(variables, batch: Batch, root: Key[Array, ""]) -> Evaluated:
        keys = sample_keys(root, batch.epoch, batch.sample)
        input_xy, present = jax.vmap(input_pose)(keys, batch)
        crops, affines = jax.vmap(crop_of)(batch, input_xy, present)
        crop_xy = jax.vmap(geometry.apply_affine)(affines, input_xy)
        refined = refine(variables, crops, crop_xy, present)
        back = jax.vmap(lambda affine: geometry.invert_affine(affine, xp=jnp))(affines)
        refined_xy = jax.vmap(geometry.apply_affine)(back, refined.crop_xy)
        # A joint that did not move keeps its exact coordinates.
        refined_xy = jnp.where(refined.moved[..., None], refined_xy, input_xy)
        return Evaluated(input_xy, present, refined_xy, refined.input_ks, refined.output_ks)

    return eval_step
