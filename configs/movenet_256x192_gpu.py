"""The packaged refiner's recipe for a GPU: all stages trained, 60 epochs, people in device memory, half-body crops.

    posefix train configs/movenet_256x192_gpu.py --stop-after 9

Needs the same prepared folders (shards of at most 34 MB) and runs/movenet_thunder.npz as configs/movenet_256x192.py,
and no internet access. The same command resumes the run. Not trained by us.
"""

from dataclasses import replace
from pathlib import Path

from posefix_jax.core.augment import AugmentConfig
from posefix_jax.training.config import Config, load_preset
from posefix_jax.training.optimizer import OptimizerConfig


def config() -> Config:
    short = load_preset(Path(__file__).with_name("movenet_256x192.py"))
    return replace(
        short,
        out="runs/movenet_256x192_gpu",
        epochs=60,
        save_every=300,
        data=replace(short.data, batch_size=64, threads=8, cache="device"),
        model=replace(short.model, frozen_stages=0),
        augment=AugmentConfig(
            scale=0.25, rotation=30.0, shift=0.05, colour=0.25, erase=0.3, half_body=0.15, full_epochs=45
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.0, warmup_steps=200, average_decay=0.999),
    )
