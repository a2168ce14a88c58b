"""What a GPU or TPU at hand makes of this package, in a few minutes and the most telling first.

    python benchmarks/accelerator.py [--minutes 9] [--write] [--only correct peer50 ...] [--train CONFIG [OPTIONS]]

Each part is a process of its own. Its figures are printed, and with `--write` added to benchmarks/results/, as soon as it
ends; what fails or runs out of time says so, and the next part begins:

    correct   loss, gradient and refined poses against the CPU's, in float32 and as the accelerator computes by default
    peer50    ResNet-50 256x192, forward and training step, against torch.compile (benchmarks/peer.py)
    step      people per second and memory of the training step by batch; no transfer between host and device in it
    share     what augmentation, synthesis and rendering take of a training step (benchmarks/train_step.py)
    refine    refinement from files to file over the bare forward pass (benchmarks/refine.py), on photographs drawn here
    peer152   ResNet-152 384x288 as peer50

`--train CONFIG ...` then spends what is left of the time on `posefix train CONFIG ...`, which goes on where it stopped when
it is called again. Needs jax for the accelerator, the package's dependencies, and torch for the peers; no network.
"""

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="in all")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the script itself")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--train", nargs=argparse.REMAINDER, help="arguments of `posefix train`")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(HERE), str(ROOT)]
    if options.part:
        PARTS[options.part](options)
        return
    end = time.monotonic() + 60 * options.minutes
    ended = {name: run_part(name, options, end - time.monotonic()) for name in options.only}
    if options.train:
        command = [sys.executable, "-m", "posefix_jax.cli", "train", *options.train]
        ended["train"] = run_for(command, end - time.monotonic())
    print(json.dumps(ended, indent=1))
    sys.exit(any(how != "done" and (name, how) != ("train", "out of time") for name, how in ended.items()))


def run_part(name: str, options: argparse.Namespace, seconds: float) -> str:
    command = [sys.executable, str(HERE / "accelerator.py"), "--part", name]
    command += [flag for flag in ("--write", "--small") if getattr(options, flag[2:])]
    print(f"{name}: {seconds:.0f} s left", file=sys.stderr, flush=True)
    return run_for(command, seconds)


def run_for(command: list[str], seconds: float) -> str:
    """Runs a command for so long at most; says how it ended. A command that is stopped may take 20 s to end in order."""
    if seconds < 20:
        return "no time left"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(seconds - 20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return "out of time"
    return "done" if code == 0 else f"exit code {code}"


def model_of(options: argparse.Namespace, compute_dtype: str = "auto"):
    from posefix_jax.core.models import ModelConfig

    if options.small:
        return ModelConfig("resnet18", width=8, head_channels=8, crop_hw=(64, 64), compute_dtype=compute_dtype)
    return ModelConfig("resnet50", compute_dtype=compute_dtype)


def correct(options: argparse.Namespace) -> None:
    """One training step and one refinement, from the same state and random key, on the CPU and on the accelerator."""
    import jax
    from measure import write_result
    from train_step import random_batch, training

    from posefix_jax.core.refine_step import make_refine_step
    from posefix_jax.runtime.checkpoints import load_refiner
    from posefix_jax.runtime.devices import data_mesh

    variables, packaged = load_refiner()
    variables = jax.tree.map(np.asarray, variables)
    rng = np.random.default_rng(0)
    crops = np.stack([photograph(rng, *packaged.model.crop_hw) for _ in range(8)])
    xy = rng.uniform(0, min(packaged.model.crop_hw), (8, 17, 2)).astype(np.float32)
    present = rng.random((8, 17)) < 0.9

    def outcome(device, dtype: str, precision: str | None) -> tuple[dict, np.ndarray]:
        with jax.default_device(device), jax.default_matmul_precision(precision):
            step, state_on = training(model_of(options, dtype), data_mesh([device]))
            state = jax.tree.map(np.asarray, state_on(data_mesh(jax.devices("cpu")[:1])))  # the same on both
            metrics = step(state, random_batch(4), jax.random.key(0))[1]
            spec = replace(packaged, model=replace(packaged.model, compute_dtype=dtype))
            refined = jax.jit(make_refine_step(spec.network().apply, spec))(variables, crops, xy, present)
            return {name: float(metrics[name]) for name in ("loss", "gradient_norm", "ks_input")}, refined.crop_xy

    true_metrics, true_xy = outcome(jax.devices("cpu")[0], "float32", "highest")
    figures: dict = {"what": "correct", "training": description(options), "refinement": "packaged refiner"}
    for name, dtype, precision in (("float32", "float32", "highest"), ("bfloat16", "bfloat16", None)):
        metrics, found_xy = outcome(jax.devices()[0], dtype, precision)
        away = np.linalg.norm(np.asarray(found_xy) - np.asarray(true_xy), axis=-1)
        figures[name] = {
            f"{key}_differs_by": short(abs(value / true_metrics[key] - 1)) for key, value in metrics.items()
        }
        figures[name] |= {"refined_px_median": short(np.median(away)), "refined_px_most": short(away.max())}
    write_result("accelerator", figures)


def step(options: argparse.Namespace) -> None:
    """The training step as `posefix train` builds it, by people a device."""
    import jax
    from measure import memory_GiB, seconds, write_result
    from train_step import random_batch, training

    from posefix_jax.runtime.devices import data_mesh, replicated, split

    mesh = data_mesh()
    root = jax.device_put(jax.random.key(0), replicated(mesh))
    for each in (2,) if options.small else (32, 128, 256):
        train, state_on = training(model_of(options), mesh)
        state = state_on(mesh)
        batch = jax.device_put(random_batch(each * mesh.size), split(mesh))
        compiled = train.lower(state, batch, root).compile()

        def run(compiled=compiled, batch=batch):
            nonlocal state
            for _ in range(5):
                state, metrics = compiled(state, batch, root)
            return metrics

        run()
        with jax.transfer_guard("disallow"):  # raises at any copy between host and device
            times = seconds(run)
        write_result(
            "accelerator",
            {
                "what": "step",
                "network": description(options),
                "batch_per_device": each,
                "people_per_s_and_device": short(5 * each / float(np.median(times))),
                "spread_ms": [short(1e3 * t / 5) for t in (min(times), max(times))],
                "memory_GiB": short(memory_GiB(compiled)),
                "transfers": "none",
            },
        )


def refine(options: argparse.Namespace) -> None:
    """2,000 people on 250 photographs of 640x480."""
    import cv2

    rng = np.random.default_rng(0)
    count = 20 if options.small else 250
    with tempfile.TemporaryDirectory() as folder:
        images, detections = Path(folder, "images"), Path(folder, "detections.json")
        images.mkdir()
        rows = []
        for number in range(1, count + 1):
            cv2.imwrite(str(images / f"{number:012d}.jpg"), photograph(rng, 480, 640))
            for _ in range(8):
                xy = rng.uniform((0, 0), (440, 280)) + rng.uniform(0, 200, (17, 2))
                keypoints = np.column_stack([xy, np.ones(17)]).round(2)
                rows.append(
                    {"image_id": number, "category_id": 1, "score": 0.9, "keypoints": keypoints.ravel().tolist()}
                )
        detections.write_text(json.dumps(rows))
        another("refine.py", str(detections), str(images), "--rounds", "3", options=options)


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """[H, W, 3] noise about as smooth as photographs are."""
    import cv2

    noise = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 4)
    return cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def peer(backbone: str, crop: tuple[int, int], options: argparse.Namespace) -> None:
    size, batch, rounds = ((64, 64), 2, 1) if options.small else (crop, 32, 3)
    arguments = ["--backbones", "resnet18" if options.small else backbone, "--crop", *map(str, size)]
    arguments += ["--batch", str(batch), "--rounds", str(rounds)]
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.45"  # beside PyTorch
    another("peer.py", *arguments, options=options)


def share(options: argparse.Namespace) -> None:
    another("train_step.py", "--batch", "2" if options.small else "64", options=options)


def another(script: str, *arguments: str, options: argparse.Namespace) -> None:
    """Runs another benchmark."""
    command = [sys.executable, str(HERE / script), *arguments, *(["--write"] if options.write else [])]
    sys.exit(subprocess.run(command, check=False).returncode)


def description(options: argparse.Namespace) -> str:
    model = model_of(options)
    return f"{model.backbone} {model.crop_hw[0]}x{model.crop_hw[1]}"


def short(number: float) -> float:
    """Three digits."""
    return float(f"{number:.3g}")


PARTS = {
    "correct": correct,
    "peer50": functools.partial(peer, "resnet50", (256, 192)),
    "step": step,
    "share": share,
    "refine": refine,
    "peer152": functools.partial(peer, "resnet152", (384, 288)),
}


if __name__ == "__main__":
    main()
