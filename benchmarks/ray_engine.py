"""People per second by `posefix refine --engine ray` on this machine, with 1, 2 and 4 workers, relative to one process without ray.

    python benchmarks/ray_engine.py DETECTIONS.json IMAGES [--people 3000] [--write]

The network is small (ResNet-18 of width 4 on crops of 64x64) and not trained: reading, decoding and writing count, not
poses. `rate` is between a process's first and its last part, of all together; `whole` is the command from start to end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detections", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--people", type=int, default=3000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = json.loads(options.detections.read_text())
        rows = (rows * -(-options.people // len(rows)))[: options.people]
        (folder / "d.json").write_text(json.dumps(sorted(rows, key=lambda row: row["image_id"])))
        save_small(folder / "refiner")
        figures = {"alone": run(options, folder, "alone")}
        for workers in (1, 2, 4):
            more = ["--engine", "ray", "--workers", str(workers)]
            figures[f"ray, {workers}"] = run(options, folder, f"ray{workers}", *more)
            same = (folder / f"ray{workers}.json").read_bytes() == (folder / "alone.json").read_bytes()
            figures[f"ray, {workers}"]["same_bytes"] = same
    write_result("ray_engine", {"people": options.people, **figures})


def save_small(folder: Path) -> None:
    """A small refiner, as it is initialized."""
    import jax
    import numpy as np

    from posefix_jax.core.joint_sets import COCO
    from posefix_jax.core.models import ModelConfig, RefinerSpec
    from posefix_jax.runtime.checkpoints import save_refiner

    spec = RefinerSpec(
        COCO, ModelConfig("resnet18", width=4, head_channels=4, crop_hw=(64, 64), pose_sigma=2), (True,) * 17
    )
    h, w = spec.model.crop_hw
    example = np.zeros((1, h, w, 3), np.float32), np.zeros((1, 17, 2), np.float32), np.ones((1, 17), bool)
    save_refiner(folder, jax.jit(spec.network().init)(jax.random.key(0), *example), spec)


def run(options: argparse.Namespace, folder: Path, name: str, *more: str) -> dict:
    """One job: people per second of the whole command, and while parts appear."""
    out, parts = folder / f"{name}.json", folder / f"{name}.json.parts"
    command = [
        sys.executable,
        "-m",
        "posefix_jax.cli",
        "refine",
        str(folder / "d.json"),
        "--images",
        str(options.images),
    ]
    command += ["--checkpoint", str(folder / "refiner"), "--out", str(out), "--part-rows", "64", "--no-check", *more]
    begun, seen = time.perf_counter(), []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=os.environ)
    while process.poll() is None:
        count = len(list(parts.glob("*.part"))) if parts.is_dir() else 0
        if count and (not seen or count > seen[-1][1]):
            seen.append((time.perf_counter(), count))
        time.sleep(0.02)
    assert process.returncode == 0, process.stderr.read()
    whole = time.perf_counter() - begun
    (first, some), (last, all_of) = seen[0], seen[-1]
    rate = 64 * (all_of - some) / max(last - first, 1e-6)
    return {"rate": round(rate, 1), "whole": round(options.people / whole, 1), "seconds": round(whole, 1)}


if __name__ == "__main__":
    main()
