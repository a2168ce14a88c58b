"""How a run is stopped from outside: signals, a time limit, and other runs in the same folder."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from posefix_jax.files import locked
from posefix_jax.training.config import Config
from posefix_jax.types import PosefixError


class Interruption:
    """Turns SIGINT and SIGTERM into a request to save and stop. A second signal acts as it would without this.

    A process alone handles them from its first finished step on (`step_done`). Before that there is nothing to save, so
    a signal kills it at once, even while it compiles: Python's own handlers would wait for the compiler.

    Several processes stop at the same step, after their first one at the earliest. jax's preemption service handles
    SIGTERM to any of them and agrees on the step; SIGINT is passed on as SIGTERM.
    """

    def __init__(self, config: Config):
        self._asked = False
        self._many = bool(config.processes.coordinator)
        self._numbers = (signal.SIGINT,) if self._many else (signal.SIGINT, signal.SIGTERM)
        self._before = {}
        self._handling = False
        self._timer = threading.Timer(60 * config.stop_after, self._time_is_up) if config.stop_after else None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            for number in self._numbers:
                self._before[number] = signal.signal(number, self._note if self._many else signal.SIG_DFL)
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def step_done(self) -> None:
        """To be called after every step."""
        if not self._handling and not self._many:
            for number in self._before:
                signal.signal(number, self._note)
        self._handling = True

    def stops_before(self, step: int) -> bool:
        """Whether to stop before this step. Every process must ask, and gets the same answer."""
        if self._many:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def asked(self) -> bool:
        """Whether a process alone was asked to stop; False if there are several."""
        return self._asked and not self._many

    def _note(self, number, _frame) -> None:
        self._asked = True
        signal.signal(number, self._before[number])
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)

    def _time_is_up(self) -> None:
        self._asked = True
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *_) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Holds the run's folder.

    Raises:
      PosefixError: another process is training into it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "lock", "a") as lock:
        free = bool(jax.process_index()) or locked(lock)
        if not multihost_utils.broadcast_one_to_all(np.array(free)):
            raise PosefixError(f"{out}: another process is training into it; stop it, or use another --out")
        yield
