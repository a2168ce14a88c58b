import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posefix_jax.core import heatmaps
from posefix_jax.core.geometry import heat_to_crop
from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.models import DecodeConfig, ModelConfig, RefinerSpec
from posefix_jax.core.models.convolution import enlarged
from posefix_jax.core.models.cpu_kernels import (
    depthwise_conv_by_shift,
    transposed_conv_by_phase,
    winograd_conv,
    winograd_suits,
)
from posefix_jax.core.models.layers import Conv, depthwise_conv, transposed_conv
from posefix_jax.core.models.network import BACKBONES
from posefix_jax.core.models.tpu_kernels import conv_in_blocks, conv_of_drawn, depthwise_conv_in_full
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.types import PosefixError


def test_transposed_conv_by_phase_is_the_native_one():
    """Values and both gradients."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 6))
    weight = jax.random.normal(jax.random.key(2), (2, 10, 8, 6))

    def native(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def outcome(f):
        return f(x, kernel), *jax.grad(lambda x, k: (f(x, k) * weight).sum(), (0, 1))(x, kernel)

    for ours, theirs in zip(outcome(transposed_conv_by_phase), outcome(native), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(transposed_conv(x, kernel), native(x, kernel), atol=1e-4)


@pytest.mark.parametrize("channels", [(64, 96), (128, 160)])
def test_winograd_conv_is_the_plain_one(channels):
    """Values and both gradients; the kernel's is another one from 128 channels on."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, channels[0]))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, *channels))
    weight = jax.random.normal(jax.random.key(2), (2, 6, 4, channels[1]))
    assert winograd_suits((6, 4), channels) and not winograd_suits((5, 4), channels)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def outcome(f):
        return f(x, kernel), *jax.grad(lambda x, k: (f(x, k) * weight).sum(), (0, 1))(x, kernel)

    for ours, theirs in zip(outcome(winograd_conv), outcome(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_conv_is_a_convolution(kernel, stride):
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    layer = Conv(5, kernel, stride)
    variables = layer.init(jax.random.key(1), x)
    pad = (kernel - 1) // 2
    plain = jax.lax.conv_general_dilated(
        x, variables["params"]["kernel"], (stride,) * 2, [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layer.apply(variables, x), plain, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride", "offset"), [(7, 2, 0), (3, 2, 1), (3, 1, 0), (1, 1, 0)])
@pytest.mark.slow
def test_a_pose_is_convolved_as_if_its_maps_were_drawn(kernel, stride, offset):
    """Values, and the gradients to the weights and to the pose."""
    image = jax.random.normal(jax.random.key(0), (2, 16, 12, 3))
    xy = jnp.asarray([[[3.2, 5.1], [11.7, 0.4]], [[-1.0, 8.0], [6.0, 15.5]]])
    layer = Conv(5, kernel, stride, offset)

    def maps(xy):
        return jax.vmap(lambda one: heatmaps.gaussians(one, jnp.ones(2, bool), crop_hw=(16, 12), sigma=2.0))(xy)

    def undrawn(variables, xy):
        return layer.apply(variables, image, maps(xy))

    def drawn(variables, xy):
        return layer.apply(variables, jnp.concatenate([image, maps(xy).drawn()], axis=-1))

    variables = layer.init(jax.random.key(1), image, maps(xy))
    weight = jax.random.normal(jax.random.key(2), undrawn(variables, xy).shape)

    def outcome(f):
        gradients = jax.grad(lambda *inputs: (f(*inputs) * weight).sum(), (0, 1))(variables, xy)
        return jax.tree.leaves((f(variables, xy), gradients))

    for ours, plain in zip(outcome(undrawn), outcome(drawn), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-4)


@pytest.mark.parametrize("formulation", [conv_in_blocks, conv_of_drawn])
@pytest.mark.parametrize(("size", "offset"), [(7, 0), (7, 1), (3, 0), (3, 1)])
def test_a_tpus_stem_is_the_plain_one(formulation, size, offset):
    """Values and the gradients to everything."""
    image = jax.random.normal(jax.random.key(0), (2, 16, 12, 3))
    maps = heatmaps.SeparableMaps(*(jax.random.normal(jax.random.key(n), (2, n, 4)) for n in (16, 12)))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 7, 5))
    weight = jax.random.normal(jax.random.key(2), (2, 8, 6, 5))
    pad = (size - 1) // 2

    def plain(image, maps, kernel):
        drawn = jnp.concatenate([image, maps.drawn()], axis=-1)
        around = [(pad - offset, pad + offset)] * 2
        return jax.lax.conv_general_dilated(drawn, kernel, (2, 2), around, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def outcome(f):
        gradients = jax.grad(lambda *inputs: (f(*inputs) * weight).sum(), (0, 1, 2))(image, maps, kernel)
        return jax.tree.leaves((f(image, maps, kernel), gradients))

    ours_of = functools.partial(formulation, offset=offset)
    for ours, theirs in zip(outcome(ours_of), outcome(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize(("stride", "offset"), [(1, 0), (2, 0), (2, 1)])
def test_depthwise_conv_is_the_grouped_one(stride, offset):
    """Values and both gradients."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 5))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 5))
    weight = jax.random.normal(jax.random.key(2), (2, 6 // stride, 8 // stride, 5))

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (stride, stride),
            "SAME" if offset else [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=5,
        )

    def outcome(f):
        return f(x, kernel), *jax.grad(lambda x, k: (f(x, k) * weight).sum(), (0, 1))(x, kernel)

    for formulation in (depthwise_conv_by_shift, depthwise_conv_in_full):
        found = outcome(lambda x, kernel, formulation=formulation: formulation(x, kernel, stride, offset))
        for ours, theirs in zip(found, outcome(grouped), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(depthwise_conv(x, kernel, stride, offset), grouped(x, kernel), atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.slow
def test_every_backbone_has_the_known_size(backbone):
    """Weights of the backbone alone, without the classifier: torchvision's figures, stem of 3 channels."""
    known = {
        "resnet18": 11176512,
        "resnet34": 21284672,
        "resnet50": 23508032,
        "resnet101": 42500160,
        "resnet152": 58143808,
        "mobilenet_v2": 1811712,  # without the last convolution to 1280 channels
        "movenet": 2223872 + 81984 + 4160 + 2688 + 1056 + 1104 + 600 + 840 + 216 + 2400,  # with it, and the pyramid
    }
    size, width = (7, 64) if backbone.startswith("resnet") else (3, 32)
    spec = RefinerSpec(COCO, ModelConfig(backbone=backbone, width=width, head_channels=96), (True,) * 17)
    shapes = jax.eval_shape(
        spec.network().init,
        jax.random.key(0),
        jnp.zeros((1, 256, 192, 3)),
        jnp.zeros((1, 17, 2)),
        jnp.ones((1, 17), bool),
    )
    weights = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]["backbone"]))
    of_pose = 17 * (24 + 96) if backbone == "movenet" else 17 * size * size * width
    assert weights - of_pose == known[backbone]
    out = jax.eval_shape(
        spec.network().apply, shapes, jnp.zeros((2, 256, 192, 3)), jnp.zeros((2, 17, 2)), jnp.ones((2, 17), bool)
    )
    assert out.shape == (2, 64, 48, 17) and out.dtype == jnp.float32


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_skips_take_features_of_the_size_they_are_added_to(backbone):
    model = ModelConfig(backbone=backbone, width=4, head_channels=6, skips=True, crop_hw=(64, 96))
    network = RefinerSpec(COCO, model, (True,) * 17).network()
    inputs = (jnp.zeros((2, 64, 96, 3)), jnp.zeros((2, 17, 2)), jnp.ones((2, 17), bool))
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    assert {name: shapes[name]["kernel"].shape[-1] for name in ("skip1", "skip2", "skip3")} == dict.fromkeys(
        ("skip1", "skip2", "skip3"), 6
    )
    assert shapes["skip3"]["kernel"].shape[2] < shapes["skip1"]["kernel"].shape[2]
    assert jax.eval_shape(network.init_with_output, jax.random.key(0), *inputs)[0].shape == (2, 16, 24, 17)


def test_spec_round_trip():
    spec = RefinerSpec(
        COCO,
        ModelConfig(backbone="resnet18"),
        (True,) * 12 + (False,) * 5,
        DecodeConfig(trust=0.1, trust_weights=(1.0,) * 7),
    )
    assert RefinerSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(PosefixError, match="not a refiner's spec"):
        RefinerSpec.from_dict({"model": {}})


def test_configs_check_themselves():
    with pytest.raises(PosefixError, match="did you mean 'resnet50'"):
        ModelConfig(backbone="resnet5")
    with pytest.raises(PosefixError, match="multiples of 32"):
        ModelConfig(crop_hw=(250, 192))
    with pytest.raises(PosefixError, match="movenet has none"):
        ModelConfig(backbone="movenet", width=32, skips=True)
    with pytest.raises(PosefixError, match="frozen_stages is for mobilenet_v2 and movenet, not for a resnet18"):
        ModelConfig(backbone="resnet18", frozen_stages=1)


def test_a_spec_saved_without_a_precision_loads():
    spec = RefinerSpec(COCO, ModelConfig(backbone="resnet18"), (True,) * 17)
    fields = spec.to_dict()
    del fields["model"]["compute_dtype"]
    assert RefinerSpec.from_dict(fields) == spec


@pytest.fixture(scope="module")
def small_crops():
    image = jax.random.uniform(jax.random.key(0), (1, 32, 32, 3), maxval=255.0)
    xy = jnp.asarray([[[8.0, 20.0], [15.5, 3.25]]])
    return image, xy, jnp.asarray([[True, True]])


@pytest.mark.slow
def test_frozen_parts_learn_nothing(small_crops):
    """Neither the stages named nor the running statistics move, all others do; the pose is heard from the first step."""
    image, xy, present = small_crops
    config = ModelConfig(
        "movenet", width=4, head_channels=8, crop_hw=(32, 32), freeze_norm=True, frozen_stages=2, norm_epsilon=1e-3
    )
    network = _two_joints(config).network()
    variables = jax.jit(network.init)(jax.random.key(1), image, xy, present)
    head = jax.random.normal(jax.random.key(2), variables["params"]["head"]["kernel"].shape)
    variables = variables | {"params": variables["params"] | {"head": {"kernel": head, "bias": jnp.zeros(2)}}}

    @jax.jit
    def step(params):
        def loss(params):
            logits, updated = network.apply(
                variables | {"params": params}, image, xy, present, train=True, mutable=["batch_stats"]
            )
            return (logits**2).sum(), updated

        return jax.grad(loss, has_aux=True)(params)

    gradient, updated = step(variables["params"])
    assert jax.tree.all(jax.tree.map(np.array_equal, updated["batch_stats"], variables["batch_stats"]))
    still = {
        name for name, part in gradient["backbone"].items() if all(not np.any(leaf) for leaf in jax.tree.leaves(part))
    }
    assert still == {"stem", "stem_norm", "stage1_1", "stage2_1", "stage2_2"}


@pytest.mark.slow
def test_forms_of_the_input_pose(small_crops):
    """One-hot maps and Gaussians differ; with none the pose makes no difference, and neither does its absence."""
    image, xy, present = small_crops
    outcomes = {}
    for form in ("gaussian", "one-hot", "none"):
        spec = _two_joints(ModelConfig("resnet18", width=4, head_channels=4, crop_hw=(32, 32), pose_input=form))
        apply = jax.jit(spec.network().apply)
        variables = jax.jit(spec.network().init)(jax.random.key(1), image, xy, present)
        outcomes[form] = [
            apply(variables, image, at, on) for at, on in ((xy, present), (xy + 4, present), (xy, ~present))
        ]
    for form, (here, there, absent) in outcomes.items():
        if form == "none":
            np.testing.assert_array_equal(here, there)
            np.testing.assert_array_equal(here, absent)
        else:
            assert _apart(here, there) > 1e-3 and _apart(here, absent) > 1e-3
    np.testing.assert_array_equal(outcomes["none"][0], outcomes["gaussian"][2])
    assert _apart(outcomes["one-hot"][0], outcomes["gaussian"][0]) > 1e-3


@pytest.mark.parametrize("backbone", ["resnet18", "movenet"])
@pytest.mark.slow
def test_precision_is_a_field_of_the_model(small_crops, backbone):
    """On any backend; `auto` is float32 on a CPU. Weights and logits stay float32."""
    model = ModelConfig(backbone, width=4, head_channels=4, crop_hw=(32, 32))
    networks = {
        name: _two_joints(dataclasses.replace(model, compute_dtype=name)).network()
        for name in ("auto", "float32", "bfloat16")
    }
    variables = jax.jit(networks["auto"].init)(jax.random.key(1), *small_crops)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    programs = {name: str(jax.make_jaxpr(network.apply)(variables, *small_crops)) for name, network in networks.items()}
    assert {name for name, program in programs.items() if "bf16" in program} == {"bfloat16"}
    logits = {name: jax.jit(network.apply)(variables, *small_crops) for name, network in networks.items()}
    assert {array.dtype for array in logits.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(logits["auto"], logits["float32"])
    assert 0 < _apart(logits["bfloat16"], logits["float32"]) < 0.1


@pytest.mark.slow
def test_end_to_end_refines_what_it_estimates(small_crops):
    """The second stage is the plain network, given the first one's soft-argmax; the input pose makes no difference."""
    image, xy, present = small_crops
    config = ModelConfig("resnet18", width=4, head_channels=4, crop_hw=(32, 32))
    spec, both = _two_joints(config), _two_joints(dataclasses.replace(config, end_to_end=True))
    variables = jax.jit(both.network().init)(jax.random.key(1), image, xy, present)
    logits, sown = both.network().apply(variables, image, xy, present, mutable=["intermediates"])
    np.testing.assert_array_equal(logits, both.network().apply(variables, image, xy + 3, ~present))
    stages = [{kind: tree[name] for kind, tree in variables.items()} for name in ("estimator", "refiner")]
    estimated = spec.network().apply(stages[0], image, xy, ~present)
    np.testing.assert_allclose(sown["intermediates"]["estimated"][0], estimated, rtol=1e-3, atol=1e-10)
    heat_xy = jax.vmap(heatmaps.mean_position)(estimated)
    refined = spec.network().apply(stages[1], image, heat_to_crop(heat_xy, 4, "unbiased"), present)
    np.testing.assert_allclose(logits, refined, rtol=1e-3, atol=1e-10)
    assert _apart(refined, estimated) > 1e-3


def _apart(a, b) -> float:
    return float(np.abs(a - b).max() / np.abs(a).max())


def _two_joints(config: ModelConfig) -> RefinerSpec:
    skeleton = Skeleton("two", ("a", "b"), (), (0.1, 0.1), (), ("other", "other"))
    return RefinerSpec(skeleton, config, (True, True))


@pytest.mark.parametrize("size", [(1, 5), (6, 4)])
def test_enlarging_is_bilinear(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    expected = jax.image.resize(x, (2, 2 * size[0], 2 * size[1], 3), "bilinear")
    np.testing.assert_allclose(enlarged(x), expected, atol=1e-6)
