"""The paper's figure 6 and table 1 at a small size: forms of input and output, loss terms, no input pose, end to end.

    posefix train configs/estimator_mnv2_96x64.py
    posefix study configs/studies/ablations.py --out runs/ablations

Every run trains for two epochs from the same estimator, which never saw an input pose. About three minutes per run on 2
CPU cores. Scores, and commands to prepare the folders: docs/studies.md.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.core.losses import LossConfig
from posefix_jax.core.models import DecodeConfig
from posefix_jax.core.train_step import InputConfig
from posefix_jax.training.config import load_preset
from posefix_jax.training.optimizer import OptimizerConfig
from posefix_jax.training.study import Study
from posefix_jax.types import function_in_file


def study() -> Study:
    estimator = load_preset(Path(__file__).parents[1] / "estimator_mnv2_96x64.py")
    base = replace(
        estimator,
        init=estimator.out,
        epochs=2,
        save_every=1000,
        inputs=InputConfig(),
        optimizer=OptimizerConfig(learning_rate=8e-4, warmup_steps=20, average_decay=0.98),
    )
    coarse = {"loss": LossConfig("gaussian", coordinate=False), "decode": DecodeConfig("argmax")}
    mean = {"decode": DecodeConfig("soft-argmax")}
    configs = {
        "coarse to fine": base,
        "fine to fine": replace(base, model=replace(base.model, pose_input="one-hot")),
        "coarse to coarse": replace(base, **coarse),
        "heatmap loss only": replace(base, loss=LossConfig(coordinate=False)),
        "coordinate loss only": replace(base, loss=LossConfig("none"), **mean),
        "no input pose": replace(base, model=replace(base.model, pose_input="none")),
        "end to end": replace(base, model=replace(base.model, end_to_end=True)),
    }
    of_errors = function_in_file(Path(__file__).with_name("errors.py"), "study")()
    return Study(configs, of_errors.inputs, of_errors.tune)
