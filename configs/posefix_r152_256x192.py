"""The paper's ResNet-152 on COCO at 256x192, with the released recipe.

    posefix import resnet resnet152.pth --out runs/resnet152.npz
    posefix train configs/posefix_r152_256x192.py

Data as for configs/posefix_r152_384x288.py. The paper has no test-dev score at this size; its ablation at 256x192 is
configs/posefix_r50_256x192.py. Not trained to completion by us.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.training.config import Config, load_preset


def config() -> Config:
    largest = load_preset(Path(__file__).with_name("posefix_r152_384x288.py"))
    return replace(
        largest,
        out="runs/posefix_r152_256x192",
        model=replace(largest.model, crop_hw=(256, 192), pose_sigma=7.0),
    )
