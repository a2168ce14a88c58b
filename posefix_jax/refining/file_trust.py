"""How far the poses of a file are trusted: as the user says, or as a sample of them agrees with the photographs."""

import heapq
import zlib
from collections.abc import Sequence

import numpy as np

from posefix_jax.core.skeleton import JointMap
from posefix_jax.core.synthesis import read_error_model
from posefix_jax.core.trust import from_errors, uniform
from posefix_jax.data.formats.base import ImageId, Pose
from posefix_jax.data.pose_files import PoseFiles
from posefix_jax.refining.engine import Group
from posefix_jax.refining.file_fit import Reading, check_fit, decide_exif
from posefix_jax.refining.file_photographs import FilePhotographs
from posefix_jax.refining.refine_options import RefineOptions
from posefix_jax.refining.refiner import Measured, Refiner
from posefix_jax.report.progress import Progress
from posefix_jax.types import tell

LEAST, MOST = 64, 256
"""The trust of a file is measured on a quarter of its poses, but on at least and at most so many."""


class FileTrust:
    """Collects a sample of a file's poses, and decides.

    Args:
      refiner: what refines them; a trust of its own counts as said.
      source: the file.
      joint_map: from its joints to the refiner's.
      photographs: of its rows.
      options: of the job.

    Attributes:
      told: the trust that is said; None if the poses are to tell it.

    Raises:
      PosefixError: no error model at `options.input_errors`.
    """

    def __init__(
        self,
        refiner: Refiner,
        source: PoseFiles,
        joint_map: JointMap,
        photographs: FilePhotographs,
        options: RefineOptions,
    ):
        self.refiner, self.source, self.joint_map, self.photographs = refiner, source, joint_map, photographs
        self.options = options
        self.told, self._source_of_told = refiner.trust, "the refiner"
        if options.input_errors is not None:
            errors = read_error_model(options.input_errors)
            self.told, self._source_of_told = from_errors(errors, refiner.spec.skeleton), str(options.input_errors)
        elif options.trust is not None:
            self.told, self._source_of_told = uniform(options.trust, refiner.spec.skeleton.num_joints), "--trust"
        self._sample: list[tuple[int, int, Pose]] = []
        self._rows = 0

    def consider(self, row: int, pose: Pose) -> None:
        """Offers a row with a usable joint. The same rows are kept in every process, spread over the file."""
        # A heap, first the row to leave next.
        entry = (-zlib.crc32(row.to_bytes(8, "big")), row, pose)
        (heapq.heappush if len(self._sample) < MOST else heapq.heappushpop)(self._sample, entry)
        self._rows += 1

    def decide(self, earlier: dict | None) -> dict:
        """The trust, and whether EXIF is applied, as entries of the job's report. Prints them.

        Args:
          earlier: the report's entries if another process of the job has decided already.

        Raises:
          PosefixError: the poses do not fit the photographs (`file_fit.check_fit`).
        """
        if earlier is not None and "trust" in earlier and "exif" in earlier:
            return {key: earlier[key] for key in ("trust", "exif")}
        in_order = [pose for _, _, pose in heapq.nlargest(MOST, self._sample)]
        exif = decide_exif(in_order, self.photographs, self._measure, self.options, self.source.path)
        chosen = in_order[: max(LEAST, self._rows // 4)]
        measured = self._measure(chosen, Reading(exif=exif["applied"])) if chosen else None
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
            check_fit(
                in_order,
                self.photographs,
                measured,
                self._measure,
                self.options,
                skeleton=self.refiner.spec.skeleton,
                exif=exif["applied"],
                source=self.source.path,
            )
        if chosen:
            tell(_line(entry))
        return {"trust": entry, "exif": exif}

    def _measure(self, poses: Sequence[Pose], reading: Reading) -> Measured | None:
        """How poses fit their photographs, read so; None if the refiner cannot tell, or no photograph can be read."""
        if not self.refiner.spec.decode.trust_weights:
            return None
        by_image: dict[ImageId, list[np.ndarray]] = {}
        rows = {id(pose): row for _, row, pose in self._sample}
        for pose in sorted(poses, key=lambda pose: rows[id(pose)]):  # in the file's order: a video is read forward
            joints = self.joint_map.to_refiner(pose.joints)
            joints = joints if reading.joints is None else joints[reading.joints]
            by_image.setdefault(pose.image, []).append(joints)
        fraction = self.source.format.fraction
        groups = [Group(image, np.stack(some), fraction) for image, some in by_image.items()]

        def read(image: ImageId) -> np.ndarray:
            pixels = self.photographs.images.read_named(image, exif=reading.exif, shift=reading.shift)
            return np.ascontiguousarray(pixels[:, ::-1]) if reading.mirror else pixels

        with Progress("trust", len(poses), unit="poses") as progress:
            return self.refiner.measure(
                groups,
                read,
                threads=self.options.threads,
                min_score=self.options.min_score,
                on_done=lambda count: progress.update(progress.done + count),
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
