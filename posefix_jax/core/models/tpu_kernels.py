"""Formulations of convolutions for TPUs. Weights and outcome are the same; `layers` uses them there.

No TPU has run them yet. Below: the cycles that a TPU v5e's compiler models for the plain formulation over those for ours
(benchmarks/compiled.py; libtpu 0.0.42).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posefix_jax.core.heatmaps import SeparableMaps
from posefix_jax.core.models.convolution import conv


def conv_in_blocks(
    x: Float[Array, "B H W C"], maps: SeparableMaps, kernel: Float[Array, "k k E D"], offset: int = 0
) -> Float[Array, "B h w D"]:
    """The convolution of `Conv` with stride 2 on an image and maps, E channels, for TPUs: with stride 1 on 2x2 blocks.

    A block has four times the channels and the kernel, padded by zeros, a quarter of the taps, so that the products are
    large enough for the matrix units. The maps are drawn. Training step of ResNet-50 256x192: 1.11. Refinement: 0.47,
    because its crops come in another order; it runs `conv_of_drawn`.
    """
    (b, height, width, channels), size = x.shape, kernel.shape[0]
    h, w, joints = height // 2, width // 2, maps.rows.shape[-1]
    blocks = x.reshape(b, h, 2, w, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    drawn = maps.rows.reshape(b, h, 1, 2, 1, joints) * maps.columns.reshape(b, 1, w, 1, 2, joints)
    blocks = jnp.concatenate([blocks, drawn.astype(x.dtype)], axis=-1).reshape(b, h, w, -1)
    first = offset - (size - 1) // 2  # pixel that the first tap sees, from twice the place of the output
    taps = -(-(first % 2 + size) // 2)
    pads = (first % 2, 2 * taps - size - first % 2)
    kernel = jnp.pad(kernel.astype(x.dtype), (pads, pads, (0, 0), (0, 0)))
    kernel = kernel.reshape(taps, 2, taps, 2, *kernel.shape[2:]).transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(taps, taps, blocks.shape[-1], -1)
    around = [(-(first // 2), taps - 1 + first // 2)] * 2
    return jax.lax.conv_general_dilated(blocks, kernel, (1, 1), around, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv_of_drawn(
    x: Float[Array, "B H W C"], maps: SeparableMaps, kernel: Float[Array, "k k E D"], offset: int = 0
) -> Float[Array, "B h w D"]:
    """The same as one convolution of image and maps."""
    x = jnp.concatenate([x, maps.drawn().astype(x.dtype)], axis=-1)
    return conv(x, kernel.astype(x.dtype), 2, offset)


def depthwise_conv_in_full(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C"], stride: int, offset: int = 0
) -> Float[Array, "B h w C"]:
    """A depthwise convolution of few channels as a full one, whose kernel is zero between channels.

    Refinement by the packaged refiner: 1.21. With 192 channels and more the plain one is faster.
    """
    full = kernel[:, :, None] * jnp.eye(x.shape[-1], dtype=kernel.dtype)[None, None]
    return conv(x, full, stride, offset)
