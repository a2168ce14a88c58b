"""Shared by the benchmarks: timing with its spread, and a results file with date, device and command."""

import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def seconds(run: Callable[[], object], *, repeats: int = 5) -> list[float]:
    """Seconds of each of `repeats` runs, after one to warm up; waits for the devices."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times


def peak_rates(dtype: DTypeLike) -> tuple[float, float]:
    """The rates that the device reaches now: operations per second of a large matrix product, bytes per second of a copy."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    operations = 2 * size**3 / min(seconds(lambda: product(matrix, matrix), repeats=3))
    large = jnp.ones(2**27, "uint8")
    return operations, 2 * large.nbytes / min(seconds(lambda: copy(large), repeats=3))


def memory_GiB(program: jax.stages.Compiled) -> float:
    """What a compiled program needs of one device: arguments, results and temporary arrays, donated ones once."""
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (held + memory.temp_size_in_bytes) / 2**30


def _bare(argument: str) -> str:
    """A path's last two parts: results are read on other machines."""
    return "/".join(Path(argument).parts[-2:]) if "/" in argument else argument


def write_result(name: str, figures: dict) -> None:
    """Prints the figures; with `--write` also adds them to benchmarks/results/NAME.jsonl."""
    device = jax.devices()[0]
    line = {
        "date": date.today().isoformat(),
        "device": f"{len(jax.devices())} x {device.device_kind} ({platform.processor() or platform.machine()})",
        "jax": version("jax"),
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *map(_bare, sys.argv[1:])]),
        **figures,
    }
    print(json.dumps(line, indent=1))
    if "--write" in sys.argv:
        path = Path(__file__).parent / "results" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
