"""Last part of the shipped refiner: the second half's network at 192x160; COCO's few people weigh more, inputs are poorer.

    posefix train configs/lspet_mnv2_192x160.py

Starts from runs/lspet_mnv2_160x128, which configs/lspet_mnv2_160x128.py trains. Time and scores: docs/model-card.md.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.augment import AugmentConfig
from posefix_jax.config import Config, load_preset
from posefix_jax.optimizer import OptimizerConfig
from posefix_jax.step import InputConfig


def config() -> Config:
    before = load_preset(Path(__file__).with_name("lspet_mnv2_160x128.py"))
    return replace(
        before,
        out="runs/lspet_mnv2_192x160",
        init=before.out,
        epochs=5,
        data=replace(before.data, train=("prepared/lspet", *["prepared/coco"] * 5), labelled_share=0.5),
        augment=AugmentConfig(scale=0.25, rotation=30.0, shift=0.05, colour=0.25, erase=0.3),
        errors=("posefix", "empirical"),
        error_weights=(0.6, 0.4),
        inputs=InputConfig(withhold_pose=0.1, withhold_joint=0.08),
        model=replace(before.model, crop_hw=(192, 160), pose_sigma=5.5),
        optimizer=OptimizerConfig(learning_rate=8e-4, warmup_steps=100, average_decay=0.998),
    )
