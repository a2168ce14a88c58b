"""The paper's figure 6 and table 1 in small: forms of input and output, terms of the loss, no input pose, end to end.

    posefix study configs/studies/ablations.py --out runs/study

In the setting of errors.py, whose header says what comes before; in the same folder the runs of `posefix` serve both.
Scores: docs/studies.md.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.losses import LossConfig
from posefix_jax.models import DecodeConfig
from posefix_jax.study import Study
from posefix_jax.types import function_in_file

ERRORS = Path(__file__).with_name("errors.py")


def study() -> Study:
    of_errors = function_in_file(ERRORS, "study")()
    base = of_errors.configs["posefix"]
    coarse = {"loss": LossConfig("gaussian", coordinate=False), "decode": DecodeConfig("argmax")}
    configs = {
        "posefix": base,
        "fine to fine": replace(base, model=replace(base.model, pose_input="one-hot")),
        "coarse to coarse": replace(base, **coarse),
        "heatmap loss only": replace(base, loss=LossConfig(coordinate=False)),
        "coordinate loss only": replace(base, loss=LossConfig("none"), decode=DecodeConfig("soft-argmax")),
        "both, soft-argmax": replace(base, decode=DecodeConfig("soft-argmax")),
        "no input pose": replace(base, model=replace(base.model, pose_input="none")),
        "end to end": replace(base, model=replace(base.model, end_to_end=True)),
    }
    return Study(configs, of_errors.inputs, of_errors.tune)
