"""The cost of many devices: input, saving, collectives, memory.

    python benchmarks/scaling.py speed PREPARED [--write]     8 simulated devices against 1; input; a save; a host core
    python benchmarks/scaling.py size NETWORK HxW [--batch 32] [--write]     memory and collectives of 8 devices

`speed` runs the tiny network defined below; `size` only compiles.
"""

import argparse
import os
import re
import tempfile
import time

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import numpy as np
from measure import write_result
from train_step import batch_shapes

from posefix_jax.cli import use_huge_pages
from posefix_jax.core.augment import AugmentConfig
from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.models import ModelConfig, RefinerSpec
from posefix_jax.core.synthesis import make_synthesizer
from posefix_jax.core.train_step import InputConfig
from posefix_jax.data.pipeline import People, to_arrays
from posefix_jax.runtime.checkpoints import Checkpointer
from posefix_jax.runtime.devices import data_mesh
from posefix_jax.training.config import Config, DataConfig
from posefix_jax.training.feed import Feed
from posefix_jax.training.initial_weights import initial_state
from posefix_jax.training.optimizer import OptimizerConfig, make_optimizer
from posefix_jax.training.train import jitted_step

TINY = ModelConfig("resnet18", width=16, head_channels=32, crop_hw=(128, 96), pose_sigma=3.5)
BATCH, STEPS = 32, 20


def build(config: Config, spec: RefinerSpec, mesh):
    """Optimizer and jitted step of a run over the mesh, as in `posefix train`."""
    optimizer = make_optimizer(config.optimizer, 1000)
    synthesize = make_synthesizer(config.errors, config.error_weights, spec.skeleton)
    return optimizer, jitted_step(config, spec, synthesize, optimizer, mesh)


def per_step(state, step, batches, steps=STEPS) -> tuple[float, object]:
    """Seconds per step after two warm-up steps, and the final state."""
    root = jax.random.key(0)
    for _ in range(2):
        state, metrics = step(state, next(batches), root)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, next(batches), root)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - start) / steps, state


def speed(prepared: str) -> dict:
    people = People((prepared,))
    data = DataConfig(train=(prepared,), batch_size=BATCH, threads=2)
    config = Config(data=data, model=TINY, augment=AugmentConfig(shift=0.04, colour=0.2))
    spec = RefinerSpec(people.skeleton, TINY, (True,) * people.skeleton.num_joints)
    figures = {"network": f"resnet18/4 {TINY.crop_hw}", "batch": BATCH, "patch": people.patch}
    seconds = {}
    for devices in (1, 8):
        mesh = data_mesh(jax.devices()[:devices])
        optimizer, step = build(config, spec, mesh)
        state = initial_state(config, spec, optimizer, mesh)
        feed = Feed(mesh, people, data, seed=0, start=0)
        held = next(feed)
        seconds[devices], state = per_step(state, step, iter(lambda held=held: held, None))
        if devices == 1:
            fed, state = per_step(state, step, feed)
            figures["fed_over_held_batches"] = round(fed / seconds[1], 3)
            cached = Feed(mesh, people, DataConfig(**(vars(data) | {"cache": "device"})), seed=0, start=0)
            fed, state = per_step(state, step, cached)
            figures["cached_over_held_batches"] = round(fed / seconds[1], 3)
            with tempfile.TemporaryDirectory() as folder:
                from pathlib import Path

                checkpointer = Checkpointer(Path(folder), keep=1)
                jax.block_until_ready(state)
                start = time.perf_counter()
                checkpointer.save(state, {"batch": 1}, spec)
                stall = time.perf_counter() - start
                checkpointer.close()
                figures["save_stall_seconds"] = round(stall, 3)
                figures["save_stall_in_steps"] = round(stall / seconds[1], 2)
                figures["save_whole_seconds"] = round(time.perf_counter() - start, 3)
    figures["eight_devices_over_one"] = round(seconds[8] / seconds[1], 3)
    figures["step_seconds"] = round(seconds[1], 4)
    start = time.perf_counter()
    for i in range(200):
        to_arrays(people, i % len(people), sample=i, epoch=0)
    figures["people_a_second_a_core"] = round(200 / (time.perf_counter() - start), 1)
    return figures


def size(network: str, crop: str, batch: int) -> dict:
    """Of the step over 8 devices: bytes of memory a device, bytes that its all-reduces carry against the ideal."""
    height, width = map(int, crop.split("x"))
    model = ModelConfig(network, crop_hw=(height, width))
    config = Config(model=model, optimizer=OptimizerConfig(average_decay=0.0), inputs=InputConfig())
    spec = RefinerSpec(COCO, model, (True,) * 17)
    mesh = data_mesh()
    optimizer, step = build(config, spec, mesh)
    state = jax.eval_shape(lambda: initial_state(config, spec, optimizer, mesh))
    compiled = step.lower(state, batch_shapes(batch * mesh.size), jax.random.key(0)).compile()
    memory = compiled.memory_analysis()
    carried = reduced_bytes(compiled.as_text())
    ideal = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    statistics = 2 * sum(4 * leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    return {
        "network": f"{network} {crop}",
        "batch_a_device": batch,
        "compute": "float32",
        "state_GiB": round(memory.argument_size_in_bytes / 2**30, 3),
        "activations_GiB": round(memory.temp_size_in_bytes / 2**30, 3),
        "all_reduced_MiB": round(carried / 2**20, 2),
        "of_gradients_MiB": round(ideal / 2**20, 2),
        "of_statistics_MiB": round(statistics / 2**20, 3),
        "all_reduced_over_ideal": round(carried / (ideal + statistics), 4),
    }


def reduced_bytes(hlo: str) -> int:
    """Bytes of all results of collectives in a compiled program."""
    sizes = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "f64": 8}
    total = 0
    pattern = r"= (\(?[^=]*?\)?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    for match in re.finditer(pattern, re.sub(r"/\*.*?\*/", "", hlo)):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match.group(1)):
            total += sizes[kind] * int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64))
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("speed", "size"))
    parser.add_argument("of", nargs="+")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    figures = speed(*options.of) if options.what == "speed" else size(*options.of, options.batch)
    write_result("scaling", figures)


if __name__ == "__main__":
    use_huge_pages()
    main()
