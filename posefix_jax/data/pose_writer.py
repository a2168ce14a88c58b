"""Rows back into their files, with other numbers or in another format."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from posefix_jax.core.skeleton import joints_in, to_skeleton
from posefix_jax.data.formats import WRITABLE, Edit, Element, Format, Photograph, Pose
from posefix_jax.data.formats.base import ImageId
from posefix_jax.data.image_sources import Images
from posefix_jax.data.images import UnreadableImage
from posefix_jax.data.pose_files import PoseFiles
from posefix_jax.types import PosefixError, nearest_names


@dataclass
class Part:
    """Some consecutive rows of a job, and what becomes of them. Keys are rows counted from the part's first.

    Attributes:
      number, first_row: of the part, and of its first row, in the job.
      elements: the pieces of the files, each with the index of its file.
      poses: their people, in order.
      joints: new joints of rows, [K, 3] in the file's joints and unit.
      scores: new scores of rows.
      reasons: why a row passes through unchanged, or is left out.
      dropped: rows that are left out.
      sizes: (height, width) of photographs that were read.
      more: what else the part's header is to hold.
    """

    number: int
    first_row: int
    elements: list[tuple[int, Element]]
    poses: list[Pose]
    joints: dict[int, np.ndarray] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    sizes: dict = field(default_factory=dict)
    more: dict = field(default_factory=dict)

    def by_image(self) -> dict[ImageId, list[int]]:
        """The rows of each photograph."""
        rows: dict = {}
        for row, pose in enumerate(self.poses):
            rows.setdefault(pose.image, []).append(row)
        return rows

    def by_photograph(self) -> Iterator[tuple[ImageId, list[int]]]:
        """The photographs in order, each with its adjacent rows: none for one that shows nobody."""
        for image, group in groupby(self._images(), key=lambda pair: pair[0]):
            yield image, [row for _, row in group if row is not None]

    def _images(self) -> Iterator[tuple[ImageId, int | None]]:
        rows = iter(range(len(self.poses)))
        for _, element in self.elements:
            for pose in element.poses:
                yield pose.image, next(rows)
            if element.image is not None:
                yield element.image, None

    def edits(self) -> Iterator[tuple[int, Edit]]:
        """Per element, the index of its file and what changes in it."""
        first = 0
        for index, element in self.elements:
            rows = range(first, first + len(element.poses))
            first += len(rows)
            yield (
                index,
                Edit(
                    element,
                    {i: self.joints[row] for i, row in enumerate(rows) if row in self.joints},
                    {i: self.scores[row] for i, row in enumerate(rows) if row in self.scores},
                    {i for i, row in enumerate(rows) if row in self.dropped},
                ),
            )


class PoseWriter:
    """Turns parts into bytes of the output files.

    Args:
      source: what is read.
      out: the output; its name may ask for one element per line (`.jsonl`).
      to: a format of `WRITABLE`; None: each file's own, edited in place.
      images: the photographs, to convert between pixels and fractions of width and height.

    Attributes:
      format: the format that is written anew; None: edited in place.
      single: the output is one file.

    Raises:
      PosefixError: no such format.
    """

    def __init__(self, source: PoseFiles, out: Path, *, to: str | None, images: Images | None):
        if to is not None and to not in WRITABLE:
            raise PosefixError(f"unknown format {to!r} to write: {nearest_names(to, WRITABLE)}")
        self.source, self.images = source, images
        self.format: Format | None = None if to is None else WRITABLE[to]
        if self.format is None:
            self.single = [file.name for file in source.files] == [""]
        else:
            if to in ("coco", "mmpose") and out.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
                self.format = self.format.as_lines()
            self.single = not self.format.suffix
        self.written = self.format or source.format
        self.integer_ids = True
        self._lost_lists: set[str] = set()
        self._seen: set[str] = set()

    @property
    def converts_units(self) -> bool:
        """Whether coordinates are fractions on one side only, so that the photographs' sizes are needed."""
        return self.format is not None and self.format.fraction != self.source.format.fraction

    @property
    def has_score(self) -> bool:
        """Whether a person of the output has a score."""
        return self.source.format.has_score(self.source.files[0]) if self.format is None else self.format.writes_score

    @property
    def joints(self) -> tuple[str, ...]:
        """The names of the joints that are written."""
        skeleton = self.format and self.format.written_skeleton
        return (skeleton or self.source.skeleton).joints

    @property
    def left_out(self) -> list[str]:
        """Joints of the input, and lists of more joints in the parts that were checked, that the output does not hold."""
        if self.format is None:
            return []
        given = self.source.skeleton.joints
        lost = zip(given, joints_in(given, self.joints), strict=True)
        return [*(joint for joint, place in lost if place < 0), *sorted(self._lost_lists)]

    def check(self, part: Part) -> None:
        """Raises PosefixError where the format cannot hold a row. To be called with every part, in order."""
        form, path = self.format, self.source.path
        if form is None:
            return
        for name in set(self.source.format.more_joints) - self._lost_lists:
            filled = re.compile(rf'"{name}"\s*:\s*\[\s*[^\]\s]')
            if any(filled.search(element.text) for _, element in part.elements):
                self._lost_lists.add(name)
        for row, pose in enumerate(part.poses):
            place = f"{path}: row {part.first_row + row}"
            if not np.isfinite(pose.joints).all():
                raise PosefixError(f"{place}: a value is not finite; {form.name} cannot hold it")
            self.integer_ids &= isinstance(pose.image, int)
            if not form.escapes and any("\ud800" <= letter <= "\udfff" for letter in str(pose.image)):
                raise PosefixError(
                    f"{place}: the photograph's name {pose.image!r} has half a character, which {form.name} cannot hold; correct it"
                )
            if self.converts_units and (self.images is None or self.images.find(pose.image) is None):
                raise PosefixError(
                    f"{place}: the photograph {pose.image!r} is missing, and {form.name} or its input has coordinates in "
                    "fractions of its width and height; give --images with it, or another format"
                )
        if form.suffix:
            # Only a short text per photograph is remembered.
            images = [image for image, _ in part.by_photograph()]
            now, runs = {form.file_of(image, self.source.name_of(image)) for image in images}, len(images)
            if now & self._seen or len(now) < runs:
                raise PosefixError(
                    f"{path}: near row {part.first_row} two photographs, or rows of one that are not adjacent, would "
                    f"share one {form.name} file; sort the rows by photograph"
                )
            self._seen |= now

    def segments(self, part: Part) -> list[tuple[str, bytes]]:
        """(name of an output file, "" for the only one; what the part adds to it), in order."""
        if self.format is None:
            files = self.source.files
            return [
                (files[index].name, self.source.format.write_back(files[index], [edit for _, edit in edits]))
                for index, edits in groupby(part.edits(), key=lambda pair: pair[0])
            ]
        photographs = list(self._photographs(part, self.format))
        if self.format.lists_images:
            seen = dict.fromkeys(image for image, _ in part.by_photograph())
            part.more["images"] = [[image, self.source.name_of(image)] for image in seen]
        return self.format.write_new(photographs, single=self.single, integer_ids=self.integer_ids)

    def _photographs(self, part: Part, form: Format) -> Iterator[Photograph]:
        given, wanted = self.source.skeleton, form.written_skeleton or self.source.skeleton
        for image, group in part.by_photograph():
            people = []
            rows = [row for row in group if row not in part.dropped]
            for row in rows:
                pose = part.poses[row]
                joints = np.array(part.joints.get(row, pose.joints), np.float64)
                if self.converts_units:
                    height, width = self.size_of(part, image)
                    joints[:, :2] *= [width, height] if self.source.format.fraction else [1 / width, 1 / height]
                score = part.scores.get(row, pose.score)
                people.append(pose._replace(joints=to_skeleton(joints, given, wanted), score=score))
            yield Photograph(image, self.source.name_of(image), people, part.first_row + (rows[0] if rows else 0))

    def size_of(self, part: Part, image: ImageId) -> tuple[int, int]:
        """Height and width of a photograph, read if none of its rows was refined. Raises PosefixError."""
        if image not in part.sizes:
            try:
                if self.images is None:
                    raise UnreadableImage("no --images")
                part.sizes[image] = self.images.read_named(image).shape[:2]
            except UnreadableImage as error:
                raise PosefixError(
                    f"{self.source.path}: the photograph {image!r} is unreadable ({error}), and {self.written.name} or its "
                    "input has coordinates in fractions of its width and height; repair it, or write another format"
                ) from error
        return part.sizes[image]
