"""PoseFix in JAX: makes the 2D human poses of any estimator better. Names load what they need when first used."""

import sys
from importlib import import_module

from posefix_jax.moved import MovedModules

_HOMES = {
    "Config": "training.config",
    "COCO": "core.joint_sets",
    "ErrorKind": "types",
    "ErrorModel": "core.synthesis",
    "PosefixError": "types",
    "Refiner": "refining.refiner",
    "RefinerSpec": "core.models",
    "Skeleton": "core.skeleton",
    "synthesize_pose": "core.synthesis",
}

__all__ = sorted(_HOMES)

sys.meta_path.insert(0, MovedModules())


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
