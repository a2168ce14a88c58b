"""Reads other people's weights."""

from posefix_jax.weights.backbone import import_backbone, with_backbone
from posefix_jax.weights.movenet import import_movenet
from posefix_jax.weights.tf_release import import_tf_release, reference_spec, variables_from_tf

__all__ = [
    "import_backbone",
    "import_movenet",
    "import_tf_release",
    "reference_spec",
    "variables_from_tf",
    "with_backbone",
]
