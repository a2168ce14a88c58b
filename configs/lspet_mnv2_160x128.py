"""Second half of the shipped refiner: the first half's network at 160x128, under augmentation near to what it will see.

    posefix train configs/lspet_mnv2_160x128.py

Starts from runs/lspet_mnv2_128x96, which configs/lspet_mnv2_128x96.py trains. Time and scores: docs/model-card.md.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.augment import AugmentConfig
from posefix_jax.config import Config, load_preset
from posefix_jax.optimizer import OptimizerConfig
from posefix_jax.step import InputConfig


def config() -> Config:
    coarse = load_preset(Path(__file__).with_name("lspet_mnv2_128x96.py"))
    return replace(
        coarse,
        out="runs/lspet_mnv2_160x128",
        init=coarse.out,
        epochs=12,
        augment=AugmentConfig(scale=0.2, rotation=25.0, shift=0.03, colour=0.15),
        errors=("posefix", "empirical"),
        error_weights=(0.7, 0.3),
        inputs=InputConfig(withhold_pose=0.05, withhold_joint=0.03),
        model=replace(coarse.model, crop_hw=(160, 128), pose_sigma=4.5),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50, average_decay=0.998),
    )
