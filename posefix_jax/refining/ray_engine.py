"""Refinement on a Ray cluster: the parts of a job over files, or the batches of a dataset, go to one process a device."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import jax
import numpy as np

from posefix_jax.data.image_sources import Stored, file_system_of
from posefix_jax.data.images import UnreadableImage, decode_image
from posefix_jax.data.pose_writer import Part
from posefix_jax.files import MARK
from posefix_jax.refining.engine import Group, Refined
from posefix_jax.refining.refine_files import JobStart, RefineJob, job_of, loaded
from posefix_jax.refining.refine_options import RefineOptions
from posefix_jax.refining.refiner import Refiner, as_boxes, as_pixels
from posefix_jax.refining.resumable_output import Parts, outputs_of
from posefix_jax.report.progress import Progress
from posefix_jax.types import PosefixError, set_quiet, short, tell

BLOCKS = 16
"""Blocks of parts for each process. Parts of a block follow each other without a pause; the last blocks end unevenly."""
DEATHS = 5
"""How many processes may die at the same block. Ray Data itself would go on without end, also for a photograph that kills
each process that decodes it."""
BEGUN = f"{MARK}.begun-"
"""Begins the names of files in OUT.parts with a byte for each process that began a block."""


def refine_on_ray(options: RefineOptions) -> dict:
    """As `refine_files.refine`, with the parts of the job divided among the devices of a Ray cluster.

    This process checks the input, decides, and merges; the others each read the input and write parts. All see the same
    files under the same names. The output is the same, byte for byte. A process that dies is started again; the parts that
    it had finished stay.

    Raises:
      PosefixError: as `refine`, or ray is not installed, or there is no cluster at the address.
    """
    ray = _connected(options.address)
    _leave_devices(ray)
    job = job_of(loaded(options), options)
    store, rows = job.start()
    with store, Progress("refine", rows, unit="poses") as progress:
        if not store.complete:
            _refine_parts(ray, options, job.started(store), store.count, progress)
        return job.finish(store)


def _refine_parts(ray: Any, options: RefineOptions, start: JobStart, count: int, progress: Progress) -> None:
    """Has all parts done that are not. Raises PosefixError."""
    workers, resources = _workers(ray, options.workers)
    workers = min(workers, count)
    tell(f"{count} parts on {workers} processes of the Ray cluster")
    for left in outputs_of(options.out)["parts"].glob(f"{BEGUN}*"):
        left.unlink(missing_ok=True)
    settings = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    done = ray.data.from_items(
        [{"part": number} for number in range(count)], override_num_blocks=min(count, BLOCKS * workers)
    ).map_batches(
        PartWorker,
        fn_constructor_args=(options, start),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=workers),
        runtime_env={"env_vars": settings},
        **resources,
    )
    try:
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
            for error in filter(None, batch["error"]):
                raise PosefixError(str(error))
            progress.skip(int(batch["rows_before"].sum()))
            progress.update(progress.done + int(batch["rows"].sum()))
    except ray.exceptions.RayError as error:
        raise PosefixError(f"on the Ray cluster: {_reason(error)}; the same command resumes") from error


_SETTINGS = ("GLIBC_TUNABLES", "OPENCV_IO_MAX_IMAGE_PIXELS", "OPENCV_LOG_LEVEL")
"""What the `posefix` command sets for its process: each worker gets the same."""


def _connected(address: str | None) -> Any:
    """Ray, connected to a cluster or to one that it starts on this machine. Raises PosefixError."""
    quiet = {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_DATA_LOG_LEVEL": "CRITICAL",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PosefixError(f"--engine ray: pip install 'posefix-jax[ray]' ({error})") from error
    if not ray.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS")
        _check_answers(address or "")
        alone: dict[str, Any] = {} if address else {"include_dashboard": False}
        try:
            with _silent():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **alone)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise PosefixError(f"--address {address}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_consecutive_actor_init_deaths = DEATHS
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray


def _check_answers(address: str) -> None:
    """Raises PosefixError if nothing answers at HOST:PORT, for which Ray waits for minutes and then aborts the process."""
    if found := re.fullmatch(r"(?:ray://)?([^/:]+):(\d{1,5})", address):
        try:
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise PosefixError(f"--address {address}: no Ray cluster answers there ({error})") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without standard error, on which Ray prints that it has found our setting of what it prints."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _leave_devices(ray: Any) -> None:
    """Leaves this machine's devices to the workers: a GPU's memory but for what is in use, a TPU altogether."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    here = ray.get_runtime_context().get_node_id()
    if any(node["NodeID"] == here and node["Resources"].get("TPU") for node in ray.nodes()):
        jax.config.update("jax_platforms", "cpu")


def _workers(ray: Any, wanted: int) -> tuple[int, dict]:
    """How many processes, and what each takes of the cluster: a GPU, all TPU chips of a machine, or a CPU.

    Raises:
      PosefixError: the cluster has none of them.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    chips = [int(node["TPU"]) for node in nodes if node.get("TPU")]
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU")]
    if gpus:
        return wanted or gpus, {"num_gpus": 1, "num_cpus": 1}
    if chips:
        return wanted or len(chips), {"resources": {"TPU": max(chips)}, "num_cpus": 1}
    if not cpus:
        raise PosefixError("the Ray cluster has no GPU, no TPU and no CPU to work on")
    return wanted or len(cpus), {"num_cpus": min(1.0, sum(cpus) / (wanted or 1))}


def _reason(error: BaseException) -> str:
    """The line that says what went wrong in another process."""
    lines = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", str(error), re.M)
    return lines[0] if lines else f"{type(error).__name__}: {' '.join(str(error).split())}"


class PartWorker:
    """Does parts of a job, for `Dataset.map_batches`. Parts that come in order cost one reading of the input in all.

    Args:
      options: of the job.
      start: what the process that started it found.

    """

    def __init__(self, options: RefineOptions, start: JobStart):
        set_quiet(True)
        self._options, self._start, self._rows = options, start, 0
        self._joined: tuple[RefineJob, Parts] | None = None
        self._parts: Iterator[Part] = iter(())
        self._next: int | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Does the parts whose numbers are in `part`.

        Returns:
          `rows`: how many were refined now; `rows_before`: how many are in parts that were done; `error`: what PosefixError
          says, else "". (Raised here, Ray would log it with a traceback and wrap it.)
        """
        self._rows, rows, reason = 0, 0, ""
        try:
            rows = self._refine({int(number) for number in batch["part"]})
        except PosefixError as error:
            reason = str(error)
        return {"rows": np.array([rows]), "rows_before": np.array([self._rows - rows]), "error": np.array([reason])}

    def _refine(self, wanted: set[int]) -> int:
        begun = outputs_of(self._options.out)["parts"] / f"{BEGUN}{min(wanted)}"
        try:
            with open(begun, "ab") as file:
                file.write(b".")
        except OSError as error:
            raise PosefixError(f"{begun.parent}: {error.strerror}; every process must see one --out") from error
        if begun.stat().st_size > DEATHS:
            raise PosefixError(
                f"parts {min(wanted)} to {max(wanted)}: {DEATHS} processes died at them, of too little memory or a photograph"
            )
        # Here and not in the constructor: Ray Data gives up a pool whose process dies or fails there.
        if self._joined is None:
            job = job_of(loaded(self._options), self._options)
            self._joined = job, job.join(self._start)
        job, store = self._joined
        with Progress("refine", None, unit="poses") as progress:
            rows = job.refine(self._some(job, wanted), store, progress)
        begun.unlink(missing_ok=True)
        return rows

    def _some(self, job: RefineJob, wanted: set[int]) -> Iterator[Part]:
        if self._next is None or min(wanted) < self._next:
            self._parts, self._next = job.job.parts(), 0
        for part in self._parts:
            self._next = part.number + 1
            if part.number in wanted:
                self._rows += len(part.poses)
                yield part
            if self._next > max(wanted):
                return


class RayRefiner:
    """Refines the people of a Ray dataset, an actor a device.

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True              # else rows come as they are done
        rows = ray.data.read_parquet("s3://bucket/poses/")           # a person a row; or read_json for JSON Lines
        rows = rows.map_batches(RayRefiner.read, batch_size=16)      # CPU tasks fetch and decode photographs
        actors = ray.data.ActorPoolStrategy(size=8)
        rows = rows.map_batches(RayRefiner, batch_size=256, num_gpus=1, compute=actors)
        rows.drop_columns(["image"]).write_parquet("s3://bucket/refined/")

    Without `read` the actors fetch and decode in threads; consecutive rows of one path then cost one decoding.

    Args:
      checkpoint: as for `Refiner.load`.
      image, keypoints, box: the names of columns; `box` is None where there is none.
      threads: that fetch, decode and cut crops.
      min_score, fill_missing: as for `Refiner.refine`.
      options: of `Refiner.load`: flip, batch_size, iterations, trust.

    Raises:
      PosefixError: no refiner there.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        image: str = "image",
        keypoints: str = "keypoints",
        box: str | None = None,
        threads: int = 4,
        min_score: float = 0.0,
        fill_missing: bool = True,
        **options: Any,
    ):
        self._refiner = Refiner.load(checkpoint, **options)
        self._image, self._keypoints, self._box = image, keypoints, box
        self._how: dict[str, Any] = {"threads": threads, "min_score": min_score, "fill_missing": fill_missing}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Refines a batch.

        Args:
          batch: columns `image`, a photograph: [H, W, 3] or [H, W] uint8, a JPEG's (PNG's, ...) bytes, a path or a URL;
            `keypoints`, a person's [K * 3] or [K, 3]: image x, y in pixels, score; and `box`, image x, y, width, height,
            where a person without a usable joint is.

        Returns:
          The batch with other `keypoints`, of the same shape; `quality`, the expected OKS of each person; `confidence`, [K]
          the expected KS of each joint; and `reason`, why a row passed through unchanged (quality 0), else "".

        Raises:
          PosefixError: a column is missing, or a pose is not of the refiner's joints.
        """
        for name in filter(None, (self._image, self._keypoints, self._box)):
            if name not in batch:
                raise PosefixError(f"the dataset has no column {name!r}; it has {', '.join(map(repr, batch))}")
        images = batch[self._image]
        given = [_numbers(pose, self._keypoints) for pose in batch[self._keypoints]]
        poses = [self._as_pose(pose) for pose in given]
        boxes = [None] * len(poses) if self._box is None else [_as_box(box) for box in batch[self._box]]
        groups = []
        # Consecutive rows of one path are people of one photograph.
        for _, same in groupby(range(len(poses)), lambda row: images[row] if isinstance(images[row], str) else row):
            rows = list(same)
            some = None if self._box is None else [boxes[row] for row in rows]
            groups.append(Group(rows[0], np.stack([poses[row] for row in rows]), boxes=some))
        (results,) = self._refiner.engine.run(
            [groups], lambda row: _photograph(images[row]), trust=self._refiner.trust, **self._how
        )
        refined = [result if isinstance(result, Refined) else None for result in results.poses]
        joints = self._refiner.spec.skeleton.num_joints
        pairs = zip(refined, given, strict=True)
        return {
            **batch,
            self._keypoints: np.stack([pose if one is None else one.poses.reshape(pose.shape) for one, pose in pairs])
            if given
            else batch[self._keypoints],
            "quality": np.array([0.0 if one is None else float(one.quality) for one in refined]),
            "confidence": np.reshape(
                [np.zeros(joints) if one is None else one.confidence for one in refined], (-1, joints)
            ),
            "reason": np.array(["" if isinstance(one, Refined) else one.reason for one in results.poses], str),
        }

    def _as_pose(self, pose: np.ndarray) -> np.ndarray:
        """[K, 3] of a row's numbers. Raises PosefixError."""
        joints = self._refiner.spec.skeleton.num_joints
        if pose.shape not in ((joints * 3,), (joints, 3)):
            raise PosefixError(
                f"{self._keypoints!r} must be [{joints * 3}] or [{joints}, 3] (x, y, score of {joints} joints), "
                f"found {list(pose.shape)}"
            )
        return pose.reshape(joints, 3)

    @staticmethod
    def read(batch: dict[str, np.ndarray], image: str = "image") -> dict[str, np.ndarray]:
        """Fetches and decodes photographs, for `Dataset.map_batches` in CPU tasks.

        Args:
          batch: with the column `image`, as `RayRefiner` takes it.
          image: the column's name.

        Returns:
          The batch with [H, W, 3] uint8 RGB as `image`, and [0, 0, 3] for a photograph that cannot be read.
        """
        pixels = np.empty(len(batch[image]), object)
        for row, value in enumerate(batch[image]):
            try:
                pixels[row] = _photograph(value)
            except UnreadableImage:
                pixels[row] = np.zeros((0, 0, 3), np.uint8)
        return {**batch, image: pixels}


def _numbers(value: object, column: str) -> np.ndarray:
    """Float64 of a cell, in which lists may be nested. Raises PosefixError."""
    try:
        return np.array(value.tolist() if isinstance(value, np.ndarray) else value, np.float64)
    except (TypeError, ValueError) as error:
        raise PosefixError(f"{column!r} must be lists of numbers, found {short(value)}") from error


def _as_box(value: object) -> tuple | None:
    """A box; None where there is none or it has no area. Raises PosefixError."""
    return None if value is None else as_boxes(_numbers(value, "box"), 1)[0]


def _photograph(value: object) -> np.ndarray:
    """[H, W, 3] uint8 RGB of a cell: an array, the bytes of a file, a path or a URL. Raises UnreadableImage."""
    try:
        if isinstance(value, bytes):
            return decode_image(value)
        if isinstance(value, str):
            return decode_image(Stored(*file_system_of(value)).read())
        if value is None or not np.size(value):  # type: ignore[arg-type]
            raise UnreadableImage("no photograph")
        return as_pixels(value)
    except (OSError, ValueError, PosefixError) as error:
        raise UnreadableImage(getattr(error, "strerror", None) or str(error)) from error
