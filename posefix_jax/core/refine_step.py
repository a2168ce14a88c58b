"""The refinement step: crops and poses in, refined poses and their expected similarity out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from posefix_jax.core import geometry, heatmaps
from posefix_jax.core.decode import DECODERS, mean_probability, moves
from posefix_jax.core.models import STRIDE, RefinerSpec

Network = Callable[..., Any]
"""(variables, image [B, H, W, 3], crop_xy [B, K, 2], present [B, K]) -> logits [B, h, w, K]"""


class Refined(NamedTuple):
    """A batch of refined poses.

    Attributes:
      crop_xy: joints, crop pixels.
      input_ks, output_ks: expected KS of the input joint and of the refined one, under the heatmap.
      moved: False for a joint that keeps its input.
    """

    crop_xy: Float[Array, "B K 2"]
    input_ks: Float[Array, "B K"]
    output_ks: Float[Array, "B K"]
    moved: Bool[Array, "B K"]


def make_refine_step(
    network: Network, spec: RefinerSpec, *, flip: bool = True, iterations: int = 1
) -> Callable[[Any, Array, Array, Array], Refined]:
    """Builds the refinement step, to be jitted.

    Args:
      network: the network's forward pass.
      spec: static. Joints that it does not train keep their input.
      flip: also run the mirrored crop. `ks` and `argmax` average the two maps, `soft-argmax` the two poses.
      iterations: how often to refine. Each iteration takes the pose of the previous one, filled-in joints included, in
        the same crop.

    Returns:
      A function of the variables, crops [B, H, W, 3] (RGB, 0..255, any dtype), crop_xy [B, K, 2] (crop pixels) and
      present [B, K], which returns a `Refined`. Its `input_ks` is that of the first iteration.
    """
    model = spec.model
    trained = jnp.asarray(spec.trained_joints)[None]

    def once(variables, crops, crop_xy, present) -> Refined:
        crop_xy = jnp.where(present[..., None], crop_xy, 0.0)
        views = logits_of_views(variables, crops, crop_xy, present & trained)
        probability = mean_probability(views, spec)
        area = jax.vmap(lambda xy, on: geometry.pose_area(xy, on, model.crop_hw, xp=jnp))(crop_xy, present)
        scale = 2 * jnp.asarray(spec.skeleton.sigmas)[None] * jnp.sqrt(area)[:, None] / STRIDE
        out_xy = DECODERS[spec.decode.method](views, probability, scale, spec)

        def expected_ks(xy):
            heat_xy = geometry.crop_to_heat(xy, STRIDE, model.frame)
            return jax.vmap(heatmaps.expected_ks)(probability, heat_xy, scale)

        output_ks = expected_ks(out_xy)
        input_ks = jnp.where(present, expected_ks(crop_xy), 0.0)
        moved = trained & (~present | moves(input_ks, output_ks, spec.decode))
        return Refined(jnp.where(moved[..., None], out_xy, crop_xy), input_ks, output_ks, moved)

    def logits_of_views(variables, crops, crop_xy, seen) -> list[Array]:
        if not flip:
            return [network(variables, crops, crop_xy, seen)]
        flip_index = spec.skeleton.flip_index
        mirrored_xy = geometry.mirror_crop(crop_xy, model.crop_hw[1])[:, flip_index]
        mirrored = crops[:, :, ::-1], mirrored_xy, seen[:, flip_index]
        # One pass over both, so that the network is traced once; interleaved, so that both stay on one device.
        pairs = [_interleave(*each) for each in zip((crops, crop_xy, seen), mirrored, strict=True)]
        logits = network(variables, *pairs)
        return [logits.reshape(-1, 2, *logits.shape[1:])[:, side] for side in (0, 1)]

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


def _interleave(a: Array, b: Array) -> Array:
    """[2 B, ...]: a[0], b[0], a[1], b[1], ..."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])
