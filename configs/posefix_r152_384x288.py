"""The paper's largest network on COCO, with the released recipe: ResNet-152 at 384x288, for GPUs or TPUs.

    posefix import resnet resnet152.pth --out runs/resnet152.npz
    posefix train configs/posefix_r152_384x288.py

Needs prepared/coco and prepared/coco-val, from COCO 2017 keypoints by `posefix prepare`. The paper's test-dev AP: 71.1
-> 73.6 on the poses of Simple Baseline R152, 68.6 -> 71.8 on those of CPN R50. Not trained to completion by us: COCO train2017 was
not available.
"""

from posefix_jax.core.models import DecodeConfig, ModelConfig
from posefix_jax.core.train_step import InputConfig
from posefix_jax.training.config import Config, DataConfig
from posefix_jax.training.optimizer import OptimizerConfig


def config() -> Config:
    return Config(
        out="runs/posefix_r152_384x288",
        init="runs/resnet152.npz",
        epochs=140,
        data=DataConfig(train=("prepared/coco",), validation=("prepared/coco-val",), batch_size=128, threads=16),
        # The released amplitude is 255, for images in 0..255. Ours are divided by ImageNet's standard deviation, about 58.
        model=ModelConfig(
            backbone="resnet152", crop_hw=(384, 288), frame="reference", pose_sigma=9.0, pose_amplitude=4.4
        ),
        inputs=InputConfig(box="annotation"),
        optimizer=OptimizerConfig(recipe="reference", learning_rate=5e-4, weight_decay=1e-5),
        decode=DecodeConfig(method="soft-argmax"),
    )
