"""The paper's network on PoseTrack 2018, with the released recipe: ResNet-152 at 384x288.

    posefix train configs/posetrack_r152_384x288.py

Starts from the COCO run, as in the paper; joints in both skeletons keep their weights. Needs prepared/posetrack and
prepared/posetrack-val, from PoseTrack 2018 files by `posefix prepare`. The paper's val mAP: 70.4 -> 75.0 on the poses
of Simple Baseline (the benchmark's own metric). Not trained to completion by us.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.training.config import Config, load_preset


def config() -> Config:
    largest = load_preset(Path(__file__).with_name("posefix_r152_384x288.py"))
    return replace(
        largest,
        out="runs/posetrack_r152_384x288",
        init=largest.out,
        data=replace(largest.data, train=("prepared/posetrack",), validation=("prepared/posetrack-val",)),
    )
