"""Figures of odd files are those of the field's tools: pycocotools live, others as recorded (see odd_files.py)."""

import json

import numpy as np
import pytest
from odd_files import NAMES, RECORDED, make, pycocotools_figures

from posefix_jax.core.joint_sets import WHOLEBODY
from posefix_jax.data.coco import read_annotations
from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate
from posefix_jax.evaluation.oks import FIGURES
from posefix_jax.types import PosefixError, warn_once

recorded = json.loads(RECORDED.read_text())
CROWDPOSE_FIGURES = ("AP", "AP50", "AP75", "AR", "AR50", "AR75", "AP easy", "AP medium", "AP hard")


@pytest.mark.parametrize("name,case", NAMES)
def test_figures_are_those_of_the_tools(tmp_path, name, case):
    truth, rows = make(name, case).write(tmp_path)
    report = evaluate(EvaluateOptions(rows, truth))["after"]
    if name == "coco":
        assert [report[figure] for figure in FIGURES] == pycocotools_figures(truth, rows)
    for tool, wanted in recorded[name][case].items():
        found = list(report.values())
        if name == "crowdpose":
            found = [report[figure] for figure in CROWDPOSE_FIGURES]
            found[6:] = np.round(found[6:], 4)  # as the tool has them
        np.testing.assert_allclose(found, wanted, atol=1e-12, err_msg=tool)


def test_the_cases_matter():
    """Each odd file has other figures than the plain one, so that a rule which is not followed is seen."""
    for name in ("coco", "crowdpose", "wholebody"):
        plain, *others = recorded[name].values()
        same = [case for case, figures in zip(list(recorded[name])[1:], others, strict=True) if figures == plain]
        assert same == (["area_of_0", "rows_with_boxes"] if name == "crowdpose" else []), name


def test_bootstrap_ap_of_several_categories_is_ap(tmp_path):
    truth, rows = make("coco", "several_categories").write(tmp_path)
    report = evaluate(EvaluateOptions(rows, truth, against=rows, samples=5))
    assert report["interval"] == (0.0, 0.0)
    annotations = read_annotations(truth)
    assert annotations.categories == (1, 3, 9, 12)
    from posefix_jax.data.detections import read_detections
    from posefix_jax.evaluation.oks import oks_scores
    from posefix_jax.evaluation.scores import Truth

    poses = read_detections(rows, images=annotations.images, skeleton=annotations.skeleton, annotations=truth)
    scores = oks_scores(Truth(annotations.images, annotations.everybody, annotations.skeleton), poses)
    assert scores.resampled(np.ones(scores.units, int)) == pytest.approx(scores.figures["AP"], abs=1e-12)


def test_categories_together(tmp_path, capsys):
    """Together, categories are as if all were one; rows that name none are together by themselves."""
    warn_once.cache_clear()
    truth, rows = make("coco", "several_categories").write(tmp_path)
    together = evaluate(EvaluateOptions(rows, truth, categories="together"))["after"]
    plain = evaluate(EvaluateOptions(*reversed(make("coco", "plain").write(tmp_path))))["after"]
    assert together == plain
    truth, rows = make("coco", "several_categories").write(tmp_path)
    apart = evaluate(EvaluateOptions(rows, truth))["after"]
    assert apart["AP"] != plain["AP"] and "4 categories; figures are means" in capsys.readouterr().err
    nameless = [
        {key: value for key, value in row.items() if key != "category_id"} for row in json.loads(rows.read_text())
    ]
    rows.write_text(json.dumps(nameless))
    assert evaluate(EvaluateOptions(rows, truth))["after"] == plain


def test_rows_of_other_categories_are_told(tmp_path, capsys):
    warn_once.cache_clear()
    files = make("coco", "rows_of_other_categories")
    truth, rows = files.write(tmp_path)
    evaluate(EvaluateOptions(rows, truth))
    assert "rows have category_id 2, 7" in capsys.readouterr().err
    for row in files.rows:
        row["category_id"] = 0
    files.write(tmp_path)
    with pytest.raises(PosefixError, match="no row has a category_id of .*found 0; --categories together"):
        evaluate(EvaluateOptions(rows, truth))
    assert evaluate(EvaluateOptions(rows, truth, categories="together"))["after"]["AP"] > 0


def test_people_that_count_and_people_to_learn_from(tmp_path):
    """Metrics go by num_keypoints; training and the error taxonomy by the labelled joints."""
    truth, _ = make("coco", "num_keypoints_of_0").write(tmp_path)
    annotations = read_annotations(truth)
    counted = {person.annotation_id for person in annotations.everybody if not person.ignored}
    learned = {person.annotation_id for person in annotations.people}
    assert counted - learned and learned - counted
    truth, _ = make("coco", "area_of_0").write(tmp_path)
    for person in read_annotations(truth).everybody:
        assert person.positive_area >= 1 and (person.area in (0, 0.3) or person.positive_area == person.area)


def test_whole_body_joints_are_the_tools(tmp_path):
    annotations = read_annotations(make("wholebody", "plain").write(tmp_path)[0])
    assert annotations.skeleton is WHOLEBODY
