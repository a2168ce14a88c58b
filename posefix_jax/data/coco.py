"""COCO's keypoint annotation files: the true people, their boxes, and what is known of the photographs."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from posefix_jax.core.geometry import PERSON_FILL
from posefix_jax.core.joint_sets import COCO, WHOLEBODY, WHOLEBODY_KEYS, skeleton_from_category
from posefix_jax.core.skeleton import Skeleton, comparable_names
from posefix_jax.data.formats.values import triples
from posefix_jax.files import read_json
from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class Person:
    """One annotated person.

    `joints` is [K, 3]: image x, y, visibility (0: not labelled). `box` (x, y, width, height), `area` and `head_size` are
    image pixels. `area` is the entry's own, even if 0, or `PERSON_FILL` of the box if it has none. `head_size` is the
    entry's own, or 0.6 times the diagonal of its `bbox_head` (MPII's and PoseTrack's rule), None if it has neither.
    `crowd`: a region of several people (`iscrowd`). `category` and `num_keypoints` are the entry's own; CrowdPose's
    `num_keypoints` counts visible joints only. `num_keypoints` is None if it has none.
    """

    annotation_id: int | str
    image_id: int | str
    joints: np.ndarray
    box: tuple[float, float, float, float]
    area: float
    head_size: float | None = None
    crowd: bool = False
    category: int | str = 1
    num_keypoints: int | None = None

    @property
    def labelled(self) -> np.ndarray:
        """[K] which joints are labelled."""
        return self.joints[:, 2] > 0

    @property
    def count(self) -> int:
        """`num_keypoints`, or the number of labelled joints if the entry has no such field."""
        return int(self.labelled.sum()) if self.num_keypoints is None else self.num_keypoints

    @property
    def ignored(self) -> bool:
        """Whether OKS metrics count it neither as truth nor against a detection: a crowd, or a `count` of 0."""
        return self.crowd or self.count == 0

    @property
    def positive_area(self) -> float:
        """`area` for what divides by it, at least 1: `PERSON_FILL` of the box if the annotated area is 0."""
        return max(self.area or PERSON_FILL * self.box[2] * self.box[3], 1.0)


@dataclass(frozen=True)
class Annotations:
    """A COCO keypoint annotation file: `images` by id (the file's own entries), `everybody` in file order.

    `skipped` counts who is not among `people`, by reason. `categories` are the ids of the people's categories, that of
    the first category with keypoints first.
    """

    path: Path
    images: dict
    everybody: tuple[Person, ...]
    skeleton: Skeleton
    skipped: dict
    categories: tuple[int | str, ...] = (1,)

    @cached_property
    def people(self) -> tuple[Person, ...]:
        """Everybody with a labelled joint, crowds excepted."""
        return tuple(person for person in self.everybody if not person.crowd and person.labelled.any())

    @property
    def file_names(self) -> dict:
        """File names by image id."""
        return {i: str(image["file_name"]) for i, image in self.images.items() if "file_name" in image}


def read_annotations(path: Path, skeleton: Skeleton | None = None) -> Annotations:
    """Reads a COCO keypoint annotation file.

    People are those of the first category with keypoints, and of others with the same joints (AP-10K has a category per
    species). Entries with COCO-WholeBody's lists beside `keypoints` are people of 133 joints; a list whose flag
    (`face_valid`, ...) is false is not labelled.

    Args:
      path: the file.
      skeleton: what is known of the category's joints; it must have the same ones.

    Raises:
      PosefixError: not such a file, or an entry does not fit; says which.
    """
    content = read_json(path)
    if isinstance(content, list):
        raise PosefixError(
            f"{path}: a list, as a results file is; expected an annotation file, an object with images, annotations "
            "and categories"
        )
    if not isinstance(content, dict):
        raise PosefixError(f"{path}: expected an object with images, annotations and categories, found {content!r:.40}")
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise PosefixError(f"{path}: not a COCO annotation file, no list {', '.join(missing)}")
    categories = [c for c in content["categories"] if isinstance(c, dict) and c.get("keypoints")]
    if not categories:
        raise PosefixError(f"{path}: no category has keypoints; expected a keypoint annotation file")
    category = categories[0]
    if skeleton is None:
        skeleton = skeleton_from_category(category)
    elif comparable_names(skeleton.joints) != comparable_names(category["keypoints"]):
        raise PosefixError(
            f"{path}: its joints are {category['keypoints']!r:.200}, but the skeleton {skeleton.name} has "
            f"{list(skeleton.joints)!r:.200}; expected the same names in the same order"
        )
    kinds: dict = {c.get("id", 1): None for c in categories if c["keypoints"] == category["keypoints"]}
    if skeleton == COCO and any(isinstance(e, dict) and "foot_kpts" in e for e in content["annotations"]):
        skeleton = WHOLEBODY
    images = _images(content, path)
    everybody, skipped = [], {"crowd": 0, "no labelled joint": 0, "other category": 0}
    for row, entry in enumerate(content["annotations"]):
        where = f"{path}: annotation {row}"
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), int | str):
            raise PosefixError(f"{where} has no image_id")
        kind = entry.get("category_id", next(iter(kinds)))
        if kind not in kinds:
            skipped["other category"] += 1
            continue
        person = replace(_person(entry, row, skeleton, where), category=kind, crowd=bool(entry.get("iscrowd")))
        everybody.append(person)
        if person.crowd:
            skipped["crowd"] += 1
        elif not person.labelled.any():
            skipped["no labelled joint"] += 1
    return Annotations(Path(path), images, tuple(everybody), skeleton, skipped, tuple(kinds))


def read_annotation_files(path: Path, skeleton: Skeleton | None = None) -> Annotations:
    """Reads a COCO keypoint annotation file, or all `.json` files of a folder as one (PoseTrack has one per video).

    Raises:
      PosefixError: as `read_annotations`; or the files have different joints, or a photograph twice.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise PosefixError(f"{path}: no .json file in this folder")
    first, *others = [read_annotations(file, skeleton) for file in files]
    images, everybody = dict(first.images), list(first.everybody)
    categories, skipped = dict.fromkeys(first.categories), dict(first.skipped)
    for part in others:
        if part.skeleton.joints != first.skeleton.joints:
            raise PosefixError(
                f"{part.path}: has the joints of {part.skeleton.name}, but the files before it those of {first.skeleton.name}"
            )
        again = next((image for image in part.images if image in images), None)
        if again is not None:
            raise PosefixError(
                f"{part.path}: image {again!r} is also in a file before it; expected different photographs in each"
            )
        images |= part.images
        everybody += part.everybody
        categories |= dict.fromkeys(part.categories)
        skipped = {reason: count + part.skipped[reason] for reason, count in skipped.items()}
    return Annotations(path, images, tuple(everybody), first.skeleton, skipped, tuple(categories))


def _images(content: dict, path: Path) -> dict:
    try:
        return {image["id"]: image for image in content["images"]}
    except (TypeError, KeyError) as error:
        raise PosefixError(f"{path}: an entry of images has no id") from error


def _person(entry: dict, row: int, skeleton: Skeleton, where: str) -> Person:
    joints = _joints(entry, skeleton.num_joints, where) if "keypoints" in entry else np.zeros((skeleton.num_joints, 3))
    if not np.isfinite(joints).all():
        raise PosefixError(f"{where}: a keypoint value is not finite")
    box = entry.get("bbox")
    if box is None:
        seen = joints[joints[:, 2] > 0, :2] if (joints[:, 2] > 0).any() else np.zeros((1, 2))
        box = [*seen.min(axis=0), *(seen.max(axis=0) - seen.min(axis=0))]
    try:
        box = tuple(float(value) for value in box)
        area = float(PERSON_FILL * box[2] * box[3] if entry.get("area") is None else entry["area"])
    except (TypeError, ValueError, IndexError) as error:
        raise PosefixError(
            f"{where}: bbox and area must be numbers, found {box!r:.60}, {entry.get('area')!r:.20}"
        ) from error
    if len(box) != 4 or not all(map(math.isfinite, (*box, area))):
        raise PosefixError(f"{where}: bbox must be 4 finite numbers and area one, found {box}, {area}")
    count = entry.get("num_keypoints")
    return Person(
        entry.get("id", row),
        entry["image_id"],
        joints,
        box,
        area,
        head_size=_head_size(entry, where),
        num_keypoints=int(count) if isinstance(count, int | float) and math.isfinite(count) else None,
    )


def _head_size(entry: dict, where: str) -> float | None:
    size, box = entry.get("head_size"), entry.get("bbox_head")
    try:
        if size is None and box:
            _, _, width, height = map(float, box)
            size = 0.6 * math.hypot(width, height)
        return float(size) if size is not None and 0 < float(size) < math.inf else None
    except (TypeError, ValueError) as error:
        raise PosefixError(
            f"{where}: bbox_head must be 4 numbers (x, y, width, height) and head_size one, found {box!r:.60}, {size!r:.20}"
        ) from error


def _whole_body(entry: dict, where: str) -> list:
    """COCO-WholeBody's five lists, concatenated; zeros for a list that is missing or flagged as not valid."""
    joined: list = []
    for key, count in WHOLEBODY_KEYS.items():
        part = entry.get(key)
        if part is None or not entry.get(key.removesuffix("_kpts") + "_valid", True):
            part = [0] * (3 * count)
        if not isinstance(part, list) or len(part) != 3 * count:
            raise PosefixError(f"{where}: {key} must be {3 * count} numbers (x, y, v of {count} joints)")
        joined += part
    return joined


def _joints(entry: dict, num_joints: int, where: str) -> np.ndarray:
    """[K, 3] float64 of an entry's `keypoints`. Raises PosefixError naming `where` on a wrong count or value."""
    values = entry.get("keypoints")
    if num_joints == WHOLEBODY.num_joints and isinstance(values, list) and len(values) != 3 * num_joints:
        values = _whole_body(entry, where)
    try:
        joints = triples(values)
    except (ValueError, OverflowError) as error:
        raise PosefixError(f"{where}: {error}") from error
    if len(joints) != num_joints:
        raise PosefixError(
            f"{where} has {3 * len(joints)} keypoint values, expected {3 * num_joints} (x, y, v of {num_joints} joints); "
            "the file has another skeleton"
        )
    return joints


OVERLAP_IOU = 0.1
"""Box IoU from which two people of a photograph count as overlapping (released code; Ronchi & Perona, ICCV 2017)."""


def box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one (x, y, w, h) with [N, 4]."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[:2] + box[2:], boxes[:, :2] + boxes[:, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=1)
    union = box[2] * box[3] + boxes[:, 2] * boxes[:, 3] - both
    return both / np.maximum(union, 1e-9)
