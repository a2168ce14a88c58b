"""The network, and the spec that says how to run it."""

from posefix_jax.models.refiner import STRIDE, DecodeConfig, ModelConfig, RefinerNetwork, RefinerSpec, compute_dtype

__all__ = ["STRIDE", "DecodeConfig", "ModelConfig", "RefinerNetwork", "RefinerSpec", "compute_dtype"]
