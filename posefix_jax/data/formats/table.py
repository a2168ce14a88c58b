"""What the text tables of poses share: a header that says which cells are whose joints, and edits of single cells."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from posefix_jax.core.joint_sets import SKELETONS, comparable_names, joints_in, skeleton_from_category
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.formats.base import Edit, Format, ImageId, Pose, PoseFile
from posefix_jax.data.formats.cells import (
    cells_of,
    inner,
    name_or_number,
    numbers_of,
    records,
    renamed,
    spans_of,
)
from posefix_jax.data.image_sources import open_binary
from posefix_jax.data.json_stream import Item
from posefix_jax.data.text_lines import Readable, lines, replaced
from posefix_jax.types import PosefixError


class Cells(NamedTuple):
    """The columns of one joint: x, y, and the score's where there is one."""

    x: int
    y: int
    score: int | None = None


@dataclass(frozen=True, eq=False)  # hashed by identity: one per opened file
class Layout:
    """What the header of a table says.

    Attributes:
      delimiter: what stands between cells.
      header: the columns' names, for messages.
      joints: the joints' names; empty if joints are only numbered.
      people: for each person that a record can hold, its name (None for the only one) and the cells of its joints.
      image: the columns that together name the photograph.
      track, score, category: the columns of a person's own values.
      joint: the column with the joint's name, in tables with a record per joint.
      flag: what is written as the score of a joint that is filled in, where the column is a visibility.
    """

    delimiter: str
    header: tuple[str, ...]
    joints: tuple[str, ...]
    people: tuple[tuple[str | None, tuple[Cells, ...]], ...]
    image: tuple[int, ...]
    track: int | None = None
    score: int | None = None
    category: int | None = None
    joint: int | None = None
    flag: int | None = None


class Joints(NamedTuple):
    """The cells of a person's joints.

    Attributes:
      cells: of each joint.
      columns: all of them.
      scored: [K, 3] which of x, y, score have a column; None if all have.
    """

    cells: tuple[Cells, ...]
    columns: tuple[int, ...]
    scored: np.ndarray | None


class Record(NamedTuple):
    """A record of a table: the number of its first line, its text, its cells."""

    line: int
    text: str
    cells: list[str]


class Table(Format):
    """A text table with a header. Subclasses say how the header is read."""

    def header_ends(self, header: Sequence[str]) -> bool:
        """Whether these records are all of the header."""
        return True

    def layout(self, header: Sequence[str], path: str) -> Layout:
        """What the header says, given its records. Raises PosefixError if it is not one of this format."""
        raise NotImplementedError

    # Reading

    def opened_layout(self, file: PoseFile) -> Layout:
        """The layout of a file. Raises PosefixError."""
        with open_binary(file.path) as opened:
            return self._begin(opened, file)[1]

    def _begin(self, opened: Readable, file: PoseFile) -> tuple[str, Layout, Iterator[tuple[int, str]]]:
        """The header's text, its layout, the records after it."""
        rest = records(lines(opened, file.path), file.path)
        lead, header = "", []
        for _, text in rest:
            lead += text
            if text.strip("\ufeff \t\r\n"):
                header.append(text.removeprefix("\ufeff"))
                if self.header_ends(header):
                    break
        if not header:
            raise PosefixError(f"{file.path}: empty; expected a table with a header (read as {self.name})")
        header[0] = renamed(header[0], file.columns, file.path)
        return lead, self.layout(header, file.path), rest

    def skeleton_in(self, file: PoseFile) -> Skeleton | None:
        return named_skeleton(self.opened_layout(file).joints, self.name)

    def has_score(self, file: PoseFile) -> bool:
        return self.opened_layout(file).score is not None

    def items(self, opened: Readable, file: PoseFile) -> Iterator[Item]:
        lead, layout, rest = self._begin(opened, file)
        for group in self.grouped(self._records(rest, layout, file), layout):
            text = "".join(record.text for record in group if record.cells)
            if text:
                yield Item(lead, text, (layout, group))
                lead = ""
            else:
                lead += "".join(record.text for record in group)
        yield Item(lead, "", None)

    def _records(self, rest: Iterable[tuple[int, str]], layout: Layout, file: PoseFile) -> Iterator[Record]:
        """The records; one that is blank has no cells."""
        for line, text in rest:
            if not text.strip():
                yield Record(line, text, [])
                continue
            try:
                cells = cells_of(text, layout.delimiter)
                if len(cells) != len(layout.header):
                    raise ValueError(f"has {len(cells)} cells, expected {len(layout.header)}, as in the header")
            except ValueError as error:
                raise PosefixError(f"{file.path}: line {line}: {error} (read as {self.name})") from error
            yield Record(line, text, cells)

    def grouped(self, rows: Iterator[Record], layout: Layout) -> Iterator[list[Record]]:
        """The records of each element; a blank one alone."""
        for record in rows:
            yield [record]

    def people(self, value: object, text: str, file: PoseFile) -> Iterator[Pose]:
        assert isinstance(value, tuple)
        layout, (record,) = value
        for place, columns in enumerate(_arranged(layout, file.skeleton)):
            joints = joints_of(record, columns, layout)
            name = layout.people[place][0]
            if len(layout.people) == 1 or np.isfinite(joints[:, :2]).all(axis=1).any():
                track = {} if name is None else {"track": name}
                yield own_values(record, layout, joints)._replace(path=(layout, place), **track)

    # Writing in place

    def edited(self, file: PoseFile, change: Edit) -> str:
        text = change.element.text
        if not change.joints and not change.scores:
            return text
        layout: Layout = change.element.poses[0].path[0]
        new: dict[int, str] = {}
        for index, joints, changed in change.changes():
            pose = change.element.poses[index]
            columns = _arranged(layout, file.skeleton)[pose.path[1]].cells
            for joint in np.flatnonzero(changed).tolist():
                new |= new_cells(columns[joint], joints[joint], pose.joints[joint], layout)
        for score in change.scores.values():
            assert layout.score is not None  # else nobody may ask for it: `has_score`
            new[layout.score] = repr(round(score, 6))
        return with_cells(text, new, layout)


def joints_of(record: Record, joints: Joints, layout: Layout) -> np.ndarray:
    """[K, 3] the joints in some cells of a record; without a column of scores they are 1. Raises ValueError."""
    values = np.array(numbers_of(record.cells, joints.columns, layout.header))
    if joints.scored is None:
        return values.reshape(-1, 3)
    out = np.ones((len(joints.cells), 3))
    out[joints.scored] = values
    return out


def image_named(record: Record, layout: Layout) -> ImageId:
    """What the record calls its photograph. Raises ValueError."""
    parts = [name_or_number(record.cells[column]) for column in layout.image]
    image = parts[0] if len(parts) == 1 else "/".join(map(str, parts))
    if image == "":
        raise ValueError(f"line {record.line}: column {layout.header[layout.image[0]]!r:.40} names no photograph")
    return image


def own_values(record: Record, layout: Layout, joints: np.ndarray) -> Pose:
    """A pose with what the record says of the photograph and the person. Raises ValueError."""
    cells = record.cells
    score = None if layout.score is None else numbers_of(cells, [layout.score], layout.header)[0]
    track = None if layout.track is None else name_or_number(cells[layout.track])
    category = None if layout.category is None else name_or_number(cells[layout.category])
    return Pose(
        image_named(record, layout),
        joints,
        score=None if score is None or score != score else score,
        category=None if category == "" else category,
        track=None if track == "" else track,
    )


def new_cells(columns: Cells, joint: np.ndarray, old: np.ndarray, layout: Layout) -> dict[int, str]:
    """The new text of a joint's cells, by column."""
    x, y, score = joint.tolist()
    new = {columns.x: repr(round(x, 3)), columns.y: repr(round(y, 3))}
    if columns.score is not None and score != old[2]:
        new[columns.score] = repr(round(score, 4) if layout.flag is None else layout.flag)
    return new


def with_cells(record: str, new: Mapping[int, str], layout: Layout) -> str:
    """A record with other text in some cells."""
    spans = spans_of(record, layout.delimiter)
    return replaced(record, [(*inner(record, spans[column]), new[column]) for column in sorted(new)])


def named_skeleton(joints: Sequence[str], name: str) -> Skeleton | None:
    """The skeleton of some joint names: a built-in one of the same names in any order, else one of these; None of none.

    Raises:
      PosefixError: a name is there twice.
    """
    if not joints:
        return None
    names = set(comparable_names(joints))
    for skeleton in SKELETONS.values():
        if len(joints) == skeleton.num_joints and names == set(comparable_names(skeleton.joints)):
            return skeleton
    return skeleton_from_category({"name": name, "keypoints": list(joints)})


def order_of(joints: Sequence[str], skeleton: Skeleton) -> np.ndarray:
    """[K] where a skeleton's joints are among those of some columns. Raises ValueError where the columns lack one."""
    order = joints_in(skeleton.joints, joints)
    if (order < 0).any():
        lacking = [joint for joint, place in zip(skeleton.joints, order, strict=True) if place < 0]
        raise ValueError(f"no columns of {', '.join(lacking[:3])}, which {skeleton.name} has; leave out --skeleton")
    return order


@lru_cache(maxsize=64)  # asked once per record
def _arranged(layout: Layout, skeleton: Skeleton) -> tuple[Joints, ...]:
    """The cells of every person of a record, in the skeleton's order. Raises ValueError where the columns lack a joint."""
    if not layout.joints:
        return tuple(_joints(cells) for _, cells in layout.people)
    order = order_of(layout.joints, skeleton)
    return tuple(_joints(tuple(cells[place] for place in order)) for _, cells in layout.people)


def _joints(cells: tuple[Cells, ...]) -> Joints:
    there = np.array([[column is not None for column in joint] for joint in cells])
    columns = tuple(column for joint in cells for column in joint if column is not None)
    return Joints(cells, columns, None if there.all() else there)
