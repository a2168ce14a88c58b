"""MediaPipe's landmarks (BlazePose) as JSON, in fractions of the image's width and height."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from posefix_jax.core.joint_sets import BLAZEPOSE
from posefix_jax.core.skeleton import canonical
from posefix_jax.data.formats.base import ImageId, JsonFormat, Photograph, Pose, PoseFile
from posefix_jax.data.formats.values import image_of, numbers

MARKS = ("landmarks", "pose_landmarks", "poseLandmarks")


@lru_cache(maxsize=4096)
def _place(name: str) -> int | None:
    """The joint that a landmark's name means."""
    return _PLACES.get(canonical(name))


_PLACES = {joint: place for place, joint in enumerate(BLAZEPOSE.joints)}


class MediaPipe(JsonFormat):
    """{image_id, landmarks: marks}, or the marks alone; in a list, alone, or one per line.

    Marks are a list of {x, y, visibility} in order, such a list with a `name` in each, an object of them by name
    (https://ai.google.dev/edge/mediapipe/solutions/vision/pose_landmarker lists the names), or a list of any of these, one
    per person.
    """

    name = "mediapipe"
    element_keys = MARKS
    skeleton = BLAZEPOSE
    fraction = True
    writable = True
    written_skeleton = BLAZEPOSE
    head, between, tail = "", "\n", "\n"
    writes_score = False

    def matches(self, entry: Any) -> bool:
        return isinstance(entry, dict) and (not entry.keys().isdisjoint(MARKS) or _named(entry))

    def matches_marks(self, entry: object) -> bool:
        """Whether an element of a list is a mark, or a list of marks: then the list is the people of one photograph."""
        return _is_mark(entry[0] if isinstance(entry, list) and entry else entry)

    def people(self, value: object, text: str, file: PoseFile) -> Iterator[Pose]:
        if isinstance(value, list):
            return _people(value, (), file.image)
        return super().people(value, text, file)

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        image = image_of(entry, image)
        keys = [key for key in MARKS if key in entry]
        if len(keys) > 1:
            raise ValueError(f"has {' and '.join(keys)}, expected one of them")
        if keys:
            yield from _people(entry[keys[0]], (keys[0],), image)
        elif _named(entry):
            yield _person({key: mark for key, mark in entry.items() if _is_mark(mark)}, (), image)
        else:
            raise KeyError(MARKS[0])

    def photograph_of(self, value: Any, file: PoseFile) -> ImageId | None:
        return image_of(value, file.image) if isinstance(value, dict) else file.image

    def paths(self, pose: Pose, joint: int) -> tuple:
        place = joint if pose.slots is None else pose.slots[joint][0]
        return tuple((*pose.path, place, key) for key in ("x", "y", "visibility"))

    def added(self, pose: Pose, joint: int, values: list[float], slot: int) -> dict[tuple, object]:
        mark = dict(zip(("x", "y", "visibility"), values, strict=True))
        places: list[Any] = [place for place, _ in (pose.slots or {}).values()]
        name = BLAZEPOSE.joints[joint]
        if isinstance(places[0], str):  # an object: its names
            return {(*pose.path, name.upper() if places[0].isupper() else name): mark}
        return {(*pose.path, slot): {"name": name, **mark}}

    def compose(self, photograph: Photograph) -> list[str]:
        marks = [
            [{"x": round(x, 7), "y": round(y, 7), "visibility": round(v, 4)} for x, y, v in pose.joints.tolist()]
            for pose in photograph.people
        ]
        return [json.dumps({"image_id": photograph.image, "landmarks": marks})]


def _is_mark(value: object) -> bool:
    return isinstance(value, dict) and {"x", "y"} <= value.keys()


def _named(entry: Mapping) -> bool:
    """Whether it holds marks by name."""
    return any(_is_mark(mark) and _place(name) is not None for name, mark in entry.items())


def _people(marks: Any, path: tuple, image: ImageId) -> Iterator[Pose]:
    if marks and isinstance(marks, list) and not _is_mark(marks[0]):
        for i, one in enumerate(marks):
            yield _person(one, (*path, i), image)
    elif marks:
        yield _person(marks, path, image)


def _person(marks: Any, path: tuple, image: ImageId) -> Pose:
    where = str(path[0]) if path else "landmarks"
    if isinstance(marks, list) and not any("name" in mark for mark in marks):
        return Pose(image, numbers([_values(mark) for mark in marks], where, axes=2), path)
    by_name = isinstance(marks, dict)
    joints, slots = np.zeros((BLAZEPOSE.num_joints, 3)), {}
    values: list = []
    pairs: Any = marks.items() if by_name else enumerate(marks)
    for slot, mark in pairs:
        name = slot if by_name else mark["name"]
        joint = _place(name)
        if joint is None or joint in slots:
            raise ValueError(f"{where}: {name!r:.40} is twice there, or no landmark of {BLAZEPOSE.name}")
        slots[joint] = slot, True
        values.append(_values(mark))
    if values:
        joints[list(slots)] = numbers(values, where, axes=2)
    return Pose(image, joints, path, slots=slots, slot=len(marks))


def _values(mark: Mapping) -> list:
    return [mark["x"], mark["y"], mark.get("visibility", 1.0)]
