"""How far the poses of a file are trusted: as the user says, or as a sample of them agrees with the photographs."""

import heapq
import sys
import zlib
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

import numpy as np

from posefix_jax.core.skeleton import JointMap
from posefix_jax.core.synthesis import read_error_model
from posefix_jax.core.trust import from_errors, uniform
from posefix_jax.data.formats.base import ImageId, Pose
from posefix_jax.data.pose_files import PoseFiles
from posefix_jax.refining.engine import Group
from posefix_jax.refining.refiner import Measured, Refiner
from posefix_jax.report.progress import Progress
from posefix_jax.types import PosefixError

LEAST, MOST = 64, 256
"""The trust of a file is measured on a quarter of its poses, but on at least and at most so many."""
POOR_FIT, FEW = 0.55, 8
"""Poses with a smaller `Measured.fit` are not on these photographs; not said of fewer poses than `FEW`."""


class FileTrust:
    """Collects a sample of a file's poses, and decides.

    Args:
      refiner: what refines them; a trust of its own counts as said.
      source: the file.
      joint_map: from its joints to the refiner's.
      given, errors: `--trust` and `--input-errors`.

    Attributes:
      told: the trust that is said; None if the poses are to tell it.

    Raises:
      PosefixError: no error model at `errors`.
    """

    def __init__(
        self, refiner: Refiner, source: PoseFiles, joint_map: JointMap, *, given: float | None, errors: Path | None
    ):
        self.refiner, self.source, self.joint_map = refiner, source, joint_map
        self.told, self._source_of_told = refiner.trust, "the refiner"
        if errors is not None:
            self.told, self._source_of_told = from_errors(read_error_model(errors), refiner.spec.skeleton), str(errors)
        elif given is not None:
            self.told, self._source_of_told = uniform(given, refiner.spec.skeleton.num_joints), "--trust"
        self._sample: list[tuple[int, int, Pose]] = []

    def consider(self, row: int, pose: Pose) -> None:
        """Offers a row with a usable joint. The same rows are kept in every process, spread over the file."""
        # A heap, first the row to leave next.
        entry = (-zlib.crc32(row.to_bytes(8, "big")), row, pose)
        (heapq.heappush if len(self._sample) < MOST else heapq.heappushpop)(self._sample, entry)

    def decide(
        self,
        earlier: dict | None,
        read: Callable[[ImageId], np.ndarray],
        *,
        rows: int,
        threads: int,
        min_score: float,
        strict: bool,
    ) -> dict:
        """The trust, as an entry of the job's report: its value and where it comes from. Prints it.

        Args:
          earlier: the report's entries if another process of the job has decided already.
          read: gives a photograph.
          rows: of the file.
          threads, min_score: as for refinement.
          strict: poses that do not fit the photographs are an error, not a warning.

        Raises:
          PosefixError: `strict`, and they do not fit.
        """
        if earlier is not None and "trust" in earlier:
            return earlier["trust"]
        chosen = heapq.nlargest(min(MOST, max(LEAST, rows // 4)), self._sample)
        poses = [pose for _, _, pose in sorted(chosen, key=itemgetter(1))]
        measured = self._measure(poses, read, threads, min_score) if poses else None
        entry: dict
        if self.told is not None:
            weight = np.asarray(self.told.weight)[np.asarray(self.refiner.spec.trained_joints)]
            entry = {"value": round(float(weight.mean()), 3), "from": self._source_of_told}
        elif measured is not None:
            entry = {"value": measured.trust, "from": "the poses"}
        else:
            entry = {"value": self.refiner.spec.decode.trust, "from": "the refiner's default"}
        if measured is not None:
            entry |= {"poses_measured": measured.people, "fit": measured.fit}
            if measured.fit < POOR_FIT and measured.people >= FEW:
                warning = f"{self.source.path}: {_poor_fit(measured)}"
                if strict:
                    raise PosefixError(f"{warning} (--strict)")
                print(f"posefix: {warning}", file=sys.stderr, flush=True)
        if poses:
            print(_line(entry), file=sys.stderr, flush=True)
        return entry

    def _measure(
        self, poses: list[Pose], read: Callable[[ImageId], np.ndarray], threads: int, min_score: float
    ) -> Measured | None:
        if not self.refiner.spec.decode.trust_weights:
            return None
        by_image: dict[ImageId, list[np.ndarray]] = {}
        for pose in poses:
            by_image.setdefault(pose.image, []).append(self.joint_map.to_refiner(pose.joints))
        fraction = self.source.format.fraction
        groups = [Group(image, np.stack(some), fraction) for image, some in by_image.items()]
        with Progress("trust", len(poses), unit="poses") as progress:
            return self.refiner.measure(
                groups,
                read,
                threads=threads,
                min_score=min_score,
                on_done=lambda count: progress.update(progress.done + count),
            )


def _poor_fit(measured: Measured) -> str:
    return (
        f"most poses do not fit their photographs (fit {measured.fit:.2f} of {measured.people} poses, expected 0.7 or more): "
        "check that names or ids match the photographs, frames are counted from the right one, joints are in the right "
        "order, coordinates are pixels of these photographs, and whether the estimator rotated them by EXIF (--exif)"
    )


def _line(entry: dict) -> str:
    """The decision and what it means, for the terminal."""
    value = entry["value"]
    look, then = (
        ("accurate", "joints move far only where the picture is clear")
        if value >= 0.85
        else ("fair", "pose and picture are weighed against each other")
        if value >= 0.4
        else ("no better than the refiner's own eyes", "joints go where the picture says")
    )
    if entry["from"] == "the poses":
        return f"{entry['poses_measured']} poses were measured and look {look}: trust {value:.2f}, {then}"
    return f"trust {value:.2f} in the poses ({entry['from']}): {then}"
