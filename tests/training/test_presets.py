"""Every config and study in configs/: it says how to run it, and its training step traces."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.synthesis import PAPER, make_synthesizer
from posefix_jax.core.train_step import Batch
from posefix_jax.runtime.devices import data_mesh
from posefix_jax.training.config import Config, load_preset
from posefix_jax.training.initial_weights import initial_state
from posefix_jax.training.optimizer import make_optimizer
from posefix_jax.training.train import jitted_step
from posefix_jax.types import function_in_file

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(CONFIGS.glob("*.py"))
STUDIES = sorted((CONFIGS / "studies").glob("*.py"))


def test_every_preset_says_how_to_run_it():
    assert len(PRESETS) >= 9 and len(STUDIES) == 2
    for preset in PRESETS:
        assert f"posefix train configs/{preset.name}" in preset.read_text()
    for study in STUDIES:
        assert f"posefix study configs/studies/{study.name}" in study.read_text()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_traces(preset):
    assert_traces(load_preset(preset))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_traces(path, tmp_path, monkeypatch):
    """Every config of it. The paper's error model stands for those that its header fits."""
    study = function_in_file(path, "study")()
    monkeypatch.chdir(tmp_path)
    for name in {error for config in study.configs.values() for error in config.errors if error.endswith(".json")}:
        assert name in path.read_text()
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(PAPER.to_json())
    # Configs that differ in their errors only have the same step: it is traced once, their synthesizers are all made.
    steps = {dataclasses.replace(config, errors=("posefix",), error_weights=()) for config in study.configs.values()}
    for config in study.configs.values():
        make_synthesizer(config.errors, config.error_weights, COCO)
    for config in steps:
        assert_traces(config)


def assert_traces(config: Config) -> None:
    """The whole training step of a config, by shapes alone."""
    spec = RefinerSpec(COCO, config.model, (True,) * 17, config.decode)
    optimizer = make_optimizer(config.optimizer, 100)
    state = jax.eval_shape(lambda: initial_state(dataclasses.replace(config, init=""), spec, optimizer, data_mesh()))
    b, k = config.data.batch_size, 17
    shapes = Batch(
        *(
            jax.ShapeDtypeStruct((b, *shape), dtype)
            for shape, dtype in (
                ((384, 384, 3), jnp.uint8), ((k, 2), jnp.float32), ((k,), bool), ((4, k, 2), jnp.float32),
                ((4, k), bool), ((4,), jnp.float32), ((), jnp.int32), ((8, k, 2), jnp.float32), ((8, k), bool),
                ((k, 2), jnp.float32), ((k,), bool), ((4,), jnp.float32),
                ((), jnp.float32), ((), jnp.float32), ((), jnp.int32), ((), jnp.int32),
            )
        )
    )  # fmt: skip
    synthesize = make_synthesizer(config.errors, config.error_weights, spec.skeleton)
    step = jitted_step(config, spec, synthesize, optimizer, data_mesh())
    after, metrics = jax.eval_shape(step, state, shapes, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)
    assert set(metrics) >= {"loss", "heatmap", "coordinate", "ks_input", "ks_output"}
