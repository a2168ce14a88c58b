"""Refinement on a Ray cluster of real processes on this machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import COMPILED, change, detections_of, tree

from posefix_jax.cli import main
from posefix_jax.data.images import read_image
from posefix_jax.refining.engine import Refined
from posefix_jax.refining.ray_engine import BEGUN, DEATHS, PartWorker, RayRefiner
from posefix_jax.refining.refine_files import JobStart, RefineOptions, job_of, loaded, refine
from posefix_jax.refining.refiner import Refiner
from posefix_jax.refining.resumable_output import Parts
from posefix_jax.runtime.checkpoints import save_refiner
from posefix_jax.types import PosefixError, set_quiet

PLAIN = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | COMPILED
"""Without the eight simulated devices of the tests."""


@pytest.fixture(scope="module")
def checkpoint(tiny_spec, tmp_path_factory) -> Path:
    h, w = tiny_spec.model.crop_hw
    shapes = np.zeros((1, h, w, 3), np.float32), np.zeros((1, 17, 2), np.float32), np.ones((1, 17), bool)
    folder = tmp_path_factory.mktemp("refiner") / "tiny"
    save_refiner(folder, jax.jit(tiny_spec.network().init)(jax.random.key(0), *shapes), tiny_spec)
    return folder


def job(people, folder: Path, checkpoint: Path, out: str, repeats: int, *more: str) -> list[str]:
    """The command that refines people, in parts of 8 rows."""
    truth, images = people
    rows = sorted(detections_of(truth) * repeats, key=lambda row: row["image_id"])
    (folder / "d.json").write_text(json.dumps(rows))
    command = [sys.executable, "-m", "posefix_jax.cli", "refine", str(folder / "d.json"), "--images", str(images)]
    command += ["--checkpoint", str(checkpoint), "--out", str(folder / out), "--part-rows", "8", "--batch-size", "8"]
    return [*command, *more]


def workers(driver: int) -> list[int]:
    """The processes that refine, of the cluster that a driver has started: children of its raylet."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"PartWorker" in (process / "cmdline").read_bytes().split(b"\0")[0]:
                raylet = parent_of(int(process.name))
                found += [int(process.name)] if parent_of(raylet) == driver else []
        except OSError:
            pass
    return found


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_a_worker_that_dies_costs_nothing(people, checkpoint, tmp_path):
    """SIGKILL of one of two in the middle: the bytes are those of one process, and nothing else is left."""
    pytest.importorskip("ray", reason="needs posefix-jax[ray]")
    alone = subprocess.run(
        job(people, tmp_path, checkpoint, "alone.json", 60), env=PLAIN, capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    before = set(tree(tmp_path))
    command = job(people, tmp_path, checkpoint, "r.json", 60, "--engine", "ray", "--workers", "2")
    process = subprocess.Popen(command, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parts, end = tmp_path / "r.json.parts", time.monotonic() + 200
    while process.poll() is None and len(list(parts.glob("*.part"))) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    first = workers(process.pid)
    assert process.poll() is None and first, "it was done before a worker could be killed"
    os.kill(first[0], signal.SIGKILL)
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "alone.json").read_bytes()
    assert set(tree(tmp_path)) - before == {"r.json", "r.json.report.json"}
    report = json.loads((tmp_path / "r.json.report.json").read_text())
    assert (report["rows"], report["refined"]) == (360, 360)


def started(people, checkpoint: Path, folder: Path, **fields):
    """A job over rows that call their photographs by name, in parts of 2 rows: its options, job and parts."""
    truth, images = people
    rows = [{**row, "image_id": f"{row['image_id']:012d}.png"} for row in detections_of(truth)]
    (folder / "d.json").write_text(json.dumps(rows))
    options = RefineOptions(
        (str(folder / "d.json"),), str(images), folder / "r.json", checkpoint=checkpoint, part_rows=2, batch_size=8
    )
    options = change(options, **fields)
    job = job_of(loaded(options), options)
    return options, job, job.start()[0]


@pytest.fixture
def loud():
    """Workers are quiet, and so is their process."""
    yield
    set_quiet(False)


def test_a_worker_needs_no_check_of_all_rows(people, checkpoint, tmp_path, loud):
    """It writes what `refine` writes, also where the bytes depend on rows of other parts: ids that are names."""
    options, job, store = started(people, checkpoint, tmp_path, to="coco")
    worker = PartWorker(options, job.started(store))
    with store:
        for parts in ([2], [0, 1]):  # backwards, as after a death
            done = worker({"part": np.array(parts)})
            assert (done["rows"].sum(), done["rows_before"].sum()) == (2 * len(parts), 0)
        assert worker({"part": np.arange(3)})["rows_before"].sum() == 6
        assert set(tree(store.folder)) == {
            ".posefix",
            ".posefix.lock",
            "manifest.json",
            *(p.name for p in parts_of(store)),
        }
        job.finish(store)
    refine(change(options, out=tmp_path / "alone.json"))
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "alone.json").read_bytes()


def parts_of(store: Parts) -> list[Path]:
    return list(store.folder.glob("*.part"))


def error_of(options: RefineOptions, start: JobStart) -> str:
    """Of a worker that is given the first two parts."""
    (error,) = PartWorker(options, start)({"part": np.arange(2)})["error"]
    return str(error)


def test_a_worker_that_sees_other_files_says_so(people, checkpoint, tmp_path, loud):
    options, job, store = started(people, checkpoint, tmp_path)
    start = job.started(store)
    assert "every process must see one --out" in error_of(change(options, out=tmp_path / "other.json"), start)
    assert "differs from the refiner" in error_of(options, start._replace(refiner="other"))
    (tmp_path / "d.json").write_text((tmp_path / "d.json").read_text() + " ")
    assert "differs from what the process that started the job read" in error_of(options, start)
    assert not parts_of(store)


def test_a_block_that_kills_every_process_is_given_up(people, checkpoint, tmp_path, loud):
    options, job, store = started(people, checkpoint, tmp_path)
    (store.folder / f"{BEGUN}0").write_bytes(b"." * DEATHS)
    assert f"parts 0 to 1: {DEATHS} processes died" in error_of(options, job.started(store))


@pytest.mark.slow
def test_what_a_worker_refuses_is_one_line(people, checkpoint, tmp_path):
    pytest.importorskip("ray", reason="needs posefix-jax[ray]")
    truth, images = people
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / f"{2:012d}.png").write_bytes(b"no photograph")
    command = job((truth, tmp_path / "images"), tmp_path, checkpoint, "r.json", 1, "--engine", "ray", "--strict")
    done = subprocess.run([*command, "--quiet"], env=PLAIN, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "d.json: row 2 cannot be refined: photograph unreadable" in line and "(--strict)" in line


def test_a_cluster_that_does_not_answer(tmp_path, capsys):
    pytest.importorskip("ray", reason="needs posefix-jax[ray]")
    arguments = ["refine", "d.json", "--images", "i", "--out", str(tmp_path / "r.json"), "--engine", "ray"]
    assert main([*arguments, "--address", "127.0.0.1:1"]) == 2
    assert "--address 127.0.0.1:1: no Ray cluster answers there" in capsys.readouterr().err


def test_without_ray(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["refine", "d.json", "--images", "i", "--out", str(tmp_path / "r.json"), "--engine", "ray"]
    assert main(arguments) == 2
    assert "pip install 'posefix-jax[ray]'" in capsys.readouterr().err


def rows_of(people) -> tuple[list[str], np.ndarray]:
    """The path of each person's photograph, and the keypoints, [people, 51]."""
    truth, images = people
    rows = detections_of(truth)
    return [str(images / f"{row['image_id']:012d}.png") for row in rows], np.array([row["keypoints"] for row in rows])


def expected(checkpoint: Path, names: list[str], given: np.ndarray) -> list[Refined]:
    refiner = Refiner.load(checkpoint, batch_size=8)
    results = refiner.refine(list(names), [pose.reshape(1, 17, 3) for pose in given])
    assert isinstance(results, list)
    return results


def as_objects(values) -> np.ndarray:
    """A column of what is no number, as Ray gives it."""
    column = np.empty(len(values), object)
    column[:] = values
    return column


@pytest.mark.parametrize("kind", ["path", "url", "bytes", "pixels", "decoded"])
def test_batches_of_a_dataset(people, checkpoint, kind):
    """The class that `map_batches` makes an actor of: what `Refiner` gives, in the columns of the batch."""
    names, given = rows_of(people)
    images = {
        "path": np.array(names),
        "url": np.array([f"file://{name}" for name in names]),
        "bytes": as_objects([Path(name).read_bytes() for name in names]),
        "pixels": np.stack([read_image(Path(name)) for name in names]),
    }
    column = images[kind] if kind in images else RayRefiner.read({"image": np.array(names)})["image"]
    batch = {"image": column, "keypoints": given, "row": np.arange(len(names))}
    done = RayRefiner(str(checkpoint), batch_size=8)(batch)
    for result, refined, quality, confidence in zip(
        expected(checkpoint, names, given), done["keypoints"], done["quality"], done["confidence"], strict=True
    ):
        np.testing.assert_allclose(refined.reshape(17, 3), result.poses[0], atol=1e-3)
        assert quality == pytest.approx(result.quality[0], abs=1e-4)
        np.testing.assert_allclose(confidence, result.confidence[0], atol=1e-4)
    assert done["row"].tolist() == list(range(len(names)))
    assert not any(done["reason"])


def test_rows_of_a_dataset_that_cannot_be_refined(people, checkpoint, tmp_path):
    """They pass through with the reason; lists may be nested; a box stands in for joints where the refiner can use it."""
    names, given = rows_of(people)
    given[0, 2::3] = 0  # no joint
    given[1, 2::3] = 0
    (tmp_path / "broken.png").write_bytes(b"no photograph")
    names[2], names[3] = str(tmp_path / "none.png"), str(tmp_path / "broken.png")
    nested = as_objects([as_objects([joint for joint in pose.reshape(17, 3)]) for pose in given])
    boxes = as_objects([None, [100.0, 50.0, 80.0, 160.0], *[None] * (len(names) - 2)])
    refiner = RayRefiner(str(checkpoint), box="bbox", keypoints="joints", batch_size=8)
    for read in (False, True):
        batch = {"image": np.array(names), "joints": nested, "bbox": boxes}
        done = refiner(RayRefiner.read(batch) if read else batch)
        assert [bool(reason) for reason in done["reason"]] == [True, False, True, True, False, False]
        assert done["reason"][0] == "no usable joint and no usable bbox"
        assert "photograph unreadable" in done["reason"][2] and "photograph unreadable" in done["reason"][3]
        for row in (0, 2, 3):
            assert (done["joints"][row] == given[row].reshape(17, 3)).all() and done["quality"][row] == 0
        assert (done["joints"][1, :, 2] > 0).any() and (done["quality"][[1, 4, 5]] > 0).all()


def test_a_batch_without_rows(checkpoint):
    none = {"image": np.array([], str), "keypoints": np.zeros((0, 51))}
    done = RayRefiner(str(checkpoint), batch_size=8)(RayRefiner.read(none))
    shapes = {name: column.shape for name, column in done.items()}
    assert shapes == {"image": (0,), "keypoints": (0, 51), "quality": (0,), "confidence": (0, 17), "reason": (0,)}


@pytest.mark.parametrize(
    "batch, match",
    [
        ({"image": ["a"], "pose": [[0.0]]}, "no column 'keypoints'; it has 'image', 'pose'"),
        ({"image": ["a"], "keypoints": [[0.0] * 50]}, r"'keypoints' must be \[51\] or \[17, 3\] .* found \[50\]"),
        ({"image": ["a"], "keypoints": as_objects([None])}, "'keypoints' must be .* found \\[\\]"),
        ({"image": ["a"], "keypoints": as_objects(["x"])}, "'keypoints' must be lists of numbers, found 'x'"),
    ],
)
def test_datasets_that_are_not_of_poses(batch, match, checkpoint):
    with pytest.raises(PosefixError, match=match):
        RayRefiner(str(checkpoint), batch_size=8)({name: np.asarray(column) for name, column in batch.items()})


DATASET = """
import json
import sys

import numpy as np
import ray

from posefix_jax import RayRefiner, Refiner

folder, checkpoint = sys.argv[1:]
if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    for kind, reader in (("parquet", ray.data.read_parquet), ("jsonl", ray.data.read_json)):
        rows = reader(f"{folder}/{kind}")
        rows = rows.map_batches(RayRefiner.read, batch_size=4)
        actors = ray.data.ActorPoolStrategy(size=1)
        arguments = {"checkpoint": checkpoint, "batch_size": 8}
        rows = rows.map_batches(RayRefiner, batch_size=8, compute=actors, fn_constructor_kwargs=arguments)
        rows.drop_columns(["image"]).write_parquet(f"{folder}/{kind}-refined")
    names, given = json.load(open(f"{folder}/people.json"))
    alone = Refiner.load(checkpoint, batch_size=8).refine(names, [np.reshape(pose, (1, 17, 3)) for pose in given])
    np.savez(f"{folder}/alone.npz", poses=[one.poses[0] for one in alone], quality=[one.quality[0] for one in alone])
"""


@pytest.mark.slow
def test_a_dataset_of_several_files(people, checkpoint, tmp_path):
    """Parquet and JSON Lines in, Parquet out, over real actors: the rows of one process, in their order."""
    pytest.importorskip("ray", reason="needs posefix-jax[ray]")
    import pyarrow
    import pyarrow.parquet

    names, given = rows_of(people)
    names, given = names * 4, np.concatenate([given] * 4)
    (tmp_path / "parquet").mkdir()
    (tmp_path / "jsonl").mkdir()
    for i in range(3):
        some = {"row": list(range(i, 24, 3)), "image": names[i::3], "keypoints": given[i::3].tolist()}
        pyarrow.parquet.write_table(pyarrow.table(some), tmp_path / "parquet" / f"{i}.parquet")
        lines = [dict(zip(some, values, strict=True)) for values in zip(*some.values(), strict=True)]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (tmp_path / "jsonl" / f"{i}.jsonl").write_text(text)
    (tmp_path / "people.json").write_text(json.dumps([names, given.tolist()]))
    (tmp_path / "dataset.py").write_text(DATASET)
    command = [sys.executable, str(tmp_path / "dataset.py"), str(tmp_path), str(checkpoint)]
    done = subprocess.run(command, env=PLAIN, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    alone = np.load(tmp_path / "alone.npz")
    for kind in ("parquet", "jsonl"):
        files = sorted((tmp_path / f"{kind}-refined").glob("*.parquet"))
        rows = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
        assert [row["row"] for row in rows] == [row for i in range(3) for row in range(i, 24, 3)]
        for row in rows:
            poses, quality = alone["poses"][row["row"]], alone["quality"][row["row"]]
            np.testing.assert_allclose(np.reshape(row["keypoints"], (17, 3)), poses, atol=1e-3)
            assert row["quality"] == pytest.approx(quality, abs=1e-4) and row["reason"] == ""


@pytest.mark.parametrize(
    "more, match",
    [
        (["--address", "auto"], "--address and --workers go with --engine ray"),
        (["--workers", "2"], "--address and --workers go with --engine ray"),
        (["--engine", "ray", "--shard", "0/2"], "divides the job by itself"),
    ],
)
def test_options_that_do_not_go_together(more, match, tmp_path, capsys):
    arguments = ["refine", str(tmp_path / "d.json"), "--images", str(tmp_path), "--out", str(tmp_path / "r.json")]
    assert main([*arguments, *more]) == 2
    assert match in capsys.readouterr().err
