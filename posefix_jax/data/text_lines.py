"""Text files read line by line, and edits that leave all other characters as they were."""

import re
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from posefix_jax.types import PosefixError

LONGEST = 1 << 20
"""Most bytes in one line. A longer one counts as a broken file."""
_CHUNK = 1 << 16


@runtime_checkable
class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes: ...


def lines(file: Readable, path: str) -> Iterator[str]:
    """The lines of a file with their line ends.

    Raises:
      PosefixError: it is not UTF-8, or a line is too long.
    """
    rest, number = b"", 1
    while data := file.read(_CHUNK):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield _decoded(line + b"\n", path, number)
            number += 1
        if len(rest) > LONGEST:
            raise PosefixError(f"{path}: line {number}: a line of more than {LONGEST} bytes; expected one per person")
    if rest:
        yield _decoded(rest, path, number)


def split_lines(text: str) -> list[str]:
    """The lines of a text with their line ends, as `lines` cuts them."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _decoded(line: bytes, path: str, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise PosefixError(f"{path}: line {number}: not text ({error})") from error


def replaced(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    """The text with other characters in some places: (start, end, new), in order."""
    pieces: list[str] = []
    done = 0
    for start, end, new in spans:
        pieces += text[done:start], new
        done = end
    return "".join([*pieces, text[done:]])
