"""People per second by `posefix refine --engine ray` on this machine, with 1, 2 and 4 workers, relative to one process without ray.

    python benchmarks/ray_engine.py DETECTIONS.json IMAGES [--people 8000] [--rounds 3] [--write]

The network is small (ResNet-18 of width 4 on crops of 64x64) and not trained, and each process decodes in one thread, so that
one does not fill two cores. Runs alternate; figures are medians of the rounds:

- `rate`: people per second in the second half of a job, when all workers have started, with the lowest and highest;
- `seconds`: of the whole command; `first`: until the first part; `cpu`: processor time of all its processes;
- `overhead`: the share of the rate that ray with one worker lacks to one process, and the processor time that it adds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import write_result

PART = 64
"""Rows per part."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detections", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--people", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    kinds = {"alone": []} | {f"ray, {n}": ["--engine", "ray", "--workers", str(n)] for n in (1, 2, 4)}
    runs: dict[str, list[dict]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = json.loads(options.detections.read_text())
        (folder / "d.json").write_text(json.dumps((rows * -(-options.people // len(rows)))[: options.people]))
        save_small(folder / "refiner")
        run(options, folder, "warm")  # compiles
        for i in range(options.rounds):
            for kind, more in kinds.items():
                runs[kind].append(run(options, folder, f"{kind}{i}", *more))
                print(kind, runs[kind][-1], file=sys.stderr, flush=True)
        outputs = {path.read_bytes() for path in folder.glob("*.json") if path.suffixes == [".json"]}
    figures: dict[str, dict] = {}
    for kind, of in runs.items():
        median = {key: round(statistics.median(one[key] for one in of), 1) for key in of[0]}
        rates = [one["rate"] for one in of]
        figures[kind] = {**median, "lowest": round(min(rates), 1), "highest": round(max(rates), 1)}
    alone, one = figures["alone"], figures["ray, 1"]
    overhead = {"rate": round(1 - one["rate"] / alone["rate"], 3), "cpu": round(one["cpu"] / alone["cpu"] - 1, 3)}
    load = round(os.getloadavg()[1], 1)
    same = len(outputs) == 2  # the input is one of them
    write_result(
        "ray_engine", {"people": options.people, "load": load, "same_bytes": same, **figures, "overhead": overhead}
    )


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
    """One job, watched from outside."""
    out, parts = folder / f"{name}.json", folder / f"{name}.json.parts"
    command = [sys.executable, "-m", "posefix_jax.cli", "refine", str(folder / "d.json")]
    command += ["--images", str(options.images), "--checkpoint", str(folder / "refiner"), "--out", str(out)]
    command += ["--part-rows", str(PART), "--threads", "1", "--no-check", "--quiet", *more]
    begun, seen, cpu, looked = time.perf_counter(), [], {}, 0.0
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        count = len(list(parts.glob("*.part"))) if parts.is_dir() else 0
        if count and (not seen or count > seen[-1][1]):
            seen.append((time.perf_counter(), count))
        if time.perf_counter() - looked > 0.5:
            cpu, looked = cpu | cpu_seconds(process.pid), time.perf_counter()
        time.sleep(0.05)
    whole = time.perf_counter() - begun
    assert process.returncode == 0, process.stderr.read()
    first, (last, all_of) = seen[0][0], seen[-1]
    middle, some = next(at for at in seen if at[1] >= all_of / 2)
    rate = PART * (all_of - some) / max(last - middle, 1e-6)
    return {"rate": rate, "seconds": whole, "first": first - begun, "cpu": sum(cpu.values())}


def cpu_seconds(root: int) -> dict[int, float]:
    """Processor time so far of a process and its descendants, by process id."""
    parents, spent = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
        spent[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ours, before = {root}, 0
    while len(ours) > before:
        before = len(ours)
        ours |= {process for process, parent in parents.items() if parent in ours}
    return {process: spent[process] for process in ours if process in spent}


if __name__ == "__main__":
    main()
