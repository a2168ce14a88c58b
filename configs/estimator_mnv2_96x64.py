"""A small version of the paper's IntegralPose: the refiner's network without input pose, which estimates from boxes.

    posefix train configs/estimator_mnv2_96x64.py

Needs prepared/lspet and prepared/coco (commands: docs/model-card.md) and runs/mobilenet_v2.npz (commands:
configs/lspet_mnv2_128x96.py). The ablations in docs/studies.md start from it.
"""

from posefix_jax.core.augment import AugmentConfig
from posefix_jax.core.models import ModelConfig
from posefix_jax.core.train_step import InputConfig
from posefix_jax.training.config import Config, DataConfig
from posefix_jax.training.optimizer import OptimizerConfig


def config() -> Config:
    return Config(
        out="runs/estimator_mnv2_96x64",
        init="runs/mobilenet_v2.npz",
        epochs=16,
        save_every=200,
        data=DataConfig(train=("prepared/lspet", "prepared/coco"), batch_size=32, threads=2),
        model=ModelConfig(
            backbone="mobilenet_v2", width=32, head_channels=64, skips=True, crop_hw=(96, 64), pose_sigma=3.0
        ),
        augment=AugmentConfig(scale=0.25, rotation=30.0, shift=0.04, colour=0.2),
        inputs=InputConfig(withhold_pose=1.0, box="annotation"),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, average_decay=0.998),
    )
