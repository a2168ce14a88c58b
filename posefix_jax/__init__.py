"""PoseFix in JAX: makes the 2D human poses of any estimator better. Names load what they need when first used."""

from importlib import import_module

_HOMES = {
    "Config": "config",
    "COCO": "skeleton",
    "ErrorKind": "types",
    "ErrorModel": "synthesis",
    "PosefixError": "types",
    "Refiner": "refiner",
    "RefinerSpec": "models",
    "Skeleton": "skeleton",
    "synthesize_pose": "synthesis",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
