"""What the compilers for TPUs and GPUs say of the steps, where they are installed: they need no such device."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (posefix-jax[tpu])")
def test_a_tpu_compiles_the_training_step():
    """A tiny network on four chips: every part of the step is found, and its collectives."""
    command = [sys.executable, "benchmarks/compiled.py", "train", "--backbone", "resnet18", "--width", "4"]
    command += ["--input", "64x64", "--patch", "96", "--batch", "2"]
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    parts = figures["share_of_cycles"]
    assert {"crop", "synthesis", "network: stem", "network: up", "loss", "optimizer and state"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(1, abs=0.01) and figures["cycles"] > 1e5
    assert figures["collectives"]["all-reduce"]["count"] > 0 and figures["device"].startswith("4 x v5e")
    assert figures["operations"] > 1e8 and figures["memory_GiB"] > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="jax[cuda13] is not installed")
@pytest.mark.parametrize("what", ["train", "refine"])
def test_a_gpu_compiles_the_steps(what):
    command = [sys.executable, "benchmarks/compiled.py", what, "--topology", "h100:1", "--backbone", "resnet18"]
    command += ["--width", "4", "--input", "64x64", "--patch", "96", "--batch", "2"]
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    assert figures["bytes_moved"] > 1e6 and figures["fusions"] > 10 and figures["device"].startswith("1 x h100")
    assert sum(figures["share_of_bytes"].values()) == pytest.approx(1, abs=0.01)
