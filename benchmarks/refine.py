"""Refinement from files to file, relative to the bare compiled forward pass (flip included), in crops per second.

    python benchmarks/refine.py DETECTIONS.json IMAGES [--write] [--checkpoint RUN] [--rounds 5]

The two alternate; the ratio is the median of the rounds. The goal is 0.9. `--host` measures what a core of the host does
instead: milliseconds to read, to decode and to cut crops, without a network.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from measure import seconds, write_result

from posefix_jax.cli import use_huge_pages
from posefix_jax.data.image_sources import Images
from posefix_jax.data.images import decode_image
from posefix_jax.refining.engine import Crop
from posefix_jax.refining.refine_files import RefineOptions, refine_rows
from posefix_jax.refining.refiner import Refiner


def host(detections: Path, images: Path) -> None:
    """Reads and decodes every photograph, and cuts the crops of its people, in one thread."""
    cv2.setNumThreads(1)
    refiner, photographs = Refiner.load(), Images(images)
    by_image: dict = defaultdict(list)
    for row in json.loads(detections.read_text()):
        by_image[row["image_id"]].append(np.reshape(row["keypoints"], (-1, 3)).astype(np.float64))
    spent = dict.fromkeys(("read", "decode", "crop"), 0.0)
    pixels = 0
    for image, poses in by_image.items():
        begun = time.perf_counter()
        data = photographs._bytes(photographs.find(image))
        read = time.perf_counter()
        picture = decode_image(data)
        decoded = time.perf_counter()
        for pose in poses:
            refiner.engine.crop(picture, pose)
        done = time.perf_counter()
        pixels += picture.shape[0] * picture.shape[1]
        for what, of in zip(spent, (read - begun, decoded - read, done - decoded), strict=True):
            spent[what] += of
    count, people = len(by_image), sum(map(len, by_image.values()))
    figures = {f"ms_to_{what}_per_photograph": round(1e3 * of / count, 3) for what, of in spent.items()}
    figures |= {"people_per_photograph": round(people / count, 2), "pixels": round(pixels / count)}
    write_result("refine", {**figures, "people_per_core_and_s": round(people / sum(spent.values()))})


def main() -> None:
    detections, images = map(Path, sys.argv[1:3])
    if "--host" in sys.argv:
        return host(detections, images)
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
