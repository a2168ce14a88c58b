"""MobileNetV2 feature extractor (Sandler et al. 2018, table 2), to a 32nd: the backbone for a CPU."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Array

from posefix_jax.core.heatmaps import SeparableMaps
from posefix_jax.core.models.layers import Conv, DepthwiseConv

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels out, units, stride of the first) a stage"""


class InvertedUnit(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 depthwise, 1x1 back; a shortcut where the shape stays."""

    expansion: int
    channels: int
    stride: int
    offset: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, *, train: bool):
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
    """An image, and pose maps if any, to the outputs of the stages named by `taps`, counted from 1.

    `width` is the stem's channels, 32 in the standard network; wider ones round channels to eights, as the paper does.
    `offset` 1 lays the windows of stride 2 as TensorFlow's SAME does (`Conv`). No gradient goes back through the first
    `frozen` stages. `side` [B, H / 4, W / 4, D] joins stage 2's output by a 1x1 convolution that starts at zero.
    """

    width: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike
    taps: tuple[int, ...] = (2, 3, 5, 7)
    offset: int = 0
    frozen: int = 0

    @nn.compact
    def __call__(
        self, image, maps: SeparableMaps | None = None, side: Array | None = None, *, train: bool
    ) -> list[Array]:
        x = Conv(self.width, 3, 2, self.offset, dtype=self.dtype, name="stem")(image, maps)
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
