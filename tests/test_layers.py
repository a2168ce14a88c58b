"""The layers of the package: nothing imports upwards, and some libraries have one importer."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "posefix_jax"

# A unit imports only units of lower numbers.
LAYERS = {
    **dict.fromkeys(["types"], 0),
    **dict.fromkeys(["skeleton", "geometry", "files"], 1),
    **dict.fromkeys(["taxonomy"], 2),
    **dict.fromkeys(["synthesis", "augment", "heatmaps", "optimizer", "sharding"], 3),
    **dict.fromkeys(["losses", "models", "data", "report"], 4),
    **dict.fromkeys(["step", "evaluation"], 5),
    **dict.fromkeys(["config", "checkpoints", "weights", "parts"], 6),
    **dict.fromkeys(["feed", "validate", "prepare", "refiner", "evaluate", "import_weights", "job"], 7),
    **dict.fromkeys(["monitor", "ship", "refine", "convert", "export", "analyse", "fit", "synthesise"], 8),
    **dict.fromkeys(["train", "demo", "estimate"], 9),
    **dict.fromkeys(["study"], 10),
    **dict.fromkeys(["cli", "__init__"], 11),
}
ONLY_IMPORTER = {"tyro": {"cli"}, "flax": {"models"}, "orbax": {"checkpoints"}, "grain": {"data"}}
NO_JAX = {"data", "types", "files", "skeleton", "taxonomy", "evaluation", "report"}

FILES = sorted(PACKAGE.rglob("*.py"))


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stay_in_their_layer(path):
    unit = unit_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "posefix_jax" and len(parts) > 1 and parts[1] in LAYERS and parts[1] != unit:
            assert LAYERS[parts[1]] < LAYERS[unit], f"{unit} imports {name}"
        for library, importers in ONLY_IMPORTER.items():
            assert parts[0] != library or unit in importers, f"{unit} imports {library}"
        if unit in NO_JAX:
            assert parts[0] not in {"jax", "flax", "optax"}, f"{unit} imports {name}"


def test_every_module_has_a_layer():
    assert {unit_of(path) for path in FILES} <= set(LAYERS)


def test_no_file_is_much_over_400_lines():
    assert {
        path.name: len(path.read_text().splitlines()) for path in FILES if len(path.read_text().splitlines()) > 450
    } == {}
