"""Progress lines, with tqdm's clock in the test's hand."""

import re

import pytest
from tqdm import tqdm

from posefix_jax.report.progress import Progress, format_seconds


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    original = tqdm.__init__

    def init(self, *arguments, **options):
        original(self, *arguments, **options)
        self._time = lambda: now[0]
        self.start_t = self.last_print_t = now[0]

    monkeypatch.setattr(tqdm, "__init__", init)
    return now


def lines(capsys) -> list[str]:
    text = capsys.readouterr().err
    assert "\r" not in text
    return text.splitlines()


def test_a_line_every_so_often_with_rate_and_time_left(clock, capsys):
    with Progress("refine", 100, unit="poses") as progress:
        for _ in range(100):
            clock[0] += 0.5
            progress.update(progress.done + 1)
            progress.note = f"{progress.done} noted"
    said = lines(capsys)
    assert said[0] == "refine: 30/100 poses,  2.00/s, 00:35 left, 29 noted"
    assert said[-1] == "refine: 100/100 poses,  2.00/s, 100 noted" and len(said) == 4


def test_done_before_does_not_count_towards_the_rate(clock, capsys):
    with Progress("refine", 1000, unit="poses") as progress:
        progress.skip(500)
        clock[0] += 20
        progress.update(600)
        assert lines(capsys) == ["refine: 600/1000 poses,  5.00/s, 01:20 left"]


def test_short_jobs(clock, capsys):
    with Progress("check", None, unit="poses") as progress:
        clock[0] += 1
        progress.update(7)
    assert lines(capsys) == []
    with Progress("check", None, unit="poses") as progress:
        clock[0] += 4
        progress.update(8)
    assert lines(capsys) == ["check: 8 poses,  2.00/s"]
    with Progress("prepare", 3, unit="people") as progress:
        clock[0] += 1
        progress.update(3)
    assert lines(capsys) == ["prepare: 3/3 people,  3.00/s"]


def test_a_failed_job_says_nothing_beside_its_error(clock, capsys):
    with pytest.raises(ValueError), Progress("refine", 100, unit="poses") as progress:
        progress.update(3)
        raise ValueError
    assert lines(capsys) == []


def test_a_terminal_has_one_line_that_is_written_over(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (100, 30))
    with Progress("refine", 4, unit="poses") as progress:
        progress.update(4)
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.endswith("\n")
    shown = [part.strip() for part in text.split("\r")]
    assert re.fullmatch(r"refine:   0% \| +\| 0/4 poses, \?/s, \? left", shown[1])
    assert re.fullmatch(r"refine: 100% \|\S{20}\| 4/4 poses, *[\d.]+/s", shown[-1])


def test_seconds():
    assert [format_seconds(s) for s in (0.4, 12.0, 200.0, 3900.0)] == ["0 s", "12 s", "3 min 20 s", "1 h 05 min"]
