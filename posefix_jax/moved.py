"""Keeps presets and scripts working that import modules by the names they had before the package had folders.

Imports little, since every start of the command imports it.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

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


class MovedModules:
    """An import hook (finder and loader): `import posefix_jax.OLD` gives the module `posefix_jax.NEW` itself."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Finds old names and their submodules only."""
        return ModuleSpec(fullname, self) if _now(fullname) else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """The default: an empty module, which `exec_module` replaces."""

    def exec_module(self, module: object) -> None:
        """Puts the module of the new name into the place of the empty one."""
        name = getattr(module, "__name__", "")
        sys.modules[name] = import_module(_now(name) or "")


def _now(fullname: str) -> str | None:
    package, _, name = fullname.partition(".")
    first, dot, rest = name.partition(".")
    return f"{package}.{MOVED[first]}{dot}{rest}" if package == "posefix_jax" and first in MOVED else None
