"""What every layer shares: the error for users' mistakes, and the kinds of pose error."""

import enum
import functools
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


class PosefixError(Exception):
    """A mistake in the user's input. The message says where, what was expected, what was found, and what to do.

    The command line prints the message as one line and exits with code 2.
    """


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
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Prints a warning to standard error."""
    print(f"posefix: warning: {message}", file=sys.stderr, flush=True)


@functools.cache
def warn_once(message: str) -> None:
    """As `warn`, the first time in this process."""
    warn(message)


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
            except Exception as error:
                raise PosefixError(f"{path}: {type(error).__name__}: {error}") from error

        return call

    defined = told(runpy.run_path)(str(path)).get(name)
    if not callable(defined):
        raise PosefixError(f"{path}: expected it to define {name}()")
    return told(defined)
