"""MobileNetV2 feature extractor (Sandler et al. 2018, table 2), to a 32nd: the backbone for a CPU."""

from collections.abc import Callable

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array

from posefix_jax.models.layers import Conv, DepthwiseConv

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels out, units, stride of the first) a stage"""


class InvertedUnit(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 depthwise, 1x1 back; a shortcut where the shape stays."""

    expansion: int
    channels: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, *, train: bool):
        shortcut = x
        if self.expansion != 1:
            x = Conv(self.expansion * x.shape[-1], 1, dtype=self.dtype, name="expand")(x)
            x = nn.relu6(self.norm(name="expand_norm")(x, train=train))
        x = DepthwiseConv(self.stride, dtype=self.dtype, name="depthwise")(x)
        x = nn.relu6(self.norm(name="depthwise_norm")(x, train=train))
        x = Conv(self.channels, 1, dtype=self.dtype, name="project")(x)
        x = self.norm(name="project_norm")(x, train=train)
        return x + shortcut if shortcut.shape == x.shape else x


class MobileNetV2(nn.Module):
    """[B, H, W, C] to features at a 4th, 8th, 16th and 32nd; `width` is the stem's channels, 32 in the standard one."""

    width: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, *, train: bool) -> list[Array]:
        x = Conv(self.width, 3, 2, dtype=self.dtype, name="stem")(x)
        x = nn.relu6(self.norm(name="stem_norm")(x, train=train))
        features = []
        for stage, (expansion, channels, units, stride) in enumerate(STAGES):
            if stride == 2:
                features.append(x)
            for unit in range(units):
                x = InvertedUnit(
                    expansion,
                    channels * self.width // 32,
                    1 if unit else stride,
                    self.norm,
                    self.dtype,
                    name=f"stage{stage + 1}_{unit + 1}",
                )(x, train=train)
        return [*features[1:], x]
