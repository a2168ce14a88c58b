"""The shipped refiner's longer recipe, for a GPU: MobileNetV2 from ImageNet at 256x192, 150 epochs, people on the device.

    posefix train configs/lspet_mnv2_256x192.py --stop-after 9

Needs runs/mobilenet_v2.npz, prepared/lspet and prepared/coco (docs/model-card.md has the commands) and no network;
stops, saved, after nine minutes, and goes on when called again until it exits with 0. Not yet run to its end.
"""

from posefix_jax.augment import AugmentConfig
from posefix_jax.config import Config, DataConfig
from posefix_jax.models import ModelConfig
from posefix_jax.optimizer import OptimizerConfig
from posefix_jax.step import InputConfig


def config() -> Config:
    return Config(
        out="runs/lspet_mnv2_256x192",
        init="runs/mobilenet_v2.npz",
        epochs=150,
        validate_every=2000,
        data=DataConfig(
            train=("prepared/lspet", "prepared/coco"),
            repeats=(1.0, 5.0),
            validation=("prepared/lspet-holdout",),
            batch_size=128,
            cache="device",
            labelled_share=0.5,
        ),
        model=ModelConfig(
            backbone="mobilenet_v2", width=32, head_channels=128, skips=True, crop_hw=(256, 192), pose_sigma=7.0
        ),
        augment=AugmentConfig(
            scale=0.3, rotation=40.0, shift=0.05, colour=0.3, erase=0.3, half_body=0.15, full_epochs=135
        ),
        errors=("posefix", "empirical"),
        error_weights=(0.6, 0.4),
        inputs=InputConfig(withhold_pose=0.1, withhold_joint=0.08),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=500),
    )
