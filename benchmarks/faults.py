"""What faults do to jobs over files: a kill before each file operation, a disk that is full, flipped bits.

    python benchmarks/faults.py DETECTIONS.json [--people 60] [--flips 200] [--write]

kill: a conversion to one file, and one to a file for each photograph, is killed (SIGKILL) before its first, second, ...
file operation; then the same command runs again. Its output must be that of an undisturbed run, byte for byte, and no
other file may be left. full: the same with every file limited to 0, 1, 2, 4, ... bytes: one clear line, exit code 2,
nothing of an earlier output touched, and the same command completes it afterwards. flip: a bit of a finished part or of a
stored weight is flipped; a job or a refiner must refuse it. Any other end is counted under `wrong`; the exit code is then 1.
"""

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from posefix_jax.cli import main as posefix

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")


def child(work: Callable[[], int], *, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Exit code (negative: the signal) and standard error of a function in a process of its own."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.dup2(write, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        before()
        try:
            code = work()
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    with open(read) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def kill_at(number: int, folder: Path) -> Callable[[], None]:
    """Kills this process before its file operation of that number in the folder."""

    def watch() -> None:
        left = number

        def hook(event: str, arguments: tuple) -> None:
            nonlocal left
            if event not in OPERATIONS or not isinstance(arguments[0], str | os.PathLike):
                return
            place = os.fspath(arguments[0])
            if str(folder) not in place and event != "os.rmdir" or (event == "open" and _reads(arguments)):
                return
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return watch


def _reads(arguments: tuple) -> bool:
    mode, flags = arguments[1], arguments[2]
    return mode in ("r", "rb") or (mode is None and not flags & (os.O_WRONLY | os.O_RDWR))


def limited_to(size: int) -> Callable[[], None]:
    """Lets this process write no file beyond a size."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def content(folder: Path) -> dict:
    """Every file of a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


Job = Callable[[Path], list[str]]


def tried(
    job: Job, folder: Path, fault: Callable[[int, Path], Callable[[], None]], judge: Callable[[int, str, int, str], str]
) -> Counter:
    """Runs a job under the first, second, ... fault until one does it no harm, and each time once more without.

    Args:
      job: the command that writes into a folder.
      folder: to work in.
      fault: from its number and the job's folder; what the job's process does before.
      judge: from exit code and standard error of both runs, what to count where the output is whole in the end; "" is wrong.
    """
    calm, harmed, counts = folder / "calm", folder / "harmed", Counter()
    calm.mkdir()
    assert child(lambda: posefix(job(calm)))[0] == 0
    for number in itertools.count():
        harmed.mkdir()
        code, said = child(lambda: posefix(job(harmed)), before=fault(number, harmed))
        if code == 0:
            return counts
        again, said_again = child(lambda: posefix(job(harmed)))
        end = judge(code, said, again, said_again) if content(harmed) == content(calm) else ""
        counts[end or "wrong"] += 1
        if not end:
            left = sorted(set(content(harmed)) ^ set(content(calm)))
            print(number, code, said[-300:], again, said_again[-300:], left, file=sys.stderr)
        shutil.rmtree(harmed)
    return counts


def judge_kill(code: int, said: str, again: int, said_again: str) -> str:
    if code != -signal.SIGKILL:
        return ""
    if again == 0:
        return "right"
    return "was complete" if "is not empty" in said_again else ""


def judge_full(code: int, said: str, again: int, said_again: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("posefix:")]
    return "right" if code == 2 and len(lines) == 1 and "Traceback" not in said and again == 0 else ""


FAULTS = {
    "kill": (kill_at, judge_kill),
    "full": (lambda number, _: limited_to(2 ** (number - 1) if number else 0), judge_full),
}


def flipped(path: Path, draw: random.Random) -> None:
    """Flips a bit of a file."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def flips_in_parts(job: Job, folder: Path, count: int) -> Counter:
    """Flips in the parts of a job that was killed before it put them together."""
    calm, killed, counts, draw = folder / "calm", folder / "flipped", Counter(), random.Random(0)
    for name in (calm, killed):
        name.mkdir()
    assert child(lambda: posefix(job(calm)))[0] == 0

    def until_merged() -> int:
        from posefix_jax.refining import convert

        convert.merge = lambda *_: os._exit(137)
        return posefix(job(killed))

    child(until_merged)
    kept = folder / "kept"
    shutil.copytree(killed, kept)
    parts = sorted(path.relative_to(kept) for path in kept.rglob("*.part"))
    for _ in range(count):
        shutil.rmtree(killed)
        shutil.copytree(kept, killed)
        flipped(killed / draw.choice(parts), draw)
        code, said = child(lambda: posefix(job(killed)))
        right = code == 0 and "done again" in said and content(killed) == content(calm)
        counts["right" if right else "wrong"] += 1
    return counts


def flips_in_weights(folder: Path, count: int) -> Counter:
    """Flips in the files of the packaged refiner."""
    from posefix_jax.runtime.checkpoints import damage_of, packaged_path

    counts, draw = Counter(), random.Random(0)
    for _ in range(count):
        with tempfile.TemporaryDirectory(dir=folder) as copy:
            place = Path(shutil.copytree(packaged_path(), Path(copy) / "refiner"))
            files = sorted(
                path
                for item in ("model", "spec")
                for path in (place / item).rglob("*")
                if path.is_file() and path.stat().st_size
            )
            flipped(draw.choice(files), draw)
            counts["right" if damage_of(place, ("model", "spec")) else "wrong"] += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detections", type=Path)
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        rows = json.loads(options.detections.read_text())[: options.people]
        given = folder / "d.json"
        given.write_text(json.dumps(rows))

        def one(place: Path) -> list[str]:
            return ["convert", str(given), "--to", "mmpose", "--out", str(place / "o.json"), "--quiet"]

        def many(place: Path) -> list[str]:
            return ["convert", str(given), "--to", "openpose", "--out", str(place / "o"), "--quiet"]

        jobs = {"one_file": one, "a_file_each": many}
        found = {}
        for kind, job in jobs.items():
            for what, (fault, judge) in FAULTS.items():
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    found[f"{what}, {kind}"] = tried(job, Path(work), fault, judge)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            found["flip, part"] = flips_in_parts(one, Path(work), options.flips)
        found["flip, weights"] = flips_in_weights(folder, options.flips)
    from measure import write_result  # imports jax, after the forks

    write_result("faults", {"people": len(rows), **{kind: dict(counts) for kind, counts in found.items()}})
    return int(any(counts["wrong"] for counts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
