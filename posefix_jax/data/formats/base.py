"""What every format of pose files shares: the poses it holds, and the interface by which jobs read and write it."""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.image_sources import open_binary
from posefix_jax.data.json_stream import Item, JsonStream, edit
from posefix_jax.data.text_lines import Readable
from posefix_jax.types import PosefixError

ImageId = int | str

PROBLEMS = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)
"""What reading a value of the wrong form raises."""


class NotPoses(PosefixError):
    """Nothing in a file looks like poses: among others, in a folder, it may be left out."""


class Pose(NamedTuple):
    """One person of a file.

    Attributes:
      image: names the photograph: an id, a frame index, or a file name.
      joints: [K, 3] float64, the file's own joints: x, y, score. x and y are image pixels, or fractions of the image's
        width and height where the format says so. A joint with score 0 is missing.
      path: where the person is in the element.
      score, category, track, box: the person's own, None where the file has none; box is (x, y, width, height).
      slots: in a format that lists only the joints it has: joint -> (its place in the list or object, whether it has a
        score).
      slot: the place after the last of them.
      extras: members of a COCO row that some metrics read (`EXTRAS`).
    """

    image: ImageId
    joints: np.ndarray
    path: tuple = ()
    score: float | None = None
    category: object = None
    track: object = None
    slots: Mapping[int, tuple[Any, bool]] | None = None
    slot: int = 0
    box: tuple[float, ...] | None = None
    extras: Mapping = {}


class Element(NamedTuple):
    """A piece of a file: the text before it, its own text (or table), its people, whether it is the file's first.

    `image` is the photograph of an element that shows nobody, where it is known.
    """

    lead: str
    text: Any
    poses: Sequence[Pose] = ()
    first: bool = False
    image: ImageId | None = None


@dataclass
class Edit:
    """What changes in an element. Keys are indices of its people.

    Attributes:
      joints: new joints, [K, 3] in the file's joints and unit.
      scores: new scores of persons.
      dropped: people to leave out, in formats where an element is one person (or a table of them).
    """

    element: Element
    joints: dict[int, np.ndarray] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)

    def changes(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(person, its new joints [K, 3], which of them changed [K])."""
        for index, joints in self.joints.items():
            yield index, joints, (joints != self.element.poses[index].joints).any(axis=1)


class Photograph(NamedTuple):
    """A photograph's people to write: its id, its file name if known, its people, the job's row of the first."""

    image: ImageId
    name: str | None
    people: Sequence[Pose]
    first_row: int


class Format:
    """A kind of file of poses: how it is recognized, read, edited in place, and written anew. Subclasses set what differs.

    Attributes:
      name: for `--to` and messages.
      skeleton: the joints of every such file, where they are always the same.
      fraction: coordinates are fractions of the image's width and height.
      row_per_person: an element is one person, so that a person can be left out.
      score_path: where a person's score is within the person; empty if a score cannot be written in place.
      file_per_photograph: a file is the people of the photograph that its name tells.
      missing_at: a joint is missing if its x and y both equal one of these, whatever its score; beside the rules of every
        format (a score of 0 or below; a value that is null or NaN).
      more_joints: lists of further joints that people may have, which pass through and end in a conversion.

    Attributes of formats that can be written anew:
      writable: whether it can.
      written_skeleton: the joints of every such file; None: those of the input.
      head, between, tail: the text around and between the elements of a file; see also `head_of`, `tail_of`.
      suffix: of the one file per photograph, where there is one per photograph; else "".
      writes_score: a person has a score.
      groups_people: the people of a photograph share one element.
      lists_images: the file ends with a list of the images and their names (`tail_of`).
      escapes: a name may have any letter, such as half of a pair, that UTF-8 cannot hold.
      is_binary: the file is binary: its elements have no text, and `writer` makes it of its pieces.
    """

    name = ""
    skeleton: Skeleton | None = None
    fraction = False
    row_per_person = False
    score_path: tuple[str, ...] = ()
    file_per_photograph = False
    missing_at: tuple[float, ...] = ()
    more_joints: tuple[str, ...] = ()

    writable = False
    written_skeleton: Skeleton | None = None
    head, between, tail = "[", ",\n", "]\n"
    suffix = ""
    writes_score = True
    groups_people = True
    lists_images = False
    escapes = True
    is_binary = False

    # Reading

    def elements(self, file: "PoseFile") -> Iterator[Element]:
        """The pieces of a file, in order; joined, their texts are the file's.

        Raises:
          PosefixError: the file is broken, or a person does not fit the format and `file.skeleton`; says where.
        """
        row, somebody = 0, False
        with open_binary(file.path) as opened:
            for lead, text, value in self.items(opened, file):
                poses: list[Pose] = []
                image: ImageId | None = None
                try:
                    for pose in self.people(value, text, file) if text else ():
                        if len(pose.joints) != file.skeleton.num_joints:
                            raise ValueError(
                                f"has {3 * len(pose.joints)} keypoint values, expected {3 * file.skeleton.num_joints} "
                                f"(x, y, score of the {file.skeleton.num_joints} joints of {file.skeleton.name})"
                            )
                        poses.append(self.marked(pose))
                    if text and not poses:
                        image = self.photograph_of(value, file)
                except PROBLEMS as error:
                    raise file.unfit(row, error) from error
                somebody |= bool(poses)
                yield Element(lead, text, poses, first=row == 0, image=image)
                row += 1
        if self.file_per_photograph and not somebody:
            yield Element("", "", image=file.image)

    def first_people(self, file: "PoseFile", most: int) -> list[np.ndarray]:
        """The joints of the first people, with as many joints as the very first; `file.skeleton` is not known yet."""
        found: list[np.ndarray] = []
        with open_binary(file.path) as opened:
            for row, (_, text, value) in enumerate(self.items(opened, file)):
                try:
                    for pose in self.people(value, text, file) if text else ():
                        if found and len(pose.joints) != len(found[0]):
                            return found
                        found.append(self.marked(pose).joints)
                        if len(found) >= most:
                            return found
                except PROBLEMS as error:
                    if found:  # the row is named when the job comes to it
                        return found
                    raise file.unfit(row, error) from error
        return found

    def skeleton_in(self, file: "PoseFile") -> Skeleton | None:
        """The joints that the file itself names; None if it names none. Raises PosefixError."""
        return self.skeleton

    def items(self, opened: Readable, file: "PoseFile") -> Iterator[Item]:
        """The elements' texts and values."""
        raise NotImplementedError

    def people(self, value: object, text: str, file: "PoseFile") -> Iterator[Pose]:
        """The people of an element; raises one of `PROBLEMS` where it has the wrong form."""
        raise NotImplementedError

    def photograph_of(self, value: Any, file: "PoseFile") -> ImageId | None:
        """The photograph of an element that shows nobody; None if the element does not tell. Raises one of `PROBLEMS`."""
        return None

    def marked(self, pose: Pose) -> Pose:
        """The pose with 0, 0, 0 for a joint with a null or NaN, and score 0 for one whose place says that it is missing."""
        joints = pose.joints
        if joints.size and math.isnan(joints.max()):
            joints = np.where(np.isnan(joints).any(axis=1, keepdims=True), 0.0, joints)
        if self.missing_at:
            left = joints[:, 0].tolist()
            for value in self.missing_at:
                if value in left:
                    joints = np.array(joints)
                    joints[(joints[:, :2] == value).all(axis=1), 2] = 0.0
        return pose if joints is pose.joints else pose._replace(joints=joints)

    def has_score(self, file: "PoseFile") -> bool:
        """Whether a person of the file has a score that can be changed in place."""
        return bool(self.score_path)

    # Writing in place

    def edited(self, file: "PoseFile", change: Edit) -> str:
        """The element's text with other numbers; every other character stays."""
        raise NotImplementedError

    def write_back(self, file: "PoseFile", edits: Sequence[Edit]) -> bytes:
        """Consecutive elements of a file with their changes."""
        data: list[str] = []
        opening: str | None = None
        for change in edits:
            element = change.element
            if change.dropped:
                opening = element.lead if element.first else opening
                continue
            # The text that opens the file belongs to a row that is left out: the next row takes it over. There is a
            # next one, since a photograph's best row is never left out and all its rows are in one part.
            if opening is not None and element.text:
                data.append(opening)
                opening = None
            else:
                data.append(element.lead)
            data.append(self.edited(file, change))
        return "".join(data).encode()

    # Writing anew

    def as_lines(self) -> "Format":
        """The same elements, one per line (`.jsonl`)."""
        lines = copy.copy(self)
        lines.head, lines.between, lines.tail = "", "\n", "\n"
        return lines

    def compose(self, photograph: Photograph) -> list[str]:
        """The texts of a photograph's elements."""
        raise NotImplementedError

    def write_new(
        self, photographs: Sequence[Photograph], *, single: bool, integer_ids: bool
    ) -> list[tuple[str, bytes]]:
        """(file name, its next bytes) of every photograph; "" for the only file.

        Args:
          single: all photographs go to one file.
          integer_ids: every image id of the job is an integer.
        """
        if single:
            texts = (text for photograph in photographs for text in self.compose(photograph))
            return [("", "".join(self.between + text for text in texts).encode())]
        return [
            (self.file_of(p.image, p.name), "".join(text + "\n" for text in self.compose(p)).encode())
            for p in photographs
        ]

    def head_of(self, joints: Sequence[str]) -> str:
        """The text before the first element, given the joints that are written."""
        return self.head

    def tail_of(self, images: Sequence[Sequence], joints: Sequence[str]) -> str:
        """The text after the last element, given the images (id, name) and the joints that were written."""
        return self.tail

    def file_of(self, image: ImageId, name: str | None) -> str:
        """The name of a photograph's own file; without folders, whatever the row says."""
        stem = PurePosixPath(name or str(image)).name
        stem = stem if "." not in stem else stem.rsplit(".", 1)[0]
        stem = re.sub(r"[\\/\x00-\x1f]", "_", stem).strip(". ").encode("utf-8", "replace").decode()
        return (stem[:150] or "image") + self.suffix

    @contextmanager
    def writer(self, file: BinaryIO) -> Iterator[Callable[[bytes], object]]:
        """A function that takes the bytes of the pieces, in order."""
        yield file.write


class JsonFormat(Format):
    """A format of JSON: a list, an object with a list, or one value per line.

    Attributes:
      members: names in a document's object by which it is recognized; the first holds the elements.
      element_keys: names in an element by which a file of lines is recognized early.
      visible: what is written as the score of a joint that is filled in, where it is a visibility.
      keyed: the elements are the members of the document's object, each named after its photograph.
      first_pixel: the coordinate of the center of the first pixel, where it is not 0.
      triples_in: where the flat list of x, y, score is within a person, in formats that have one.
    """

    members: tuple[str, ...] = ()
    element_keys: tuple[str, ...] = ()
    visible: int | None = None
    keyed = False
    first_pixel = 0
    triples_in: tuple[str, ...] = ()

    def matches(self, entry: Any) -> bool:
        """Whether an element of a list, a line, or (`keyed`) a member's value is of this format."""
        return False

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        """The people of an element; `image` is what the file's name says of the photograph."""
        raise NotImplementedError

    def paths(self, pose: Pose, joint: int) -> tuple:
        """The paths of a joint's x, y and score within the element; None for a score that the file lacks."""
        return tuple((*pose.path, *self.triples_in, 3 * joint + i) for i in range(3))

    def added(self, pose: Pose, joint: int, values: list[float], slot: int) -> dict[tuple, object]:
        """The path and the value of a joint (x, y, score) that the person's list, which ends before `slot`, lacks."""
        raise NotImplementedError

    def people(self, value: object, text: str, file: "PoseFile") -> Iterator[Pose]:
        if not isinstance(value, dict):
            raise ValueError(f"is {type(value).__name__}, expected an object")
        return self.people_of(value, file.image)

    def items(self, opened: Readable, file: "PoseFile") -> Iterator[Item]:
        stream = JsonStream(opened, file.path)
        lead = stream.space()
        if self.keyed:
            for name, before in stream.members():
                lead += before
                if name:
                    value, text = stream.value()
                    yield Item(lead, text, (name, value))
                    lead = ""
            yield Item(lead + stream.rest(), "", None)
        elif file.list_in == "":
            for item in stream.items(lead):
                yield item if item.text else Item(item.lead + stream.rest(), "", None)
        elif file.list_in is None:
            while stream.peek():
                value, text = stream.value()
                yield Item(lead, text, value)
                lead = stream.space()
            yield Item(lead, "", None)
        else:
            for name, before in stream.members():
                lead += before
                if name == file.list_in and stream.peek() == "[":
                    for item in stream.items(lead):
                        if item.text:
                            yield item
                        else:
                            lead = item.lead
                elif name:
                    lead += stream.skipped()
            yield Item(lead + stream.rest(), "", None)

    def edited(self, file: "PoseFile", change: Edit) -> str:
        digits = 7 if self.fraction else 3
        edits: dict[tuple, object] = {}
        for index, joints, changed in change.changes():
            pose = change.element.poses[index]
            slot = pose.slot
            for joint in np.flatnonzero(changed).tolist():
                x, y, score = joints[joint].tolist()
                values = [round(x + self.first_pixel, digits), round(y + self.first_pixel, digits)]
                if pose.slots is not None and joint not in pose.slots:
                    edits |= self.added(pose, joint, [*values, round(score, 4)], slot)
                    slot += 1
                    continue
                paths = self.paths(pose, joint)
                if score != pose.joints[joint, 2] and paths[2] is not None:
                    values.append(round(score, 4) if self.visible is None else self.visible)
                edits |= zip(paths, values, strict=False)
        for index, score in change.scores.items():
            edits[(*change.element.poses[index].path, *self.score_path)] = round(score, 6)
        return edit(change.element.text, edits) if edits else change.element.text


@dataclass(frozen=True)
class PoseFile:
    """A file of poses that was opened by `data.pose_files.open_pose_file`.

    Attributes:
      path: a local path or URL.
      format: what kind of file it is.
      list_in: the member of the document's object that holds the elements, "" for a list, None for lines.
      skeleton: the joints.
      names: file names by image id, where the file has them.
      images: the ids of the photographs that it lists.
      empty: nobody is in it, so format and skeleton are those of the files read with it.
      name: the path within the folder that was named.
      joints_named: the file itself says what its joints are called.
      columns: our names of a table's columns by its own, where the user says them; None where not.
    """

    path: str
    format: Format
    list_in: str | None
    skeleton: Skeleton
    names: Mapping | None = None
    images: Sequence[ImageId] = ()
    empty: bool = False
    name: str = ""
    joints_named: bool = False
    columns: Mapping[str, str] | None = None

    @cached_property
    def image(self) -> str:
        """What the file's own name, with its folders in the input, says of the photograph."""
        folders, _, _ = self.name.rpartition("/")
        return f"{folders}/{stem_of(self.path)}" if folders else stem_of(self.path)

    def elements(self) -> Iterator[Element]:
        """As `Format.elements`."""
        return self.format.elements(self)

    def unfit(self, row: int, error: Exception) -> PosefixError:
        """The message for an element that does not have the format's form."""
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        what = "a list in it has too few elements" if isinstance(error, IndexError) else what
        what = f"has something of another kind ({error})" if isinstance(error, TypeError | AttributeError) else what
        return PosefixError(f"{self.path}: row {row}: {what} (read as {self.format.name})")


def stem_of(path: str) -> str:
    """The name of a pose file without folders and suffixes: that of its photograph, where there is one file for each."""
    stem = PurePosixPath(path).name.removesuffix(".gz")
    stem = PurePosixPath(stem).stem
    return stem.removesuffix("_keypoints").removeprefix("results_")  # OpenPose's, MMPose's
