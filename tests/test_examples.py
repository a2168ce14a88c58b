"""The examples run as they are."""

import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import detections_of

from posefix_jax import COCO
from posefix_jax.cli import main
from posefix_jax.core.synthesis import Person, make_synthesizer
from posefix_jax.types import ErrorKind

EXAMPLES = Path(__file__).parents[1] / "examples"


def imported(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_notebook(tmp_path, monkeypatch, capsys):
    """Its code cells, in order, in one namespace; the mean pose comes out better."""
    names, shown = {}, []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    cells = json.loads((EXAMPLES / "refine_a_photograph.ipynb").read_text())["cells"]
    assert all(not cell.get("outputs") for cell in cells)
    matplotlib.use("agg")
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    (figure,) = shown
    figure.savefig(tmp_path / "figure.png")
    plt.close(figure)
    assert cv2.imread(str(tmp_path / "figure.png")).std() > 20
    assert names["after"].mean() > names["before"].mean() + 0.02
    assert names["refined"].poses.shape == (8, 17, 3) and "mean KS" in capsys.readouterr().out
    np.testing.assert_array_equal(names["refined"].poses[:, ~names["labelled"]], names["poses"][:, ~names["labelled"]])


@pytest.mark.slow
def test_folders(people, tmp_path, capsys):
    """Every folder gets a result; a bad one says so in a line; a second run has nothing to do."""
    module = imported("refine_folders")
    for name in ("a", "b"):
        shutil.copytree(people[1], tmp_path / name / "photographs")
        (tmp_path / name / "detections.json").write_text(json.dumps(detections_of(people[0])))
    (tmp_path / "b" / "detections.json").write_text("[")
    module.main([str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "6 of 6 poses refined" in said[0] and said[1].startswith("b: ")
    before, after = (json.loads((tmp_path / "a" / f"{name}.json").read_text()) for name in ("detections", "refined"))
    assert len(after) == 6 and before != after and not (tmp_path / "b" / "refined.json").exists()
    shutil.rmtree(tmp_path / "b")
    module.main([str(tmp_path)])
    assert capsys.readouterr().out == ""


def test_synthesis(prepared, tmp_path, capsys):
    """Through the command; and hidden joints lie in a disc, half of them missing."""
    path = str(EXAMPLES / "my_synthesis.py")
    sheet = tmp_path / "sheet.png"
    command = ["synthesize", "--data", str(prepared), "--errors", path, "--preview", str(sheet), "--sample", "20"]
    assert main(command) == 0
    assert sheet.is_file() and "miss" in capsys.readouterr().out

    synthesize = make_synthesizer((path,), (1.0,), COCO)
    xy = jnp.asarray(np.random.default_rng(0).uniform(0, 100, (17, 2)), jnp.float32)
    labelled = jnp.arange(17) < 13
    none = jnp.zeros((0, 17, 2)), jnp.zeros((0, 17), bool)
    person = Person(xy, labelled, *none, jnp.zeros(0), jnp.float32(2500.0), jnp.int32(0), *none)
    drawn, present, kind = jax.vmap(lambda key: synthesize(key, person))(jax.random.split(jax.random.key(0), 500))
    assert not present[:, 13:].any() and (kind[:, 13:] == ErrorKind.ABSENT).all() and jnp.isfinite(drawn).all()
    absent = ~np.asarray(present[:, :13])
    assert 0.05 < absent.mean() < 0.6 and absent.any(axis=1).mean() > 0.4
    assert (np.asarray(drawn)[:, :13][absent] == 0).all()


@pytest.mark.slow
def test_the_readmes_python(people, tmp_path, monkeypatch, capsys):
    """README's lines, with a photograph and two poses."""
    readme = (EXAMPLES.parent / "README.md").read_text()
    shutil.copy(next(people[1].iterdir()), tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    poses = np.array([row["keypoints"] for row in detections_of(people[0])[:2]]).reshape(2, 17, 3)
    names = {"poses": poses, "photographs": ["photograph.jpg"] * 2, "all_poses": list(poses)}
    exec(readme.split("```python\n")[1].split("```")[0], names)
    assert names["refined"].poses.shape == (2, 17, 3) and names["refined"].quality.shape == (2,)
    assert names["refiner"].trust is not None  # measured
    assert (names["refined"].poses != poses).any() and capsys.readouterr().out
