"""ResNet-50 at 256x192 on COCO with the `modern` recipe: AdamW, cosine, averaged weights, strong augmentation.

    posefix train configs/modern_r50_256x192.py

For 8 GPUs or a TPU slice; not trained to completion by us. The paper's own recipe: configs/posefix_r50_256x192.py.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.core.augment import AugmentConfig
from posefix_jax.core.train_step import InputConfig
from posefix_jax.training.config import Config, load_preset
from posefix_jax.training.optimizer import OptimizerConfig


def config() -> Config:
    paper = load_preset(Path(__file__).with_name("posefix_r50_256x192.py"))
    return replace(
        paper,
        out="runs/modern_r50_256x192",
        augment=AugmentConfig(
            scale=0.3, rotation=45.0, shift=0.05, colour=0.3, erase=0.3, half_body=0.3, full_epochs=125
        ),
        inputs=InputConfig(withhold_pose=0.05, withhold_joint=0.05),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1000),
    )
