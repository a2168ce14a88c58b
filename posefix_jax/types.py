"""What every layer shares: the error a user can cause, and the kinds of pose error."""

import difflib
import enum
from collections.abc import Iterable


class PosefixError(Exception):
    """The user's input is at fault; the message says which, what was expected, and what to do.

    The command line prints the message as one line and exits with code 2.
    """


class ErrorKind(enum.IntEnum):
    """What an estimator did to a joint (Ronchi & Perona 2017; the paper, section 4).

    `ABSENT` marks a joint that is not in the input pose at all.
    """

    ABSENT = -1
    GOOD = 0
    JITTER = 1
    INVERSION = 2
    SWAP = 3
    MISS = 4


KINDS = tuple(kind for kind in ErrorKind if kind is not ErrorKind.ABSENT)


def nearest_names(name: str, valid: Iterable[str]) -> str:
    """Ends a message about an unknown name: the nearest valid one, or all of them."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(valid)}"
