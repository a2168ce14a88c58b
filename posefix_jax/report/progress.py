"""A progress line with rate and time left, on standard error."""

import sys
import time


class Progress:
    """Counts up to `total` (None: not known); on a terminal one line that overwrites itself, else one now and then."""

    def __init__(self, name: str, total: int | None, *, unit: str, done: int = 0):
        self.name, self.total, self.unit, self.start_at, self.done = name, total, unit, done, done
        self.note = ""
        self._tty = sys.stderr.isatty()
        self._every = 0.2 if self._tty else 15.0
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *failed) -> None:
        # What is not known to be long says nothing unless it was.
        if not failed[0] and (self.total is not None or time.monotonic() - self._started > 2):
            self._print()
        if self._tty:
            print(file=sys.stderr)

    def skip(self, count: int) -> None:
        """So many were done before: they count, but not for the rate."""
        self.start_at += count

    def update(self, done: int) -> None:
        self.done = done
        if time.monotonic() - self._printed >= self._every:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds = max(self._printed - self._started, 1e-6)
        rate = (self.done - self.start_at) / seconds
        known = self.total is not None
        left = (
            f", {format_seconds((self.total - self.done) / rate)} left"
            if known and rate and self.done < self.total
            else ""
        )
        count = f"{self.done}/{self.total}" if known else f"{self.done}"
        line = f"{self.name}: {count} {self.unit}, {rate:.1f}/s{left}{self.note}"
        print(f"\r\033[K{line}" if self._tty else line, end="" if self._tty else "\n", file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """`1 h 05 min`, `3 min 20 s`, `12 s`."""
    seconds = int(seconds + 0.5)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
