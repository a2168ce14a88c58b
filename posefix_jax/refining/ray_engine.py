"""Refinement on a Ray cluster: the parts of a job over files, or the batches of a dataset, go to one process a device."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from posefix_jax.data.pose_writer import Part
from posefix_jax.refining.refine_files import job_of, loaded
from posefix_jax.refining.refine_options import RefineOptions
from posefix_jax.refining.refiner import Refiner
from posefix_jax.report.progress import Progress
from posefix_jax.types import PosefixError, set_quiet, tell

BLOCKS = 8
"""Blocks of parts for each process, at the least: a process that dies has its block done by another."""


def refine_on_ray(options: RefineOptions) -> dict:
    """As `refine_files.refine`, with the parts of the job divided among the devices of a Ray cluster.

    This process checks the input, decides, and merges; the others each read the input, as shards do, and write parts.
    All see the same files under the same names. The output is the same, byte for byte. A process that dies is started
    again; the parts that it had finished stay.

    Raises:
      PosefixError: as `refine`, or ray is not installed, or there is no cluster at the address.
    """
    ray = _connected(options.address)
    job = job_of(loaded(options), options)
    store, rows = job.start()
    with store, Progress("refine", rows, unit="poses") as progress:
        todo = [(part.number, len(part.poses)) for part in job.job.parts() if not job.job.has(part, store)]
        progress.skip(rows - sum(count for _, count in todo))
        if todo:
            workers, resources = _workers(ray, options.workers)
            tell(f"{len(todo)} parts on {workers} processes of the Ray cluster")
            parts = ray.data.from_items(
                [{"part": number, "rows": count} for number, count in todo],
                override_num_blocks=min(len(todo), max(BLOCKS * workers, 200)),
            )
            done = parts.map_batches(
                PartWorker,
                fn_constructor_args=(options,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(todo))),
                **resources,
            )
            try:
                for batch in done.iter_batches(batch_size=1, prefetch_batches=0):
                    progress.update(progress.done + int(batch["rows"].sum()))
            except ray.exceptions.RayError as error:
                raise PosefixError(f"on the Ray cluster: {_reason(error)}; the same command goes on") from error
        return job.finish(store)


def _connected(address: str | None) -> Any:
    """Ray, connected to a cluster or to one that it starts on this machine. Raises PosefixError."""
    quiet = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_LOG_LEVEL": "ERROR"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PosefixError(f"--engine ray: pip install 'posefix-jax[ray]' ({error})") from error
    if not ray.is_initialized():
        alone: dict[str, Any] = {} if address else {"include_dashboard": False}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **alone)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise PosefixError(f"--address {address}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _workers(ray: Any, wanted: int) -> tuple[int, dict]:
    """How many processes, and what each takes of the cluster: a GPU, all TPU chips of a machine, or a CPU."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    chips = [int(node["TPU"]) for node in nodes if node.get("TPU")]
    if gpus:
        return wanted or gpus, {"num_gpus": 1, "num_cpus": 1}
    if chips:
        return wanted or len(chips), {"resources": {"TPU": max(chips)}, "num_cpus": 1}
    return wanted or len(nodes), {"num_cpus": 1}


def _reason(error: BaseException) -> str:
    """The line that says what went wrong in another process."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


class PartWorker:
    """Does parts of a job, for `Dataset.map_batches`. Parts that come in order cost one reading of the input in all."""

    def __init__(self, options: RefineOptions):
        set_quiet(True)
        self._job = job_of(loaded(options), options)
        self._store, _ = self._job.start()
        self._parts: Iterator[Part] = iter(())
        self._next: int | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Does the parts whose numbers are in `part`."""
        wanted = {int(number) for number in batch["part"]}
        with Progress("refine", None, unit="poses") as progress:
            self._job.refine(self._some(wanted), self._store, progress)
        return batch

    def _some(self, wanted: set[int]) -> Iterator[Part]:
        if self._next is None or min(wanted) < self._next:
            self._parts, self._next = self._job.job.parts(), 0
        for part in self._parts:
            self._next = part.number + 1
            if part.number in wanted:
                yield part
            if self._next > max(wanted):
                return


class RayRefiner:
    """Refines the people of a Ray dataset: `dataset.map_batches(RayRefiner, ...)`, an actor a device.

        rows = ray.data.read_parquet("s3://bucket/poses/")                    # image: a path or URL; keypoints: K * 3 numbers
        rows = rows.map(with_pixels)                                          # your CPU tasks: fetch and decode
        rows = rows.map_batches(posefix_jax.RayRefiner, batch_size=64, num_gpus=1, concurrency=8)
        rows.drop_columns(["image"]).write_parquet("s3://bucket/refined/")

    Args:
      checkpoint, options: what `Refiner.load` takes.
      image, keypoints: the names of the columns.
    """

    def __init__(
        self, checkpoint: str | None = None, *, image: str = "image", keypoints: str = "keypoints", **options: Any
    ):
        self._refiner = Refiner.load(checkpoint, **options)
        self._image, self._keypoints = image, keypoints

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Refines a batch.

        Args:
          batch: columns `image`, a photograph [H, W, 3] uint8 RGB (not of one size) or a local path, and `keypoints`, a
            person's [K * 3] or [K, 3]: image x, y, score in pixels.

        Returns:
          The batch with other `keypoints`, of the same shape, and `quality`: the expected OKS of each person.

        Raises:
          PosefixError: a photograph cannot be read, or poses are not of the refiner's joints.
        """
        given = [np.asarray(pose, np.float64) for pose in batch[self._keypoints]]
        poses = [pose.reshape(1, -1, 3) for pose in given]
        refined: Any = self._refiner.refine(list(batch[self._image]), poses)
        keypoints = [result.poses.reshape(pose.shape) for result, pose in zip(refined, given, strict=True)]
        quality = np.concatenate([result.quality for result in refined])
        return {**batch, self._keypoints: np.stack(keypoints), "quality": quality}
