"""Second half of the shipped refiner: the first half's network, finer, at 160x128, the rate falling to 0.

    posefix train configs/lspet_r18_160x128.py

Starts from runs/lspet_r18_128x96, which configs/lspet_r18_128x96.py trains. Time and scores: docs/model-card.md.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.config import Config, load_preset
from posefix_jax.optimizer import OptimizerConfig


def config() -> Config:
    coarse = load_preset(Path(__file__).with_name("lspet_r18_128x96.py"))
    return replace(
        coarse,
        out="runs/lspet_r18_160x128",
        init=coarse.out,
        epochs=5,
        model=replace(coarse.model, crop_hw=(160, 128), pose_sigma=4.5),
        optimizer=OptimizerConfig(learning_rate=4e-4, warmup_steps=50, average_decay=0.998),
    )
