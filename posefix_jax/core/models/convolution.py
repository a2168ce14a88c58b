"""Operations that are written alike on every backend; formulations of convolutions have to reproduce the ones here."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def conv(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k c D"], stride: int = 1, offset: int = 0, groups: int = 1
) -> Float[Array, "B h w D"]:
    """A convolution with (k - 1) / 2 zeros on every side; `offset` as in `layers.Conv`. All but `x`, `kernel` static."""
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad - offset, pad + offset)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def depthwise(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k C"], stride: int = 1, offset: int = 0
) -> Float[Array, "B h w C"]:
    """One kernel per channel."""
    return conv(x, kernel[:, :, None], stride, offset, groups=x.shape[-1])


def enlarged(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Twice as high and wide, bilinear, edges to edges: `jax.image.resize` without its matrix products."""
    for axis in (1, 2):
        size = x.shape[axis]
        first, last = (jax.lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, size - 1))
        before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis=axis)
        after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis=axis)
        pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x
