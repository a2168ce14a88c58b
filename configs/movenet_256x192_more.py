"""The packaged refiner's second stage: the first stage's network, trained on with more people and more withheld poses.

    posefix train configs/movenet_256x192.py
    posefix train configs/movenet_256x192_more.py

Also needs prepared/lspet-more and prepared/coco-more; docs/model-card.md has the commands. 2,514 steps of 16 in 52 minutes on
2 CPU cores that also did other work. Held-out people with stored detections: AP 0.408 at the last step.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.core.train_step import InputConfig
from posefix_jax.training.config import Config, load_preset


def config() -> Config:
    first = load_preset(Path(__file__).with_name("movenet_256x192.py"))
    return replace(
        first,
        out="runs/movenet_256x192_more",
        init="runs/movenet_256x192",
        epochs=4,
        validate_every=630,
        data=replace(
            first.data,
            train=("prepared/lspet", "prepared/lspet-more", "prepared/coco", "prepared/coco-more"),
            repeats=(1.0, 1.0, 4.0, 3.0),
            labelled_share=0.02,
            validation=("prepared/lspet-holdout", "prepared/coco-more-holdout"),
        ),
        inputs=InputConfig(withhold_pose=0.2, withhold_joint=0.08),
    )
