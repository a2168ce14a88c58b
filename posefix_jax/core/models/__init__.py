"""The refiner network, and the spec that a refiner needs to run."""

from posefix_jax.core.models.network import (
    STRIDE,
    DecodeConfig,
    ModelConfig,
    RefinerNetwork,
    RefinerSpec,
)

__all__ = ["STRIDE", "DecodeConfig", "ModelConfig", "RefinerNetwork", "RefinerSpec"]
