"""Synthetic poses per second on one core, and their ratio to the released sampler's rate on the same kind of machine.

    python benchmarks/synthesis.py [--write]

The target is 100 times its rate. Also measures every other variant, with 9 joints and 2 neighbors, and an error model
with everything that can be fitted.
"""

import os
from dataclasses import replace

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before jax starts its threads

import jax
import jax.numpy as jnp
import numpy as np
from measure import seconds, write_result

from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.synthesis import ERROR_MODELS, PAPER, VARIANTS, Person, Synthesizer, from_model, make_synthesizer

RELEASED = {
    "17 joints alone": (17, 0, 78),
    "9 joints, 2 neighbors": (9, 2, 33),
    "12 joints, 5 neighbors": (12, 5, 12),
}
"""case: labelled joints, neighbors, and poses per second of the released sampler (TensorFlow 1 code, one core of an
idle machine of this size)"""
BATCH = 4096


FITTED = replace(
    PAPER,
    together=((0.05, 0.1), (0.5, 0.1), (0.1, 0.1), (0.4, 0.2)),
    lengths=(("other", tuple(tuple(np.linspace(0, 1, 17) ** 2) for _ in range(5))),),
)


def rate(synthesize: Synthesizer, labelled: int, neighbors: int) -> list[float]:
    rng = np.random.default_rng(0)
    xy = jnp.asarray(rng.uniform((60, 60), (130, 200), (17, 2)), jnp.float32)
    person = Person(
        xy=xy,
        labelled=jnp.arange(17) < labelled,
        others_xy=jnp.asarray(rng.uniform((60, 60), (130, 200), (neighbors, 17, 2)), jnp.float32),
        others_labelled=jnp.ones((neighbors, 17), bool),
        others_area=jnp.full(neighbors, 20000.0),
        area=jnp.float32(20000),
        overlap=jnp.int32(neighbors),
        detected_xy=xy[None] + 3,
        detected=jnp.ones((1, 17), bool),
    )
    draw = jax.jit(jax.vmap(synthesize, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(0), BATCH)
    return [BATCH / s for s in seconds(lambda: draw(keys, person))]


def figures_of(rates: list[float]) -> dict:
    return {"poses_per_second": round(float(np.median(rates))), "spread": [round(min(rates)), round(max(rates))]}


if __name__ == "__main__":
    figures = {}
    paper = from_model(PAPER, COCO)
    for name, (labelled, neighbors, released) in RELEASED.items():
        figures[name] = figures_of(rate(paper, labelled, neighbors)) | {"released": released}
        figures[name]["ratio"] = round(figures[name]["poses_per_second"] / released, 1)
    variants = {name: make_synthesizer((name,), (), COCO) for name in (*ERROR_MODELS, *VARIANTS)}
    for name, synthesize in {**variants, "correlated, with lengths": from_model(FITTED, COCO)}.items():
        figures[name] = figures_of(rate(synthesize, 9, 2))
    write_result("synthesis", figures)
