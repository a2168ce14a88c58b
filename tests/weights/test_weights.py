"""Other people's weights: readers, name tables, and what they are refused for."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from released import FIXTURES, kernel, released_variables, write_bundle
from safetensors.numpy import save_file

from posefix_jax.cli import main
from posefix_jax.core.joint_sets import COCO, POSETRACK
from posefix_jax.core.models import ModelConfig, RefinerSpec
from posefix_jax.core.models.mobilenet import STAGES
from posefix_jax.runtime.checkpoints import abstract_variables, load_refiner
from posefix_jax.types import PosefixError
from posefix_jax.weights import (
    import_backbone,
    import_movenet,
    import_tf_release,
    reference_spec,
    variables_from_tf,
    with_backbone,
)
from posefix_jax.weights.tensor_bundle import read_bundle


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


def movenet_arrays(rng, width: int) -> dict[str, np.ndarray]:
    """Names and shapes of a MoveNet graph model with norms folded in, random values; every other channel 100 times larger."""
    arrays = {}

    def add(name, *shape, scale=1.0):
        fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 4.0
        arrays[name] = (scale * rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float16)

    def folded(name, *shape):
        add(f"{name}_weights", *shape)
        add(f"{name}_bn_offset", shape[2] if name.endswith("depthwise") else shape[-1])

    at = "center_net_mobile_net_v2fpn_feature_extractor/model_1/"
    folded(f"{at}model/Conv1/Conv2D", 3, 3, 3, width)
    into, block, taps = width, 0, {}
    for stage, (expansion, channels, units, _) in enumerate(STAGES, start=1):
        for _ in range(units):
            name, wide = f"{at}model/block_{block}" if block else f"{at}model/expanded_conv", into * expansion
            if expansion > 1:
                folded(f"{name}_expand/Conv2D", 1, 1, into, wide)
            folded(f"{name}_depthwise/depthwise", 3, 3, wide, 1)
            arrays[f"{name}_depthwise/depthwise_weights"][:, :, ::2] *= 100
            arrays[f"{name}_depthwise/depthwise_bn_offset"][::2] *= 100
            into, block = channels * width // 32, block + 1
            folded(f"{name}_project/Conv2D", 1, 1, wide, into)
        taps[stage] = into
    folded(f"{at}model/Conv_1/Conv2D", 1, 1, into, 1280)
    for name, into, out in (
        ("conv2d", 1280, 64), ("conv2d_1", taps[4], 64), ("conv2d_2", taps[3], 32), ("conv2d_3", taps[2], 24)
    ):  # fmt: skip
        add(f"{at}{name}/Conv2D/ReadVariableOp", 1, 1, into, out)
        add(f"{at}{name}/BiasAdd/ReadVariableOp", out)
    for name, into, out in (
        ("separable_conv2d", 64, 32),
        ("separable_conv2d_1", 32, 24),
        ("separable_conv2d_2", 24, 24),
    ):
        add(f"{at}{name}/separable_conv2d/ReadVariableOp", 3, 3, into, 1)
        folded(f"{at}{name}/separable_conv2d", 1, 1, into, out)
    for head, number, out in (("kpt_heatmap_0", 4, 17), ("kpt_offset_0", 6, 34)):
        add(f"{head}/separable_conv2d_{number}/separable_conv2d/ReadVariableOp", 3, 3, 24, 1)
        add(f"{head}/separable_conv2d_{number}/separable_conv2d/ReadVariableOp_1", 1, 1, 24, 96)
        add(f"{head}/separable_conv2d_{number}/BiasAdd/ReadVariableOp", 96)
        add(f"{head}/conv2d_{number + 1}/Conv2D/ReadVariableOp", 1, 1, 96, out)
        add(f"{head}/conv2d_{number + 1}/BiasAdd/ReadVariableOp", out)
    return arrays


def write_graph_model(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A TensorFlow.js graph model of half-precision weights, in two files as the converter cuts them."""
    data = b"".join(array.tobytes() for array in arrays.values())
    (path.parent / "a.bin").write_bytes(data[:1001])
    (path.parent / "b.bin").write_bytes(data[1001:])
    half = {"dtype": "float16", "original_dtype": "float32"}
    weights = [
        {"name": f"StatefulPartitionedCall/{name}", "shape": array.shape, "dtype": "float32", "quantization": half}
        for name, array in arrays.items()
    ]
    path.write_text(json.dumps({"weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": weights}]}))


def run_movenet(arrays: dict[str, np.ndarray], image: jax.Array) -> jax.Array:
    """The published graph as its file lists it: SAME convolutions, bias, relu6; bilinear upsampling; heatmap logits."""
    arrays = {name.rsplit("model_1/")[-1].removeprefix("model/"): jnp.float32(array) for name, array in arrays.items()}

    def conv(x, name, stride=1, bias=None):
        kernel, groups = arrays[name], 1
        if kernel.shape[2] == x.shape[-1] and kernel.shape[3] == 1:
            kernel, groups = kernel.reshape(3, 3, 1, -1), x.shape[-1]
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )
        return x if bias is None else x + arrays[bias].reshape(1, 1, 1, -1)

    def folded(x, name, stride=1):
        return conv(x, f"{name}_weights", stride, f"{name}_bn_offset")

    def plain(x, name):
        return conv(x, f"{name}/Conv2D/ReadVariableOp", 1, f"{name}/BiasAdd/ReadVariableOp")

    x = jax.nn.relu6(folded(image / 127.5 - 1, "Conv1/Conv2D", 2))
    block, taps = 0, {}
    for stage, (expansion, _, units, stride) in enumerate(STAGES, start=1):
        for unit in range(units):
            name, before = f"block_{block}" if block else "expanded_conv", x
            if expansion > 1:
                x = jax.nn.relu6(folded(x, f"{name}_expand/Conv2D"))
            x = jax.nn.relu6(folded(x, f"{name}_depthwise/depthwise", 1 if unit else stride))
            x = folded(x, f"{name}_project/Conv2D")
            x, block = x + before if unit else x, block + 1
        taps[stage] = x
    x = plain(jax.nn.relu6(folded(x, "Conv_1/Conv2D")), "conv2d")
    for i, (name, stage) in enumerate((("separable_conv2d", 4), ("separable_conv2d_1", 3), ("separable_conv2d_2", 2))):
        x = jax.image.resize(x, (*taps[stage].shape[:3], x.shape[-1]), "bilinear") + plain(
            taps[stage], f"conv2d_{i + 1}"
        )
        x = jax.nn.relu(folded(conv(x, f"{name}/separable_conv2d/ReadVariableOp"), f"{name}/separable_conv2d"))
    head = "kpt_heatmap_0/separable_conv2d_4"
    x = conv(x, f"{head}/separable_conv2d/ReadVariableOp")
    x = jax.nn.relu(conv(x, f"{head}/separable_conv2d/ReadVariableOp_1", 1, f"{head}/BiasAdd/ReadVariableOp"))
    return plain(x, "kpt_heatmap_0/conv2d_5")


@pytest.mark.slow
def test_a_movenet_starts_as_the_estimator_it_was(tmp_path):
    """The refiner's fresh network with imported weights gives the graph's own heatmaps, whatever the input pose."""
    arrays = movenet_arrays(np.random.default_rng(0), width=8)
    write_graph_model(tmp_path / "model.json", arrays)
    said = import_movenet(tmp_path / "model.json", tmp_path / "ours.npz")
    assert said.startswith("movenet") and said.endswith("left out: kpt_offset_0")
    model = ModelConfig(
        "movenet", width=8, head_channels=96, crop_hw=(64, 96), image_mean=(127.5,) * 3, image_std=(127.5,) * 3
    )
    spec = RefinerSpec(COCO, model, (True,) * 17)
    image = jax.random.uniform(jax.random.key(0), (2, 64, 96, 3), maxval=255.0)
    pose = (jnp.full((2, 17, 2), 30.0), jnp.ones((2, 17), bool))
    fresh = jax.jit(spec.network().init)(jax.random.key(1), image, *pose)
    merged = with_backbone(jax.device_get(fresh), tmp_path / "ours.npz", "movenet")
    assert jax.tree.structure(merged) == jax.tree.structure(fresh)
    wanted = jax.jit(run_movenet)(arrays, image)
    assert np.std(wanted) > 0.01
    np.testing.assert_allclose(
        jax.jit(spec.network().apply)(merged, image, *pose), wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max()
    )
    sizes = [
        np.sqrt((leaf**2).mean() * np.prod(leaf.shape[:-1]))
        for path, leaf in jax.tree.leaves_with_path(merged["params"]["backbone"]["stage3_1"])
        if path[-1].key == "kernel"
    ]
    np.testing.assert_allclose(sizes, 2**0.5, rtol=0.01)

    with pytest.raises(PosefixError, match="1 arrays do not fit: head/kernel"):
        two = RefinerSpec(POSETRACK, model, (True,) * 17)
        heads = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), abstract_variables(two))
        kernel = heads["params"]["head"]["kernel"]
        heads["params"]["head"]["kernel"] = kernel[..., :16]
        with_backbone(heads, tmp_path / "ours.npz", "movenet")
    del arrays["kpt_heatmap_0/conv2d_5/BiasAdd/ReadVariableOp"]
    write_graph_model(tmp_path / "model.json", arrays)
    with pytest.raises(
        PosefixError, match="has 'kpt_heatmap_0/conv2d_5/BiasAdd/ReadVariableOp', but this file does not"
    ):
        import_movenet(tmp_path / "model.json", tmp_path / "ours.npz")
    (tmp_path / "b.bin").write_bytes(b"")
    with pytest.raises(PosefixError, match="model.json: not a TensorFlow.js graph model"):
        import_movenet(tmp_path / "model.json", tmp_path / "ours.npz")
    model = json.loads((tmp_path / "model.json").read_text())
    model["weightsManifest"][0]["weights"][0]["shape"] = [float("inf")]
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(PosefixError, match="not a TensorFlow.js graph model .TypeError"):
        import_movenet(tmp_path / "model.json", tmp_path / "ours.npz")


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


@pytest.mark.slow
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
