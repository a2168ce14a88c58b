"""Annotations and results as the metrics read them: people whose joints stand in a row, 100 px apart."""

import json

import numpy as np
import pytest

from posefix_jax.core.joint_sets import WHOLEBODY_KEYS
from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate

HEAD = [0, 0, 30, 40]  # diagonal 50, head size 0.6 * 50 = 30 px: right up to 15 px, and for PCKh@0.1 up to 3 px


def pose(skeleton, x=0.0, y=0.0, moved=(), absent=()):
    """[K, 3] joints 100 px apart in a row from (x, y); `moved` by name to the right, `absent` are 0, 0, 0."""
    joints = np.array([(x + 100.0 * (i + 1), y + 50.0, 2.0) for i in range(skeleton.num_joints)])
    never = [skeleton.joints[i] for i in skeleton.never_annotated]
    for name, pixels in dict(moved).items():
        joints[skeleton.joints.index(name), 0] += pixels
    for name in (*absent, *never):
        joints[skeleton.joints.index(name)] = 0
    return joints


def person(image, joints, **more):
    entry = {"image_id": image, "category_id": 1, "keypoints": joints.reshape(-1).tolist(), "bbox_head": HEAD}
    return {**entry, "bbox": [0, 0, 2000, 100], "area": 106000.0, **more}


def row(image, joints, score, **more):
    return {"image_id": image, "category_id": 1, "keypoints": joints.reshape(-1).tolist(), "score": score, **more}


def scorer(tmp_path):
    """Writes the files, and evaluates them in the given order and in three others, which must give the same."""

    def run(skeleton, images, people, rows, against=None, permuted=True, **options):
        images = [{"id": i, **(images[i] if isinstance(images, dict) else {})} for i in images]
        category = {"id": 1, "name": "person", "keypoints": list(skeleton.joints), "skeleton": []}
        people = [{"id": number, **entry} for number, entry in enumerate(people, start=1)]
        rng = np.random.default_rng(0)
        reports = []
        for turn in range(4 if permuted else 1):
            order = [list(rng.permutation(len(each)) if turn else range(len(each))) for each in (images, people, rows)]
            images, people, rows = (
                [each[i] for i in places] for each, places in zip((images, people, rows), order, strict=True)
            )
            truth = {"images": images, "annotations": people, "categories": [category]}
            (tmp_path / "truth.json").write_text(json.dumps(truth))
            (tmp_path / "rows.json").write_text(json.dumps(rows))
            if against is not None:
                (tmp_path / "before.json").write_text(json.dumps(against))
                options["against"] = tmp_path / "before.json"
            files = {"results": tmp_path / "rows.json", "annotations": tmp_path / "truth.json"}
            reports.append(evaluate(EvaluateOptions(**files, **options)))
        for report in reports[1:]:
            assert report["after"] == pytest.approx(reports[0]["after"], abs=1e-9)
        return reports[0] if against is not None else reports[0]["after"]

    return run


def one_joint(image, area=106.0):
    """Only the left shoulder, at (100, 50), in a box of 20 x 10."""
    joints = np.zeros((14, 3))
    joints[0] = (100, 50, 2)
    return person(image, joints, bbox=[90, 45, 20, 10], area=area)


def whole_body(joints, **flags):
    """The five lists of [133, 3] joints."""
    lists, start = {}, 0
    for key, count in WHOLEBODY_KEYS.items():
        lists[key] = joints[start : start + count].reshape(-1).tolist()
        start += count
    return lists | flags
