"""Reads MoveNet's published weights (TensorFlow.js graph models with folded batch norms) as a network to train from.

The reader is written out here because TensorFlow.js's own converter installs all of TensorFlow.
"""

import json
import math
import operator
from pathlib import Path

import numpy as np

from posefix_jax.core.models.mobilenet import STAGES
from posefix_jax.files import inside
from posefix_jax.types import PosefixError
from posefix_jax.weights.backbone import Arrays, float32, save_backbone

_PREFIXES = ("StatefulPartitionedCall/", "center_net_mobile_net_v2fpn_feature_extractor/", "model_1/", "model/")
_FOLDED = {"stem": "Conv1/Conv2D", "last": "Conv_1/Conv2D"}
"""convolutions with a folded norm, our name: theirs; those of the units and the pyramid are added below"""
_PLAIN = {"top": "conv2d", "lateral1": "conv2d_1", "lateral2": "conv2d_2", "lateral3": "conv2d_3"}
"""1x1 convolutions with a bias, our name: theirs"""


def read_graph_model(path: Path) -> Arrays:
    """Reads the arrays of a TensorFlow.js graph model.

    Args:
      path: its `.json` file; the `.bin` files are beside it.

    Returns:
      Arrays by name, without the prefixes that all names share.

    Raises:
      PosefixError: there is no such file, it is not such a model, or one of its files is missing or too short.
    """
    if not path.is_file():
        raise PosefixError(f"{path}: no such weights file")
    arrays = {}
    try:
        for group in json.loads(path.read_text())["weightsManifest"]:
            files = [inside(path.parent, name, str(path)) for name in group["paths"]]
            data, at = b"".join(file.read_bytes() for file in files), 0
            for weight in group["weights"]:
                dtype = np.dtype(weight.get("quantization", weight)["dtype"])
                array = np.frombuffer(data, dtype, math.prod(map(operator.index, weight["shape"])), at)
                at += array.nbytes
                name = weight["name"]
                for prefix in _PREFIXES:
                    name = name.removeprefix(prefix)
                arrays[name] = array.reshape(weight["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PosefixError(f"{path}: not a TensorFlow.js graph model ({type(error).__name__}: {error})") from error
    return arrays


def import_movenet(path: Path, out: Path) -> str:
    """Writes Lightning's or Thunder's trunk, pyramid and heatmap head as an `.npz` file for `posefix train --init`.

    Each folded convolution becomes a kernel with He's variance and a norm with the remaining scale, so that the optimizer
    sees weights of similar size (the file's own range from 0.5 to 230).

    Args:
      path: the TensorFlow.js `model.json`.
      out: the `.npz` file to write.

    Returns:
      Lines for the terminal: what was written, and which parts were not used.

    Raises:
      PosefixError: the file cannot be read, or lacks arrays.
    """
    arrays = read_graph_model(path)
    used: set[str] = set()
    found: Arrays = {}

    def take(name: str) -> np.ndarray:
        if name not in arrays:
            raise PosefixError(
                f"{path}: a MoveNet (tfhub.dev/google/movenet/singlepose) has {name!r}, but this file does not"
            )
        used.add(name)
        axes = 1 if name.endswith(("_bn_offset", "BiasAdd/ReadVariableOp")) else 4
        return float32(arrays[name], f"{path}: {name}", axes)

    def folded(ours: str, theirs: str) -> None:
        norm, kernel = f"{ours}_norm", take(f"{theirs}_weights")
        if theirs.endswith("/depthwise"):
            kernel = kernel[..., 0]
        axes = tuple(range(kernel.ndim - 1))
        size = np.maximum(np.sqrt((kernel**2).mean(axes) * np.prod(kernel.shape[:-1]) / 2), 1e-6)
        found[f"params/{ours}/kernel"] = kernel / size
        found[f"params/{norm}/norm/scale"] = size
        found[f"params/{norm}/norm/bias"] = take(f"{theirs}_bn_offset")
        found[f"batch_stats/{norm}/norm/mean"] = np.zeros_like(size)
        found[f"batch_stats/{norm}/norm/var"] = np.ones_like(size)

    for ours, theirs in _FOLDED.items():
        folded(ours, theirs)
    block = 0
    for stage, (expansion, _, units, _) in enumerate(STAGES):
        for unit in range(units):
            ours, theirs = f"stage{stage + 1}_{unit + 1}", f"block_{block}" if block else "expanded_conv"
            if expansion != 1:
                folded(f"{ours}/expand", f"{theirs}_expand/Conv2D")
            folded(f"{ours}/depthwise", f"{theirs}_depthwise/depthwise")
            folded(f"{ours}/project", f"{theirs}_project/Conv2D")
            block += 1
    for ours, theirs in _PLAIN.items():
        found[f"params/{ours}/kernel"] = take(f"{theirs}/Conv2D/ReadVariableOp")
        found[f"params/{ours}/bias"] = take(f"{theirs}/BiasAdd/ReadVariableOp")
    for i, theirs in enumerate(("separable_conv2d", "separable_conv2d_1", "separable_conv2d_2"), start=1):
        found[f"params/merge{i}_depthwise/kernel"] = take(f"{theirs}/separable_conv2d/ReadVariableOp")[..., 0]
        folded(f"merge{i}", f"{theirs}/separable_conv2d")
    head = "kpt_heatmap_0/separable_conv2d_4"
    found["params/last_depthwise/kernel"] = take(f"{head}/separable_conv2d/ReadVariableOp")[..., 0]
    found["params/mix/kernel"] = take(f"{head}/separable_conv2d/ReadVariableOp_1")
    found["params/mix/bias"] = take(f"{head}/BiasAdd/ReadVariableOp")
    found["params/head/kernel"] = take("kpt_heatmap_0/conv2d_5/Conv2D/ReadVariableOp")
    found["params/head/bias"] = take("kpt_heatmap_0/conv2d_5/BiasAdd/ReadVariableOp")
    left = sorted({name.split("/")[0] for name in set(arrays) - used if name.startswith(("kpt_", "center_"))})
    return save_backbone(out, "movenet", path, found, left)
