"""The refiner network: an image crop and a coarse pose in, one heatmap per joint out. Paper, section 5."""

import functools
from dataclasses import asdict, dataclass, replace
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from posefix_jax.core import geometry, heatmaps
from posefix_jax.core.geometry import Frame
from posefix_jax.core.models.layers import BatchNorm, Conv, TransposedConv
from posefix_jax.core.models.mobilenet import MobileNetV2
from posefix_jax.core.models.movenet import MoveNet
from posefix_jax.core.models.resnet import STAGES, ResNet
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.types import PosefixError, check_fields, nearest_names, warn_once

STRIDE = 4
"""Crop pixels per heatmap cell: the backbone's 32, halved by each of three transposed convolutions."""

BACKBONES = (*STAGES, "mobilenet_v2", "movenet")
LARGEST_SIZE = 1 << 14
"""Of channels and of the sides of a crop."""


@dataclass(frozen=True)
class ModelConfig:
    """The network. Static under `jit`.

    Raises:
      PosefixError: an unknown backbone, or fields that do not fit it.
    """

    backbone: str = "resnet50"
    """resnet18, resnet34, resnet50, resnet101, resnet152, mobilenet_v2, or movenet (MobileNetV2 with a feature
    pyramid)"""
    width: int = 64
    """channels of the stem: 64 in the standard ResNets, 32 in MobileNetV2 and MoveNet Lightning, 56 in MoveNet
    Thunder"""
    head_channels: int = 256
    """channels of the three transposed convolutions; for movenet, of the last layer (96 in the published networks)"""
    skips: bool = False
    """add the backbone's features at a 16th, 8th and 4th of the crop to those layers, each through a 1x1 convolution"""
    crop_hw: tuple[int, int] = (256, 192)
    """height and width of the crop in pixels"""
    frame: Frame = "unbiased"
    """how crop pixels map to heatmap cells: unbiased, or reference (for the authors' weights)"""
    pose_input: Literal["gaussian", "one-hot", "none"] = "gaussian"
    """how the network reads the pose: gaussian (coarse), one-hot (fine; the paper's figure 6), or none, which makes it
    a plain estimator (the paper's IntegralPose)"""
    end_to_end: bool = False
    """two networks of this kind, trained jointly: the first estimates a pose from the image alone, the second refines
    it (the paper's E2E-refine, table 1). The input pose then only places the crop"""
    pose_sigma: float = 7.0
    """standard deviation of the input Gaussians, crop pixels (released code: 7 at 256x192, 9 at 384x288)"""
    pose_amplitude: float = 1.0
    """height of the input Gaussians"""
    image_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """subtracted from the crop's R, G, B in 0..255 (ImageNet)"""
    image_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """divides the crop's R, G, B (ImageNet)"""
    norm_epsilon: float = 1e-5
    """epsilon of batch normalization"""
    norm_momentum: float = 0.99
    """decay of the running statistics"""
    freeze_norm: bool = False
    """normalize by the running statistics in training too, and do not update them"""
    frozen_stages: int = 0
    """first stages of a mobilenet_v2 or movenet, stem included, that are not trained"""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """precision of the layers; auto: float32 on a CPU, bfloat16 elsewhere. Weights, statistics, softmax and loss are
    float32"""

    def __post_init__(self):
        check_fields(self, "model.")
        if self.backbone not in BACKBONES:
            raise PosefixError(f"unknown backbone {self.backbone!r}: {nearest_names(self.backbone, BACKBONES)}")
        mobile = self.backbone in ("mobilenet_v2", "movenet")
        if mobile and self.width % 2:
            raise PosefixError(
                f"a {self.backbone} needs an even model.width (32 is the standard one), found {self.width}"
            )
        if self.frozen_stages and not mobile:
            raise PosefixError(f"model.frozen_stages is for mobilenet_v2 and movenet, not for a {self.backbone}")
        if self.backbone == "movenet" and self.skips:
            raise PosefixError("model.skips adds to transposed convolutions, and movenet has none: leave it off")
        if self.width < 1 or self.head_channels < 1 or self.pose_sigma <= 0:
            raise PosefixError(
                "model.width, head_channels and pose_sigma must be positive, found "
                f"{self.width}, {self.head_channels}, {self.pose_sigma}"
            )
        if max(self.width, self.head_channels, *self.crop_hw) > LARGEST_SIZE:
            raise PosefixError(
                f"model.width, head_channels and crop_hw must be at most {LARGEST_SIZE}, found "
                f"{self.width}, {self.head_channels}, {self.crop_hw}"
            )
        if any(side % 32 or side <= 0 for side in self.crop_hw):
            raise PosefixError(f"model.crop_hw must be two positive multiples of 32, found {self.crop_hw}")
        if min(self.image_std) <= 0 or self.norm_epsilon < 0:
            raise PosefixError(
                "model.image_std must be positive and model.norm_epsilon not negative, found "
                f"{self.image_std}, {self.norm_epsilon}"
            )
        if self.compute_dtype not in ("auto", "float32", "bfloat16"):
            raise PosefixError(f"model.compute_dtype must be auto, float32 or bfloat16, found {self.compute_dtype!r}")
        if self.pose_input not in ("gaussian", "one-hot", "none"):
            raise PosefixError(f"model.pose_input must be gaussian, one-hot or none, found {self.pose_input!r}")
        if self.frame not in ("unbiased", "reference"):
            raise PosefixError(f"unknown frame {self.frame!r}: {nearest_names(self.frame, ('unbiased', 'reference'))}")

    @property
    def heat_hw(self) -> tuple[int, int]:
        """Height and width of the heatmaps in cells."""
        return self.crop_hw[0] // STRIDE, self.crop_hw[1] // STRIDE

    @property
    def dtype(self) -> DTypeLike:
        """`compute_dtype`, with `auto` resolved for the default backend."""
        if self.compute_dtype == "auto":
            return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return jnp.float32 if self.compute_dtype == "float32" else jnp.bfloat16


class RefinerNetwork(nn.Module):
    """Backbone, three transposed convolutions, a 1x1 head. In: RGB crops, 0..255, and poses, crop pixels. Out:
    logits."""

    config: ModelConfig
    num_joints: int

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "B H W 3"],
        crop_xy: Float[Array, "B K 2"],
        present: Bool[Array, "B K"],
        *,
        train: bool = False,
    ) -> Float[Array, "B h w K"]:
        config = self.config
        if config.end_to_end:
            one = functools.partial(RefinerNetwork, replace(config, end_to_end=False), self.num_joints)
            absent = jnp.zeros(present.shape, bool)
            estimated = one(name="estimator")(image, jnp.zeros(crop_xy.shape), absent, train=train)
            self.sow("intermediates", "estimated", estimated)  # for the loss
            heat_xy = jax.vmap(heatmaps.mean_position)(estimated)
            crop_xy = geometry.heat_to_crop(heat_xy, STRIDE, config.frame)
            return one(name="refiner")(image, crop_xy, ~absent, train=train)
        norm = functools.partial(
            BatchNorm,
            epsilon=config.norm_epsilon,
            momentum=config.norm_momentum,
            frozen=config.freeze_norm,
            dtype=config.dtype,
        )
        mean, std = (jnp.asarray(of)[None, None, None] for of in (config.image_mean, config.image_std))
        image = (image - mean) / std
        if config.pose_input == "gaussian":
            coarse = functools.partial(heatmaps.gaussians, crop_hw=config.crop_hw, sigma=config.pose_sigma)
            maps = jax.vmap(coarse)(crop_xy, present)
        else:
            maps = jax.vmap(lambda xy: heatmaps.one_hot(xy, config.crop_hw))(crop_xy)
            maps = maps._replace(rows=jnp.where((present & (config.pose_input != "none"))[:, None], maps.rows, 0.0))
        maps = maps._replace(rows=config.pose_amplitude * maps.rows)
        if config.backbone == "movenet":
            network = MoveNet(
                config.width, config.head_channels, config.frozen_stages, norm, config.dtype, name="backbone"
            )
            x = network(image, maps, train=train)
        else:
            x = self._deconvolved(image, maps, norm, train)
        # Standard deviation 0.01: paper, section 6.
        head = Conv(self.num_joints, 1, use_bias=True, kernel_init=nn.initializers.normal(0.01), name="head")
        return head(x.astype(jnp.float32))

    def _deconvolved(self, image, maps, norm, train: bool):
        """Features at a 4th of the crop: the backbone's, upsampled by three transposed convolutions."""
        config = self.config
        if config.backbone == "mobilenet_v2":
            backbone = MobileNetV2(config.width, norm, config.dtype, frozen=config.frozen_stages, name="backbone")
        else:
            backbone = ResNet(config.backbone, config.width, norm, config.dtype, name="backbone")
        *finer, x = backbone(image, maps, train=train)
        for i in range(3):
            x = TransposedConv(config.head_channels, dtype=config.dtype, name=f"up{i + 1}")(x)
            if config.skips:
                x = x + Conv(config.head_channels, 1, dtype=config.dtype, name=f"skip{i + 1}")(finer[2 - i])
            x = nn.relu(norm(name=f"up{i + 1}_norm")(x, train=train))
        return x


@dataclass(frozen=True)
class DecodeConfig:
    """How heatmaps become a pose. Static under `jit`."""

    method: Literal["ks", "soft-argmax", "argmax"] = "ks"
    """ks: the position of the highest expected KS, given the input pose and the trust in it; soft-argmax: the mean position
    (the paper); argmax: the highest cell (of maps trained to be Gaussians)"""
    temperature: float = 1.0
    """divides the logits (ks only); above 1 the network counts as less certain"""
    trust: float = 0.0
    """trust in the input pose, 0..1, where neither the user nor the file says it; see `core.trust` (ks only)"""
    withhold_mirror: bool = False
    """read the mirrored crop without the pose: one map with the pose and one without, for the price of a flip (ks only, and
    networks trained with inputs.withhold_pose)"""
    trust_weights: tuple[float, ...] = ()
    """tells a file's trust by how its poses agree with the maps made without them; empty: not known"""
    confidence: tuple[float, ...] = ()
    """calibrates the expected KS: slope and offset of its logit, and the offset's change with trust; empty: as it is"""

    def __post_init__(self):
        check_fields(self, "decode.")
        methods = ("ks", "soft-argmax", "argmax")
        if self.method not in methods:
            raise PosefixError(f"unknown decode method {self.method!r}: {nearest_names(self.method, methods)}")
        if self.temperature <= 0 or not 0 <= self.trust <= 1:
            raise PosefixError(
                f"decode needs temperature > 0 and trust in 0..1, found {self.temperature} and {self.trust}"
            )
        if (len(self.trust_weights), len(self.confidence)) not in ((0, 0), (7, 0), (0, 3), (7, 3)):
            raise PosefixError(
                "decode needs 7 trust_weights and 3 numbers for confidence, or none; found "
                f"{len(self.trust_weights)} and {len(self.confidence)}"
            )
        if self.method != "ks" and (self.trust or self.withhold_mirror or self.trust_weights or self.confidence):
            raise PosefixError(
                f"decode.method {self.method} knows no trust, withhold_mirror or confidence; they need method ks"
            )

    def given(self, **fields: float | None) -> "DecodeConfig":
        """A copy with the fields that are not None."""
        return replace(self, **{name: value for name, value in fields.items() if value is not None})


@dataclass(frozen=True)
class RefinerSpec:
    """What a refiner needs to run besides its weights. Static under `jit`; stored in every checkpoint.

    Attributes:
      skeleton, model, decode: the joints, the network, and how to decode its heatmaps.
      trained_joints: per joint, whether the training data labels it. The network does not see the others, and
        refinement does not change them.

    Raises:
      PosefixError: the fields do not fit each other.
    """

    skeleton: Skeleton
    model: ModelConfig
    trained_joints: tuple[bool, ...]
    decode: DecodeConfig = DecodeConfig()

    def __post_init__(self):
        if len(self.trained_joints) != self.skeleton.num_joints:
            raise PosefixError(
                f"a refiner's spec: {len(self.trained_joints)} trained_joints for {self.skeleton.num_joints} joints"
            )
        if self.model.frame == "reference" and self.decode.method != "soft-argmax":
            # Mirrored cells of that frame are shifted by three quarters of a cell, so maps cannot be averaged.
            raise PosefixError("model.frame reference needs decode.method soft-argmax")

    def to_dict(self) -> dict:
        """Fields for JSON; `from_dict` is the inverse."""
        return {
            "skeleton": self.skeleton.to_dict(),
            "model": asdict(self.model),
            "trained_joints": list(self.trained_joints),
            "decode": asdict(self.decode),
        }

    @classmethod
    def from_dict(cls, fields: dict) -> "RefinerSpec":
        """The inverse of `to_dict`. Missing fields of the configs have their defaults.

        Raises:
          PosefixError: fields are missing or unknown.
        """
        try:
            model = {key: tuple(v) if isinstance(v, list) else v for key, v in fields["model"].items()}
            check_fields(model, "model.", ModelConfig)
            return cls(
                skeleton=Skeleton.from_dict(fields["skeleton"]),
                model=ModelConfig(**model),
                trained_joints=tuple(bool(trained) for trained in fields["trained_joints"]),
                decode=_decode_of(fields["decode"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PosefixError(f"not a refiner's spec: {error}") from error

    def network(self) -> RefinerNetwork:
        """The network, without weights."""
        return RefinerNetwork(self.model, self.skeleton.num_joints)


def _decode_of(fields: dict) -> DecodeConfig:
    """The decoder of a stored spec. Earlier ones could keep a joint by its expected KS; trust replaces that."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    kept = [fields.pop(name, 0.0) for name in ("keep_margin", "min_ks")]
    if any(kept):
        warn_once(
            f"this refiner was stored with keep_margin {kept[0]} and min_ks {kept[1]}, which are no longer used: say --trust"
        )
    check_fields(fields, "decode.", DecodeConfig)
    return DecodeConfig(**fields)
