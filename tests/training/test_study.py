"""`posefix study`, `posefix synthesize` and `posefix estimate` as a user runs them, on tiny networks."""

import json

import cv2
import numpy as np
import pytest

from posefix_jax.cli import main
from posefix_jax.data.pipeline import People
from posefix_jax.training.config import Config
from posefix_jax.training.study import Study, table_of
from posefix_jax.types import PosefixError

STUDY = """
import dataclasses
from posefix_jax.training.config import Config, DataConfig
from posefix_jax.core.models import ModelConfig
from posefix_jax.training.optimizer import OptimizerConfig
from posefix_jax.core.train_step import InputConfig
from posefix_jax.training.study import Study

def study():
    base = Config(
        epochs=1, data=DataConfig(train=("{data}",), batch_size=8, threads=1),
        model=ModelConfig("resnet18", width=4, head_channels=8, crop_hw=(64, 64), pose_sigma=3.0),
        inputs=InputConfig(self_share=0.5), optimizer=OptimizerConfig(learning_rate=1e-3),
    )
    return Study(
        {{"paper": base, "ones": dataclasses.replace(base, errors=("gaussian", "none"), error_weights=(3.0, 1.0))}},
        {{"drawn": ("{data}", "synthetic"), "found": ("{data}", "detected")}},
    )
"""


@pytest.fixture(scope="module")
def folder(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.py").write_text(STUDY.format(data=prepared))
    return folder


@pytest.mark.slow
def test_study(folder, capsys):
    """Trains and scores what is asked for once; the same command again only reads the scores."""
    out = folder / "out"
    command = ["study", str(folder / "study.py"), "--out", str(out), "--seeds", "1", "--only", "ones"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err.count("done: ") == 1 and "run 1 of 1: ones, seed 1" in said.err and not (out / "paper").exists()
    scores = json.loads((out / "ones" / "seed-1" / "scores.json").read_text())["scores"]
    assert set(scores) == {"drawn", "found"} and 0 < scores["found"]["ks_refined"] <= 1
    assert (out / "table.md").read_text() == said.out[said.out.rindex("| gain in AP") :]
    assert len((out / "scores.csv").read_text().splitlines()) == 1 + 2
    assert (out / "plot.svg").read_text().startswith("<svg")
    before = (out / "ones" / "seed-1" / "scores.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "ones" / "seed-1" / "scores.json").stat().st_mtime_ns == before
    assert "done: " not in capsys.readouterr().err


@pytest.mark.slow
def test_estimate(folder, people, capsys):
    """One pose per box, from the image only: joints in the file make no difference."""
    truth, images = people
    shown = []
    for name in ("truth.json", "boxes.json"):
        content = json.loads(truth.read_text())
        if name == "boxes.json":
            content = [
                {"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.5}
                for a in content["annotations"]
            ]
        (folder / name).write_text(json.dumps(content))
        out = folder / f"from-{name}"
        arguments = ["--images", str(images), "--out", str(out), "--no-flip", "--batch-size", "8"]
        assert main(["estimate", str(folder / name), "--checkpoint", str(folder / "out/ones/seed-1"), *arguments]) == 0
        shown.append(json.loads(out.read_text()))
        assert not list(folder.glob("*.boxes.json"))
    assert len(shown[0]) == len(shown[1]) == len(json.loads(truth.read_text())["annotations"])
    for annotated, detected in zip(*shown, strict=True):
        assert annotated["keypoints"] == detected["keypoints"]
        assert abs(annotated["score"] - 2 * detected["score"]) < 1e-5
        joints = np.reshape(annotated["keypoints"], (-1, 3))
        x, y, w, h = annotated["bbox"]
        found = joints[:, 2] > 0
        assert (
            found.any()
            and (joints[found, :2] > [x - w, y - h]).all()
            and (joints[found, :2] < [x + 2 * w, y + 2 * h]).all()
        )
    capsys.readouterr()
    first = content[0]
    content = [first, first | {"category_id": 2}, first | {"bbox": [5, 5, 0, 0]}, first | {"image_id": 12345}]
    (folder / "some.json").write_text(json.dumps(content))
    # Most of them have no pose in the end.
    assert (
        main(["estimate", str(folder / "some.json"), "--checkpoint", str(folder / "out/ones/seed-1"), *arguments]) == 3
    )
    said = capsys.readouterr()
    assert "leaves out 1 boxes" in said.err and "no usable bbox" in said.out and "photograph missing" in said.out
    report = json.loads((folder / f"{out.name}.report.json").read_text())
    assert report["detections"] == str(folder / "some.json") and len(report["passed_through"]) == 2
    assert [row["score"] > 0 for row in json.loads(out.read_text())] == [True, False, False]
    (folder / "none.json").write_text("[]")
    assert main(["estimate", str(folder / "none.json"), "--images", str(images), "--out", str(folder / "x.json")]) == 2
    assert "expected a list of boxes" in capsys.readouterr().err


@pytest.mark.slow
def test_synthesize(folder, prepared, capsys):
    preview = folder / "sheet.png"
    errors = ["--errors", "scalar", "none", "--error-weights", "3", "1"]
    assert main(["synthesize", "--data", str(prepared), *errors, "--preview", str(preview), "--sample", "40"]) == 0
    shown = capsys.readouterr().out
    people = People((str(prepared),))
    labelled = [int((people[i].joints[:, 2] > 0).sum()) for i in range(len(people))]
    assert f"all {sum(labelled[i % len(people)] for i in range(40)):14d}" in shown
    assert "miss" in shown and "four or more" in shown
    picture = cv2.imread(str(preview))
    assert picture.shape[1] == 5 * 240 + 4 * 6 and picture.std() > 20
    assert main(["synthesize", "--data", str(prepared), "--errors", "posefxi", "--preview", str(preview)]) == 2
    assert "did you mean 'posefix'" in capsys.readouterr().err


def test_table():
    """Means, spreads and paired differences, worked out by hand."""

    def of(gains):
        same = {"ap_input": 0.5, "ap_refined": 0.5, "ks_input": 0.5, "ks_refined": 0.5}
        return {i: {"in": same | {"ap_refined": 0.5 + gain}} for i, gain in gains}

    table = table_of({"a": of([(0, 0.1), (1, 0.3)]), "b": of([(0, 0.2), (1, 0.3), (2, 0.4)])}, {"in": None}, "a")
    # a: mean 0.2, deviation 0.1414. b: mean 0.3, deviation 0.1; over a by 0.1 and 0: mean 0.05, standard error 0.05.
    assert "| a | 2 | +0.200 ± 0.141 |" in table
    assert "| b | 3 | +0.300 ± 0.100 [+0.050 ± 0.050] |" in table


def test_mistakes(folder, capsys):
    with pytest.raises(PosefixError, match="at least one config"):
        Study({}, {})
    with pytest.raises(PosefixError, match="expected synthetic or detected"):
        Study({"a": Config()}, {"x": ("data", "drawn")})
    (folder / "lost.py").write_text((folder / "study.py").read_text().replace('"gaussian"', '"gausian"'))
    (folder / "wrong.py").write_text("def study():\n    return 3\n")
    for arguments, message in (
        ([folder / "wrong.py"], "expected study() to return"),
        ([folder / "none.py"], "no such file"),
        ([folder / "study.py", "--only", "third"], "not among paper, ones"),
        ([folder / "lost.py"], "config 'ones': unknown synthesizer 'gausian'"),
        ([folder / "study.py", "--seeds", "1", "1"], "different numbers"),
    ):
        assert main(["study", *map(str, arguments), "--out", str(folder / "o")]) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "o").exists()
