"""The layers: no folder imports from one above it, and some libraries have a single importer."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "posefix_jax"

# From the bottom up: a folder imports only from the floors before its own.
FLOORS = [
    {"types", "moved"},
    {"files"},
    {"core"},
    {"runtime", "report"},
    {"data"},
    {"weights", "evaluation"},
    {"training"},
    {"refining"},
    {"__init__"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
# Within core, from the bottom up.
CORE_FLOORS = [
    {"skeleton", "geometry"},
    {"joint_sets", "taxonomy", "heatmaps", "augment"},
    {"synthesis", "models", "losses"},
    {"decode", "trust"},
    {"refine_step"},
    {"train_step"},
]
CORE_LEVEL = {name: level for level, names in enumerate(CORE_FLOORS) for name in names}
ONLY_IMPORTER = {"tyro": {"cli"}, "flax": {"core.models"}, "orbax": {"runtime.checkpoints"}, "grain": {"data.pipeline"}}
NO_JAX = ["types", "files", "data", "report"]

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down(path):
    here = module_of(path).split(".")
    for name in imports_of(path):
        library, *there = name.split(".")
        for restricted, importers in ONLY_IMPORTER.items():
            allowed = any(".".join(here).startswith(importer) for importer in importers)
            assert library != restricted or allowed, f"{module_of(path)} imports {restricted}"
        if library != "posefix_jax" or not there or there[0] == here[0]:
            if library == "posefix_jax" and here[0] == "core" and len(here) > 1 and here[1] != there[1]:
                assert CORE_LEVEL[there[1]] < CORE_LEVEL[here[1]], f"{module_of(path)} imports {name}"
            continue
        # `from posefix_jax import NAME` is an import of the package itself.
        assert LEVEL.get(there[0], LEVEL["__init__"]) < LEVEL[here[0]], f"{module_of(path)} imports {name}"


def test_every_module_has_a_floor():
    assert {module_of(path).split(".")[0] for path in FILES} == set(LEVEL)


def test_jax_stays_out_of_files_and_reports():
    """Reading a file or drawing a page must not wait for a backend. Grain imports jax itself if it is installed."""
    modules = [module_of(path) for path in FILES if module_of(path).split(".")[0] in NO_JAX]
    modules.remove("data.pipeline")
    code = "import sys, importlib\n"
    code += "".join(f"importlib.import_module('posefix_jax.{module}')\n" for module in modules)
    code += "print([name for name in ('jax', 'flax', 'optax', 'orbax') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_much_over_400_lines():
    assert {
        path.name: len(path.read_text().splitlines()) for path in FILES if len(path.read_text().splitlines()) > 450
    } == {}


def test_old_module_names_give_the_same_modules():
    code = "from posefix_jax.config import Config\nfrom posefix_jax.step import InputConfig\n"
    code += "from posefix_jax.skeleton import COCO, Skeleton, load_skeleton\n"
    code += "from posefix_jax.synthesis.error_model import ErrorModel\n"
    code += "import posefix_jax.core.train_step, posefix_jax.core.synthesis, posefix_jax.training.config\n"
    code += "assert ErrorModel is posefix_jax.core.synthesis.ErrorModel\n"
    code += "assert Config is posefix_jax.training.config.Config\n"
    code += "assert InputConfig is posefix_jax.core.train_step.InputConfig\n"
    code += "assert Skeleton is posefix_jax.core.skeleton.Skeleton and load_skeleton('coco') is COCO\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_api_is_there_and_typed():
    """Every name of `__all__` loads, is in the table, and is imported for type checkers."""
    code = "import posefix_jax as p\n"
    code += "assert set(p.__all__) - {'__version__'} == set(p._HOME), set(p.__all__) ^ set(p._HOME)\n"
    code += "[getattr(p, name) for name in p.__all__]\n"
    subprocess.run([sys.executable, "-c", code], check=True)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        for child in ast.walk(node)
        if isinstance(child, ast.ImportFrom)
        for alias in child.names
    }
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    )
    assert typed == set(names) - {"__version__"}
