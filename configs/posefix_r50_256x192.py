"""The paper's ablation network on COCO, with the released recipe: ResNet-50 at 256x192.

    posefix import resnet resnet50.pth --out runs/resnet50.npz
    posefix train configs/posefix_r50_256x192.py

Data as for configs/posefix_r152_384x288.py. The paper's val AP: 72.1 on CPN's poses (+2.4). Not trained to completion by us.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.training.config import Config, load_preset


def config() -> Config:
    largest = load_preset(Path(__file__).with_name("posefix_r152_384x288.py"))
    return replace(
        largest,
        out="runs/posefix_r50_256x192",
        init="runs/resnet50.npz",
        model=replace(largest.model, backbone="resnet50", crop_hw=(256, 192), pose_sigma=7.0),
    )
