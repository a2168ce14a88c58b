"""MoveNet's network (Votel & Li 2021) as a refiner: MobileNetV2, a feature pyramid, and the pose as a second input."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from posefix_jax.core.heatmaps import SeparableMaps
from posefix_jax.core.models.convolution import enlarged
from posefix_jax.core.models.layers import Conv, DepthwiseConv
from posefix_jax.core.models.mobilenet import MobileNetV2

PYRAMID = (64, 32, 24, 24)
"""Channels of the pyramid at a 32nd, 16th, 8th and 4th."""
POSE_LAYERS = ("pose_in", "pose_mix")
"""The 1x1 convolutions that read the pose. The published networks do not have them."""


class MoveNet(nn.Module):
    """Image and pose maps to features at a 4th, for a 1x1 head.

    Layers, channels and alignment are those of the published Lightning (`width` 32) and Thunder (56), whose weights
    `posefix import movenet` reads. The pose maps, averaged over heatmap cells, enter at a 4th and before the last
    layer, each through a 1x1 convolution that starts at zero. Training therefore starts with the published estimator,
    and its first `frozen` stages, the most expensive to train, may stay as they are.
    """

    width: int
    features: int
    frozen: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"], maps: SeparableMaps, *, train: bool) -> Float[Array, "B h w D"]:
        pose = jax.tree.map(lambda line: line.reshape(line.shape[0], -1, 4, line.shape[-1]).mean(2), maps).drawn()
        trunk = MobileNetV2(self.width, self.norm, self.dtype, taps=(2, 3, 4, 7), offset=1, frozen=self.frozen)
        nn.share_scope(self, trunk)  # puts its weights where every backbone has them
        *finer, x = trunk(image, side=pose, train=train)
        x = nn.relu6(self.norm(name="last_norm")(Conv(1280, 1, dtype=self.dtype, name="last")(x), train=train))
        x = Conv(PYRAMID[0], 1, use_bias=True, dtype=self.dtype, name="top")(x)
        for i, channels in enumerate(PYRAMID[1:], start=1):
            before = x.shape[-1]
            x = enlarged(x)
            x = x + Conv(before, 1, use_bias=True, dtype=self.dtype, name=f"lateral{i}")(finer[-i])
            x = DepthwiseConv(dtype=self.dtype, name=f"merge{i}_depthwise")(x)
            x = Conv(channels, 1, dtype=self.dtype, name=f"merge{i}")(x)
            x = nn.relu(self.norm(name=f"merge{i}_norm")(x, train=train))
        x = DepthwiseConv(dtype=self.dtype, name="last_depthwise")(x)
        x = Conv(self.features, 1, use_bias=True, dtype=self.dtype, name="mix")(x)
        x = x + Conv(self.features, 1, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="pose_mix")(pose)
        return nn.relu(x)
