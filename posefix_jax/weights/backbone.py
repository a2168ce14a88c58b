"""Reads ImageNet weights of a backbone from a torchvision or timm state dict."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from posefix_jax.core.models.mobilenet import STAGES as MOBILENET_STAGES
from posefix_jax.core.models.movenet import POSE_LAYERS
from posefix_jax.core.models.resnet import STAGES as RESNET_STAGES
from posefix_jax.files import whole_file
from posefix_jax.types import PosefixError, listed, printable

Arrays = dict[str, np.ndarray]

LARGEST_WEIGHT = 1e15
"""Its square is a number in float32."""

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
"""torch's name of a batch norm's array: ours"""


def float32(array: np.ndarray, place: str, axes: int | None = None) -> np.ndarray:
    """Weights as float32.

    Args:
      array: from a file.
      place: the file and the array's name, for the message.
      axes: how many it must have; any number by default.

    Raises:
      PosefixError: it is empty, has other axes, or has values that are not finite numbers up to `LARGEST_WEIGHT`.
    """
    real = array.dtype.kind in "fiu"
    if not real or not array.size or (axes is not None and array.ndim != axes):
        wanted = "weights" if axes is None else f"weights with {axes} axes"
        raise PosefixError(f"{place}: expected {wanted}, found {array.dtype} of shape {array.shape}")
    if not (np.abs(array.astype(np.float64)) <= LARGEST_WEIGHT).all():
        raise PosefixError(f"{place}: a weight is not a finite number of at most {LARGEST_WEIGHT:g}")
    return array.astype(np.float32)


def read_state_dict(path: Path) -> Arrays:
    """Reads the arrays of a `.safetensors` file, or of a torch file (`.pth`, `.pt`), which needs torch.

    Returns:
      Arrays by name, with torch's axes.

    Raises:
      PosefixError: there is no such file, the package that reads it is not installed, or it is not a state dict.
    """
    if not path.is_file():
        raise PosefixError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        import torch

        arrays = torch.load(path, map_location="cpu", weights_only=True)
        arrays = arrays.get("state_dict", arrays)
        return {name: tensor.float().numpy() for name, tensor in arrays.items()}
    except ImportError as error:
        raise PosefixError(f"{path}: reading it needs the package {error.name} (pip install {error.name})") from error
    except Exception as error:
        raise PosefixError(f"{path}: not a state dict ({type(error).__name__}: {error})") from error


def import_backbone(path: Path, out: Path) -> str:
    """Writes the weights of a ResNet or MobileNetV2 state dict as an `.npz` file for `posefix train --init`.

    The names and shapes of the arrays tell which network it is.

    Args:
      path: the state dict, see `read_state_dict`.
      out: the `.npz` file to write.

    Returns:
      Lines for the terminal: what was written, and which arrays were not used.

    Raises:
      PosefixError: the file cannot be read, holds another network, or lacks arrays.
    """
    arrays = {name.removeprefix("module."): array for name, array in read_state_dict(path).items()}
    backbone, pairs = _recognise(path, arrays)
    found: Arrays = {}
    missing, used = [], set()
    for (ours, ours_norm), (theirs, theirs_norm) in pairs:
        wanted = {f"{theirs}.weight": f"params/{ours}/kernel"}
        for name, as_ours in _NORM.items():
            collection = "batch_stats" if name.startswith("running") else "params"
            wanted[f"{theirs_norm}.{name}"] = f"{collection}/{ours_norm}/norm/{as_ours}"
        for name, key in wanted.items():
            if name in arrays:
                used.add(name)
                array = float32(arrays[name], f"{path}: {name}", 4 if key.endswith("kernel") else 1)
                found[key] = _kernel(array) if key.endswith("kernel") else array
            else:
                missing.append(name)
    if missing:
        raise PosefixError(f"{path}: a {backbone} without {len(missing)} of its arrays: {', '.join(missing[:6])} ...")
    left = sorted(set(arrays) - used - {name for name in arrays if name.endswith("num_batches_tracked")})
    return save_backbone(out, backbone, path, found, left)


def save_backbone(out: Path, backbone: str, source: Path, arrays: Arrays, left: list[str]) -> str:
    """Writes the file that `load_backbone` reads.

    Args:
      out: the `.npz` file to write.
      backbone: name of the network, as `ModelConfig.backbone`.
      source: the file that the weights came from; its name is stored.
      arrays: by `params/...` or `batch_stats/...` and the path of the layer.
      left: names of the source's arrays that were not used.

    Returns:
      Lines for the terminal.
    """
    with whole_file(out) as file:
        about = np.asarray(json.dumps({"backbone": backbone, "source": source.name}))
        np.savez(file, **cast(dict[str, Any], arrays | {"backbone": about}))
    total = sum(array.size for key, array in arrays.items() if key.startswith("params/"))
    return f"{backbone}, {total / 1e6:.1f} M weights, to {out}; train with --init {out}" + (
        f"\nnot part of the network, left out: {printable(listed(left, 8))}" if left else ""
    )


def load_backbone(path: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Reads what `save_backbone` wrote.

    Returns:
      The network's name, its params and its batch statistics, as trees of arrays; the stem has three input channels.

    Raises:
      PosefixError: it is not such a file.
    """
    try:
        with open(path, "rb") as opened, np.load(opened) as file:
            arrays = dict(file)
        name = str(json.loads(str(arrays.pop("backbone")))["backbone"])
        trees: dict[str, Any] = {"params": {}, "batch_stats": {}}
        for key, array in arrays.items():
            *folders, last = key.split("/")
            tree = trees
            for folder in folders:
                tree = tree.setdefault(folder, {})
            tree[last] = array
        return name, dict(trees["params"]), dict(trees["batch_stats"])
    except Exception as error:  # numpy and zipfile raise a dozen kinds
        raise PosefixError(f"{path}: not a file that `posefix import` wrote, or damaged ({error})") from error


def with_backbone(variables: dict[str, Any], path: Path, backbone: str) -> dict[str, Any]:
    """Puts an imported backbone into a refiner's fresh variables, and the head if the file has one.

    The stem's pose channels keep their fresh weights, and so do the layers through which the pose enters a movenet.

    Args:
      variables: `params` and `batch_stats` of the refiner's network.
      path: the file that `import_backbone` or `import_movenet` wrote.
      backbone: the network that the config trains.

    Returns:
      The variables with the file's weights in place.

    Raises:
      PosefixError: the file holds another network, or shapes differ (all are listed).
    """
    name, params, batch_stats = load_backbone(path)
    if name != backbone:
        raise PosefixError(f"{path}: a {name}; this config trains a {backbone}")
    wrong = []

    def replace(old: Any, new: Any, place: str) -> Any:
        if isinstance(old, dict):
            new = new if isinstance(new, dict) else {}
            fresh = set(POSE_LAYERS) - set(new)
            return {
                key: value if key in fresh else replace(value, new.get(key), f"{place}/{key}")
                for key, value in old.items()
            }
        if not isinstance(new, np.ndarray):
            wrong.append(f"{place} is missing")
            return old
        new = float32(new, f"{path}: {place}")
        if place == "params/stem/kernel" and new.ndim == 4 and new.shape[2] < old.shape[2]:
            new = np.concatenate([new, np.asarray(old)[:, :, new.shape[2] :]], axis=2) if fits_beside(new, old) else new
        if old.shape != new.shape:
            wrong.append(f"{place} {tuple(new.shape)}, expected {tuple(old.shape)}")
        return new

    def fits_beside(new: Any, old: Any) -> bool:
        return new.shape[:2] + new.shape[3:] == old.shape[:2] + old.shape[3:]

    head = params.pop("head", variables["params"]["head"])
    variables = variables | {
        "params": variables["params"] | {"head": replace(variables["params"]["head"], head, "head")}
    }
    merged = {
        collection: {
            **variables[collection],
            "backbone": replace(variables[collection]["backbone"], tree, collection),
        }
        for collection, tree in (("params", params), ("batch_stats", batch_stats))
    }
    if wrong:
        raise PosefixError(f"{path}: {len(wrong)} arrays do not fit: {'; '.join(wrong[:6])}; is model.width standard?")
    return merged


def _kernel(array: np.ndarray) -> np.ndarray:
    """A kernel OIHW as HWIO; a depthwise kernel [C, 1, 3, 3] as [3, 3, C]."""
    kernel = np.asarray(array, np.float32).transpose(2, 3, 1, 0)
    return kernel[:, :, 0] if kernel.shape[2] == 1 else kernel


Pair = tuple[tuple[str, str], tuple[str, str]]
"""(our convolution, its norm), (their convolution, its norm)"""


def _recognise(path: Path, arrays: Arrays) -> tuple[str, list[Pair]]:
    """Which network the names belong to, and where its arrays go."""
    if "layer1.0.conv1.weight" in arrays:
        units = tuple(len({m[1] for m in _matches(rf"layer{s}\.(\d+)\.", arrays)}) for s in range(1, 5))
        kind = ("layer1.0.conv3.weight" in arrays, units)
        for name, shape in RESNET_STAGES.items():
            if shape == kind:
                return name, list(_resnet_pairs(*shape))
    for scheme in (_TORCHVISION, _FLAT, _TIMM):
        pairs = list(_mobilenet_pairs(scheme))
        if all(f"{theirs}.weight" in arrays for _, (theirs, _) in pairs[:6]):
            return "mobilenet_v2", pairs
    raise PosefixError(
        f"{path}: expected the names of a torchvision or timm ResNet or MobileNetV2, found {', '.join(list(arrays)[:4])}"
    )


def _matches(pattern: str, names: Iterable[str]) -> Iterator[re.Match]:
    return (match for match in (re.match(pattern, name) for name in names) if match)


def _resnet_pairs(bottleneck: bool, units: tuple[int, ...]) -> Iterator[Pair]:
    yield ("stem", "stem_norm"), ("conv1", "bn1")
    for stage, count in enumerate(units):
        for unit in range(count):
            ours, theirs = f"stage{stage + 1}_{unit + 1}", f"layer{stage + 1}.{unit}"
            for i in range(1, 4 if bottleneck else 3):
                yield (f"{ours}/conv{i}", f"{ours}/norm{i}"), (f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            if not unit and (stage or bottleneck):
                yield (
                    (f"{ours}/shortcut", f"{ours}/shortcut_norm"),
                    (f"{theirs}.downsample.0", f"{theirs}.downsample.1"),
                )


# How three code bases name convolutions and their norms: the prefix of a unit, the stem, the expand, depthwise and project
# convolutions of a unit, and the last two of a unit that does not expand.
_TORCHVISION = (
    "features.{index}.conv.", ("features.0.0", "features.0.1"),
    (("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")), (("0.0", "0.1"), ("1", "2")),
)  # fmt: skip
_FLAT = (
    "features.{index}.conv.", ("features.0.0", "features.0.1"),
    (("0", "1"), ("3", "4"), ("6", "7")), (("0", "1"), ("3", "4")),
)  # fmt: skip
_TIMM = (
    "blocks.{stage}.{unit}.", ("conv_stem", "bn1"),
    (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")), (("conv_dw", "bn1"), ("conv_pw", "bn2")),
)  # fmt: skip


def _mobilenet_pairs(scheme: tuple[str, tuple[str, str], Any, Any]) -> Iterator[Pair]:
    prefix, stem, expanded, plain = scheme
    yield ("stem", "stem_norm"), stem
    index = 0
    for stage, (expansion, _, units, _) in enumerate(MOBILENET_STAGES):
        for unit in range(units):
            index += 1
            ours = f"stage{stage + 1}_{unit + 1}"
            theirs = prefix.format(index=index, stage=stage, unit=unit)
            parts = ("expand", "depthwise", "project") if expansion != 1 else ("depthwise", "project")
            for part, (conv, norm) in zip(parts, expanded if expansion != 1 else plain, strict=True):
                yield (f"{ours}/{part}", f"{ours}/{part}_norm"), (theirs + conv, theirs + norm)
