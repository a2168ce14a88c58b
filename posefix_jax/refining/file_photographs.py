"""The photographs of a file's rows: where they are, by what they were found, and whether that can be meant."""

from collections import Counter

import numpy as np

from posefix_jax.data.formats.base import ImageId, Pose
from posefix_jax.data.image_sources import Images, number_of
from posefix_jax.data.pose_files import PoseFiles
from posefix_jax.types import PosefixError

MISSING = "missing"


def check_units(largest: float, source: PoseFiles) -> None:
    """Whether coordinates can be pixels.

    Args:
      largest: the largest distance of a coordinate from 0.
      source: the file.

    Raises:
      PosefixError: they are fractions of the photographs, in a format of pixels.
    """
    if 0 < largest < 2 and not source.format.fraction:
        raise PosefixError(
            f"{source.path}: all coordinates lie within {largest:.3g} of 0, like fractions of the photograph's width and "
            f"height; {source.format.name} files have pixels: multiply x by the width and y by the height"
        )


def reason_to_skip(pose: Pose, photographs: "FilePhotographs | None", *, category: int) -> str | None:
    """Why a row cannot be refined, as far as it can be told without its photograph; None if it can.

    Args:
      pose: of the row.
      photographs: where it must be; None: anywhere.
      category: rows of other ones are skipped.
    """
    if pose.category is not None and str(pose.category) != str(category):
        return f"category {pose.category}, not {category}"
    if not np.isfinite(pose.joints).all():
        return "a value is not finite"
    return None if photographs is None or photographs.find(pose.image) is not None else f"photograph {MISSING}"


class FilePhotographs:
    """Finds photographs, remembers the last ones, and counts rows by how their photograph was found.

    Args:
      images: the photographs.
      source: the file of poses, for messages.
      first_frame: whether `images` was told the number of the first photograph.

    Attributes:
      found: rows by how their photograph was found: "by file name", "by number", or `MISSING`.
      read: how many photographs were read.
    """

    def __init__(self, images: Images, source: str, *, first_frame: bool = False):
        self.images, self._source, self._first_frame = images, source, first_frame
        self.found: Counter[str] = Counter()
        self.read = 0
        self._places: dict[ImageId, str | int | None] = {}
        self._example: ImageId | None = None
        self._numbers: tuple[int, int] | None = None

    def find(self, image: ImageId) -> str | int | None:
        """As `Images.find`."""
        if image not in self._places:
            if len(self._places) > 1 << 16:
                self._places.clear()
            self._places[image] = self.images.find(image)
        return self._places[image]

    def pixels(self, image: ImageId, *, exif: bool) -> np.ndarray:
        """As `Images.read_named`; called from several threads. Raises UnreadableImage."""
        self.read += 1
        return self.images.read_named(image, exif=exif, in_turn=True)

    def is_rotated(self, image: ImageId) -> bool:
        """As `Images.is_rotated`; False for a photograph that is missing."""
        place = self.find(image)
        return place is not None and self.images.is_rotated(place)

    def count(self, image: ImageId) -> None:
        """Counts a row."""
        numbered = self.images.by_number(image)
        found = self.find(image) is not None
        if numbered and (number := number_of(image)) is not None:
            low, high = self._numbers or (number, number)
            self._numbers = min(low, number), max(high, number)
        if self._example is None or (found and self._none_found):
            self._example = image
        self.found[("by number" if numbered else "by file name") if found else MISSING] += 1

    @property
    def _none_found(self) -> bool:
        """Whether no photograph of the rows so far is there."""
        return self.found.total() == self.found[MISSING]

    def check(self) -> None:
        """After all rows are counted.

        Raises:
          PosefixError: not one photograph is there, or numbers that run from 1 meet photographs that run from 0 (or the
            other way round), so that each row may be of the photograph beside.
        """
        if self._none_found and self._example is not None:
            raise self.images.none_of(self._example)
        theirs = self.images.numbers
        if self._first_frame or self._numbers is None or theirs is None or not self.found["by number"]:
            return
        low, high = self._numbers
        if high > low and (low - theirs[0], high - theirs[1]) in ((1, 1), (-1, -1)):
            raise PosefixError(
                f"{self._source}: its rows are of photographs {low} to {high}, {self.images.place} has {theirs[0]} to "
                f"{theirs[1]}: give --first-frame {low} if both begin with the same photograph, --first-frame "
                f"{theirs[0]} if the numbers are meant as they are"
            )

    def summary(self) -> str:
        """How the photographs of the rows were found, for the terminal."""
        counts = ", ".join(f"{count} {how}" for how, count in self.found.items())
        example = self._example
        place = None if example is None else self.find(example)
        if place is None or not self.found["by number"]:
            return f"photographs of rows: {counts}"
        return f"photographs of rows: {counts} ({example} is {'frame ' if isinstance(place, int) else ''}{place})"
