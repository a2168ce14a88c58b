"""The metrics that are COCO's with other rules around it, against hand-made numbers and pycocotools."""

import json

import numpy as np
import pytest
from metric_files import one_joint, person, pose, row, scorer, whole_body
from odd_files import FIGURE
from pycocotools.coco import COCO as Coco
from pycocotools.cocoeval import COCOeval

from posefix_jax.core.joint_sets import AP10K, COCO, CROWDPOSE, WHOLEBODY
from posefix_jax.data.coco import read_annotations
from posefix_jax.data.formats import Edit
from posefix_jax.data.pose_files import open_pose_file
from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate, table_of
from posefix_jax.types import PosefixError


@pytest.fixture
def score(tmp_path):
    return scorer(tmp_path)


# CrowdPose


def test_crowdpose_levels_by_hand(score):
    """Easy (< 0.2) is found, medium (from 0.2) is missed, hard (from 0.8) has nobody: 1, 0, -1. Together: recall 1/2 at
    precision 1, which is 51 of COCO's 101 recalls."""
    images = {1: {"crowdIndex": 0.19}, 2: {"crowdIndex": 0.2}, 3: {"crowdIndex": 0.8}}
    truth = [one_joint(1), one_joint(2)]
    found, missed = pose(CROWDPOSE), pose(CROWDPOSE, y=500)
    figures = score(CROWDPOSE, images, truth, [row(1, found, 0.9), row(2, missed, 0.8)])
    assert figures == pytest.approx(
        {**dict.fromkeys(("AP", "AP50", "AP75"), 51 / 101), **dict.fromkeys(("AR", "AR50", "AR75"), 0.5)}
        | {"AP easy": 1, "AP medium": 0, "AP hard": -1}
    )
    truth[1]["image_id"] = 3
    figures = score(CROWDPOSE, images, truth, [row(1, found, 0.9), row(3, found, 0.8)])
    assert (figures["AP"], figures["AP medium"], figures["AP hard"]) == (1, -1, 1)


def test_crowdpose_area_is_the_boxes(score):
    """KS = exp(-d^2 / (2 * 106 * 0.158^2)), 106 = 0.53 * 20 * 10: d^2 = -5.2924 ln KS. For KS 0.72 five of the ten
    thresholds (0.50 to 0.70) are met, whatever `area` says; by an area of 424 it were 0.92, nine of them."""
    images = {1: {"crowdIndex": 0.5}}
    moved = pose(CROWDPOSE, moved={"left_shoulder": np.sqrt(-2 * 106 * 0.158**2 * np.log(0.72))})
    truth = [one_joint(1, area=424.0)]
    assert score(CROWDPOSE, images, truth, [row(1, moved, 0.9)])["AP"] == pytest.approx(0.5)
    assert score(CROWDPOSE, images, truth, [row(1, moved, 0.9)], metric="oks")["AP"] == pytest.approx(0.9)


def test_crowdpose_is_pycocotools_on_the_level(score, tmp_path, capsys):
    """Random people, crowds and doubles; each level is pycocotools' AP of its photographs alone."""
    rng = np.random.default_rng(5)
    images = {i: {"crowdIndex": float(rng.random())} for i in range(1, 13)}
    people, rows = [], []
    for image in images:
        for _ in range(3):
            joints = pose(CROWDPOSE)  # as a person stands, or the rows would be taken for those of another set
            joints[:, :2] = rng.uniform(0, 3000, 2) + [[200 * x, 400 * y] for x, y in map(FIGURE.get, CROWDPOSE.joints)]
            joints[rng.random(14) < 0.3] = 0
            people.append(person(image, joints, bbox=[0, 0, *rng.uniform(20, 60, 2)], iscrowd=int(rng.random() < 0.1)))
            people[-1]["num_keypoints"] = int((joints[:, 2] > 0).sum())
            for _ in range(rng.integers(0, 3)):
                guess = joints + [[*rng.normal(0, 4, 2), 0]]
                rows.append(row(image, guess, float(rng.random())))
    figures = score(CROWDPOSE, images, people, rows, permuted=False)
    truth = json.loads((tmp_path / "truth.json").read_text())
    for entry in truth["annotations"]:
        entry["area"] = 0.53 * entry["bbox"][2] * entry["bbox"][3]
    (tmp_path / "again.json").write_text(json.dumps(truth))
    coco = Coco(str(tmp_path / "again.json"))
    found = coco.loadRes(str(tmp_path / "rows.json"))
    for name, low, high in (("AP", 0, 2), ("AP easy", 0, 0.2), ("AP medium", 0.2, 0.8), ("AP hard", 0.8, 2)):
        evaluator = COCOeval(coco, found, "keypoints")
        evaluator.params.kpt_oks_sigmas = np.array(CROWDPOSE.sigmas)
        evaluator.params.imgIds = [i for i, entry in images.items() if low <= entry["crowdIndex"] < high]
        evaluator.evaluate(), evaluator.accumulate(), evaluator.summarize()
        assert 0 < figures[name] < 1 and figures[name] == pytest.approx(evaluator.stats[0])


# COCO-WholeBody, AP-10K


def test_whole_body_by_hand(score, tmp_path):
    """Body right, feet and face 500 px off, left hand flagged as not valid, right hand not in the row: its parts' AP are
    1, 0, 0, -1, 0. Rows may have the five lists, or 133 joints in one."""
    joints = pose(WHOLEBODY)
    truth = [{**person(1, joints), **whole_body(joints, lefthand_valid=False)}]
    guess = pose(WHOLEBODY)
    guess[17:91, 1] += 500
    guess[112:] = 0
    parts = {**row(1, guess, 0.9), **whole_body(guess)}
    figures = score(COCO, [1], truth, [parts], permuted=False)
    names = ("body", "feet", "face", "left hand", "right hand")
    assert [figures[f"AP {name}"] for name in names] == pytest.approx([1, 0, 0, -1, 0])
    assert figures == score(COCO, [1], truth, [row(1, guess, 0.9)], permuted=False)
    perfect = score(COCO, [1], truth, [row(1, joints, 0.9)])
    assert {round(value, 9) for value in perfect.values()} == {1.0, -1.0}
    (someone,) = read_annotations(tmp_path / "truth.json").people
    assert someone.joints.shape == (133, 3) and someone.labelled.sum() == 133 - 21
    assert not someone.labelled[91:112].any()
    # Of all 133: 112 labelled, 17 right and the rest far off: OKS 17 / 112 is below 0.5.
    assert figures["AP"] == 0
    table = table_of({"metric": "oks", "main": "AP", "after": figures})
    assert "AP right hand   0.0000" in table


def test_whole_body_rows_are_refined_in_their_lists(tmp_path):
    """A row of five lists is one pose of 133 joints; a joint that changes is other characters in its own list."""
    rows = [{**row(1, pose(COCO), 0.9), **whole_body(pose(WHOLEBODY))}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    document = open_pose_file(str(tmp_path / "rows.json"), skeleton=None, preferred=COCO)
    assert document.skeleton is WHOLEBODY
    (element, _) = document.elements()
    joints = element.poses[0].joints
    np.testing.assert_array_equal(joints, pose(WHOLEBODY))
    new = joints.copy()
    new[17 + 6 + 68 + 1] = 7.5  # the second of the left hand
    again = json.loads(document.format.edited(document, Edit(element, {0: new})))
    assert again["lefthand_kpts"][3:6] == [7.5, 7.5, 7.5]
    rows[0]["lefthand_kpts"][3:6] = [7.5, 7.5, 7.5]
    assert again == rows[0]
    rows[0]["face_kpts"].pop()
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(PosefixError, match="row 0: face_kpts"):
        list(open_pose_file(str(tmp_path / "rows.json"), skeleton=None, preferred=COCO).elements())


def test_whole_body_scores_of_parts(score):
    """Two rows of one person: by `foot_score` the right feet come second: precision 1/2 at recall 1."""
    truth = [{**person(1, pose(WHOLEBODY)), **whole_body(pose(WHOLEBODY))}]
    off = pose(WHOLEBODY, y=500)
    rows = [row(1, pose(WHOLEBODY), 0.9, foot_score=0.1), row(1, off, 0.8, foot_score=0.2)]
    figures = score(COCO, [1], truth, rows)
    assert figures["AP"] == figures["AP face"] == pytest.approx(1) and figures["AP feet"] == pytest.approx(0.5)


def test_animals_of_all_species(tmp_path, score):
    """AP-10K has a category a species, of the same joints; all of them count."""
    truth = [person(1, pose(AP10K)), {**person(2, pose(AP10K)), "category_id": 5}]
    score(AP10K, [1, 2], truth, [row(1, pose(AP10K), 0.9)], permuted=False)
    content = json.loads((tmp_path / "truth.json").read_text())
    content["categories"].append({**content["categories"][0], "id": 5, "name": "antelope"})
    (tmp_path / "truth.json").write_text(json.dumps(content))
    annotations = read_annotations(tmp_path / "truth.json")
    assert len(annotations.people) == 2 and annotations.skeleton is AP10K
    report = evaluate(EvaluateOptions(results=tmp_path / "rows.json", annotations=tmp_path / "truth.json"))
    assert report["metric"] == "oks" and report["after"]["AR"] == 0.5
