"""Synthetic pose errors: error models, and one pure function per synthesis variant."""

from posefix_jax.core.synthesis.error_model import ERROR_MODELS, PAPER, SCALAR, ErrorModel, read_error_model
from posefix_jax.core.synthesis.posefix import SyntheticPose, synthesize_pose
from posefix_jax.core.synthesis.variants import (
    VARIANTS,
    Person,
    Synthesizer,
    error_model_of,
    from_model,
    make_synthesizer,
)

__all__ = [
    "ERROR_MODELS",
    "PAPER",
    "SCALAR",
    "VARIANTS",
    "ErrorModel",
    "Person",
    "Synthesizer",
    "SyntheticPose",
    "error_model_of",
    "from_model",
    "make_synthesizer",
    "read_error_model",
    "synthesize_pose",
]
