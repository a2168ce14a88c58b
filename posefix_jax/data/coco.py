"""COCO's keypoint annotation files: the true people, their boxes, and what is known of the photographs."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from posefix_jax.core.geometry import FARTHEST, PERSON_FILL, is_near
from posefix_jax.core.joint_sets import COCO, WHOLEBODY, WHOLEBODY_KEYS, skeleton_from_category
from posefix_jax.core.skeleton import Skeleton, comparable_names
from posefix_jax.data.formats.values import triples
from posefix_jax.files import read_json
from posefix_jax.types import PosefixError, is_integer, is_name, is_number, listed, short, warn_once


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
        raise PosefixError(
            f"{path}: expected an object with images, annotations and categories, found {short(content, 40)}"
        )
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise PosefixError(f"{path}: not a COCO annotation file, no list {', '.join(missing)}")
    categories = [c for c in content["categories"] if isinstance(c, dict) and c.get("keypoints")]
    if not categories:
        raise PosefixError(f"{path}: no category has keypoints; expected a keypoint annotation file")
    category = categories[0]
    kinds: dict = {
        _id(c, f"{path}: a category", "id", 1): None for c in categories if c["keypoints"] == category["keypoints"]
    }
    _of_one_kind(kinds, path)
    try:
        joints = skeleton_from_category(category)
    except PosefixError as error:
        raise PosefixError(f"{path}: the first category with keypoints: {error}") from error
    if skeleton is None:
        skeleton = joints
    elif comparable_names(skeleton.joints) != comparable_names(category["keypoints"]):
        raise PosefixError(
            f"{path}: its joints are {category['keypoints']!r:.200}, but the skeleton {skeleton.name} has "
            f"{list(skeleton.joints)!r:.200}; expected the same names in the same order"
        )
    if skeleton == COCO and any(isinstance(e, dict) and "foot_kpts" in e for e in content["annotations"]):
        skeleton = WHOLEBODY
    images = _images(content, path)
    everybody, skipped = [], {"crowd": 0, "no labelled joint": 0, "other category": 0}
    for row, entry in enumerate(content["annotations"]):
        where = f"{path}: annotation {row}"
        if not isinstance(entry, dict):
            raise PosefixError(f"{where} is not an object, found {short(entry)}")
        kind = _id(entry, where, "category_id", next(iter(kinds)))
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

    People in photographs that `images` do not list are left out, with a warning; pycocotools leaves them out, too.

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
    _of_one_kind(images, path)
    listed_people = tuple(person for person in everybody if person.image_id in images)
    if others := len(everybody) - len(listed_people):
        warn_once(
            f"{path}: {others} of {len(everybody)} people are in photographs that its `images` do not list: they do not count"
        )
    return Annotations(path, images, listed_people, first.skeleton, skipped, tuple(categories))


_MISSING = object()


def _id(entry: dict, where: str, key: str, default: object = _MISSING) -> int | str:
    """An id of an entry: an integer of at most 64 bits, or a name of one line."""
    value = entry.get(key, default)
    if value is _MISSING:
        raise PosefixError(f"{where} has no {key}; expected an integer or a name")
    if not is_integer(value) and not is_name(value):
        raise PosefixError(f"{where}: {key} must be an integer or a name, found {short(value)}")
    return value


def _number(value: object, where: str, largest: float = FARTHEST) -> float:
    if not is_number(value, largest):
        raise PosefixError(f"{where} must be a finite number of at most {largest:g}, found {short(value)}")
    return float(value)  # type: ignore[arg-type]


def _box(value: object, where: str) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4:
        raise PosefixError(f"{where} must be 4 numbers (x, y, width, height), found {short(value)}")
    x, y, width, height = (_number(part, f"{where}: each part") for part in value)
    return x, y, width, height


def _images(content: dict, path: Path) -> dict:
    """The images by id, with what the readers take from them checked."""
    images = {}
    for row, image in enumerate(content["images"]):
        where = f"{path}: image {row}"
        if not isinstance(image, dict):
            raise PosefixError(f"{where} is not an object with an id, found {short(image)}")
        number = _id(image, where, "id")
        if image.get("file_name") is not None:
            _id(image, where, "file_name")
        for key in ("width", "height"):
            if image.get(key) is not None:
                _number(image[key], f"{where}: {key}")
        if image.get("vid_id") is not None:
            _id(image, where, "vid_id")
        images[number] = image
    return _of_one_kind(images, path)


def _of_one_kind(ids: dict, path: Path) -> dict:
    """The same; raises PosefixError if some ids are numbers and others names: they have no order."""
    if len({isinstance(number, str) for number in ids}) > 1:
        raise PosefixError(f"{path}: some ids are numbers and others names ({listed(ids)}); expected one of them")
    return ids


def _person(entry: dict, row: int, skeleton: Skeleton, where: str) -> Person:
    joints = _joints(entry, skeleton.num_joints, where) if "keypoints" in entry else np.zeros((skeleton.num_joints, 3))
    if not is_near(joints).all():
        raise PosefixError(f"{where}: a keypoint value is not a finite number below {FARTHEST:g}")
    if entry.get("bbox") is None:
        seen = joints[joints[:, 2] > 0, :2] if (joints[:, 2] > 0).any() else np.zeros((1, 2))
        x, y, width, height = (float(part) for part in (*seen.min(axis=0), *np.ptp(seen, axis=0)))
    else:
        x, y, width, height = _box(entry["bbox"], f"{where}: bbox")
    area = PERSON_FILL * width * height
    if entry.get("area") is not None:
        area = _number(entry["area"], f"{where}: area", FARTHEST**2)
    if area < 0:  # every pose would be similar to it
        raise PosefixError(f"{where}: the area is {area:g}, expected 0 or more; without `area` it is that of `bbox`")
    count = entry.get("num_keypoints")
    return Person(
        _id(entry, where, "id", row),
        _id(entry, where, "image_id"),
        joints,
        (x, y, width, height),
        area,
        head_size=_head_size(entry, where),
        num_keypoints=None if count is None or not is_number(count, FARTHEST) else int(count),
    )


def _head_size(entry: dict, where: str) -> float | None:
    size, box = entry.get("head_size"), entry.get("bbox_head")
    if size is None and box:
        _, _, width, height = _box(box, f"{where}: bbox_head")
        size = 0.6 * math.hypot(width, height)
    if size is None:
        return None
    size = _number(size, f"{where}: head_size")
    return size if size > 0 else None


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
