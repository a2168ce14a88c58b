"""Keeps presets and scripts working that import modules by the names they had before the package had folders."""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "augment": "core.augment",
    "config": "training.config",
    "losses": "core.losses",
    "models": "core.models",
    "optimizer": "training.optimizer",
    "refiner": "refining.refiner",
    "skeleton": "core.joint_sets",
    "step": "core.train_step",
    "study": "training.study",
    "synthesis": "core.synthesis",
}
"""Old name to new name, of modules that presets, study files and synthesis variants import."""


class MovedModules(MetaPathFinder, Loader):
    """An import hook: `import posefix_jax.OLD` gives the module `posefix_jax.NEW` itself, as for its submodules."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if _now(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(_now(module.__name__) or "")


def _now(fullname: str) -> str | None:
    package, _, name = fullname.partition(".")
    first, dot, rest = name.partition(".")
    return f"{package}.{MOVED[first]}{dot}{rest}" if package == "posefix_jax" and first in MOVED else None
