"""Progress with rate and time left on standard error, by tqdm."""

import sys
import threading
from types import TracebackType

from tqdm import tqdm

from posefix_jax.types import is_quiet, tell

SHORT = 2.0
"""Seconds that a job of unknown length stays silent."""

tqdm.monitor_interval = 0  # no watching thread: every update looks at the clock
tqdm.set_lock(threading.RLock())  # tqdm's own lock is one between processes, of which there is only one here


class _Lines:
    """A file for tqdm where standard error is no terminal: whole lines, nothing that is written over."""

    def write(self, text: str) -> None:
        if text.strip():
            tell(text.strip("\r\n "))

    def flush(self) -> None:
        pass


class Progress:
    """Counts, with rate and time left: a bar on a terminal, elsewhere a line every 15 seconds and one at the end.

    A job of unknown length stays silent for two seconds. Where standard error is no terminal, a job that fails prints
    no line beside its error. A quiet process (`types.set_quiet`) shows nothing.

    Args:
      name: one word that begins the line.
      total: how many there are to count; None if unknown.
      unit: plural noun of what is counted.
    """

    def __init__(self, name: str, total: int | None, *, unit: str) -> None:
        self._terminal, self._known = sys.stderr.isatty() and not is_quiet(), total is not None
        count = "{desc}: {n_fmt}/{total_fmt}" if self._known else "{desc}: {n_fmt}"
        if self._known and self._terminal:
            count = "{desc}: {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt}"
        self._finished = f"{count} {unit}, {{rate_noinv_fmt}}{{postfix}}"
        running = f"{count} {unit}, {{rate_noinv_fmt}}, {{remaining}} left{{postfix}}"
        self._bar = tqdm(
            desc=name,
            total=total,
            unit="",
            file=sys.stderr if self._terminal else _Lines(),
            leave=self._terminal,
            mininterval=0.2 if self._terminal else 15.0,
            miniters=1,
            smoothing=0,
            dynamic_ncols=self._terminal,
            delay=0.0 if self._known and self._terminal else SHORT,
            bar_format=running if self._known else self._finished,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._bar.bar_format = self._finished
            if not self._terminal and (self._known or self._bar.format_dict["elapsed"] > SHORT):
                self._bar.refresh()
        self._bar.close()

    @property
    def done(self) -> int:
        """How many are done."""
        return int(self._bar.n)

    @property
    def note(self) -> str:
        """Ends the line, after a comma."""
        return str(self._bar.postfix or "")

    @note.setter
    def note(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)

    def skip(self, count: int) -> None:
        """Says that so many of what is counted were done before; they do not count towards the rate."""
        self._bar.initial += count
        self._bar.n += count

    def update(self, done: int) -> None:
        """Says how many are done now, those skipped included."""
        self._bar.update(done - self._bar.n)


def format_seconds(seconds: float) -> str:
    """`1 h 05 min`, `3 min 20 s`, `12 s`."""
    seconds = int(seconds + 0.5)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
