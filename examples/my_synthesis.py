"""A synthesis variant of one's own: something hides part of the person.

    posefix synthesize --data prepared/coco --errors examples/my_synthesis.py --preview sheet.png
    posefix train configs/posefix_r50_256x192.py --errors posefix examples/my_synthesis.py --error-weights 0.7 0.3

Joints in a disc around one joint are hidden: the estimator misses them, or guesses that they are near the edge of the disc.
All other joints have the paper's errors.
"""

import jax
import jax.numpy as jnp

from posefix_jax import ErrorKind
from posefix_jax.core.synthesis import PAPER, SyntheticPose, from_model

RADIUS = (0.2, 0.6)
"""of the disc, in square roots of the person's area"""
MISSING = 0.5
"""share of the hidden joints that the estimator leaves out"""


def synthesizer(skeleton):
    """Called once per run, with the skeleton of the training data."""
    papers_errors = from_model(PAPER, skeleton)

    def synthesize(key, person):
        """Runs inside the jitted training step, for one person; training applies `vmap`."""
        error_key, center_key, radius_key, missing_key, angle_key = jax.random.split(key, 5)
        xy, present, kind = papers_errors(error_key, person)

        center = jax.random.categorical(center_key, jnp.where(person.labelled, 0.0, -jnp.inf))
        center_xy = person.xy[center][None]
        radius = jnp.sqrt(person.area) * jax.random.uniform(radius_key, minval=RADIUS[0], maxval=RADIUS[1])
        hidden = person.labelled & (jnp.linalg.norm(person.xy - center_xy, axis=-1) < radius)

        joints = person.labelled.shape
        missing = hidden & (jax.random.uniform(missing_key, joints) < MISSING)
        angle = jax.random.uniform(angle_key, joints, maxval=2 * jnp.pi)
        edge = center_xy + radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        xy = jnp.where(hidden[:, None], edge, xy)
        return SyntheticPose(
            jnp.where(missing[:, None], 0.0, xy),
            present & ~missing,
            jnp.where(missing, int(ErrorKind.ABSENT), jnp.where(hidden, int(ErrorKind.MISS), kind)),
        )

    return synthesize
