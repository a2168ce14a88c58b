"""COCO's files of keypoints: results, annotations, COCO-WholeBody's results, and Detectron2's predictions."""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from posefix_jax.core.joint_sets import WHOLEBODY, WHOLEBODY_KEYS
from posefix_jax.data.formats.base import PROBLEMS, Element, ImageId, JsonFormat, Photograph, Pose, PoseFile
from posefix_jax.data.formats.values import box_of, flat, image_id, score_of, triples
from posefix_jax.data.image_sources import open_binary
from posefix_jax.types import PosefixError

EXTRAS = {"annotation_id", "scores", "wholebody_score", *(f"{k.removesuffix('_kpts')}_score" for k in WHOLEBODY_KEYS)}
"""Members of a row that metrics read: the person it is (PCKh), scores per joint (PoseTrack) or part (COCO-WholeBody)."""


class CocoResults(JsonFormat):
    """A list (or lines) of {image_id, category_id, keypoints, score}."""

    name = "coco"
    element_keys: tuple[str, ...] = ("keypoints",)
    row_per_person = True
    score_path = ("score",)
    triples_in: tuple[str, ...] = ("keypoints",)
    # COCO recommends 1 for the third value of every joint of a result, so that only (0, 0) is left to mark an absent one.
    missing_at: tuple[float, ...] = (0.0,)
    writable = True
    groups_people = False

    def matches(self, entry: dict) -> bool:
        return bool(entry.keys() & {"image_id", "keypoints", "category_id"})

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        image = image_id(entry.get("image_id"))
        yield Pose(
            image,
            triples(entry.get("keypoints")),
            score=score_of(entry),
            category=entry.get("category_id"),
            track=entry.get("track_id"),
            box=valid_box(entry.get("bbox")),
            extras={key: entry[key] for key in EXTRAS & entry.keys()},
        )

    def compose(self, photograph: Photograph) -> list[str]:
        return [
            json.dumps({**_row(photograph, pose), "score": 1.0 if pose.score is None else pose.score})
            for pose in photograph.people
        ]


class CocoWholeBody(CocoResults):
    """COCO results with a list per part of the body: `keypoints`, `foot_kpts`, `face_kpts`, ..."""

    name = "coco-wholebody"
    element_keys = ()
    skeleton = written_skeleton = WHOLEBODY
    _places = tuple((key, place) for key, count in WHOLEBODY_KEYS.items() for place in range(count))

    def matches(self, entry: dict) -> bool:
        return set(WHOLEBODY_KEYS) <= entry.keys()

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        parts = []
        for key, count in WHOLEBODY_KEYS.items():
            parts.append(triples(entry.get(key), key))
            if len(parts[-1]) != count:
                found = 3 * len(parts[-1])
                raise ValueError(f"{key}: expected {3 * count} values (x, y, score of {count} joints), found {found}")
        for pose in super().people_of(entry, image):
            yield pose._replace(joints=np.concatenate(parts))

    def paths(self, pose: Pose, joint: int) -> tuple:
        key, place = self._places[joint]
        return tuple((*pose.path, key, 3 * place + i) for i in range(3))

    def compose(self, photograph: Photograph) -> list[str]:
        texts = []
        for pose in photograph.people:
            values, parts = iter(flat(pose)), {}
            for key, count in WHOLEBODY_KEYS.items():
                parts[key] = list(islice(values, 3 * count))
            texts.append(
                json.dumps({**_row(photograph, pose), **parts, "score": 1.0 if pose.score is None else pose.score})
            )
        return texts


class CocoAnnotations(CocoResults):
    """An object with `images`, `annotations` and `categories`; the third value of a joint is its visibility."""

    name = "coco-annotations"
    element_keys = ()
    members: tuple[str, ...] = ("annotations", "images", "categories")
    missing_at = ()  # the visibility says it
    visible = 2
    head = '{"annotations": ['
    lists_images = True

    def matches(self, entry: dict) -> bool:
        return False

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        image_id(entry.get("image_id"))
        if entry.get("keypoints"):
            yield from super().people_of(entry, image)

    def elements(self, file: PoseFile) -> Iterator[Element]:
        """As `Format.elements`; after them, an element for each photograph of `images` in which nobody is."""
        seen: set[ImageId] = set()
        for element in super().elements(file):
            seen.update(pose.image for pose in element.poses)
            yield element
        for image in file.images:
            if image not in seen:
                yield Element("", "", image=image)

    def compose(self, photograph: Photograph) -> list[str]:
        texts = []
        for i, pose in enumerate(photograph.people):
            visible = np.column_stack([pose.joints[:, :2], 2.0 * (pose.joints[:, 2] > 0)])
            box = box_of(visible)
            more = {"id": photograph.first_row + i + 1, "bbox": box, "area": round(box[2] * box[3], 3), "iscrowd": 0}
            more |= {"num_keypoints": int((visible[:, 2] > 0).sum())}
            more |= {} if pose.score is None else {"score": pose.score}
            keypoints = [int(v) if i % 3 == 2 else v for i, v in enumerate(flat(pose._replace(joints=visible)))]
            texts.append(json.dumps({**_row(photograph, pose), **more, "keypoints": keypoints}))
        return texts

    def tail_of(self, images: Sequence[Sequence], joints: Sequence[str]) -> str:
        entries = [
            {"id": image, **({"file_name": name} if name else {})} for image, name in {i: n for i, n in images}.items()
        ]
        category = {"id": 1, "name": "person", "keypoints": list(joints)}
        return f'],\n"images": {json.dumps(entries)},\n"categories": {json.dumps([category])}}}\n'


class CocoWholeBodyAnnotations(CocoAnnotations, CocoWholeBody):
    """COCO annotations with the lists of COCO-WholeBody."""

    name = "coco-wholebody-annotations"
    members = ()
    writable = False


class Detectron2(CocoResults):
    """Detectron2's predictions: {image_id, instances: [COCO results]}."""

    name = "detectron2"
    element_keys = ()
    row_per_person = False
    writable = False

    def matches(self, entry: dict) -> bool:
        match entry.get("instances"):
            case [dict() as first, *_]:
                return "keypoint_scores" not in first
        return False

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        for i, row in enumerate(entry["instances"]):
            for pose in super().people_of({"image_id": entry["image_id"], **row}, image):
                yield pose._replace(path=("instances", i))


class CocoBoxes(CocoResults):
    """COCO detection results, or the boxes of COCO annotations, read as results rows without a joint.

    Not in `FORMATS`, since boxes alone are no poses. An element's text is made here: image_id, category_id, bbox,
    keypoints, score. A crowd or another category is an element without text or people.
    """

    writable = False

    def __init__(self, category: int):
        self.category = category

    def elements(self, file: PoseFile) -> Iterator[Element]:
        none = [0] * (3 * file.skeleton.num_joints)
        lead = "["
        with open_binary(file.path) as opened:
            for row, (_, text, entry) in enumerate(self.items(opened, file)):
                if not text:
                    break
                if not isinstance(entry, dict) or not isinstance(entry.get("bbox"), list) or "image_id" not in entry:
                    raise PosefixError(f"{file.path}: row {row} has no image_id and bbox")
                if entry.get("category_id", self.category) != self.category or entry.get("iscrowd"):
                    yield Element("", "")
                    continue
                score = entry.get("score", 1.0)
                values = [*entry["bbox"], score]
                if len(values) != 5 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                    raise PosefixError(
                        f"{file.path}: row {row} needs a bbox of 4 finite numbers and a finite score, found {values!r:.80}"
                    )
                made = {"image_id": entry["image_id"], "category_id": self.category, "bbox": entry["bbox"]}
                made |= {"keypoints": none, "score": score}
                try:
                    poses = list(self.people_of(made, file.image))
                except PROBLEMS as error:
                    raise file.unfit(row, error) from error
                yield Element(lead, json.dumps(made), poses, first=lead == "[")
                lead = ", "
        yield Element("]" if lead != "[" else "[]", "")


def valid_box(values: Any) -> tuple[float, ...] | None:
    """A valid bbox; None for any other."""
    four = isinstance(values, list) and len(values) == 4 and all(isinstance(v, int | float) for v in values)
    return tuple(map(float, values)) if four and np.isfinite(values).all() and min(values[2:]) > 0 else None


def _row(photograph: Photograph, pose: Pose) -> dict:
    row = {"image_id": photograph.image, "category_id": 1, "keypoints": flat(pose)}
    return row | ({} if pose.track is None else {"track_id": pose.track})
