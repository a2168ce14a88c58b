"""Random crops on the device: their place in the patch, their colors, and parts covered at random.

Every draw takes a traced `strength`: 1 for the config's full range, less for a part of it.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from posefix_jax.core import geometry
from posefix_jax.types import PosefixError

Strength = float | Float[Array, ""]


@dataclass(frozen=True)
class AugmentConfig:
    """How training crops vary. Static under `jit`. Defaults as in the released code."""

    scale: float = 0.3
    """the size of the crop region is multiplied by N(1, this), clipped to 1 +- this"""
    rotation: float = 40.0
    """degrees; N(0, this) clipped to twice this"""
    rotation_probability: float = 0.6
    """share of crops that are rotated"""
    flip_probability: float = 0.5
    """share of crops that are mirrored"""
    shift: float = 0.0
    """the center of the crop moves by up to this share of its width and height"""
    colour: float = 0.0
    """brightness and contrast vary by up to this share; each channel's contrast by another 0.3 of that"""
    erase: float = 0.0
    """share of crops with one to three rectangles covered by a flat color, each side 0.1 to 0.35 of the crop's"""
    half_body: float = 0.0
    """share of crops placed around the upper or the lower half of the body"""
    full_epochs: int = 0
    """epochs at full strength; later epochs vary half as much and erase half as often; 0: all at full strength"""

    def __post_init__(self):
        if not 0 <= self.scale <= 0.3 or not 0 <= self.shift <= 0.1:
            raise PosefixError(
                "patches have room for augment.scale up to 0.3 and augment.shift up to 0.1; "
                f"found {self.scale} and {self.shift}"
            )
        for name in ("rotation_probability", "flip_probability", "colour", "erase", "half_body"):
            if not 0 <= getattr(self, name) <= 1:
                raise PosefixError(f"augment.{name} must lie in 0..1, found {getattr(self, name)}")
        if self.full_epochs < 0:
            raise PosefixError(f"augment.full_epochs must not be negative, found {self.full_epochs}")

    def strength(self, epoch: Int[Array, ""]) -> Float[Array, ""]:
        """The strength of an epoch's draws."""
        return jnp.where(epoch < self.full_epochs, 1.0, 0.5) if self.full_epochs else jnp.float32(1.0)


def random_crop_affine(
    key: Key[Array, ""],
    box: Float[Array, "4"],
    config: AugmentConfig,
    crop_hw: tuple[int, int],
    frame: geometry.Frame = "unbiased",
    *,
    strength: Strength = 1.0,
) -> tuple[Float[Array, "2 3"], Float[Array, ""], Bool[Array, ""]]:
    """Draws scale, rotation, shift and mirror of one crop.

    Args:
      key: consumed once.
      box: the crop region (x, y, w, h) without augmentation, at the crop's aspect, patch pixels.
      config, crop_hw, frame: static.
      strength: traced.

    Returns:
      The affine from patch to crop pixels, the square of its scale (to convert areas), and whether it mirrors.
    """
    keys = dict(zip(("scale", "rotation", "rotate", "flip", "shift"), jax.random.split(key, 5), strict=True))
    spread = config.scale * strength
    scale = jnp.clip(1 + spread * jax.random.normal(keys["scale"]), 1 - spread, 1 + spread)
    degrees = config.rotation * strength * jnp.clip(jax.random.normal(keys["rotation"]), -2, 2)
    degrees = jnp.where(jax.random.bernoulli(keys["rotate"], config.rotation_probability), degrees, 0.0)
    mirror = jax.random.bernoulli(keys["flip"], config.flip_probability)
    shift = config.shift * strength * jax.random.uniform(keys["shift"], (2,), minval=-1, maxval=1) * box[2:]
    box = geometry.grow_box(jnp.concatenate([box[:2] + shift, box[2:]]), scale, xp=jnp)
    affine = geometry.crop_affine(box, crop_hw, frame=frame, rotation=jnp.deg2rad(degrees), mirror=mirror, xp=jnp)
    return affine, (crop_hw[1] / box[2]) ** 2, mirror


def warp(patch: UInt8[Array, "P Q 3"], affine: Float[Array, "2 3"], crop_hw: tuple[int, int]) -> Float[Array, "H W 3"]:
    """A bilinear crop of a patch, 0..255, black outside. The formulation depends on the backend: see `warp_in_passes`.

    Args:
      affine: patch to crop pixels, invertible.
      crop_hw: static.
    """
    pixels, passes = (functools.partial(by, crop_hw=crop_hw) for by in (warp_by_pixel, warp_in_passes))
    return jax.lax.platform_dependent(patch, affine, tpu=passes, default=pixels)


def warp_by_pixel(
    patch: UInt8[Array, "P Q 3"], affine: Float[Array, "2 3"], crop_hw: tuple[int, int]
) -> Float[Array, "H W 3"]:
    """`warp` as four gathers."""
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


def warp_in_passes(
    patch: UInt8[Array, "P P 3"], affine: Float[Array, "2 3"], crop_hw: tuple[int, int]
) -> Float[Array, "H W 3"]:
    """`warp` for TPUs: two matrix products, along the rows of the patch and then along the columns of the crop.

    As Catmull and Smith, SIGGRAPH 1980, with linear weights in bfloat16; beyond 45 degrees rows and columns change
    places. A crop that is not rotated is bilinear up to the rounding of the weights. In a rotated one the second pass
    interpolates between two rows along the line that becomes a column of the crop, not straight down: docs/scaling.md has the
    difference on photographs, and what a TPU's compiler says of both.
    """
    height, width = crop_hw
    inverse = geometry.invert_affine(affine, xp=jnp)
    turned = jnp.abs(inverse[1, 1]) < jnp.abs(inverse[1, 0])
    patch = patch.astype(jnp.float32)
    patch = jnp.where(turned, patch.transpose(1, 0, 2), patch)
    (a, b, c), (d, e, f) = jnp.where(turned, inverse[::-1], inverse)

    def weights(position):
        """[lines, P, positions]"""
        lines = jnp.arange(patch.shape[0], dtype=jnp.float32)[None, :, None]
        return jnp.maximum(1 - jnp.abs(lines - position[:, None, :]), 0)

    row = jnp.arange(patch.shape[0], dtype=jnp.float32)[:, None]
    lanes = -(-width // 128) * 128  # the first product is three times faster so
    u = jnp.arange(lanes, dtype=jnp.float32)[None]
    along = jnp.einsum("ric,riu->rcu", patch, weights(a * u + b * (row - d * u - f) / e + c))[:, :, :width]
    u, v = jnp.arange(width, dtype=jnp.float32)[:, None], jnp.arange(height, dtype=jnp.float32)[None]
    return jnp.einsum("rcu,urv->vuc", along, weights(d * u + e * v + f))


def random_color(
    key: Key[Array, ""], crop: Float[Array, "H W 3"], amount: float, *, strength: Strength = 1.0
) -> Float[Array, "H W 3"]:
    """Scales the contrast, a little differently for each channel, and shifts the brightness; 0..255."""
    if not amount:
        return crop
    amount = amount * strength
    gain_key, shift_key, channel_key = jax.random.split(key, 3)
    gain = 1 + amount * jax.random.uniform(gain_key, (), minval=-1, maxval=1)
    gain = gain * (1 + 0.3 * amount * jax.random.uniform(channel_key, (3,), minval=-1, maxval=1))
    shift = 128 * amount * jax.random.uniform(shift_key, (), minval=-1, maxval=1)
    return jnp.clip((crop - 128) * gain[None, None] + 128 + shift, 0, 255)


def random_erase(
    key: Key[Array, ""], crop: Float[Array, "H W 3"], probability: float, *, strength: Strength = 1.0
) -> Float[Array, "H W 3"]:
    """Imitates occlusion: with this probability, covers one to three rectangles of the crop with a flat color each."""
    if not probability:
        return crop
    use_key, count_key, size_key, place_key, color_key = jax.random.split(key, 5)
    extent = jnp.asarray(crop.shape[:2], jnp.float32)[None]
    size = extent * jax.random.uniform(size_key, (3, 2), minval=0.1, maxval=0.35)
    start = (extent - size) * jax.random.uniform(place_key, (3, 2))
    color = 255 * jax.random.uniform(color_key, (3, 3))
    count = jnp.where(jax.random.bernoulli(use_key, probability * strength), jax.random.randint(count_key, (), 1, 4), 0)
    rows, columns = (jnp.arange(side, dtype=jnp.float32) for side in crop.shape[:2])
    rows, columns = rows[:, None], columns[None]
    for i in range(3):
        (top, left), (bottom, right) = start[i], start[i] + size[i]
        covered = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right) & (i < count)
        crop = jnp.where(covered[..., None], color[i], crop)
    return crop
