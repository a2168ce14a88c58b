"""Other people's weights: readers, name tables, and what they are refused for."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from released import kernel, released_variables, write_bundle
from safetensors.numpy import save_file

from posefix_jax.checkpoints import abstract_variables, load_refiner
from posefix_jax.cli import main
from posefix_jax.models import ModelConfig, RefinerSpec
from posefix_jax.models.mobilenet import STAGES
from posefix_jax.skeleton import COCO, POSETRACK
from posefix_jax.types import PosefixError
from posefix_jax.weights import import_backbone, import_tf_release, reference_spec, variables_from_tf, with_backbone
from posefix_jax.weights.tensor_bundle import read_bundle

FIXTURES = Path(__file__).parent / "fixtures"


def test_reads_a_tensorflow_bundle():
    """The first arrays of a bundle that TensorFlow wrote; the rest of its data is cut off here."""
    wanted = {"out/weights", "out/biases", "beta1_power", "Variable"}
    arrays = read_bundle(FIXTURES / "bundle.ckpt", wanted=lambda name: name in wanted)
    assert set(arrays) == wanted
    np.testing.assert_array_equal(arrays["out/weights"], kernel("out/weights", (1, 1, 256, 17)))
    assert arrays["out/biases"].shape == (17,) and arrays["Variable"].shape == ()
    with pytest.raises(PosefixError, match="out/weights/Adam of shape .* found 0"):
        read_bundle(FIXTURES / "bundle.ckpt", wanted=lambda name: name == "out/weights/Adam")


def test_reads_the_whole_recorded_bundle(golden, golden_path):
    recorded = golden("small_bundle.npz")
    arrays = read_bundle(golden_path("small_bundle.ckpt.index").with_suffix(""))
    assert set(arrays) == set(recorded.files)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, recorded[name])


def test_a_broken_bundle_is_refused(tmp_path):
    with pytest.raises(PosefixError, match="no such file; expected a TensorFlow checkpoint's prefix"):
        read_bundle(tmp_path / "none.ckpt")
    index = (FIXTURES / "bundle.ckpt.index").read_bytes()
    for cut in (index[:100], index[1000:], b"", index[:-20] + index[-8:]):
        (tmp_path / "cut.ckpt.index").write_bytes(cut)
        with pytest.raises(PosefixError, match="cut.ckpt.index"):
            read_bundle(tmp_path / "cut.ckpt")
    shutil.copy(FIXTURES / "bundle.ckpt.index", tmp_path / "lone.ckpt.index")
    with pytest.raises(PosefixError, match="data-00000-of-00001: no such file"):
        read_bundle(tmp_path / "lone.ckpt")


def test_a_checkpoint_of_another_network_is_refused():
    spec = reference_spec("resnet152", (384, 288), COCO)
    some = {"out/biases": np.zeros(17, np.float32), "up2/BatchNorm/beta": np.zeros(128, np.float32)}
    with pytest.raises(PosefixError, match="not a resnet152 for coco .17 joints.*arrays missing.*1 of another shape"):
        variables_from_tf(some, spec, "x.ckpt")
    with pytest.raises(PosefixError, match="256x192, 384x288; found 64x64"):
        import_tf_release(FIXTURES / "bundle.ckpt", "resnet50", (64, 64), COCO)
    assert [
        COCO.joints[i] for i, on in enumerate(reference_spec("resnet50", (256, 192), COCO).trained_joints) if not on
    ] == []
    trained = reference_spec("resnet50", (256, 192), POSETRACK).trained_joints
    assert [POSETRACK.joints[i] for i, on in enumerate(trained) if not on] == ["left_ear", "right_ear"]


def torch_resnet18(rng) -> dict[str, np.ndarray]:
    """Names and shapes of torchvision's resnet18, random values."""
    arrays = {}

    def conv(name, norm, out, into, size):
        arrays[f"{name}.weight"] = rng.normal(size=(out, into, size, size)).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{norm}.{part}"] = rng.normal(size=out).astype(np.float32)
        arrays[f"{norm}.num_batches_tracked"] = np.zeros((), np.int64)

    conv("conv1", "bn1", 64, 3, 7)
    into = 64
    for layer, out in enumerate((64, 128, 256, 512), start=1):
        for unit in range(2):
            name = f"layer{layer}.{unit}"
            conv(f"{name}.conv1", f"{name}.bn1", out, into, 3)
            conv(f"{name}.conv2", f"{name}.bn2", out, out, 3)
            if into != out:
                conv(f"{name}.downsample.0", f"{name}.downsample.1", out, into, 1)
            into = out
    arrays["fc.weight"] = np.zeros((10, 512), np.float32)
    return arrays


def torch_mobilenet(rng, style: str) -> dict[str, np.ndarray]:
    """Names and shapes of MobileNetV2, as torchvision or as timm names them."""
    arrays = {}

    def conv(name, norm, out, into, size):
        arrays[f"{name}.weight"] = rng.normal(size=(out, into, size, size)).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{norm}.{part}"] = rng.normal(size=out).astype(np.float32)

    conv(*(("features.0.0", "features.0.1") if style == "torchvision" else ("conv_stem", "bn1")), 32, 3, 3)
    into, index = 32, 0
    for stage, (expansion, out, units, _) in enumerate(STAGES):
        for unit in range(units):
            index += 1
            wide = into * expansion
            if style == "torchvision":
                names = [("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")] if expansion > 1 else [("0.0", "0.1"), ("1", "2")]
                names = [tuple(f"features.{index}.conv.{part}" for part in pair) for pair in names]
            else:
                names = (
                    ["conv_pw bn1", "conv_dw bn2", "conv_pwl bn3"] if expansion > 1 else ["conv_dw bn1", "conv_pw bn2"]
                )
                names = [tuple(f"blocks.{stage}.{unit}.{part}" for part in pair.split()) for pair in names]
            shapes = [(wide, into, 1), (wide, 1, 3), (out, wide, 1)][-len(names) :]
            for pair, shape in zip(names, shapes, strict=True):
                conv(*pair, *shape)
            into = out
    return arrays


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2 torchvision", "mobilenet_v2 timm"])
def test_a_torch_backbone_lands_where_it_belongs(tmp_path, network):
    """Every array is used once, transposed as its kind asks; the stem's pose channels stay as they were."""
    rng = np.random.default_rng(0)
    backbone, _, style = network.partition(" ")
    arrays = torch_resnet18(rng) if backbone == "resnet18" else torch_mobilenet(rng, style)
    save_file(arrays, tmp_path / "torch.safetensors")
    said = import_backbone(tmp_path / "torch.safetensors", tmp_path / "ours.npz")
    assert said.startswith(backbone) and ("fc.weight" in said) == (backbone == "resnet18")

    spec = RefinerSpec(COCO, ModelConfig(backbone=backbone, width=64 if style == "" else 32), (True,) * 17)
    fresh = jax.tree.map(lambda s: np.full(s.shape, 7.0, np.float32), abstract_variables(spec))
    merged = with_backbone(fresh, tmp_path / "ours.npz", backbone)
    assert jax.tree.structure(merged) == jax.tree.structure(fresh)
    backbone_leaves = jax.tree.leaves([merged[key]["backbone"] for key in ("params", "batch_stats")])
    left, right = [
        np.sort([float(np.sum(leaf, dtype=np.float64)) for leaf in leaves])
        for leaves in (
            [leaf[:, :, :3] if leaf.ndim == 4 and leaf.shape[2] == 20 else leaf for leaf in backbone_leaves],
            [a for name, a in arrays.items() if not name.startswith("fc") and not name.endswith("tracked")],
        )
    ]
    np.testing.assert_allclose(left, right, atol=1e-3)
    stem = merged["params"]["backbone"]["stem"]["kernel"]
    first = arrays[
        "conv1.weight"
        if backbone == "resnet18"
        else "features.0.0.weight"
        if style == "torchvision"
        else "conv_stem.weight"
    ]
    np.testing.assert_array_equal(stem[:, :, :3], first.transpose(2, 3, 1, 0))
    assert (stem[:, :, 3:] == 7).all()
    if backbone == "resnet18":
        unit = merged["params"]["backbone"]["stage2_1"]
        np.testing.assert_array_equal(
            unit["shortcut"]["kernel"], arrays["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0)
        )
        np.testing.assert_array_equal(
            merged["batch_stats"]["backbone"]["stage2_1"]["norm2"]["norm"]["var"], arrays["layer2.0.bn2.running_var"]
        )
    assert float(np.min(merged["params"]["up1"]["kernel"])) == 7


def test_backbones_that_do_not_fit_are_refused(tmp_path, capsys):
    arrays = torch_resnet18(np.random.default_rng(0))
    lacking = {name: array for name, array in arrays.items() if name != "layer3.0.bn2.running_mean"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(PosefixError, match="without 1 of its arrays: layer3.0.bn2.running_mean"):
        import_backbone(tmp_path / "lacking.safetensors", tmp_path / "x.npz")
    save_file({"something": np.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name, message in {
        "other.safetensors": "expected the names of a torchvision or timm ResNet or MobileNetV2, found something",
        "junk.safetensors": "not a state dict",
        "none.safetensors": "no such weights file",
    }.items():
        assert main(["import", "resnet", str(tmp_path / name), "--out", str(tmp_path / "x.npz")]) == 2
        assert message in capsys.readouterr().err
    save_file(arrays, tmp_path / "whole.safetensors")
    import_backbone(tmp_path / "whole.safetensors", tmp_path / "ours.npz")
    spec = RefinerSpec(COCO, ModelConfig(backbone="resnet18", width=32), (True,) * 17)
    fresh = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), abstract_variables(spec))
    with pytest.raises(PosefixError, match="arrays do not fit: .*is model.width standard"):
        with_backbone(fresh, tmp_path / "ours.npz", "resnet18")
    with pytest.raises(PosefixError, match="a resnet18; this config trains a resnet50"):
        with_backbone({}, tmp_path / "ours.npz", "resnet50")


def test_import_of_the_released_network_by_command(tmp_path, capsys):
    """A whole checkpoint, Adam's slots beside it, becomes a refiner that loads and holds its arrays."""
    arrays = released_variables()
    slots = {f"out/biases/{slot}": np.zeros(17, np.float32) for slot in ("Adam", "Adam_1")}
    write_bundle(tmp_path / "snapshot_140.ckpt", arrays | slots | {"Variable": np.float32(5e-4)})
    command = ["import", "tf-release", str(tmp_path / "snapshot_140.ckpt"), "--input", "256x192"]
    out = tmp_path / "released"
    assert main([*command, "--out", str(out)]) == 2
    assert "not a resnet152 for coco (17 joints)" in capsys.readouterr().err and not out.exists()
    assert main([*command, "--backbone", "resnet50", "--out", str(out)]) == 0
    assert "resnet50 256x192 for coco, 34.1 M weights" in capsys.readouterr().out
    variables, spec = load_refiner(out)
    assert spec == reference_spec("resnet50", (256, 192), COCO)
    assert spec.decode.method == "soft-argmax" and spec.model.frame == "reference"
    stem, theirs = variables["params"]["backbone"]["stem"]["kernel"], arrays["resnet_v1_50/conv1/weights"]
    np.testing.assert_array_equal(stem[:, :, 0], theirs[:, :, 2])  # R, G, B here, B, G, R there
    np.testing.assert_array_equal(variables["params"]["up2"]["kernel"][0, 1, 5, 7], arrays["up2/weights"][3, 2, 7, 5])
    assert main(["import", "tf-releas", "x"]) == 2 and "did you mean 'tf-release'" in capsys.readouterr().err


def test_every_name_of_the_deepest_release_is_known(golden_path):
    """ResNet-152 at 384x288: the list of its variables, filled with zeros, fits without a remainder."""
    listed = json.loads(golden_path("variables_resnet152_384x288.json").read_text())["global_variables"]
    zero = np.zeros((), np.float32)
    arrays = {variable["name"]: np.broadcast_to(zero, variable["shape"]) for variable in listed}
    spec = reference_spec("resnet152", (384, 288), COCO)
    variables = variables_from_tf(arrays, spec, "list")
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda s: s.shape, abstract_variables(spec))
    network = [name for name in arrays if "/" in name and "Adam" not in name]
    assert len(network) == len(jax.tree.leaves(variables))
