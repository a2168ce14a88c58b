"""Error models, and one pure function a synthesis variant."""

from posefix_jax.synthesis.error_model import ERROR_MODELS, PAPER, ErrorModel, load_error_model
from posefix_jax.synthesis.posefix import SyntheticPose, synthesize_pose

__all__ = ["ERROR_MODELS", "PAPER", "ErrorModel", "SyntheticPose", "load_error_model", "synthesize_pose"]
