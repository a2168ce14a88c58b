"""Formulations of convolutions that are fast on XLA:CPU, gradients included. Weights and outcome are the same.

`layers` uses them on CPUs, and `pixelwise` on every platform. Each gains at least 5% alone and in a whole network
(benchmarks/formulations.py). Below: processor time with XLA's own formulation over ours in such a network at 256x192,
batch 8.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from posefix_jax.core.models.convolution import conv


def pixelwise(x: Float[Array, "*N C"], kernel: Float[Array, "C D"]) -> Float[Array, "*N D"]:
    """`x @ kernel` over a flat list of pixels. With more axes XLA:CPU transposes `x` for the gradient to the kernel.

    ResNet-50 with gradients: 1.27, with the gradient of `_pixels_times`.
    """
    return _pixels_times(_flat(x), kernel).reshape(*x.shape[:-1], -1)


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


@jax.custom_vjp
def _pixels_times(x: Float[Array, "N C"], kernel: Float[Array, "C D"]) -> Float[Array, "N D"]:
    """`x @ kernel`. The gradient to the kernel has the factor with fewer channels first, which XLA:CPU packs slowly.

    ResNet-50 with gradients: 1.39.
    """
    return x @ kernel


def _pixels_times_backward(saved, gradient):
    x, kernel = saved
    few, many = (x, gradient) if x.shape[1] <= gradient.shape[1] else (gradient, x)
    # Without the barrier XLA swaps the factors back.
    to_kernel = jax.lax.optimization_barrier(jax.lax.dot_general(few, many, (((0,), (0,)), ((), ()))))
    return gradient @ kernel.T, to_kernel if few is x else to_kernel.T


_pixels_times.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _pixels_times_backward)


def transposed_conv_by_phase(x: Array, kernel: Array) -> Array:
    """Computes each of the four output phases by a 2x2 convolution, and interleaves them. ResNet-50 forward: 1.09."""

    def phase(row, column):
        pads = [(1 - row, row), (1 - column, column)]
        weights = kernel[row::2, column::2]
        return jax.lax.conv_general_dilated(x, weights, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return _interleaved([[phase(row, column) for column in range(2)] for row in range(2)])


def _interleaved(phases: list[list[Array]]) -> Array:
    """Four [B, h, w, D], of even and odd rows and columns, as [B, 2 * h, 2 * w, D]."""
    b, h, w, channels = phases[0][0].shape
    rows = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    return rows.reshape(b, 2 * h, 2 * w, channels)


def _taps(x: Array, stride: int, offset: int) -> list[Array]:
    """The nine shifted views [..., h / stride, w / stride, C] of [..., h, w, C], padded with zeros."""
    *lead, h, w, channels = x.shape
    pad, whole = (1 - offset, 1 + offset, 0), (0, 0, 0)
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), (*[whole] * len(lead), pad, pad, whole))

    def view(i, j):  # `lax` instead of indexing: traces a network four times faster
        ends, strides = (*lead, i + h, j + w, channels), (*[1] * len(lead), stride, stride, 1)
        return jax.lax.slice(padded, (*[0] * len(lead), i, j, 0), ends, strides)

    return [view(i, j) for i in range(3) for j in range(3)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv_by_shift(x: Array, kernel: Array, stride: int, offset: int = 0) -> Array:
    """A sum of nine shifted products, which XLA:CPU fuses. Refinement by the packaged refiner: 13."""
    taps = _taps(x, stride, offset)
    weights = kernel.reshape(9, *[1] * (x.ndim - 1), x.shape[-1])
    return sum(tap * weight for tap, weight in zip(taps, weights, strict=True))


def _depthwise_forward(x, kernel, stride, offset):
    return depthwise_conv_by_shift(x, kernel, stride, offset), (x, kernel)


def _depthwise_backward(stride, offset, saved, gradient):
    x, kernel = saved
    channels = x.shape[-1]
    to_x = jax.vjp(lambda x: depthwise_conv_by_shift.__wrapped__(x, kernel, stride, offset), x)[1](gradient)[0]

    def add_sample(total, sample):  # one sample at a time, so that its taps stay in the cache
        x, gradient = sample
        taps = _taps(x, stride, offset)
        return total + jnp.stack([(tap * gradient).sum((0, 1)) for tap in taps]), None

    to_kernel, _ = jax.lax.scan(add_sample, jnp.zeros((9, channels), gradient.dtype), (x, gradient))
    return to_x, to_kernel.reshape(3, 3, channels)


depthwise_conv_by_shift.defvjp(_depthwise_forward, _depthwise_backward)


_OF_INPUT = np.asarray([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_OF_KERNEL = np.asarray([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OF_OUTPUT = np.asarray([[1, 1, 1, 0], [0, 1, -1, -1]])
"""The transforms of F(2x2, 3x3): Lavin & Gray, CVPR 2016, section 4.1."""


def winograd_suits(hw: Sequence[int], channels: Sequence[int]) -> bool:
    """Whether `winograd_conv` can be used, and is faster: with fewer channels its sums cost more, with more its
    kernels."""
    return all(side % 2 == 0 for side in hw) and all(64 <= count <= 256 for count in channels)


@jax.custom_vjp
def winograd_conv(x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]) -> Float[Array, "B H W D"]:
    """A 3x3 convolution with one zero on every side, in four ninths of the multiplications. H and W must be even.

    ResNet-50 forward: 1.10; with gradients 1.02.

    The factors are halves and ones, so rounding grows little: the released network's recorded coordinates are
    reproduced to 1.5e-3 pixels, by a plain convolution to 1e-3.
    """
    return _minimal_filtering(x, kernel)


@jax.jit  # traced once per shape, however many layers have that shape
def _minimal_filtering(x, kernel):
    tiles = _input_tiles(x)
    kernels = _sandwiched(_OF_KERNEL, [[kernel[i, j] for j in range(3)] for i in range(3)])
    products = [[pixelwise(*pair) for pair in zip(*rows, strict=True)] for rows in zip(tiles, kernels, strict=True)]
    return _interleaved(_sandwiched(_OF_OUTPUT, products))


@jax.jit
def _minimal_filtering_to_kernel(x, gradient):
    tiles = _input_tiles(x)
    gradients = _sandwiched(_OF_OUTPUT.T, _tiles(gradient, 2))
    products = [
        [jnp.tensordot(_flat(tile), _flat(one), (0, 0)) for tile, one in zip(*rows, strict=True)]
        for rows in zip(tiles, gradients, strict=True)
    ]
    return jnp.stack([jnp.stack(row) for row in _sandwiched(_OF_KERNEL.T, products)])


def _winograd_backward(saved, gradient):
    x, kernel = saved
    to_x = _minimal_filtering(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
    if min(kernel.shape[2:]) >= 128:
        return to_x, _minimal_filtering_to_kernel(x, gradient)

    return to_x, jax.vjp(functools.partial(conv, x), kernel)[1](gradient)[0]


winograd_conv.defvjp(lambda x, kernel: (winograd_conv(x, kernel), (x, kernel)), _winograd_backward)


def _input_tiles(x: Array) -> list[list[Array]]:
    """The transformed 4x4 tiles of the input, padded with one zero on every side. Both products start from them."""
    return _sandwiched(_OF_INPUT, _tiles(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 4))


def _tiles(x: Array, size: int) -> list[list[Array]]:
    """Tiles of `size` by `size` pixels, at every second pixel. Entry [i][j] is row i, column j of all: [B, h, w, C]."""
    b, height, width, channels = x.shape
    return [
        [
            jax.lax.slice(x, (0, i, j, 0), (b, height - size + i + 1, width - size + j + 1, channels), (1, 2, 2, 1))
            for j in range(size)
        ]
        for i in range(size)
    ]


def _sandwiched(matrix: np.ndarray, grid: list[list[Array]]) -> list[list[Array]]:
    """`matrix @ grid @ matrix.T` for a grid whose entries are arrays."""

    def transposed_product(grid):
        return [
            [sum(factor * one for factor, one in zip(row, column, strict=True) if factor) for row in matrix.tolist()]
            for column in zip(*grid, strict=True)
        ]

    return transposed_product(transposed_product(grid))
