"""XLA's own convolution, as every formulation has to reproduce it."""

import jax
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
