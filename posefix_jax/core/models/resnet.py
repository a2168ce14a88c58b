"""ResNet v1.5 feature extractors (He et al. 2016; stride on the 3x3): stem and four stages, down to a 32nd."""

from collections.abc import Callable, Mapping

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from posefix_jax.core.heatmaps import SeparableMaps
from posefix_jax.core.models.layers import Conv

STAGES: Mapping[str, tuple[bool, tuple[int, ...]]] = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}
"""name: whether it has bottleneck units, and the units per stage"""


class Unit(nn.Module):
    """A residual unit: 3x3, 3x3; or 1x1, 3x3, 1x1 with four times the output channels."""

    channels: int
    stride: int
    bottleneck: bool
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        out = self.channels * (4 if self.bottleneck else 1)
        kernels = (1, 3, 1) if self.bottleneck else (3, 3)
        strides = (1, self.stride, 1) if self.bottleneck else (self.stride, 1)
        widths = (self.channels, self.channels, out) if self.bottleneck else (self.channels, out)
        shortcut = x
        if x.shape[-1] != out or self.stride != 1:
            shortcut = Conv(out, 1, self.stride, dtype=self.dtype, name="shortcut")(x)
            shortcut = self.norm(name="shortcut_norm")(shortcut, train=train)
        last = len(kernels) - 1
        for i, (kernel, stride, width) in enumerate(zip(kernels, strides, widths, strict=True)):
            x = Conv(width, kernel, stride, dtype=self.dtype, name=f"conv{i + 1}")(x)
            x = self.norm(name=f"norm{i + 1}")(x, train=train)
            if i != last:
                x = nn.relu(x)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """Image and pose maps to features at a 4th, 8th, 16th and 32nd. `width`: channels of the stem, 64 in the
    standard."""

    name_of_depth: str
    width: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, image: Float[Array, "B H W 3"], maps: SeparableMaps, *, train: bool
    ) -> list[Float[Array, "B _h _w _D"]]:
        bottleneck, stages = STAGES[self.name_of_depth]
        x = Conv(self.width, 7, 2, dtype=self.dtype, name="stem")(image, maps, train=train)
        x = nn.relu(self.norm(name="stem_norm")(x, train=train))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        features = []
        for stage, units in enumerate(stages):
            for unit in range(units):
                stride = 2 if stage and not unit else 1
                x = Unit(
                    self.width * 2**stage,
                    stride,
                    bottleneck,
                    self.norm,
                    self.dtype,
                    name=f"stage{stage + 1}_{unit + 1}",
                )(x, train=train)
            features.append(x)
        return features
