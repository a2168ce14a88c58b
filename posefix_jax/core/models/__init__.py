"""The network, and the spec that says how to run it."""

from posefix_jax.core.models.network import (
    STRIDE,
    DecodeConfig,
    ModelConfig,
    RefinerNetwork,
    RefinerSpec,
)

__all__ = ["STRIDE", "DecodeConfig", "ModelConfig", "RefinerNetwork", "RefinerSpec"]
