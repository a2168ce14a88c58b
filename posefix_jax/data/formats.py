"""Files of poses, whatever estimator wrote them: found out by content, read a person at a time, written back.

A file is read as a stream of elements. An element keeps its own text and says which people stand in it; written
back, only the numbers that changed are other characters. How each kind of file is laid out is told in `LAYOUTS`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np

from posefix_jax.core.joint_sets import POSETRACK, SKELETONS, WHOLEBODY_KEYS, skeleton_from_category
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.image_sources import open_binary
from posefix_jax.data.json_stream import LONGEST_ASIDE, Item, JsonStream, edit
from posefix_jax.data.layouts import LAYOUTS, MARKS, Element, Layout, Pose, image_id, yolo_line, yolo_lines, yolo_people
from posefix_jax.data.tables import changed_table, joints_of_table, read_table
from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class Document:
    """A file of poses. `list_in` is the object's member that holds the elements, "" for a list, None for lines.

    Of an `empty` file neither layout nor skeleton are known: they are what its neighbours' are.
    """

    path: str
    layout: Layout
    list_in: str | None
    skeleton: Skeleton
    names: Mapping | None = None
    empty: bool = False
    name: str = ""

    @cached_property
    def image(self) -> str:
        """What the file's own name, with the folders that it has in the input, says of the photograph."""
        folders, _, _ = self.name.rpartition("/")
        return f"{folders}/{stem_of(self.path)}" if folders else stem_of(self.path)

    def elements(self) -> Iterator[Element]:
        """The pieces of the file, in order; joined, their texts are the file's.

        Raises:
          PosefixError: the file is broken, or a person does not fit the file's layout and skeleton; says where.
        """
        if self.layout.name == "parquet":
            yield from read_table(self.path, self.skeleton)
            return
        row = 0
        items = yolo_lines if self.layout.name == "yolo" else _items
        with open_binary(self.path) as file:
            for lead, text, value in items(file, self.path, self.list_in):
                try:
                    poses = [*self._people(value, text)] if text else []
                    for pose in poses:
                        if len(pose.joints) != self.skeleton.num_joints:
                            raise ValueError(
                                f"has {3 * len(pose.joints)} keypoint values, expected {3 * self.skeleton.num_joints} "
                                f"(x, y, score of the {self.skeleton.num_joints} joints of {self.skeleton.name})"
                            )
                except PROBLEMS as error:
                    raise self._unfit(row, value, error) from error
                yield Element(lead, text, poses, first=row == 0)
                row += 1

    def joints_of_first(self) -> int | None:
        """How many joints the first person has; None if there is nobody."""
        with open_binary(self.path) as file:
            for row, (_, text, value) in enumerate(_items(file, self.path, self.list_in)):
                try:
                    for pose in self._people(value, text) if text else ():
                        return len(pose.joints)
                except PROBLEMS as error:
                    raise self._unfit(row, value, error) from error
        return None

    def _people(self, value, text: str) -> Iterator[Pose]:
        if self.layout.name == "yolo":
            return yolo_people(text, self.image, self.skeleton.num_joints)
        if not isinstance(value, dict):
            raise ValueError(f"is {type(value).__name__}, expected an object")
        return self.layout.people(value, self.image)

    def _unfit(self, row: int, value, error: Exception) -> PosefixError:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        what = "a list in it has too few elements" if isinstance(error, IndexError) else what
        what = f"has something of another kind ({error})" if isinstance(error, TypeError | AttributeError) else what
        return PosefixError(f"{self.path}: row {row}: {what} (read as {self.layout.name})")

    def render(self, element: Element, changes: Mapping[int, tuple[np.ndarray, np.ndarray]], scores: Mapping) -> object:
        """The element's text (or table) with other poses.

        Args:
          changes: people of the element, by index: [K, 3] joints in the file's unit, [K] which of them changed.
          scores: new scores of people, by index.
        """
        if self.layout.name == "parquet":
            return changed_table(element.text, changes, scores)
        if self.layout.name == "yolo":
            return yolo_line(element.text, self.skeleton.num_joints, changes)
        digits = 7 if self.layout.fraction else 3
        edits: dict[tuple, object] = {}
        for index, (joints, changed) in changes.items():
            pose = element.poses[index]
            added = pose.slot
            for joint in np.flatnonzero(changed).tolist():
                x, y, score = joints[joint].tolist()
                values = [round(x, digits), round(y, digits)]
                if pose.slots is not None and joint not in pose.slots:
                    point = {"id": [joint], "x": values[:1], "y": values[1:], "score": [round(score, 4)]}
                    edits[(*pose.path, added)] = point
                    added += 1
                    continue
                paths = self.layout.paths(pose, joint)
                if score != pose.joints[joint, 2] and paths[2] is not None:
                    values.append(round(score, 4) if self.layout.visible is None else self.layout.visible)
                edits |= zip(paths, values, strict=False)
        for index, score in scores.items():
            edits[(*element.poses[index].path, *self.layout.score)] = round(score, 6)
        return edit(element.text, edits) if edits else element.text


PROBLEMS = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)
"""What reading a value of the wrong form raises."""


def stem_of(path: str) -> str:
    """The name of a file of poses without folders and suffixes: that of its photograph, where there is one a file."""
    stem = PurePosixPath(path).name.removesuffix(".gz")
    stem = PurePosixPath(stem).stem
    return stem.removesuffix("_keypoints").removeprefix("results_")  # OpenPose's, MMPose's


def _items(file, path: str, list_in: str | None) -> Iterator[Item]:
    """The elements of a document of JSON."""
    stream = JsonStream(file, path)
    lead = stream.space()
    if list_in == "":
        for item in stream.items(lead):
            yield item if item.text else Item(item.lead + stream.rest(), "", None)
    elif list_in is None:
        while stream.peek():
            value, text = stream.value()
            yield Item(lead, text, value)
            lead = stream.space()
        yield Item(lead, "", None)
    else:
        for name, before in stream.members():
            lead += before
            if name == list_in and stream.peek() == "[":
                for item in stream.items(lead):
                    if item.text:
                        yield item
                    else:
                        lead = item.lead
            elif name:
                lead += stream.value(LONGEST_ASIDE)[1]
        yield Item(lead + stream.rest(), "", None)


def open_document(path: str, *, skeleton: Skeleton | None, preferred: Skeleton, name: str = "") -> Document:
    """Finds out what a file of poses is, from its beginning (and, for annotations, its images and categories).

    Args:
      skeleton: the file's joints, where the user says them.
      preferred: taken where a file says only how many joints it has, and it has that many.
      name: the file's path within the folder that was named.

    Raises:
      PosefixError: not a file of poses.
    """
    document = _opened(path, skeleton, preferred)
    return replace(document, name=name)


def _opened(path: str, skeleton: Skeleton | None, preferred: Skeleton) -> Document:
    if path.endswith((".pth", ".pkl", ".pt", ".npy", ".npz")):
        raise PosefixError(
            f"{path}: files that can hold programs are not read; Detectron2 writes the same poses to "
            "coco_instances_results.json"
        )
    with open_binary(path) as file:
        head = file.read(4)
    if head == b"PAR1":
        count = joints_of_table(path)
        skeleton = preferred if count is None else _skeleton(path, skeleton, preferred, count)
        return Document(path, LAYOUTS["parquet"], None, skeleton, empty=count is None)
    if path.removesuffix(".gz").endswith(".txt"):
        return Document(path, LAYOUTS["yolo"], None, skeleton or preferred)
    with open_binary(path) as file:
        name, list_in = _sniff(JsonStream(file, path), path)
    layout, names = LAYOUTS[name], None
    if name == "coco-annotations":
        with open_binary(path) as file:
            names, found = _names_and_joints(JsonStream(file, path), path)
        skeleton = skeleton or found
    elif layout.skeleton is not None:
        skeleton = layout.skeleton
    if skeleton is not None:
        return Document(path, layout, list_in, skeleton, names)
    document = Document(path, layout, list_in, preferred, names)
    count = document.joints_of_first()
    if count is None:
        return replace(document, empty=True)
    return replace(document, skeleton=_skeleton(path, None, preferred, count))


def _skeleton(path: str, given: Skeleton | None, preferred: Skeleton, count: int) -> Skeleton:
    known = [given] if given is not None else [preferred, *SKELETONS.values()]
    for skeleton in known:
        if skeleton.num_joints == count:
            return skeleton
    raise PosefixError(
        f"{path}: row 0 has {3 * count} keypoint values, expected {3 * known[0].num_joints} (x, y, score of the "
        f"{known[0].num_joints} joints of {known[0].name}); say what its {count} joints are with --skeleton FILE"
    )


def _sniff(stream: JsonStream, path: str) -> tuple[str, str | None]:
    """The layout, and where its elements are."""
    stream.space()
    if stream.peek() == "[":
        layout = "coco"  # of nothing
        for item in stream.items():
            if item.text:
                layout = _layout_of(item.value, path)
                if not isinstance(item.value, dict) or item.value.get("instances") != []:
                    break
        return layout, ""
    if stream.peek() != "{":
        stream.take("[{")
    for name, _ in stream.members():
        if name == "instance_info":
            first = next((item.value for item in stream.items()), None)
            return "mmpose-image" if isinstance(first, dict) and "keypoint_scores" in first else "mmpose", name
        for layout, member in (("posetrack17", "annolist"), ("openpose", "people")):
            if name == member:
                return layout, name
        if name in ("images", "annotations", "categories"):
            return "coco-annotations", "annotations"
        if name:
            stream.value(LONGEST_ASIDE)
            if name in ("keypoints", "instances", *MARKS):
                break
    with open_binary(path) as file:
        lines = JsonStream(file, path)
        lines.space()
        while lines.peek():
            value = lines.value()[0]
            lines.space()
            if not isinstance(value, dict) or value.get("instances") != []:
                break
    return _layout_of(value, path), None


def _layout_of(entry, path: str) -> str:
    """The layout of an element of a list, or of a line."""
    keys = set(entry) if isinstance(entry, dict) else set()
    if "instances" in keys:
        instances = entry["instances"]
        rows = isinstance(instances, list) and instances and isinstance(instances[0], dict)
        return "detectron2" if rows and "keypoint_scores" not in instances[0] else "mmpose"
    if {"keypoints", "keypoint_scores"} <= keys:
        return "mmpose-image"
    if keys & set(MARKS):
        return "mediapipe"
    if set(WHOLEBODY_KEYS) <= keys:
        return "coco-wholebody"
    if isinstance(entry, dict) and keys & {"image_id", "keypoints", "category_id"}:
        return "coco"
    found = f"an object with {', '.join(sorted(keys)[:5])}" if isinstance(entry, dict) else f"{entry!r:.40}"
    raise PosefixError(
        f"{path}: no poses in a form that is known: its first element is {found}; expected COCO results (image_id, "
        "keypoints, score), or one of the other formats of docs/formats.md"
    )


def _names_and_joints(stream: JsonStream, path: str) -> tuple[dict, Skeleton | None]:
    """File names by image id, and the skeleton, of a COCO or PoseTrack 2018 file with `images` and `categories`."""
    names, skeleton, posetrack = {}, None, False
    stream.space()
    for name, _ in stream.members():
        if name == "images" and stream.peek() == "[":
            for _, text, image in stream.items():
                if not text:
                    continue
                if not isinstance(image, dict) or "id" not in image:
                    raise PosefixError(f"{path}: an entry of images has no id")
                posetrack |= "vid_id" in image or "is_labeled" in image
                if "file_name" in image:
                    names[image_id(image["id"])] = str(image["file_name"])
        elif name == "categories":
            categories, _ = stream.value()
            for category in categories if isinstance(categories, list) else ():
                if isinstance(category, dict) and category.get("keypoints") and skeleton is None:
                    skeleton = skeleton_from_category(category)
        elif name == "annotations" and stream.peek() == "[":
            for _ in stream.items():
                pass
        elif name:
            stream.value(LONGEST_ASIDE)
    return names, skeleton or (POSETRACK if posetrack else None)
