"""Synthetic poses a second on one core, over the released sampler's rate on one core of the same kind of machine.

    python benchmarks/synthesis.py [--write]

The bar is 100 times.
"""

import os

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before jax starts its threads

import jax
import jax.numpy as jnp
import numpy as np
from measure import seconds, write_result

from posefix_jax.skeleton import COCO
from posefix_jax.synthesis import PAPER, synthesize_pose

RELEASED = {
    "17 joints alone": (17, 0, 78),
    "9 joints, 2 neighbours": (9, 2, 33),
    "12 joints, 5 neighbours": (12, 5, 12),
}
"""case: labelled joints, neighbours, poses a second of the released sampler (TensorFlow 1 code, one core, measured on
an idle machine of this size)"""
BATCH = 4096


def rate(labelled: int, neighbours: int) -> list[float]:
    rng = np.random.default_rng(0)
    xy = jnp.asarray(rng.uniform((60, 60), (130, 200), (17, 2)), jnp.float32)
    others = jnp.asarray(rng.uniform((60, 60), (130, 200), (neighbours, 17, 2)), jnp.float32)

    @jax.jit
    def draw(keys, xy, others):
        on = jnp.arange(17) < labelled
        return jax.vmap(
            lambda key: synthesize_pose(
                key,
                xy,
                on,
                others_xy=others,
                others_labelled=jnp.ones((neighbours, 17), bool),
                area=jnp.float32(20000),
                skeleton=COCO,
                errors=PAPER,
            )
        )(keys)

    keys = jax.random.split(jax.random.key(0), BATCH)
    return [BATCH / s for s in seconds(lambda: draw(keys, xy, others))]


if __name__ == "__main__":
    figures = {}
    for name, (labelled, neighbours, released) in RELEASED.items():
        rates = rate(labelled, neighbours)
        figures[name] = {
            "poses_per_second": round(float(np.median(rates))),
            "spread": [round(min(rates)), round(max(rates))],
            "released": released,
            "ratio": round(float(np.median(rates)) / released, 1),
        }
    write_result("synthesis", figures)
