"""First half of the shipped refiner: ResNet-18 from scratch at 128x96, the paper's errors and real ones.

    posefix train configs/lspet_r18_128x96.py

Needs prepared/lspet and prepared/coco (docs/model-card.md has the commands). Time and scores: docs/model-card.md.
"""

from posefix_jax.augment import AugmentConfig
from posefix_jax.config import Config, DataConfig
from posefix_jax.models import ModelConfig
from posefix_jax.optimizer import OptimizerConfig
from posefix_jax.step import InputConfig


def config() -> Config:
    return Config(
        out="runs/lspet_r18_128x96",
        epochs=12,
        save_every=200,
        validate_every=400,
        data=DataConfig(
            train=("prepared/lspet", "prepared/coco"),
            validation=("prepared/lspet-holdout",),
            batch_size=32,
            threads=2,
        ),
        model=ModelConfig(backbone="resnet18", head_channels=128, crop_hw=(128, 96), pose_sigma=3.5),
        augment=AugmentConfig(shift=0.05, colour=0.2),
        inputs=InputConfig(detected_share=0.3, withhold_pose=0.1, withhold_joint=0.05),
        optimizer=OptimizerConfig(learning_rate=1e-3, average_decay=0.998),
    )
