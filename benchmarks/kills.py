"""A training run that is killed again and again (SIGKILL, at random moments of start-up, steps and saves).

    python benchmarks/kills.py PREPARED [--kills 20] [--write]

Its parameters must equal those of an undisturbed run, bit for bit; otherwise the exit code is 1.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from measure import write_result

from posefix_jax.data.pipeline import People
from posefix_jax.runtime.checkpoints import load_refiner

FIELDS = (
    "--save-every 4 --keep 2 --validate-every 1000000 --data.validation --data.batch-size 8 --data.threads 1 "
    "--model.backbone resnet18 --model.width 4 --model.head-channels 4 --model.crop-hw 64 64 --model.pose-sigma 2"
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        preset = Path(folder, "tiny.py")
        preset.write_text("from posefix_jax.training.config import Config\n\n\ndef config():\n    return Config()\n")
        epochs = max(options.steps * 8 // len(People((options.prepared,))), 1)
        command = [sys.executable, "-m", "posefix_jax.cli", "train", str(preset), *FIELDS.split()]
        command += ["--data.train", str(options.prepared), "--epochs", str(epochs)]
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder, "compiled")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        }

        def run(name: str) -> subprocess.Popen:
            quiet = subprocess.DEVNULL
            return subprocess.Popen([*command, "--out", str(Path(folder, name))], env=environment, stderr=quiet)

        assert run("calm").wait() == 0
        process, asked = run("first-save"), time.monotonic()
        while not list(Path(folder, "first-save", "checkpoints").glob("[0-9]*")):
            time.sleep(0.05)
        first_save = time.monotonic() - asked
        process.kill()
        process.wait()

        killed, in_saves, saved_at, before = 0, 0, [], set()
        for _ in range(options.kills):
            process = run("killed")
            try:
                process.wait(moments.uniform(0.3, 1.5) * first_save)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            killed += 1
            names = [path.name for path in Path(folder, "killed", "checkpoints").glob("*")]
            torn = {name for name in names if "tmp" in name}
            in_saves += bool(torn - before)
            before = torn
            saved_at.append(max((int(name) for name in names if name.isdecimal()), default=0))
        assert run("killed").wait() == 0
        parameters = [jax.tree.leaves(load_refiner(Path(folder, name))[0]) for name in ("calm", "killed")]
        same = all(np.array_equal(a, b) for a, b in zip(*parameters, strict=True))
        figures = {"kills": killed, "within_a_save": in_saves, "last_saved_step_at_each_kill": saved_at, "same": same}
    write_result("kills", figures)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
