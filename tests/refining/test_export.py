"""`posefix export`: a program of its own that does what the refiner does."""

from dataclasses import replace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from posefix_jax.cli import main
from posefix_jax.core.refine_step import make_refine_step
from posefix_jax.refining.export import export_program
from posefix_jax.runtime.checkpoints import abstract_variables, load_refiner, save_refiner

pytestmark = pytest.mark.slow


def test_the_written_program_refines_any_number_of_poses(tiny_spec, tmp_path, capsys):
    network = tiny_spec.network()
    inputs = (jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 17, 2)), jnp.zeros((1, 17), bool))
    variables = jax.jit(network.init)(jax.random.key(0), *inputs)
    save_refiner(tmp_path / "refiner", variables, tiny_spec)
    out = tmp_path / "refiner.stablehlo"
    assert main(["export", "--checkpoint", str(tmp_path / "refiner"), "--out", str(out)]) == 0
    assert "crops [b, 64, 64, 3] uint8 RGB" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []

    program = jax.export.deserialize(bytearray(out.read_bytes()))
    assert set(program.platforms) >= {"cpu", "cuda", "tpu"}
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    crop_xy = rng.uniform(0, 64, (5, 17, 2)).astype(np.float32)
    present = rng.random((5, 17)) < 0.8
    ours = jax.jit(make_refine_step(network.apply, tiny_spec))(variables, crops, crop_xy, present)
    theirs = type(ours)(*program.call(crops, crop_xy, present))
    np.testing.assert_allclose(theirs.input_ks, ours.input_ks, atol=1e-3)
    np.testing.assert_allclose(theirs.output_ks, ours.output_ks, atol=1e-3)
    # Places too, but where an untrained map has two that are equally good.
    near = np.abs(np.asarray(theirs.crop_xy) - np.asarray(ours.crop_xy)).max(axis=-1) < 1e-2
    assert near.mean() > 0.9


def test_the_packaged_refiner_is_exported(tmp_path, capsys):
    """As its user would: no options. The command itself compares one person and seven with the original; so does this."""
    out = tmp_path / "x.stablehlo"
    assert main(["export", "--out", str(out)]) == 0
    assert "crops [b, 256, 192, 3] uint8 RGB" in capsys.readouterr().out
    program = jax.export.deserialize(bytearray(out.read_bytes()))
    variables, spec = load_refiner()
    original = jax.jit(make_refine_step(spec.network().apply, spec))
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (7, 256, 192, 3), dtype=np.uint8)
    crop_xy = rng.uniform(0, (192, 256), (7, 17, 2)).astype(np.float32)
    present = rng.random((7, 17)) < 0.9
    ours = original(variables, crops, crop_xy, present)
    theirs = type(ours)(*program.call(crops, crop_xy, present))
    np.testing.assert_allclose(theirs.output_ks, ours.output_ks, atol=1e-4)
    np.testing.assert_allclose(theirs.input_ks, ours.input_ks, atol=1e-4)
    near = np.abs(np.asarray(theirs.crop_xy) - np.asarray(ours.crop_xy)).max(axis=-1) < 1e-2
    assert near.mean() > 0.9  # but where a map of noise has two places that are equally good


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "movenet", "resnet50"])
def test_every_kind_of_backbone_is_exported(backbone, tiny_spec):
    """Traced with a batch that is a symbol, which no other test does."""
    model = replace(tiny_spec.model, backbone=backbone, width=32 if backbone != "resnet50" else 4, pose_sigma=2.0)
    spec = replace(tiny_spec, model=model)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_variables(spec))
    program = jax.export.deserialize(bytearray(export_program(spec.network().apply, variables, spec)))
    (crops, *_) = program.in_avals
    assert str(crops.shape[0]) == "b"


def test_no_refiner_there(tmp_path, capsys):
    out = tmp_path / "x.stablehlo"
    assert main(["export", "--checkpoint", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "no such checkpoint folder" in capsys.readouterr().err and not out.exists()
