"""Small files of people that are odd in one way each, and what the field's tools say of them.

As a program it records the figures of pycocotools, faster-coco-eval and xtcocotools, which have to be installed, into
recorded_metrics.json:

    python tests/evaluation/odd_files.py
"""

import contextlib
import importlib.metadata
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

from posefix_jax.core.joint_sets import COCO, CROWDPOSE, WHOLEBODY, WHOLEBODY_KEYS

RECORDED = Path(__file__).with_name("recorded_metrics.json")


_HALF = {
    **{"eye": (0.04, 0.06), "ear": (0.08, 0.08), "shoulder": (0.16, 0.2), "elbow": (0.22, 0.36), "wrist": (0.24, 0.5)},
    **{"hip": (0.1, 0.52), "knee": (0.11, 0.75), "ankle": (0.12, 0.98)},
}
FIGURE = {"nose": (0.5, 0.08), "top_head": (0.5, 0.0), "neck": (0.5, 0.17)} | {
    f"{side}_{name}": (0.5 + sign * x, y)
    for name, (x, y) in _HALF.items()
    for side, sign in (("left", 1), ("right", -1))
}
"""A standing figure of height 1. Joints in any other arrangement are taken for another set of as many joints."""


class Files:
    """Images, people and rows of a seeded scene, edited by each case."""

    def __init__(self, skeleton=COCO, images=8, seed=0):
        self.rng = rng = np.random.default_rng(seed)
        self.skeleton = skeleton
        self.images = [
            {"id": i + 1, "width": 640, "height": 480, "crowdIndex": float(rng.random())} for i in range(images)
        ]
        self.people, self.rows = [], []
        self.first_xy = None
        self.figure = np.array([FIGURE[name] for name in skeleton.joints if name in FIGURE])
        if len(self.figure) < skeleton.num_joints:
            self.figure = rng.uniform(0, 1, (skeleton.num_joints, 2))
        self.categories = [{"id": 1, "name": "person", "keypoints": list(skeleton.joints), "skeleton": []}]
        for image in self.images:
            for _ in range(int(rng.integers(1, 5))):
                self.add_person(image["id"])

    def add_person(self, image, **more):
        """A person, and most often a pose for it, of any quality."""
        rng, joints = self.rng, self.skeleton.num_joints
        size = rng.uniform(20, 260)
        xy = rng.uniform((0, 0), (400, 300), 2) + size * (self.figure + rng.normal(0, 0.02, (joints, 2)))
        self.first_xy = xy if self.first_xy is None else self.first_xy
        labelled = rng.random(joints) > 0.25
        low, high = xy.min(axis=0), xy.max(axis=0)
        pose = np.column_stack([np.where(labelled[:, None], xy, 0), 2 * labelled]).round(2)
        entry = {"id": len(self.people) + 1, "image_id": image, "category_id": 1, "iscrowd": 0}
        entry |= {"bbox": [*low.round(2), *(high - low).round(2)], "area": round(0.6 * float(np.prod(high - low)), 2)}
        entry |= {"num_keypoints": int(labelled.sum()), **self.lists(pose)}
        self.people.append(entry | more)
        for _ in range(int(rng.integers(0, 3))):
            self.add_row(image, xy + rng.normal(0, size * rng.choice([0.02, 0.06, 0.15]), xy.shape))
        return self.people[-1]

    def add_row(self, image, xy, **more):
        pose = np.column_stack([xy, self.rng.random(len(xy))]).round(2)
        row = {"image_id": image, "category_id": 1, "score": round(float(self.rng.random()), 2), **self.lists(pose)}
        self.rows.append(row | more)

    def lists(self, pose):
        if self.skeleton.num_joints != WHOLEBODY.num_joints:
            return {"keypoints": pose.ravel().tolist()}
        ends = np.cumsum(list(WHOLEBODY_KEYS.values()))[:-1]
        return {key: part.ravel().tolist() for key, part in zip(WHOLEBODY_KEYS, np.split(pose, ends), strict=True)}

    def write(self, folder):
        truth = {"images": self.images, "annotations": self.people, "categories": self.categories}
        (folder / "truth.json").write_text(json.dumps(truth))
        (folder / "rows.json").write_text(json.dumps(self.rows))
        return folder / "truth.json", folder / "rows.json"


def plain(files):
    pass


def rows_of_other_categories(files):
    if files.skeleton is not CROWDPOSE:  # whose tool counts an AP of -1 for a category without people
        files.categories.append({"id": 2, "name": "dog"})
    for row in files.rows[::3]:
        row["category_id"] = 2
    for row in files.rows[1::5]:
        row["category_id"] = 7


def area_of_0(files):
    for person in files.people[::3]:
        person["area"] = 0
    for person in files.people[1::5]:
        person["area"] = 0.3


def num_keypoints_of_0(files):
    for person in files.people[::3]:
        person["num_keypoints"] = 0
    for person in files.people[1::4]:  # no joint, but a count: its box is its pose
        person["keypoints"] = [0] * len(person["keypoints"])


def several_categories(files):
    files.categories += [{**files.categories[0], "id": i, "name": f"species {i}"} for i in (3, 9, 12)]
    for person in files.people:
        person["category_id"] = int(files.rng.choice([1, 3, 9]))
    by_image = {person["image_id"]: person["category_id"] for person in files.people}
    for row in files.rows:
        row["category_id"] = by_image[row["image_id"]]


def crowds(files, order=None):
    for image in files.images[::2]:
        files.add_person(image["id"], iscrowd=1)
        files.add_person(image["id"], num_keypoints=0, keypoints=[0] * (3 * files.skeleton.num_joints))
    same = files.people[-1]  # a crowd and an unlabelled person with the same box: equal matches
    files.people.append({**same, "id": len(files.people) + 1, "iscrowd": 1})
    for _ in range(3):
        files.add_row(
            same["image_id"], np.array(same["bbox"][:2]) + files.rng.uniform(0, 9, (files.skeleton.num_joints, 2))
        )
    if order:
        files.people.sort(key=order)


def crowds_first(files):
    crowds(files, lambda person: -person["iscrowd"])


def crowds_last(files):
    crowds(files, lambda person: person["iscrowd"])


def rows_with_boxes(files):
    for row in files.rows:
        row["bbox"] = files.rng.uniform(1, 150, 4).round(1).tolist()


def many_rows_of_equal_score(files):
    image = files.people[0]["image_id"]
    for _ in range(30):
        files.add_row(image, files.first_xy + files.rng.normal(0, 6, files.first_xy.shape), score=0.5)


def photographs_without_people(files):
    files.images += [{"id": i, "crowdIndex": 0.5} for i in (900, 901)]
    files.add_row(900, files.rng.uniform(0, 200, (files.skeleton.num_joints, 2)), score=0.99)
    files.people.append({**files.people[0], "id": len(files.people) + 1, "image_id": 5000})  # of no photograph


def rows_without_scored_joints(files):
    for row in files.rows[::4]:
        for key in WHOLEBODY_KEYS:
            if key in row:
                row[key][2::3] = [0.0] * len(row[key][2::3])
    for row in files.rows[1::4]:
        for key in list(WHOLEBODY_KEYS)[3:]:
            if key in row:
                row[key][2::3] = [0.0] * len(row[key][2::3])


def unlabelled_parts(files):
    for person in files.people[::2]:
        person["face_kpts"] = [0] * len(person["face_kpts"])
        person["face_valid"] = False
    for person in files.people[::5]:
        for key in WHOLEBODY_KEYS:
            person[key] = [0] * len(person[key])


def scores_of_parts(files):
    for row in files.rows[::2]:
        row |= {f"{key.removesuffix('_kpts')}_score": round(float(files.rng.random()), 2) for key in WHOLEBODY_KEYS}
        row["wholebody_score"] = round(float(files.rng.random()), 2)


COCO_CASES: tuple[Callable[[Files], None], ...] = (
    plain,
    rows_of_other_categories,
    area_of_0,
    num_keypoints_of_0,
    several_categories,
    crowds,
    crowds_first,
    crowds_last,
    rows_with_boxes,
    many_rows_of_equal_score,
    photographs_without_people,
)
CROWDPOSE_CASES = tuple(case for case in COCO_CASES if case is not several_categories)
WHOLEBODY_CASES = (
    plain,
    rows_of_other_categories,
    area_of_0,
    several_categories,
    rows_without_scored_joints,
    unlabelled_parts,
    scores_of_parts,
    rows_with_boxes,
)
SETS = {
    "coco": (COCO, COCO_CASES),
    "crowdpose": (CROWDPOSE, CROWDPOSE_CASES),
    "wholebody": (WHOLEBODY, WHOLEBODY_CASES),
}
NAMES = [(name, case.__name__) for name, (_, cases) in SETS.items() for case in cases]


def make(name: str, case: str) -> Files:
    """The files of a case of `NAMES`."""
    skeleton, cases = SETS[name]
    files = Files(skeleton)
    next(each for each in cases if each.__name__ == case)(files)
    return files


def pycocotools_figures(truth: Path, rows: Path) -> list[float]:
    """The ten figures of pycocotools."""
    from pycocotools.coco import COCO as Index
    from pycocotools.cocoeval import COCOeval

    return _run(Index, lambda index, found: COCOeval(index, found, "keypoints"), truth, rows)


def _run(index, evaluator, truth: Path, rows: Path) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = index(str(truth))
        run = evaluator(coco, coco.loadRes(str(rows)))
        run.evaluate(), run.accumulate(), run.summarize()
    return [float(value) for value in run.stats]


def faster_coco_eval_figures(truth: Path, rows: Path) -> list[float]:
    from faster_coco_eval import COCO as Index
    from faster_coco_eval import COCOeval_faster

    return _run(Index, lambda index, found: COCOeval_faster(index, found, "keypoints"), truth, rows)[:10]


def xtcocotools_figures(truth: Path, rows: Path, kind: str, sigmas, use_area=True) -> list[float]:
    sys.modules.setdefault("xtcocotools._mask", MagicMock())  # built for Numpy 1, and not needed for keypoints
    from xtcocotools.coco import COCO as Index
    from xtcocotools.cocoeval import COCOeval

    return _run(Index, lambda index, found: COCOeval(index, found, kind, np.array(sigmas), use_area), truth, rows)


def crowdpose_figures(truth: Path, rows: Path) -> list[float]:
    """The CrowdPose authors' evaluation as xtcocotools has it; theirs, in no package index, also counts rows without scores."""
    return xtcocotools_figures(truth, rows, "keypoints_crowd", CROWDPOSE.sigmas, use_area=False)


PARTS = {
    "body": "keypoints",
    "feet": "keypoints_foot",
    "face": "keypoints_face",
    "left hand": "keypoints_lefthand",
    "right hand": "keypoints_righthand",
}


def wholebody_figures(truth: Path, rows: Path) -> list[float]:
    """The ten figures of all joints, then AP and AR of each part."""
    figures = xtcocotools_figures(truth, rows, "keypoints_wholebody", WHOLEBODY.sigmas)
    start = 0
    for kind, count in zip(PARTS.values(), WHOLEBODY_KEYS.values(), strict=True):
        part = xtcocotools_figures(truth, rows, kind, WHOLEBODY.sigmas[start : start + count])
        figures += [part[0], part[5]]
        start += count
    return figures


def main() -> None:
    tools = {
        "coco": {"pycocotools": pycocotools_figures, "faster-coco-eval": faster_coco_eval_figures},
        "crowdpose": {"xtcocotools": crowdpose_figures},
        "wholebody": {"xtcocotools": wholebody_figures},
    }
    recorded: dict = {
        "versions": {
            tool: importlib.metadata.version(tool) for tool in ("pycocotools", "faster-coco-eval", "xtcocotools")
        }
    }
    for name, case in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            places = make(name, case).write(Path(folder))
            for tool, figures in tools[name].items():
                recorded.setdefault(name, {}).setdefault(case, {})[tool] = figures(*places)
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
