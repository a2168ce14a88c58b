"""What reading photographs may take of a machine: regular files only, of a bounded size, and bounded memory in all threads."""

import os
import stat
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

LARGEST = 1 << 30
"""Most bytes in one compressed photograph, and in those that are read at one time."""
MOST_PIXELS = 1 << 28
"""Most pixels in the photographs that are held at one time: 3 bytes each, and as many again while one is decoded."""


def check_size(size: int) -> int:
    """The size of a photograph in bytes. Raises OSError if it is more than `LARGEST`."""
    if size > LARGEST:
        raise OSError(f"{size} bytes; a photograph may have {LARGEST}")
    return size


def size_of_file(path: str) -> int:
    """The size of a regular file. Raises OSError: no such file, a device or a pipe, or more than `LARGEST`."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a regular file")
    return check_size(found.st_size)


def stamp_of_file(path: str) -> list | None:
    """Size and time of a local file; None if it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


class Budget:
    """An amount that threads share. Who asks for more than is left waits, and so do those who ask after.

    Args:
      total: the amount. A larger one is asked for as this.
    """

    def __init__(self, total: int):
        self._total = self._left = total
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def of(self, amount: int) -> Iterator["Share"]:
        """Holds an amount until the end of the context, or of an array; see `Share.until_gone`."""
        amount = min(amount, self._total)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        share = Share(self, amount)
        try:
            yield share
        finally:
            share.end()

    def give_back(self, amount: int) -> None:
        """Ends a share."""
        with self._changed:
            self._left += amount
            self._changed.notify_all()


class Share:
    """A part of a budget."""

    def __init__(self, budget: Budget, amount: int):
        self._budget, self._amount = budget, amount

    def until_gone(self, array: np.ndarray) -> np.ndarray:
        """Holds the share as long as somebody has the array, which is returned."""
        weakref.finalize(array, self._budget.give_back, self._amount).atexit = False
        self._amount = 0
        return array

    def end(self) -> None:
        """Gives back what no array holds."""
        if self._amount:
            self._budget.give_back(self._amount)


BYTES, PIXELS = Budget(LARGEST), Budget(MOST_PIXELS)
"""Of this process: compressed photographs that are being read, and pixels of those that are held."""


def pixels_of(data: bytes) -> int:
    """How many pixels a photograph says that it has. `MOST_PIXELS` if its header is of no known kind, or damaged."""
    try:
        height, width = _size_in_header(data)
        return max(height * width, 1)
    except (struct.error, IndexError, ValueError):
        return MOST_PIXELS


def _size_in_header(data: bytes) -> tuple[int, int]:
    """Height and width. Raises struct.error, IndexError or ValueError if they are not found."""
    if data[:2] == b"\xff\xd8":
        return _size_in_jpeg(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack_from(">II", data, 16)
    elif data[:2] == b"BM":
        width, height = struct.unpack_from("<ii", data, 18)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        width, height = _size_in_webp(data)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        return _size_in_tiff(data)
    else:
        raise ValueError
    return abs(height), abs(width)


def _size_in_jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame header
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        fill_or_bare = kind in (0xFF, 0x01) or 0xD0 <= kind <= 0xD8
        at += (1 if kind == 0xFF else 2) if fill_or_bare else 2 + max(struct.unpack_from(">H", data, at + 2)[0], 2)


def _size_in_webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    height, width = struct.unpack_from("<HH", data, 26)
    return height & 0x3FFF, width & 0x3FFF


def _size_in_tiff(data: bytes) -> tuple[int, int]:
    order = "<" if data[:1] == b"I" else ">"
    at = struct.unpack_from(f"{order}I", data, 4)[0]
    sides = {}
    for entry in range(struct.unpack_from(f"{order}H", data, at)[0]):
        place = at + 2 + 12 * entry
        tag, kind = struct.unpack_from(f"{order}HH", data, place)
        if tag in (256, 257):
            sides[tag] = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, place + 8)[0]
    if len(sides) < 2:
        raise ValueError
    return sides[257], sides[256]
