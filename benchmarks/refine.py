"""Refinement from files to file, relative to the bare compiled forward pass (flip included), in crops per second.

    python benchmarks/refine.py DETECTIONS.json IMAGES [--write] [--checkpoint RUN] [--rounds 5]

The two alternate; the ratio is the median of the rounds. The goal is 0.9.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import seconds, write_result

from posefix_jax.cli import use_huge_pages
from posefix_jax.refining.engine import Crop
from posefix_jax.refining.refine_files import RefineOptions, refine_rows
from posefix_jax.refining.refiner import Refiner


def main() -> None:
    detections, images = map(Path, sys.argv[1:3])
    checkpoint = sys.argv[sys.argv.index("--checkpoint") + 1] if "--checkpoint" in sys.argv else None
    rounds = int(sys.argv[sys.argv.index("--rounds") + 1]) if "--rounds" in sys.argv else 5
    refiner = Refiner.load(checkpoint)
    model, size = refiner.spec.model, refiner.batch_size
    rng = np.random.default_rng(0)
    crop = Crop(
        rng.integers(0, 255, (*model.crop_hw, 3), dtype=np.uint8),
        None,
        rng.uniform(0, min(model.crop_hw), (refiner.spec.skeleton.num_joints, 2)).astype(np.float32),
        np.ones(refiner.spec.skeleton.num_joints, bool),
    )
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            bare.append(np.mean(seconds(lambda: refiner.engine.send([crop] * size)[1], repeats=8)) / size)
            options = RefineOptions(detections=(str(detections),), images=str(images), out=Path(folder) / f"{i}.json")
            start = time.perf_counter()
            report = refine_rows(refiner, options)
            whole.append((time.perf_counter() - start) / report["refined"])
    ratios = np.asarray(bare) / np.asarray(whole)
    write_result(
        "refine",
        {
            "network": f"{model.backbone} {model.crop_hw[0]}x{model.crop_hw[1]}, flip",
            "poses": report["refined"],
            "forward_crops_per_second": round(float(1 / np.median(bare)), 1),
            "refine_crops_per_second": round(float(1 / np.median(whole)), 1),
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_spread": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
        },
    )


if __name__ == "__main__":
    use_huge_pages()
    main()
