"""The paper's ablation network on COCO: ResNet-50 at 256x192, on any number of GPUs or TPU chips.

    posefix train configs/posefix_r50_256x192.py

Needs prepared/coco and prepared/coco-val, made by `posefix prepare` from COCO 2017 keypoints. The paper reports val
AP 72.1 on CPN's poses (+2.4). This preset has not been run to the end by us: no COCO train2017 was at hand.
"""

from posefix_jax.augment import AugmentConfig
from posefix_jax.config import Config, DataConfig
from posefix_jax.models import ModelConfig
from posefix_jax.optimizer import OptimizerConfig


def config() -> Config:
    return Config(
        out="runs/posefix_r50_256x192",
        epochs=140,
        data=DataConfig(train=("prepared/coco",), validation=("prepared/coco-val",), batch_size=128, threads=16),
        model=ModelConfig(backbone="resnet50", crop_hw=(256, 192), pose_sigma=7.0),
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(recipe="reference", learning_rate=5e-4, weight_decay=1e-5),
    )
