"""`posefix export`: a program of its own that does what the refiner does."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from posefix_jax.checkpoints import save_refiner
from posefix_jax.cli import main
from posefix_jax.step import make_refine_step


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


def test_no_refiner_there(tmp_path, capsys):
    out = tmp_path / "x.stablehlo"
    assert main(["export", "--checkpoint", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "no such checkpoint folder" in capsys.readouterr().err and not out.exists()
