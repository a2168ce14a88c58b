"""`posefix import`: reads other people's weights."""

import re
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from posefix_jax.core.joint_sets import load_skeleton
from posefix_jax.runtime.checkpoints import save_refiner
from posefix_jax.types import PosefixError
from posefix_jax.weights import import_backbone, import_movenet, import_tf_release


@dataclass(frozen=True)
class TfReleaseOptions:
    """Imports the authors' released TensorFlow checkpoint as a refiner with their conventions. Needs no TensorFlow."""

    weights: Path
    """prefix of the checkpoint, such as snapshot_140.ckpt (of .ckpt.index and .ckpt.data-00000-of-00001)"""
    out: Path
    """folder to write, for --checkpoint; must not exist yet"""
    backbone: str = "resnet152"
    """resnet50, resnet101 or resnet152"""
    input: str = "384x288"
    """height x width of the crop: 256x192 or 384x288"""
    skeleton: str = "coco"
    """coco, posetrack, or a skeleton's JSON file"""


@dataclass(frozen=True)
class BackboneOptions:
    """Imports weights to start training from (--init): ImageNet's of a ResNet or MobileNetV2, or MoveNet's.

    The layers that read the input pose start with fresh weights.
    """

    weights: Path
    """state dict of torchvision or timm (.safetensors, or .pth if torch is installed), or MoveNet's TensorFlow.js model.json"""
    out: Path
    """.npz file to write"""


SOURCES = {
    "tf-release": TfReleaseOptions,
    "resnet": BackboneOptions,
    "mobilenet": BackboneOptions,
    "movenet": BackboneOptions,
}


def import_weights(options: TfReleaseOptions | BackboneOptions) -> str:
    """Runs `posefix import`.

    Returns:
      Lines for the terminal.

    Raises:
      PosefixError: the weights cannot be read or do not fit, or the output cannot be written.
    """
    if isinstance(options, BackboneOptions):
        if options.out.suffix != ".npz":
            raise PosefixError(f"--out {options.out}: expected a name that ends in .npz")
        read = import_movenet if options.weights.suffix == ".json" else import_backbone
        return read(options.weights, options.out)
    size = re.fullmatch(r"(\d+)x(\d+)", options.input)
    if not size:
        raise PosefixError(f"--input {options.input!r}: expected height x width, such as 384x288")
    skeleton = load_skeleton(options.skeleton)
    prefix = options.weights.with_suffix("") if options.weights.suffix == ".index" else options.weights
    variables, spec = import_tf_release(prefix, options.backbone, (int(size[1]), int(size[2])), skeleton)
    save_refiner(options.out, variables, spec)
    total = sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
    return (
        f"{options.out}: {options.backbone} {options.input} for {skeleton.name}, {total / 1e6:.1f} M weights; refine "
        f"with --checkpoint {options.out}"
    )
