"""The packaged refiner, on real people, through the demo that `make demo` runs."""

import json
import re

import cv2
import numpy as np
import pytest

from posefix_jax.refining.demo import DemoOptions, demo
from posefix_jax.refining.refiner import Refiner

pytestmark = pytest.mark.slow


def test_demo(tmp_path):
    text = demo(DemoOptions(out=tmp_path, draws=8))
    assert "16 of 16 poses refined" in text
    for name in ("astronaut", "camera"):
        before, after = (float(value) for value in re.search(rf"^{name} +(\S+) +(\S+)$", text, re.M).groups())
        assert after > before + 0.02
    before, after = (json.loads((tmp_path / name).read_text()) for name in ("detections.json", "refined.json"))
    for a, b in zip(before, after, strict=True):
        a, b = (np.reshape(row["keypoints"], (17, 3)) for row in (a, b))
        np.testing.assert_array_equal(a[a[:, 2] > 0, 2], b[a[:, 2] > 0, 2])
    pictures = list((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == 8 and all(cv2.imread(str(p)).shape[0] > 300 for p in pictures)


def test_packaged_refiner_is_what_its_card_says():
    spec = Refiner.load().spec
    assert spec.skeleton.name == "coco" and spec.model.backbone == "movenet"
    assert spec.trained_joints == (True,) * 17
    assert (spec.decode.temperature, spec.decode.trust, spec.decode.withhold_mirror) == (1.5, 0.9, True)
    assert spec.decode.trust_weights and spec.decode.confidence


def test_packaged_refiner_helps_the_best_of_the_inputs(shared_data, tmp_path):
    """Real detections of people it never saw: AP of MoveNet Thunder, from which it started, rises (by 0.016)."""
    from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate
    from posefix_jax.refining.refine_files import RefineOptions, refine

    coco = shared_data / "coco"
    detections = coco / "detections" / "movenet_thunder_val2017.json"
    truth = coco / "annotations" / "person_keypoints_val2017.json"
    report = refine(RefineOptions((str(detections),), str(coco / "val2017"), tmp_path / "r.json"))
    assert report["refined"] == report["rows"] == 296
    scores = evaluate(EvaluateOptions(results=tmp_path / "r.json", annotations=truth, against=detections, samples=10))
    assert scores["before"]["AP"] == pytest.approx(0.478, abs=0.0006)
    assert scores["difference"]["AP"] > 0.01
