"""Layers that are fast on every backend, gradients included. The weights are the same; formulations differ by backend."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from posefix_jax.core.heatmaps import SeparableMaps
from posefix_jax.core.models.convolution import conv, depthwise
from posefix_jax.core.models.cpu_kernels import (
    depthwise_conv_by_shift,
    pixelwise,
    transposed_conv_by_phase,
    winograd_conv,
    winograd_suits,
)
from posefix_jax.core.models.tpu_kernels import conv_in_blocks, conv_of_drawn, depthwise_conv_in_full

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class Conv(nn.Module):
    """A convolution with (k - 1) / 2 zeros on every side.

    `offset` 1 moves every window one pixel right and down, as TensorFlow's SAME does at stride 2 on even sizes. `maps`
    are more input channels, for the last channels of the kernel, that are not drawn (`conv_of_separable`).
    """

    features: int
    kernel: int
    stride: int = 1
    offset: int = 0
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = he_normal

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], maps: SeparableMaps | None = None, *, train: bool = False
    ) -> Float[Array, "B h w D"]:
        drawn = x.shape[-1]
        channels = drawn + (0 if maps is None else maps.rows.shape[-1])
        kernel = self.param("kernel", self.kernel_init, (self.kernel, self.kernel, channels, self.features))
        x = x.astype(self.dtype)
        if maps is None:
            x = self._convolved(x, kernel)
        else:

            def undrawn(x, maps, kernel):
                kernel, of_maps = jnp.split(kernel, [drawn], axis=2)
                return self._convolved(x, kernel) + conv_of_separable(
                    maps, of_maps, self.stride, self.offset, self.dtype
                )

            on_tpu = functools.partial(conv_in_blocks if train else conv_of_drawn, offset=self.offset)
            x = jax.lax.platform_dependent(
                x, maps, kernel, tpu=on_tpu if self.stride == 2 else undrawn, default=undrawn
            )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
            x = x + bias[None, None, None]
        return x

    def _convolved(self, x, kernel):
        kernel = kernel.astype(self.dtype)
        native = functools.partial(conv, stride=self.stride, offset=self.offset)

        def flat(x, kernel):
            return pixelwise(x[:, :: self.stride, :: self.stride], kernel[0, 0])

        if self.kernel == 1:
            # Matrix products are five times faster on XLA:CPU. After them a TPU's compiler keeps activations in an order
            # that costs copies, by its model: training step of ResNet-50 256x192 1.18, refinement by the packaged refiner
            # 1.49 (benchmarks/compiled.py). On their gradients the compiler for GPUs aborts (jax 0.10.2, gemm fusions).
            return jax.lax.platform_dependent(x, kernel, cpu=flat, default=native)
        if (self.kernel, self.stride, self.offset) == (3, 1, 0) and winograd_suits(x.shape[1:3], kernel.shape[2:]):
            return jax.lax.platform_dependent(x, kernel, cpu=winograd_conv, default=native)
        return native(x, kernel)


def conv_of_separable(
    maps: SeparableMaps, kernel: Float[Array, "k k K D"], stride: int, offset: int = 0, dtype: DTypeLike = jnp.float32
) -> Float[Array, "B h w D"]:
    """The convolution of `Conv` on maps, first along the columns, then along the rows, without drawing them.

    A 7x7 stem over 17 joints needs a seventh of the operations; ResNet-50 forward: 1.10 on a CPU. `dtype` is the dtype of the large product.
    """
    size, _, joints, features = kernel.shape
    before = (size - 1) // 2 - offset

    def windows(line):  # [B, S, K] to [B, S / stride, k, K]
        padded = jnp.pad(line, ((0, 0), (before, size - 1 - before), (0, 0)))
        return jnp.stack([padded[:, i : i + line.shape[1] : stride] for i in range(size)], axis=2)

    rows, columns = windows(maps.rows), windows(maps.columns)
    b, h, w = *rows.shape[:2], columns.shape[1]
    rows = rows.reshape(b, h, size * joints).astype(dtype)
    out = _along_both(rows, columns.transpose(0, 3, 1, 2), kernel.transpose(0, 2, 1, 3))
    return out.reshape(b, h, w, features)


def _along_columns(columns, kernel, dtype):
    """[B, K, w, k] and [k, K, k, D] to [B, k * K, w * D]. A sum: matrix products with so few terms are slow on CPUs."""
    b, joints, w, size = columns.shape
    taps = (columns[:, None, :, :, i, None] * kernel[None, :, :, i, None, :] for i in range(size))
    return sum(taps).astype(dtype).reshape(b, size * joints, -1)


@jax.custom_vjp
def _along_both(
    rows: Float[Array, "B h kK"], columns: Float[Array, "B K w k"], kernel: Float[Array, "k K k D"]
) -> Float[Array, "B h w*D"]:
    """With its own gradient: jax's would transpose arrays as large as the output."""
    return rows @ _along_columns(columns, kernel, rows.dtype)


def _along_both_backward(saved, gradient):
    rows, columns, kernel = saved
    b, joints, w, size = columns.shape
    each = ((0,), (0,))
    to_rows = jax.lax.dot_general(gradient, _along_columns(columns, kernel, rows.dtype), (((2,), (2,)), each))
    inner = jax.lax.dot_general(rows, gradient, (((1,), (1,)), each))
    inner = inner.reshape(b, size, joints, w, -1).astype(columns.dtype)
    to_columns = jnp.einsum("bikxd,ikjd->bkxj", inner, kernel)
    to_kernel = jnp.broadcast_to(columns[:, None], (b, size, joints, w, size)).swapaxes(3, 4) @ inner
    return to_rows, to_columns, to_kernel.sum(0)


_along_both.defvjp(lambda *inputs: (_along_both(*inputs), inputs), _along_both_backward)


def transposed_conv(x: Float[Array, "B H W C"], kernel: Float[Array, "4 4 C D"]) -> Float[Array, "B 2*H 2*W D"]:
    """Transposed convolution of stride 2, SAME: upsamples by two. The formulation depends on the backend."""

    def native(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return jax.lax.platform_dependent(x, kernel, cpu=transposed_conv_by_phase, default=native)


def depthwise_conv(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C"], stride: int, offset: int = 0
) -> Float[Array, "B h w C"]:
    """One 3x3 kernel per channel, one zero on every side; `offset` as in `Conv`. The formulation depends on the
    backend."""

    placed = {"stride": stride, "offset": offset}
    formulations = {"cpu": functools.partial(depthwise_conv_by_shift, **placed)}
    if x.shape[-1] <= 64:
        formulations["tpu"] = functools.partial(depthwise_conv_in_full, **placed)
    return jax.lax.platform_dependent(x, kernel, default=functools.partial(depthwise, **placed), **formulations)


class DepthwiseConv(nn.Module):
    """A 3x3 convolution of each channel, kernel stored as [3, 3, C]; `offset` as in `Conv`."""

    stride: int = 1
    offset: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        kernel = self.param("kernel", nn.initializers.truncated_normal((2 / 9) ** 0.5), (3, 3, x.shape[-1]))
        return depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.offset)


class TransposedConv(nn.Module):
    """A 4x4 transposed convolution of stride 2, kernel stored as [4, 4, in, out]."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W D"]:
        # Standard deviation 0.01: paper, section 6.
        kernel = self.param("kernel", nn.initializers.truncated_normal(0.01), (4, 4, x.shape[-1], self.features))
        return transposed_conv(x.astype(self.dtype), kernel.astype(self.dtype))


class BatchNorm(nn.Module):
    """Batch normalization over the global batch, statistics in float32. Under `jit` means over sharded axes are global.

    `frozen`: use the running statistics in training too.
    """

    epsilon: float = 1e-5
    momentum: float = 0.99
    frozen: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *N C"], *, train: bool) -> Float[Array, "B *N C"]:
        return nn.BatchNorm(
            use_running_average=not train or self.frozen,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            name="norm",
        )(x)
