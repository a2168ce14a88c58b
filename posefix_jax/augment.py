"""Random crops, on the device: where the crop lies in the patch, what is in it, and its colours."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt8

from posefix_jax import geometry
from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class AugmentConfig:
    """How training crops vary. Static under `jit`. Defaults: the released code's, shift and colour apart."""

    scale: float = 0.3
    """the crop region's size is multiplied by N(1, this), clipped to 1 +- this"""
    rotation: float = 40.0
    """degrees; N(0, this) clipped to twice this"""
    rotation_probability: float = 0.6
    """how many of the crops are rotated at all"""
    flip_probability: float = 0.5
    """how many of the crops are mirrored"""
    shift: float = 0.0
    """the crop's centre moves by up to this share of its width and height"""
    colour: float = 0.0
    """brightness, and contrast, vary by up to this share; the channels' contrast a little by itself"""

    def __post_init__(self):
        if not 0 <= self.scale <= 0.3 or not 0 <= self.shift <= 0.1:
            raise PosefixError(
                "patches are cut for scale up to 0.3 and shift up to 0.1; "
                f"found augment.scale {self.scale}, augment.shift {self.shift}"
            )
        for name in ("rotation_probability", "flip_probability", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise PosefixError(f"augment.{name} must lie in 0..1, found {getattr(self, name)}")


def random_crop_affine(
    key: Key[Array, ""],
    box: Float[Array, "4"],
    config: AugmentConfig,
    crop_hw: tuple[int, int],
    frame: geometry.Frame = "unbiased",
) -> tuple[Float[Array, "2 3"], Float[Array, ""], Bool[Array, ""]]:
    """Draws scale, rotation, shift and flip for one crop.

    Args:
      box: the unaugmented crop region (x, y, w, h) at the crop's aspect, patch pixels.
      config: static.
      crop_hw: static.
      frame: static.

    Returns:
      The affine from patch to crop pixels, the square of its scale (for areas), and whether it mirrors.
    """
    keys = dict(zip(("scale", "rotation", "rotate", "flip", "shift"), jax.random.split(key, 5), strict=True))
    scale = jnp.clip(1 + config.scale * jax.random.normal(keys["scale"]), 1 - config.scale, 1 + config.scale)
    degrees = config.rotation * jnp.clip(jax.random.normal(keys["rotation"]), -2, 2)
    degrees = jnp.where(jax.random.bernoulli(keys["rotate"], config.rotation_probability), degrees, 0.0)
    mirror = jax.random.bernoulli(keys["flip"], config.flip_probability)
    shift = config.shift * jax.random.uniform(keys["shift"], (2,), minval=-1, maxval=1) * box[2:]
    box = geometry.grow_box(jnp.concatenate([box[:2] + shift, box[2:]]), scale, xp=jnp)
    affine = geometry.crop_affine(box, crop_hw, frame=frame, rotation=jnp.deg2rad(degrees), mirror=mirror, xp=jnp)
    return affine, (crop_hw[1] / box[2]) ** 2, mirror


def warp(patch: UInt8[Array, "P Q 3"], affine: Float[Array, "2 3"], crop_hw: tuple[int, int]) -> Float[Array, "H W 3"]:
    """Bilinear crop of a patch, black outside, 0..255.

    Args:
      affine: patch to crop pixels, invertible.
      crop_hw: static.
    """
    height, width = patch.shape[:2]
    inverse = geometry.invert_affine(affine, xp=jnp)
    rows, columns = jnp.meshgrid(
        jnp.arange(crop_hw[0], dtype=jnp.float32), jnp.arange(crop_hw[1], dtype=jnp.float32), indexing="ij"
    )
    x = inverse[0, 0] * columns + inverse[0, 1] * rows + inverse[0, 2]
    y = inverse[1, 0] * columns + inverse[1, 1] * rows + inverse[1, 2]
    left, top = jnp.floor(x), jnp.floor(y)
    flat = patch.reshape(height * width, 3)

    def tap(column, row, weight):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        return flat[index].astype(jnp.float32) * jnp.where(inside, weight, 0.0)[..., None]

    u, v = x - left, y - top
    left, top = left.astype(jnp.int32), top.astype(jnp.int32)
    return (
        tap(left, top, (1 - u) * (1 - v))
        + tap(left + 1, top, u * (1 - v))
        + tap(left, top + 1, (1 - u) * v)
        + tap(left + 1, top + 1, u * v)
    )


def random_colour(key: Key[Array, ""], crop: Float[Array, "H W 3"], amount: float) -> Float[Array, "H W 3"]:
    """Scales contrast and shifts brightness, all channels together and each a little by itself; 0..255."""
    if not amount:
        return crop
    gain_key, shift_key, channel_key = jax.random.split(key, 3)
    gain = 1 + amount * jax.random.uniform(gain_key, (), minval=-1, maxval=1)
    gain = gain * (1 + 0.3 * amount * jax.random.uniform(channel_key, (3,), minval=-1, maxval=1))
    shift = 128 * amount * jax.random.uniform(shift_key, (), minval=-1, maxval=1)
    return jnp.clip((crop - 128) * gain + 128 + shift, 0, 255)
