import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import detections_of
from pycocotools.coco import COCO as Coco
from pycocotools.cocoeval import COCOeval

from posefix_jax.core.joint_sets import COCO, CROWDPOSE
from posefix_jax.data.coco import Person
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate, table_of
from posefix_jax.evaluation.fit import FitOptions, fit
from posefix_jax.evaluation.oks import FIGURES, keypoint_scores, keypoint_similarity, oks_nms, truth_of
from posefix_jax.evaluation.scores import bootstrap_difference
from posefix_jax.types import PosefixError, warn_once


@pytest.fixture
def files(people, tmp_path):
    for name, noise in (("before", 8.0), ("after", 2.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(detections_of(people[0], noise=noise)))
    return people[0], tmp_path / "before.json", tmp_path / "after.json"


def test_figures_are_pycocotools_own(files):
    truth, before, after = files
    report = evaluate(EvaluateOptions(results=after, annotations=truth, against=before))
    for side, path in (("before", before), ("after", after)):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = Coco(str(truth))
            plain = COCOeval(coco, coco.loadRes(str(path)), "keypoints")
            plain.evaluate(), plain.accumulate(), plain.summarize()
        np.testing.assert_allclose([report[side][name] for name in FIGURES], plain.stats)
    assert report["difference"]["AP"] > 0.1
    low, high = report["interval"]
    assert low <= report["difference"]["AP"] <= high
    assert "AP changes by +" in table_of(report)


def rename(truth, folder, joints, **category):
    """The annotations with other joint names."""
    content = json.loads(truth.read_text())
    content["categories"][0] |= {"keypoints": joints, **category}
    (folder / "renamed.json").write_text(json.dumps(content))
    return folder / "renamed.json"


@pytest.mark.parametrize("written", [lambda joint: joint.replace("_", " ").title(), str.upper])
def test_joints_that_are_written_otherwise_are_scored_alike(written, files, tmp_path):
    truth, before, after = files
    renamed = rename(truth, tmp_path, [written(joint) for joint in COCO.joints])
    wanted, found = (evaluate(EvaluateOptions(after, path, against=before, samples=10)) for path in (truth, renamed))
    assert found == wanted


def test_unknown_joints_are_scored_aloud(files, tmp_path, capsys):
    warn_once.cache_clear()
    truth, _, after = files
    renamed = rename(truth, tmp_path, [*COCO.joints[:-1], "tail"])
    for command in (
        lambda: evaluate(EvaluateOptions(after, renamed)),
        lambda: fit(FitOptions((after,), renamed, tmp_path / "m.json")),
    ):
        warn_once.cache_clear()
        command()
        assert "their OKS sigmas are a guess" in capsys.readouterr().err


def test_crowdpose_evaluates_as_its_authors_write_it(tmp_path):
    """`head`, and limbs of 17 joints; also where `--skeleton crowdpose` says what they are."""
    joints = [*CROWDPOSE.joints[:12], "head", "neck"]
    pose = [float(v) for i in range(14) for v in (20 + 5 * i, 30 + 7 * i % 60, 2)]
    content = {
        "images": [{"id": 1, "crowdIndex": 0.4, "width": 200, "height": 200}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [20, 30, 65, 60],
                "num_keypoints": 14,
                "keypoints": pose,
            }
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": joints, "skeleton": [[16, 14], [14, 12], [17, 15]]}],
    }
    (tmp_path / "crowdpose_val.json").write_text(json.dumps(content))
    (tmp_path / "r.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "keypoints": pose, "score": 1.0}]))
    for skeleton in (None, "crowdpose"):
        report = evaluate(EvaluateOptions(tmp_path / "r.json", tmp_path / "crowdpose_val.json", skeleton=skeleton))
        assert report["metric"] == "crowdpose" and report["after"]["AP"] == pytest.approx(1)


def truth(content):
    people = [
        Person(
            entry["id"], entry["image_id"], np.reshape(entry["keypoints"], (17, 3)), tuple(entry["bbox"]), entry["area"]
        )
        for entry in content["annotations"]
    ]
    return truth_of([image["id"] for image in content["images"]], people, COCO)


def test_bootstrap_ap_is_pycocotools_ap(files):
    """Each photograph once gives AP itself; a photograph n times gives AP of a file that has it n times."""
    path, before, _ = files
    content = json.loads(path.read_text())
    rows = [
        Pose(row["image_id"], np.reshape(row["keypoints"], (17, 3)), score=row["score"])
        for row in json.loads(before.read_text())
    ]
    scores = keypoint_scores(truth(content), rows, COCO)
    np.testing.assert_allclose(scores.resampled(np.ones(3, int)), scores.figures["AP"], atol=1e-12)
    counts = np.array([2, 0, 1])
    images, annotations, repeated = [], [], []
    for image, count in zip(content["images"], counts, strict=True):
        for _ in range(count):
            new = len(images) + 1
            images.append({**image, "id": new})
            for entry in content["annotations"]:
                if entry["image_id"] == image["id"]:
                    annotations.append({**entry, "image_id": new, "id": len(annotations) + 1})
            repeated += [row._replace(image=new) for row in rows if row.image == image["id"]]
    again = {**content, "images": images, "annotations": annotations}
    expected = keypoint_scores(truth(again), repeated, COCO).figures["AP"]
    np.testing.assert_allclose(scores.resampled(counts), expected, atol=1e-12)
    assert bootstrap_difference(scores, scores) == (0.0, 0.0)


def test_files_that_pycocotools_alone_stumbles_over(files, tmp_path):
    """An annotation of id 0, none at all, no num_keypoints, no box, no area; rows with extra keys: the same AP."""
    path, _, after = files
    plain = evaluate(EvaluateOptions(results=after, annotations=path))["after"]["AP"]
    content, rows = json.loads(path.read_text()), json.loads(after.read_text())
    for number, entry in enumerate(content["annotations"]):
        entry["id"] = number
        del entry["num_keypoints"], entry["iscrowd"]
    rows[0]["bbox"] = None
    for name, what in (("truth", content), ("rows", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(what))
    options = EvaluateOptions(results=tmp_path / "rows.json", annotations=tmp_path / "truth.json")
    assert evaluate(options)["after"]["AP"] == plain
    for entry in content["annotations"]:
        entry.update(bbox=None, area=None)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    assert 0 < evaluate(options)["after"]["AP"] <= 1


def test_a_person_without_labels_takes_one_detection_a_crowd_any_number(files, tmp_path):
    """As pycocotools has it: of three good detections of an unlabelled person two are wrong."""
    path, _, after = files
    content, rows = json.loads(path.read_text()), json.loads(after.read_text())
    first = content["annotations"][0]
    doubles = [row for row in rows if row["image_id"] == first["image_id"]][:1] * 3
    (tmp_path / "d.json").write_text(json.dumps(rows + [row | {"score": 2.0} for row in doubles]))
    for changes in ({"iscrowd": 0}, {"iscrowd": 1}):
        first |= {"keypoints": [0] * 51, "num_keypoints": 0, **changes}
        (tmp_path / "t.json").write_text(json.dumps(content))
        with contextlib.redirect_stdout(io.StringIO()):
            coco = Coco(str(tmp_path / "t.json"))
            plain = COCOeval(coco, coco.loadRes(str(tmp_path / "d.json")), "keypoints")
            plain.evaluate(), plain.accumulate(), plain.summarize()
        report = evaluate(EvaluateOptions(results=tmp_path / "d.json", annotations=tmp_path / "t.json"))
        np.testing.assert_allclose([report["after"][name] for name in FIGURES], plain.stats)


def test_a_joint_that_is_not_finite_is_wrong_not_perfect(files, tmp_path):
    """As one at (0, 0); pycocotools alone would give the person an OKS of 1."""
    path, before, _ = files
    rows, figures = json.loads(before.read_text()), []
    for value in (float("nan"), 0.0):
        for row in rows:
            row["keypoints"][15:18] = [value] * 3
        (tmp_path / "d.json").write_text(json.dumps(rows))
        figures.append(evaluate(EvaluateOptions(results=tmp_path / "d.json", annotations=path))["after"])
    assert figures[0] == figures[1] and figures[0]["AP"] < 1


def test_ks_by_hand():
    xy = np.zeros((1, 17, 2))
    moved = xy + [3.0, 4.0]
    expected = np.exp(-25 / (2 * 100 * (2 * np.asarray(COCO.sigmas)) ** 2))
    np.testing.assert_allclose(keypoint_similarity(moved, xy, np.array([100.0]), COCO), expected[None])


@pytest.mark.parametrize("call", ["file name", "stem", "'139'"])
def test_photographs_called_by_name_or_by_a_number_in_quotes(call, files, tmp_path):
    """As AlphaPose calls them, which refine passes on."""
    truth, before, _ = files
    content = json.loads(truth.read_text())
    if call == "'139'":
        for image in content["images"]:
            image["file_name"] = f"picture_{'abcdef'[image['id']]}.png"
    (tmp_path / "gt.json").write_text(json.dumps(content))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    rows = json.loads(before.read_text())
    for row in rows:
        name = names[row["image_id"]]
        row["image_id"] = {"file name": name, "stem": Path(name).stem, "'139'": str(row["image_id"])}[call]
    (tmp_path / "named.json").write_text(json.dumps(rows))
    expected = evaluate(EvaluateOptions(results=before, annotations=truth))["after"]
    assert (
        evaluate(EvaluateOptions(results=tmp_path / "named.json", annotations=tmp_path / "gt.json"))["after"]
        == expected
    )


def test_refuses_other_photographs_and_missing_scores(files, tmp_path):
    truth, before, _ = files
    rows = json.loads(before.read_text())
    rows[2]["image_id"] = 99
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(PosefixError, match="row 2 is of image 99"):
        evaluate(EvaluateOptions(results=tmp_path / "x.json", annotations=truth))
    rows[2].update(image_id=1)
    del rows[2]["score"]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(PosefixError, match="row 2 has no score"):
        evaluate(EvaluateOptions(results=tmp_path / "x.json", annotations=truth))


def test_oks_nms_compares_the_joints_that_both_have():
    """Two people whose absent joints all stand at 0 are two; a double that lacks a joint is one."""
    rng = np.random.default_rng(0)
    first, second = rng.uniform(50, 150, (2, 17, 2))
    present = np.ones((2, 17), bool)
    present[:, :10] = False
    xy = np.where(present[..., None], [first, second], 0.0)
    scores, areas = np.array([1.0, 0.5]), np.array([6000.0, 6000.0])
    assert oks_nms(xy, scores, areas, 0.5, COCO).tolist() == [0]
    assert oks_nms(xy, scores, areas, 0.5, COCO, present).tolist() == [0, 1]
    double = np.where(np.arange(17)[:, None] == 5, 0.0, first)
    present = np.stack([np.ones(17, bool), np.arange(17) != 5])
    assert oks_nms(np.stack([first, double]), scores, areas, 0.99, COCO, present).tolist() == [0]
