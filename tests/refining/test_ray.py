"""Refinement on a Ray cluster of real processes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import COMPILED, detections_of, tree

from posefix_jax.cli import main
from posefix_jax.refining.engine import Refined
from posefix_jax.refining.ray_engine import RayRefiner
from posefix_jax.refining.refiner import Refiner
from posefix_jax.runtime.checkpoints import save_refiner

PLAIN = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | COMPILED
"""Without the eight simulated devices of the tests."""


@pytest.fixture(scope="module")
def checkpoint(tiny_spec, tmp_path_factory) -> Path:
    h, w = tiny_spec.model.crop_hw
    shapes = np.zeros((1, h, w, 3), np.float32), np.zeros((1, 17, 2), np.float32), np.ones((1, 17), bool)
    folder = tmp_path_factory.mktemp("refiner") / "tiny"
    save_refiner(folder, jax.jit(tiny_spec.network().init)(jax.random.key(0), *shapes), tiny_spec)
    return folder


def job(people, folder: Path, checkpoint: Path, out: str, repeats: int, *more: str) -> list[str]:
    """The command that refines people, in parts of 8 rows."""
    truth, images = people
    rows = sorted(detections_of(truth) * repeats, key=lambda row: row["image_id"])
    (folder / "d.json").write_text(json.dumps(rows))
    command = [sys.executable, "-m", "posefix_jax.cli", "refine", str(folder / "d.json"), "--images", str(images)]
    command += ["--checkpoint", str(checkpoint), "--out", str(folder / out), "--part-rows", "8", "--batch-size", "8"]
    return [*command, *more]


def workers() -> list[int]:
    """The processes of the cluster that refine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"PartWorker" in (process / "cmdline").read_bytes().split(b"\0")[0]:
                found.append(int(process.name))
        except OSError:
            pass
    return found


@pytest.mark.slow
def test_a_worker_that_dies_costs_nothing(people, checkpoint, tmp_path):
    """SIGKILL of one of two in the middle: the bytes are those of one process, and nothing else is left."""
    pytest.importorskip("ray", reason="needs posefix-jax[ray]")
    alone = subprocess.run(
        job(people, tmp_path, checkpoint, "alone.json", 60), env=PLAIN, capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    before = set(tree(tmp_path))
    command = job(people, tmp_path, checkpoint, "r.json", 60, "--engine", "ray", "--workers", "2")
    process = subprocess.Popen(command, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parts, end = tmp_path / "r.json.parts", time.monotonic() + 200
    while process.poll() is None and len(list(parts.glob("*.part"))) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    first = workers()
    assert process.poll() is None and first, "it was done before a worker could be killed"
    os.kill(first[0], signal.SIGKILL)
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "alone.json").read_bytes()
    assert set(tree(tmp_path)) - before == {"r.json", "r.json.report.json"}
    report = json.loads((tmp_path / "r.json.report.json").read_text())
    assert (report["rows"], report["refined"]) == (360, 360)


def test_batches_of_a_dataset(people, checkpoint):
    """The class that `map_batches` makes an actor of: what `Refiner` gives, in the columns of the batch."""
    truth, images = people
    rows = detections_of(truth)
    names = np.array([str(images / f"{row['image_id']:012d}.png") for row in rows])
    given = np.array([row["keypoints"] for row in rows])
    done = RayRefiner(str(checkpoint), batch_size=8)({"image": names, "keypoints": given, "row": np.arange(len(rows))})
    refiner = Refiner.load(checkpoint, batch_size=8)
    for name, pose, refined, quality in zip(names, given, done["keypoints"], done["quality"], strict=True):
        expected = refiner.refine(str(name), pose.reshape(1, 17, 3))
        assert isinstance(expected, Refined)
        np.testing.assert_allclose(refined.reshape(17, 3), expected.poses[0], atol=1e-3)
        assert quality == pytest.approx(expected.quality[0], abs=1e-4)
    assert done["row"].tolist() == list(range(len(rows)))


@pytest.mark.parametrize(
    "more, match",
    [
        (["--address", "auto"], "--address and --workers go with --engine ray"),
        (["--workers", "2"], "--address and --workers go with --engine ray"),
        (["--engine", "ray", "--shard", "0/2"], "divides the job by itself"),
    ],
)
def test_options_that_do_not_go_together(more, match, tmp_path, capsys):
    arguments = ["refine", str(tmp_path / "d.json"), "--images", str(tmp_path), "--out", str(tmp_path / "r.json")]
    assert main([*arguments, *more]) == 2
    assert match in capsys.readouterr().err
