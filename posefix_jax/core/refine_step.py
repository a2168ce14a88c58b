"""The refinement step: crops and poses in, refined poses and their expected similarity out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from posefix_jax.core import geometry, heatmaps
from posefix_jax.core.decode import DECODERS, view_probabilities
from posefix_jax.core.models import STRIDE, DecodeConfig, RefinerSpec
from posefix_jax.core.trust import MEASURES, Trust, agreement, fuse, uniform

Network = Callable[..., Any]
"""(variables, image [B, H, W, 3], crop_xy [B, K, 2], present [B, K]) -> logits [B, h, w, K]"""


class Refined(NamedTuple):
    """A batch of refined poses.

    Attributes:
      crop_xy: joints, crop pixels.
      input_ks, output_ks: expected KS of the input joint and of the refined one, calibrated if the spec says how.
      moved: False for a joint that keeps its input because the network does not know it.
      agreement: how the input agrees with the map made without it, see `trust.agreement`; zeros where there is none.
    """

    crop_xy: Float[Array, "B K 2"]
    input_ks: Float[Array, "B K"]
    output_ks: Float[Array, "B K"]
    moved: Bool[Array, "B K"]
    agreement: Float[Array, "B 8"]


class Maps(NamedTuple):
    """What the network says of a batch, before any trust.

    Attributes:
      logits: of each view; `decode.Views`.
      probability: where each joint may be, by view, as maps of the crop.
      scale: the fall-off 2 sigma sqrt(area) in cells.
    """

    logits: list[Float[Array, "B h w K"]]
    probability: list[Float[Array, "B h w K"]]
    scale: Float[Array, "B K"]


def make_maps(network: Network, spec: RefinerSpec, *, flip: bool = True) -> Callable[..., Maps]:
    """Builds the network's half of the refinement step. Arguments as in `make_refine_step`.

    Returns:
      A function of the variables, crops, crop_xy (finite) and present.
    """
    model = spec.model
    trained = jnp.asarray(spec.trained_joints)[None]

    def maps(variables, crops, crop_xy, present) -> Maps:
        views = logits_of_views(variables, crops, crop_xy, present & trained)
        area = jax.vmap(lambda xy, on: geometry.pose_area(xy, on, model.crop_hw, xp=jnp))(crop_xy, present)
        scale = 2 * jnp.asarray(spec.skeleton.sigmas)[None] * jnp.sqrt(area)[:, None] / STRIDE
        return Maps(views, view_probabilities(views, spec), scale)

    def logits_of_views(variables, crops, crop_xy, seen) -> list[Array]:
        if not flip:
            return [network(variables, crops, crop_xy, seen)]
        flip_index = spec.skeleton.flip_index
        mirrored_xy = geometry.mirror_crop(crop_xy, model.crop_hw[1])[:, flip_index]
        seen_mirrored = jnp.zeros_like(seen) if spec.decode.withhold_mirror else seen[:, flip_index]
        mirrored = crops[:, :, ::-1], mirrored_xy, seen_mirrored
        # One pass over both, so that the network is traced once; interleaved, so that both stay on one device.
        pairs = [_interleave(*each) for each in zip((crops, crop_xy, seen), mirrored, strict=True)]
        logits = network(variables, *pairs)
        return [logits.reshape(-1, 2, *logits.shape[1:])[:, side] for side in (0, 1)]

    return maps


def decode_maps(
    maps: Maps,
    crop_xy: Float[Array, "B K 2"],
    present: Bool[Array, "B K"],
    spec: RefinerSpec,
    trust: Trust,
) -> tuple[Float[Array, "B K 2"], Float[Array, "B K"], Float[Array, "B K"]]:
    """The refined joints (crop pixels), and the expected KS of the input joints and of the refined ones.

    Args:
      maps: of these crops.
      crop_xy, present: the input, crop pixels; finite.
      spec: static. Only the `ks` decoder heeds trust.
      trust: per joint.
    """
    heat_xy = geometry.crop_to_heat(crop_xy, STRIDE, spec.model.frame)
    if len(maps.probability) == 1:
        probability = maps.probability[0]
    else:
        # A pose worth its trust makes the map that saw it the better one.
        with_pose = (1 + trust.weight[None, None, None]) / 2 if spec.decode.withhold_mirror else 0.5
        probability = with_pose * maps.probability[0] + (1 - with_pose) * maps.probability[1]
    if spec.decode.method == "ks":
        probability = fuse(probability, heat_xy, present, maps.scale, trust)
    out_xy = DECODERS[spec.decode.method](maps.logits, probability, maps.scale, spec)

    def expected_ks(xy):
        expected = jax.vmap(heatmaps.expected_ks)(probability, xy, maps.scale)
        return calibrated(expected, trust, spec.decode)

    out_heat_xy = geometry.crop_to_heat(out_xy, STRIDE, spec.model.frame)
    return out_xy, jnp.where(present, expected_ks(heat_xy), 0.0), expected_ks(out_heat_xy)


def calibrated(expected: Float[Array, "B K"], trust: Trust, decode: DecodeConfig) -> Float[Array, "B K"]:
    """The expected KS as `decode.confidence` corrects it."""
    if not decode.confidence:
        return expected
    slope, offset, with_trust = decode.confidence
    logit = jax.scipy.special.logit(jnp.clip(expected, 1e-4, 1 - 1e-4))
    return jax.nn.sigmoid(slope * logit + offset + with_trust * trust.weight[None])


def make_refine_step(
    network: Network, spec: RefinerSpec, *, flip: bool = True, iterations: int = 1
) -> Callable[..., Refined]:
    """Builds the refinement step, to be jitted.

    Args:
      network: the network's forward pass.
      spec: static. Joints that it does not train keep their input.
      flip: also run the mirrored crop. `ks` and `argmax` average the two maps, `soft-argmax` the two poses.
      iterations: how often to refine. Each iteration shows the network the pose of the previous one, filled-in joints
        included, in the same crop; trust always counts toward the first input.

    Returns:
      A function of the variables, crops [B, H, W, 3] (RGB, 0..255, any dtype), crop_xy [B, K, 2] (crop pixels),
      present [B, K] and a `Trust` (by default the spec's), which returns a `Refined`. Its `input_ks` and `agreement` are
      those of the first iteration.
    """
    trained = jnp.asarray(spec.trained_joints)[None]
    maps_of = make_maps(network, spec, flip=flip)
    measured = flip and spec.decode.withhold_mirror

    def refine_step(variables, crops, crop_xy, present, trust: Trust | None = None) -> Refined:
        if trust is None:
            trust = uniform(spec.decode.trust, spec.skeleton.num_joints)
        trust = Trust(*map(jnp.asarray, trust))
        crops = crops.astype(jnp.float32)
        crop_xy = jnp.where(present[..., None], crop_xy, 0.0)
        agreed = jnp.zeros((crop_xy.shape[0], len(MEASURES) + 2))
        maps = maps_of(variables, crops, crop_xy, present)
        if measured:
            heat_xy = geometry.crop_to_heat(crop_xy, STRIDE, spec.model.frame)
            agreed = agreement(maps.probability[1], heat_xy, present & trained, maps.scale)
        found_xy, first_ks, output_ks = decode_maps(maps, crop_xy, present, spec, trust)
        input_ks = first_ks
        for _ in range(iterations - 1):
            last_xy = jnp.where(trained[..., None], found_xy, crop_xy)
            maps = maps_of(variables, crops, last_xy, present | trained)
            found_xy, input_ks, output_ks = decode_maps(maps, crop_xy, present, spec, trust)
        out_xy = jnp.where(trained[..., None], found_xy, crop_xy)
        output_ks = jnp.where(trained, output_ks, input_ks)
        return Refined(out_xy, first_ks, output_ks, jnp.broadcast_to(trained, present.shape), agreed)

    return refine_step


def _interleave(a: Array, b: Array) -> Array:
    """[2 B, ...]: a[0], b[0], a[1], b[1], ..."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])
