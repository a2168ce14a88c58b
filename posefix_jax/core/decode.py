"""How heatmaps become a pose: three decoders.

Batched; poses are in crop pixels. `spec` is static.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
from jaxtyping import Array, Float

from posefix_jax.core import geometry, heatmaps
from posefix_jax.core.models import STRIDE, RefinerSpec

Views = Sequence[Float[Array, "B h w K"]]
"""Logits of the crop, then those of its mirror image if the refiner also runs that one."""


def mirror_back(maps: Float[Array, "B h w K"], spec: RefinerSpec) -> Float[Array, "B h w K"]:
    """The maps of a mirrored crop as maps of the crop."""
    return maps[:, :, ::-1][..., spec.skeleton.flip_index]


def view_probabilities(views: Views, spec: RefinerSpec) -> list[Float[Array, "B h w K"]]:
    """Where each joint may be, by view, all as maps of the crop; each map sums to 1.

    In the `reference` frame mirrored cells do not fall on cells, so there the first view alone counts.
    """
    temperature = spec.decode.temperature if spec.decode.method == "ks" else 1.0
    maps = [jax.vmap(heatmaps.probabilities)(logits / temperature) for logits in views]
    if len(maps) == 1 or spec.model.frame == "reference":
        return maps[:1]
    return [maps[0], mirror_back(maps[1], spec)]


def decode_ks(
    views: Views, probability: Float[Array, "B h w K"], scale: Float[Array, "B K"], spec: RefinerSpec
) -> Float[Array, "B K 2"]:
    """The position of the highest expected KS."""
    heat_xy = jax.vmap(heatmaps.best_expected_ks)(probability, scale)
    return geometry.heat_to_crop(heat_xy, STRIDE, spec.model.frame)


def decode_soft_argmax(
    views: Views, probability: Float[Array, "B h w K"], scale: Float[Array, "B K"], spec: RefinerSpec
) -> Float[Array, "B K 2"]:
    """The mean position, averaged over the views as coordinates. Paper, section 5.2; released code, main/test.py."""
    poses = [
        geometry.heat_to_crop(jax.vmap(heatmaps.mean_position)(logits), STRIDE, spec.model.frame) for logits in views
    ]
    if len(poses) == 1:
        return poses[0]
    mirrored = geometry.mirror_crop(poses[1], spec.model.crop_hw[1])[:, spec.skeleton.flip_index]
    return (poses[0] + mirrored) / 2


def decode_argmax(
    views: Views, probability: Float[Array, "B h w K"], scale: Float[Array, "B K"], spec: RefinerSpec
) -> Float[Array, "B K 2"]:
    """The highest cell of the mean map, moved a quarter cell toward its higher neighbors."""
    mean = views[0] if len(views) == 1 else (views[0] + mirror_back(views[1], spec)) / 2
    return geometry.heat_to_crop(jax.vmap(heatmaps.argmax)(mean), STRIDE, spec.model.frame)


DECODERS: Mapping[str, Callable[..., Float[Array, "B K 2"]]] = {
    "ks": decode_ks,
    "soft-argmax": decode_soft_argmax,
    "argmax": decode_argmax,
}
"""By `DecodeConfig.method`. Arguments: logits by view, their mean probability, scale of KS in cells, spec."""
