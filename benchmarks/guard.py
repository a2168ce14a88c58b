"""Checks in one minute that a change did not slow things down on a CPU. Compares ratios with the last recorded ones.

    python benchmarks/guard.py [--write]

`--write` records them in benchmarks/results/guard.jsonl. Each figure is a ratio within this run, comparable between
machines: the time of a large matrix product over that of the network's programs, of the bare forward pass over
refinement end to end, and of starting Python over starting the command. Look into any `now/kept` below 0.8; on a shared
machine timings vary by a tenth.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import seconds, write_result
from peer import ours

from posefix_jax.cli import use_huge_pages
from posefix_jax.refining.refiner import Refiner


def programs() -> dict:
    """A product of two 2048 x 2048 matrices over the forward pass and the training step of ResNet-18, batch 8."""
    matrix, product = jnp.ones((2048, 2048)), jax.jit(jnp.matmul)

    def ratio(run) -> float:
        return min(seconds(lambda: product(matrix, matrix), repeats=3)) / np.mean(seconds(run, repeats=3))

    found = ours(argparse.Namespace(backbones=["resnet18"], crop=(256, 192), batch=8, xla_defaults=False))
    return {
        f"product_over_{name}": float(np.median([ratio(run) for _ in range(3)])) for name, (run, _) in found.items()
    }


def refinement() -> dict:
    """The forward pass of the packaged refiner on given crops, over refining poses of a given photograph."""
    refiner = Refiner.load(batch_size=16)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (480, 640, 3), np.uint8)
    poses = np.concatenate([rng.uniform(100, 400, (64, 17, 2)), np.ones((64, 17, 1))], axis=2)
    crops = [refiner.engine.crop(image, pose) for pose in poses[:16]]
    bare = min(seconds(lambda: refiner.engine.send(crops)[1], repeats=3)) / 16
    begun = time.perf_counter()
    for _ in refiner.stream(((i, pose) for i, pose in enumerate(poses)), lambda name: image):
        pass
    whole = (time.perf_counter() - begun) / len(poses)
    return {"refine_over_forward": bare / whole}


def start() -> dict:
    """Seconds of starting Python, over those of `posefix --help`."""

    def of(*arguments: str) -> float:
        def run():
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

        return min(seconds(run, repeats=3))

    return {"help_over_python": of("-c", "pass") / of("-m", "posefix_jax.cli", "--help")}


def main() -> None:
    figures = {name: round(value, 3) for name, value in (programs() | refinement() | start()).items()}
    kept = Path(__file__).parent / "results" / "guard.jsonl"
    before = json.loads(kept.read_text().splitlines()[-1]) if kept.exists() else {}
    for name, value in figures.items():
        was = f"{before[name]:8.3f} kept, now/kept {value / before[name]:.2f}" if name in before else ""
        print(f"{name:24s} {value:8.3f}  {was}", file=sys.stderr)
    write_result("guard", figures)


if __name__ == "__main__":
    use_huge_pages()
    main()
