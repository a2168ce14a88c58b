"""How people stand in the files of pose estimators, a `Layout` a kind of file."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from posefix_jax.core.joint_sets import BLAZEPOSE, POSETRACK17, WHOLEBODY, WHOLEBODY_KEYS
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.json_stream import Item
from posefix_jax.types import PosefixError

ImageId = int | str


class Pose(NamedTuple):
    """One person of a file.

    `joints` is [K, 3] float64 in the file's own joints: x, y, score; x and y in image pixels, or in parts of the
    image's width and height where the layout says so. A joint with a score of 0 is missing. `path` is where the
    person stands in the element; `slots`, in a layout that lists only the joints it has, where each stands, and
    whether it has a score, and `slot` where the next would stand. `image` names the photograph: an id, a frame
    index, or a file name.
    """

    image: ImageId
    joints: np.ndarray
    path: tuple = ()
    score: float | None = None
    category: object = None
    track: object = None
    slots: Mapping[int, tuple[int, bool]] | None = None
    slot: int = 0
    box: tuple[float, ...] | None = None


class Element(NamedTuple):
    """A piece of a file: the text before it, its own text (or table), its people, whether it is the file's first."""

    lead: str
    text: object
    poses: Sequence[Pose] = ()
    first: bool = False


@dataclass(frozen=True)
class Layout:
    """How people stand in the elements of one kind of file.

    Attributes:
      people: (element, the image that the file's name tells) -> its people.
      paths: (person, joint) -> the paths of x, y and score; None for a score that is not there.
      score: path of a person's score within the person; None if there is none.
      fraction: coordinates are parts of the image's width and height.
      visible: what is written as the score of a joint that is filled in, where it is no score but a visibility.
      skeleton: the joints of every such file, where they are always the same.
      whole: one element is one person, so that a row can be left out.
    """

    name: str
    people: Callable[[object, ImageId], Iterator[Pose]]
    paths: Callable[[Pose, int], tuple]
    score: tuple | None = ("score",)
    fraction: bool = False
    visible: int | None = None
    skeleton: Skeleton | None = None
    whole: bool = False


def _triples(values, where: str = "keypoints") -> np.ndarray:
    """[K, 3] of a flat list."""
    if not isinstance(values, list) or not values or len(values) % 3:
        found = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise ValueError(f"{where}: expected a flat list of x, y, score of every joint, found {found}")
    return _numbers(values, where, axes=1).reshape(-1, 3)


def _numbers(values, where: str = "keypoints", *, axes: int) -> np.ndarray:
    """Float64 of lists that are nested `axes` deep. Raises ValueError naming `where`."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError("a keypoint value is no number") from error
    if array.dtype.kind not in "iufb":
        if not all(value is None or isinstance(value, int | float) for value in array.ravel().tolist()):
            raise ValueError("a keypoint value is no number")
        array = array.astype(np.float64)  # None is not finite; an integer beyond 64 bits becomes a float
    if array.ndim != axes:
        form = "a flat list of numbers" if axes == 1 else "a list of lists of numbers"
        raise ValueError(f"{where}: expected {form}, found {'lists in it' if array.ndim > axes else 'a flat one'}")
    return array.astype(np.float64, copy=False)


def _score(entry: Mapping, key: str = "score") -> float | None:
    value = entry.get(key)
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is not None and not isinstance(value, int | float):
        raise ValueError(f"{key}: expected a number, found {value!r:.30}")
    return None if value is None else float(value)


def image_id(value) -> ImageId:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("has no image_id (an integer or a name)")
    return value


def _coco(entry, _image) -> Iterator[Pose]:
    image = image_id(entry.get("image_id"))
    track = entry.get("track_id")
    joints = _triples(entry.get("keypoints"))
    yield Pose(image, joints, (), _score(entry), entry.get("category_id"), track, box=_box(entry.get("bbox")))


def _box(values) -> tuple[float, ...] | None:
    """A bbox that is one; any other is as good as none."""
    numbers = isinstance(values, list) and len(values) == 4 and all(isinstance(v, int | float) for v in values)
    return tuple(map(float, values)) if numbers and np.isfinite(values).all() and min(values[2:]) > 0 else None


def _whole_body(entry, image) -> Iterator[Pose]:
    for key, count in WHOLEBODY_KEYS.items():
        if len(_triples(entry.get(key), key)) != count:
            raise ValueError(
                f"{key}: expected {3 * count} values (x, y, score of {count} joints), found {len(entry[key])}"
            )
    joints = np.concatenate([_triples(entry[key], key) for key in WHOLEBODY_KEYS])
    for pose in _coco(entry, image):
        yield pose._replace(joints=joints)


_whole_body_places = [(key, place) for key, count in WHOLEBODY_KEYS.items() for place in range(count)]


def _whole_body_paths(pose: Pose, joint: int) -> tuple:
    key, place = _whole_body_places[joint]
    return tuple((*pose.path, key, 3 * place + i) for i in range(3))


def _annotation(entry, image) -> Iterator[Pose]:
    image_id(entry.get("image_id"))
    if entry.get("keypoints"):
        yield from _coco(entry, image)


def _detectron(entry, image) -> Iterator[Pose]:
    for i, row in enumerate(entry["instances"]):
        for pose in _coco({"image_id": entry["image_id"], **row}, image):
            yield pose._replace(path=("instances", i))


def _flat_paths(pose: Pose, joint: int) -> tuple:
    return tuple((*pose.path, "keypoints", 3 * joint + i) for i in range(3))


def _instance(entry, image) -> Iterator[Pose]:
    xy = _numbers(entry["keypoints"], axes=2)
    scores = _numbers(entry["keypoint_scores"], "keypoint_scores", axes=1)
    if xy.shape[1] < 2 or scores.shape != xy.shape[:1]:
        raise ValueError(f"keypoints are {xy.shape} and keypoint_scores {scores.shape}, expected [K, 2] and [K]")
    yield Pose(image, np.column_stack([xy[:, :2], scores]), (), _score(entry, "bbox_score"))


def _frame(entry, image) -> Iterator[Pose]:
    known = [entry[key] for key in ("image_id", "file_name", "img_name", "frame_id") if key in entry]
    for i, instance in enumerate(entry["instances"]):
        for pose in _instance(instance, image_id(known[0]) if known else image):
            yield pose._replace(path=("instances", i))


def _instance_paths(pose: Pose, joint: int) -> tuple:
    xy = (*pose.path, "keypoints", joint)
    return (*xy, 0), (*xy, 1), (*pose.path, "keypoint_scores", joint)


def _openpose(entry, image) -> Iterator[Pose]:
    if entry["pose_keypoints_2d"]:
        yield Pose(image, _triples(entry["pose_keypoints_2d"], "pose_keypoints_2d"))


MARKS = ("landmarks", "pose_landmarks", "poseLandmarks")


def _mediapipe(entry, image) -> Iterator[Pose]:
    known = [entry[key] for key in ("image_id", "file_name", "image", "frame") if key in entry]
    image = image_id(known[0]) if known else image
    keys = [key for key in MARKS if key in entry]
    if not keys:
        raise KeyError(MARKS[0])
    if len(keys) > 1:
        raise ValueError(f"has {' and '.join(keys)}, expected one of them")
    (key,) = keys
    several = bool(entry[key]) and isinstance(entry[key][0], list)
    for i, marks in enumerate(entry[key] if several else [entry[key]] if entry[key] else []):
        joints = _numbers([[mark["x"], mark["y"], mark.get("visibility", 1.0)] for mark in marks], key, axes=2)
        yield Pose(image, joints, (key, i) if several else (key,))


def _annorect(entry, _image) -> Iterator[Pose]:
    image = image_id(entry["image"][0]["name"])
    rectangles = entry.get("annorect") or []
    for i, rectangle in enumerate([rectangles] if isinstance(rectangles, dict) else rectangles):
        at = ("annorect",) if isinstance(rectangles, dict) else ("annorect", i)
        at = (*at, "annopoints")
        groups = rectangle.get("annopoints") or []
        place = next((k for k, group in enumerate(groups) if group.get("point")), None)
        joints, slots = np.zeros((POSETRACK17.num_joints, 3)), {}
        points = [] if place is None else groups[place]["point"]
        for slot, point in enumerate(points):
            joint = int(point["id"][0])
            if not 0 <= joint < len(joints):
                raise ValueError(f"point id {joint}, expected 0..{len(joints) - 1}")
            if joint in slots:
                raise ValueError(f"a person has point id {joint} twice")
            values = [point["x"][0], point["y"][0], _score(point) if "score" in point else 1.0]
            joints[joint] = _numbers(values, "point", axes=1)
            slots[joint] = slot, "score" in point
        if slots:
            track = (rectangle.get("track_id") or [None])[0]
            at = (*at, place, "point")
            yield Pose(image, joints, at, _score(rectangle), track=track, slots=slots, slot=len(points))


def _point_paths(pose: Pose, joint: int) -> tuple:
    slot, scored = pose.slots[joint]
    point = (*pose.path, slot)
    return (*point, "x", 0), (*point, "y", 0), (*point, "score", 0) if scored else None


_word = re.compile(r"\S+")


def yolo_lines(file, path: str, _list_in=None) -> Iterator[Item]:
    """The lines of an Ultralytics file: class, box, joints; then perhaps a confidence and a track id."""
    for line in _split(file, path):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise PosefixError(f"{path}: not text ({error})") from error
        yield Item("", text, None) if text.strip() else Item(text, "", None)
    yield Item("", "", None)


def _split(file, path: str) -> Iterator[bytes]:
    rest = b""
    while data := file.read(1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        yield from (line + b"\n" for line in lines)
        if len(rest) > 1 << 20:
            raise PosefixError(f"{path}: a line of more than {1 << 20} bytes; expected one a person")
    if rest:
        yield rest


def _values_a_joint(words: int, joints: int) -> int:
    """2 or 3, from how many numbers a line has."""
    for values in (3, 2):
        if 0 <= words - 5 - values * joints <= 2:
            return values
    raise ValueError(
        f"{words} numbers in a line, expected 5 (class and box) + {3 * joints} or {2 * joints} ({joints} joints) + up "
        "to 2; for other joints give --skeleton"
    )


def yolo_people(line: str, image: str, joints: int) -> Iterator[Pose]:
    """The person of a line."""
    numbers = np.array([float(word) for word in line.split()])
    each = _values_a_joint(len(numbers), joints)
    pose = numbers[5 : 5 + each * joints].reshape(joints, each)
    # Ultralytics writes 0 0 for a joint below its confidence, and the confidence beside it.
    placed = (pose[:, :2] != 0).any(axis=1)
    scores = np.where(placed, pose[:, 2], 0.0) if each == 3 else placed
    rest = line.split()[5 + each * joints :]
    # A lone whole number beyond 1 is a track without a confidence.
    lone = len(rest) == 1 and rest[0].isdecimal() and int(rest[0]) > 1
    score, track = (None, rest[0]) if lone else (*rest, None, None)[:2]
    score = None if score is None else float(score)
    yield Pose(image, np.column_stack([pose[:, :2], scores]), (), score, track=track and int(float(track)))


def yolo_line(line: str, joints: int, changes: Mapping) -> str:
    """The line with other joints; all other characters stay."""
    if not changes:
        return line
    words = list(_word.finditer(line))
    each = _values_a_joint(len(words), joints)
    new = {}
    for pose, changed in changes.values():
        for joint in np.flatnonzero(changed).tolist():
            new |= {5 + each * joint + i: f"{pose[joint, i]:.6g}" for i in range(each)}
    pieces, done = [], 0
    for index in sorted(new):
        pieces += line[done : words[index].start()], new[index]
        done = words[index].end()
    return "".join([*pieces, line[done:]])


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("coco", _coco, _flat_paths, whole=True),
        Layout("coco-wholebody", _whole_body, _whole_body_paths, skeleton=WHOLEBODY, whole=True),
        Layout("coco-annotations", _annotation, _flat_paths, visible=2, whole=True),
        Layout("detectron2", _detectron, _flat_paths),
        Layout("mmpose", _frame, _instance_paths, None),
        Layout("mmpose-image", _instance, _instance_paths, None),
        Layout(
            "openpose",
            _openpose,
            lambda pose, joint: tuple((*pose.path, "pose_keypoints_2d", 3 * joint + i) for i in range(3)),
            None,
        ),
        Layout("posetrack17", _annorect, _point_paths, None, skeleton=POSETRACK17),
        Layout(
            "mediapipe",
            _mediapipe,
            lambda pose, joint: tuple((*pose.path, joint, key) for key in ("x", "y", "visibility")),
            None,
            fraction=True,
            skeleton=BLAZEPOSE,
        ),
        Layout("yolo", iter, _flat_paths, None, fraction=True),
        Layout("parquet", iter, _flat_paths, whole=True),
    )
}
