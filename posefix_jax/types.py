"""What every layer shares: the error for users' mistakes, what may be printed, checks of values, kinds of pose error."""

import enum
import functools
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LONGEST = 2000
"""Characters of a message that are printed."""


def printable(text: str, longest: int | None = LONGEST) -> str:
    r"""Text for the terminal: control characters as `\x1b`, nothing after `longest` characters. Newlines stay."""
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]} ... and {len(text) - longest} more characters"
    if text.isprintable():
        return text
    shown = (c if c in "\n\xa0\u3000" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


def listed(names: Iterable[object], most: int = 4) -> str:
    """The first names of a list, for a message, and how many more there are."""
    words = [str(name) for name in names]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


class PosefixError(Exception):
    """A mistake in the user's input. The message says where, what was expected, what was found, and what to do.

    The command line prints the message as one line and exits with code 2.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ErrorKind(enum.IntEnum):
    """What an estimator did to a joint (Ronchi & Perona 2017; the paper, section 4).

    `ABSENT` marks a joint that the input pose lacks.
    """

    ABSENT = -1
    GOOD = 0
    JITTER = 1
    INVERSION = 2
    SWAP = 3
    MISS = 4


KINDS = tuple(kind for kind in ErrorKind if kind is not ErrorKind.ABSENT)


_quiet = False


def set_quiet(quiet: bool) -> None:
    """Whether this process says nothing but warnings and errors; `--quiet` of the command line."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """What `set_quiet` set."""
    return _quiet


def tell(message: str) -> None:
    """Prints what a job found or does to standard error, unless the process is quiet."""
    if not _quiet:
        print(printable(message), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Prints a warning to standard error."""
    print(f"posefix: warning: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)


@functools.cache
def warn_once(message: str) -> None:
    """As `warn`, the first time in this process."""
    warn(message)


LARGEST_NUMBER = 1e30
"""Of a field that is a number: float32 has room for it, and for its products with pixels."""


def check_fields(fields: Any, where: str = "", of: type | None = None) -> None:
    """Checks the fields of a dataclass against their annotations.

    Args:
      fields: an instance, or a dict of fields. Checked are those of bool, int, float, str, `Literal`, and tuples of them.
      where: begins the message.
      of: the dataclass that a dict is for.

    Raises:
      PosefixError: a field has another type, or a number is not finite, or beyond 64 bits or `LARGEST_NUMBER`.
    """
    values = vars(fields) if of is None else fields
    for name, hint in _hints(of or type(fields)).items():
        if name in values and not _fits(values[name], hint):
            raise PosefixError(f"{where}{name} must be {_described(hint)}, found {short(values[name])}")


@functools.cache
def _hints(of: type) -> dict[str, Any]:
    import dataclasses  # slow to import, as is typing
    import typing

    hints = typing.get_type_hints(of)
    return {field.name: hints[field.name] for field in dataclasses.fields(of)}


def short(value: object, longest: int = 60) -> str:
    """The start of a value's `repr`, of any value."""
    try:
        return f"{value!r:.{longest}}"
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists thousands deep
        return f"a very long {type(value).__name__}"


def is_integer(value: object) -> bool:
    """Whether it is an integer of at most 64 bits, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_number(value: object, largest: float = LARGEST_NUMBER) -> bool:
    """Whether it is a finite number that is not beyond `largest`, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(-largest <= value <= largest)


def is_name(value: object) -> bool:
    """Whether it is text of one line without control characters; it may be in any language."""
    return isinstance(value, str) and bool(value) and _is_text(value)


def _fits(value: object, hint: Any) -> bool:
    import typing

    simple = {bool: lambda of: isinstance(of, bool), int: is_integer, float: is_number, str: _is_text}
    if hint in simple:
        return simple[hint](value)
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str)  # which ones there are, the dataclass says itself
    if typing.get_origin(hint) is not tuple:
        return True
    parts = typing.get_args(hint)
    if not isinstance(value, tuple) or (parts[-1] is not ... and len(value) != len(parts)):
        return False
    each = (parts[0],) * len(value) if parts[-1] is ... else parts
    return all(_fits(item, part) for item, part in zip(value, each, strict=True))


def _is_text(value: object) -> bool:
    import unicodedata

    if not isinstance(value, str):
        return False
    return value.isprintable() or not {"Cc", "Cs", "Zl", "Zp"}.intersection(map(unicodedata.category, value))


def _described(hint: Any) -> str:
    import typing

    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        count = "" if parts[-1] is ... else f"{len(parts)} of "
        return f"a tuple, {count}each {_described(parts[0])}"
    return {bool: "true or false", int: "an integer", float: "a finite number"}.get(hint, "text of one line")


def nearest_names(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid name, or all of them."""
    import difflib  # slow to import, and seldom needed

    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(valid)}"


def function_in_file(path: Path, name: str) -> Callable:
    """A function that a user's Python file defines. Errors inside it become a `PosefixError` that names the file.

    Raises:
      PosefixError: no such file, it does not run, or it does not define the function.
    """
    if not path.is_file():
        raise PosefixError(f"{path}: no such file; expected a Python file that defines {name}()")

    def told(function: Callable) -> Callable:
        def call(*arguments: object) -> object:
            try:
                return function(*arguments)
            except PosefixError:
                raise
            except (Exception, SystemExit) as error:
                raise PosefixError(f"{path}: {type(error).__name__}: {error}") from error

        return call

    defined = told(runpy.run_path)(str(path)).get(name)
    if not callable(defined):
        raise PosefixError(f"{path}: expected it to define {name}()")
    return told(defined)
