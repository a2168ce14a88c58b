"""Which errors to train a refiner with: the paper's, fitted, scalar, Gaussian, real, or none.

    posefix train configs/lspet_mnv2_128x96.py
    posefix analyze fit lspet/detections/movenet_lightning_int8_train.json \
        --annotations lspet/annotations/person_keypoints_train.json --out runs/fitted.json --no-together
    posefix analyze fit lspet/detections/movenet_lightning_int8_train.json \
        --annotations lspet/annotations/person_keypoints_train.json --out runs/correlated.json --offsets
    posefix study configs/studies/errors.py --out runs/study

Every run trains for one epoch from the same small refiner, which was trained with the paper's errors and real ones.
About three minutes per run on 2 CPU cores. Scores, and commands to prepare the folders: docs/studies.md.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.core.train_step import InputConfig
from posefix_jax.training.config import Config, load_preset
from posefix_jax.training.optimizer import OptimizerConfig
from posefix_jax.training.study import Study

INPUTS = {
    "athletes held out, synthetic": ("prepared/lspet-holdout", "synthetic"),
    "athletes held out, Lightning int8": ("prepared/lspet-holdout", "detected"),
    "LSPET val, Lightning int8": ("prepared/lspet-val", "detected"),
    "COCO val, Thunder": ("prepared/coco-val-movenet_thunder", "detected"),
    "COCO val, Lightning int8": ("prepared/coco-val-movenet_lightning_int8", "detected"),
    "COCO val, BlazePose heavy": ("prepared/coco-val-blazepose_heavy", "detected"),
}
TUNE = "athletes held out, Lightning int8"


def base() -> Config:
    before = load_preset(Path(__file__).parents[1] / "lspet_mnv2_128x96.py")
    return replace(
        before,
        init=before.out,
        epochs=1,
        save_every=1000,
        data=replace(before.data, validation=()),
        errors=("posefix",),
        error_weights=(),
        inputs=InputConfig(),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=10, average_decay=0.97),
    )


def study() -> Study:
    errors = {
        "posefix": ("posefix",),
        "fitted": ("runs/fitted.json",),
        "correlated": ("runs/correlated.json",),
        "scalar": ("scalar",),
        "gaussian": ("gaussian",),
        "empirical": ("empirical",),
        "none": ("none",),
    }
    return Study({name: replace(base(), errors=names) for name, names in errors.items()}, INPUTS, TUNE)
