"""MobileNetV2 feature extractor (Sandler et al. 2018, table 2), down to a 32nd: the backbone for CPUs."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from posefix_jax.core.heatmaps import SeparableMaps
from posefix_jax.core.models.layers import Conv, DepthwiseConv

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""per stage: expansion, output channels, units, stride of the first unit"""


class InvertedUnit(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 depthwise, 1x1 back; with a shortcut if the shape stays the same."""

    expansion: int
    channels: int
    stride: int
    offset: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        shortcut = x
        if self.expansion != 1:
            x = Conv(self.expansion * x.shape[-1], 1, dtype=self.dtype, name="expand")(x)
            x = nn.relu6(self.norm(name="expand_norm")(x, train=train))
        x = DepthwiseConv(self.stride, self.offset, dtype=self.dtype, name="depthwise")(x)
        x = nn.relu6(self.norm(name="depthwise_norm")(x, train=train))
        x = Conv(self.channels, 1, dtype=self.dtype, name="project")(x)
        x = self.norm(name="project_norm")(x, train=train)
        return x + shortcut if shortcut.shape == x.shape else x


class MobileNetV2(nn.Module):
    """An image, and optional pose maps, to the outputs of the stages in `taps`, numbered from 1.

    Attributes:
      width: channels of the stem, 32 in the standard network. Wider networks round channels to multiples of 8, as in
        the paper.
      offset: 1 places the windows of stride 2 as TensorFlow's SAME does; see `Conv`.
      frozen: number of first stages that get no gradient.
    """

    width: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike
    taps: tuple[int, ...] = (2, 3, 5, 7)
    offset: int = 0
    frozen: int = 0

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "B H W 3"],
        maps: SeparableMaps | None = None,
        side: Float[Array, "B h w D"] | None = None,
        *,
        train: bool,
    ) -> list[Float[Array, "B _h _w _D"]]:
        """`side`, at a 4th of the image, is added to stage 2's output through a 1x1 convolution that starts at zero."""
        x = Conv(self.width, 3, 2, self.offset, dtype=self.dtype, name="stem")(image, maps, train=train)
        x = nn.relu6(self.norm(name="stem_norm")(x, train=train))
        outputs = []
        for stage, (expansion, channels, units, stride) in enumerate(STAGES, start=1):
            channels = channels * self.width // 32
            if self.width > 32:
                channels = max(8, (channels + 4) // 8 * 8)
            for unit in range(units):
                step = 1 if unit else stride
                x = InvertedUnit(
                    expansion,
                    channels,
                    step,
                    self.offset * (step == 2),
                    self.norm,
                    self.dtype,
                    name=f"stage{stage}_{unit + 1}",
                )(x, train=train)
            if stage == self.frozen:
                x = jax.lax.stop_gradient(x)
            if stage == 2 and side is not None:
                join = Conv(channels, 1, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="pose_in")
                x = x + join(side)
            outputs.append(x)
        return [outputs[tap - 1] for tap in self.taps]
