"""Imports the authors' released TensorFlow weights as a refiner that computes what their code computes."""

from pathlib import Path

import numpy as np

from posefix_jax.core.models import DecodeConfig, ModelConfig, RefinerSpec
from posefix_jax.core.models.resnet import STAGES
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.types import PosefixError
from posefix_jax.weights.backbone import float32
from posefix_jax.weights.tensor_bundle import read_bundle

# From main/config.py of the released code; docs/fidelity.md compares all choices.
POSE_SIGMA = {(256, 192): 7.0, (384, 288): 9.0}
POSE_AMPLITUDE = 255.0
IMAGE_MEAN_BGR = (123.68, 116.78, 103.94)
"""ImageNet's R, G, B means, which the released code subtracts from B, G, R"""
NORM_EPSILON = 1.001e-5
"""The code says 1e-9, which TensorFlow 1 raises to this."""


def import_tf_release(
    prefix: Path, backbone: str, crop_hw: tuple[int, int], skeleton: Skeleton
) -> tuple[dict, RefinerSpec]:
    """Reads a released checkpoint, `PREFIX.index` and `PREFIX.data-*`.

    The network's input stays R, G, B: the stem's kernel and the means are reversed instead, which is equivalent.

    Args:
      prefix: the checkpoint's prefix.
      backbone: a ResNet of `STAGES`, such as `resnet152`.
      crop_hw: height and width of the input, (256, 192) or (384, 288).
      skeleton: the joints of the checkpoint, in its order.

    Returns:
      The variables of `spec.network()`, and the spec.

    Raises:
      PosefixError: not a checkpoint, or one of another network or skeleton; the message says what is missing or which
        shapes differ.
    """
    if backbone not in STAGES:
        raise PosefixError(f"the released code has the backbones {', '.join(STAGES)}; found {backbone!r}")
    if crop_hw not in POSE_SIGMA:
        sizes = ", ".join(f"{h}x{w}" for h, w in POSE_SIGMA)
        raise PosefixError(f"the released code has the inputs {sizes}; found {crop_hw[0]}x{crop_hw[1]}")
    spec = reference_spec(backbone, crop_hw, skeleton)
    slots = ("/Adam", "/Adam_1")
    arrays = read_bundle(prefix, wanted=lambda name: not name.endswith(slots))
    return variables_from_tf(arrays, spec, prefix), spec


def reference_spec(backbone: str, crop_hw: tuple[int, int], skeleton: Skeleton) -> RefinerSpec:
    """The released code's conventions as a spec: frame, means, Gaussians, batch norm, soft-argmax.

    Args:
      backbone: a ResNet of `STAGES`.
      crop_hw: height and width of the input, a key of `POSE_SIGMA`.
      skeleton: the joints.
    """
    model = ModelConfig(
        backbone=backbone,
        crop_hw=crop_hw,
        frame="reference",
        pose_sigma=POSE_SIGMA[crop_hw],
        pose_amplitude=POSE_AMPLITUDE,
        image_mean=IMAGE_MEAN_BGR[::-1],
        image_std=(1.0, 1.0, 1.0),
        norm_epsilon=NORM_EPSILON,
    )
    trained = tuple(joint not in skeleton.never_annotated for joint in range(skeleton.num_joints))
    return RefinerSpec(skeleton, model, trained, DecodeConfig(method="soft-argmax"))


def variables_from_tf(arrays: dict[str, np.ndarray], spec: RefinerSpec, source: str | Path) -> dict:
    """Renames the released code's variables to those of `spec.network()`.

    Args:
      arrays: the checkpoint's arrays by name.
      spec: of the network to fill, see `reference_spec`.
      source: named in messages.

    Returns:
      `params` and `batch_stats`.

    Raises:
      PosefixError: arrays are missing or have other shapes; the message says which, and how many.
    """
    missing, wrong = [], []

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = arrays.get(name)
        if array is None:
            missing.append(name)
        elif array.shape != shape:
            wrong.append(f"{name} {array.shape}, expected {shape}")
        else:
            return float32(array, f"{source}: {name}")
        return np.zeros(shape, np.float32)

    params: dict = {}
    batch_stats: dict = {}

    def norm(ours: tuple[str, ...], theirs: str, channels: int) -> None:
        leaf, stats = params, batch_stats
        for part in (*ours, "norm"):
            leaf, stats = leaf.setdefault(part, {}), stats.setdefault(part, {})
        leaf |= {"scale": take(f"{theirs}/gamma", (channels,)), "bias": take(f"{theirs}/beta", (channels,))}
        stats |= {
            "mean": take(f"{theirs}/moving_mean", (channels,)),
            "var": take(f"{theirs}/moving_variance", (channels,)),
        }

    def conv(unit: str, ours: str, ours_norm: str, theirs: str, shape: tuple[int, ...]) -> None:
        folder = params.setdefault("backbone", {})
        path = ("backbone", unit) if unit else ("backbone",)
        if unit:
            folder = folder.setdefault(unit, {})
        folder[ours] = {"kernel": take(f"{theirs}/weights", shape)}
        norm((*path, ours_norm), f"{theirs}/BatchNorm", shape[-1])

    model, joints = spec.model, spec.skeleton.num_joints
    bottleneck, stages = STAGES[model.backbone]
    net = f"resnet_v1_{model.backbone.removeprefix('resnet')}"
    conv("", "stem", "stem_norm", f"{net}/conv1", (7, 7, 3 + joints, model.width))
    stem = params["backbone"]["stem"]["kernel"]
    params["backbone"]["stem"]["kernel"] = np.concatenate([stem[:, :, 2::-1], stem[:, :, 3:]], axis=2)
    channels = model.width
    for stage, units in enumerate(stages):
        width = model.width * 2**stage
        out = width * 4 if bottleneck else width
        for unit in range(units):
            ours = f"stage{stage + 1}_{unit + 1}"
            theirs = f"{net}/block{stage + 1}/unit_{unit + 1}/{'bottleneck' if bottleneck else 'basic'}_v1"
            if channels != out:
                conv(ours, "shortcut", "shortcut_norm", f"{theirs}/shortcut", (1, 1, channels, out))
            shapes = (
                [(1, 1, channels, width), (3, 3, width, width), (1, 1, width, out)]
                if bottleneck
                else [(3, 3, channels, width), (3, 3, width, width)]
            )
            for i, shape in enumerate(shapes, start=1):
                conv(ours, f"conv{i}", f"norm{i}", f"{theirs}/conv{i}", shape)
            channels = out
    for i in range(1, 4):
        # Stored as the kernel of the convolution whose gradient it is: [kh, kw, out, in], rotated by 180 degrees.
        kernel = take(f"up{i}/weights", (4, 4, model.head_channels, channels))
        params[f"up{i}"] = {"kernel": np.ascontiguousarray(kernel[::-1, ::-1].transpose(0, 1, 3, 2))}
        norm((f"up{i}_norm",), f"up{i}/BatchNorm", model.head_channels)
        channels = model.head_channels
    params["head"] = {
        "kernel": take("out/weights", (1, 1, channels, joints)),
        "bias": take("out/biases", (joints,)),
    }
    if missing or wrong:
        problems = [f"{len(missing)} arrays missing ({', '.join(missing[:3])} ...)"] if missing else []
        problems += [f"{len(wrong)} of another shape ({'; '.join(wrong[:3])} ...)"] if wrong else []
        raise PosefixError(
            f"{source}: not a {model.backbone} for {spec.skeleton.name} ({joints} joints): {', '.join(problems)}"
        )
    return {"params": params, "batch_stats": batch_stats}
