"""The script for a machine with an accelerator, with tiny networks on this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/accelerator.py", "--small", *arguments]
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True)


def documents(text: str) -> list[dict]:
    found, place, decoder = [], 0, json.JSONDecoder()
    while place < len(text.rstrip()):
        document, place = decoder.raw_decode(text, place)
        found.append(document)
        place += len(text[place:]) - len(text[place:].lstrip())
    return found


@pytest.mark.slow
def test_a_part_says_what_it_measured():
    done = run("--only", "step", "--minutes", "5")
    assert done.returncode == 0, done.stderr[-2000:]
    *steps, ended = documents(done.stdout)
    assert ended == {"step": "done"} and [step["batch_per_device"] for step in steps] == [2]
    assert all(step["people_per_s_and_device"] > 0 and step["memory_GiB"] > 0 for step in steps)


@pytest.mark.slow
def test_the_time_is_kept():
    """A part that would not end in time is stopped, the next is not begun, and the exit code tells."""
    done = run("--only", "refine", "share", "--minutes", "0.4")
    assert done.returncode == 1, done.stderr[-2000:]
    assert documents(done.stdout)[-1] == {"refine": "out of time", "share": "no time left"}
