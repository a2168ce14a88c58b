"""`posefix refine`: files of poses from any estimator in, better poses out, one row for each row."""

import functools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from posefix_jax.core import geometry
from posefix_jax.core.skeleton import JointMap
from posefix_jax.core.trust import uniform
from posefix_jax.data.formats.base import ImageId, Pose
from posefix_jax.data.pose_files import PoseFiles
from posefix_jax.data.pose_writer import Part
from posefix_jax.evaluation.oks import oks_nms
from posefix_jax.files import claim, held, mark_of
from posefix_jax.refining.change_pictures import largest_changes, write_pictures
from posefix_jax.refining.engine import Group, Refined, Results
from posefix_jax.refining.file_job import FileJob, open_files
from posefix_jax.refining.file_photographs import FilePhotographs, check_units, reason_to_skip
from posefix_jax.refining.file_trust import FileTrust
from posefix_jax.refining.refine_options import RefineOptions
from posefix_jax.refining.refiner import Refiner
from posefix_jax.refining.resumable_output import MADE_BY, MANIFEST, JobManifest, Parts, merge, outputs_of
from posefix_jax.report.progress import Progress
from posefix_jax.runtime.devices import keep_compiled
from posefix_jax.types import PosefixError, tell


def refine(options: RefineOptions) -> dict:
    """Runs the job. Returns the report of OUT.report.json, with its lists summed up as `reasons`.

    When interrupted it leaves OUT.parts, from which the same command resumes; OUT itself appears whole or not at all. Each
    of several shards returns a report of its own, and `merge` writes OUT.

    Raises:
      PosefixError: bad input; with `strict` also a row that cannot be refined.
    """
    if options.engine == "ray":
        from posefix_jax.refining.ray_engine import refine_on_ray

        return refine_on_ray(options)
    return job_of(loaded(options), options).run()


def loaded(options: RefineOptions) -> Refiner:
    """The refiner that a job asks for."""
    keep_compiled()
    return Refiner.load(
        options.checkpoint, flip=options.flip, batch_size=options.batch_size, iterations=options.iterations
    )


def refine_rows(refiner: Refiner, options: RefineOptions) -> dict:
    """As `refine`, with a refiner at hand."""
    return job_of(refiner, options).run()


def job_of(refiner: Refiner, options: RefineOptions) -> "RefineJob":
    """The job that options describe. Raises PosefixError: its files are not of poses, or lie where its output goes."""
    source = open_files(
        options.detections,
        options.out,
        images=options.images,
        annotations=options.annotations,
        skeleton=options.skeleton,
        columns=options.columns,
        preferred=refiner.spec.skeleton,
    )
    return _job_over(refiner, source, options)


def refine_source(refiner: Refiner, source: PoseFiles, options: RefineOptions) -> dict:
    """As `refine`, with a refiner and open files at hand."""
    return _job_over(refiner, source, options).run()


def _job_over(refiner: Refiner, source: PoseFiles, options: RefineOptions) -> "RefineJob":
    job = FileJob(
        source,
        options.out,
        to=options.to,
        images=options.images,
        rows_per_part=options.part_rows,
        first_frame=options.first_frame,
    )
    return RefineJob(refiner, options, job)


class JobStart(NamedTuple):
    """What another process needs of the one that started the job, to do parts of it without checking all rows again.

    Attributes:
      job: digest of the job.
      refiner: its identity.
      content: digest of the input files.
      integer_ids: whether all photographs are called by integers, which only the check of all rows tells.
    """

    job: str
    refiner: str
    content: str
    integer_ids: bool


class RefineJob:
    """One process's share of a job: rows to the refiner, and back into their parts."""

    def __init__(self, refiner: Refiner, options: RefineOptions, job: FileJob):
        self.refiner, self.options, self.job, self.source = refiner, options, job, job.source
        ours, theirs, form = refiner.spec.skeleton, job.source.skeleton, job.source.format
        self.joint_map = JointMap(theirs, ours)
        if not (np.asarray(refiner.spec.trained_joints) & self.joint_map.shared).any():
            raise PosefixError(
                f"{self.source.path}: its joints ({theirs.name}: {', '.join(theirs.joints[:4])}, ...) share none "
                f"with those that the refiner moves ({ours.name}: {', '.join(ours.joints[:4])}, ...)"
            )
        if options.rescore and not job.writer.has_score:
            kind = options.to or form.name
            raise PosefixError(
                f"{self.source.path}: {kind} files have no place for a person's score to --rescore; add --to coco"
            )
        if options.oks_nms and not form.row_per_person and options.to is None:
            raise PosefixError(
                f"{self.source.path}: --oks-nms leaves out rows, and people of a {form.name} file are not rows; add --to coco"
            )
        assert job.images is not None  # --images has no default
        self.images = job.images
        self.photographs = FilePhotographs(self.images, job.source.path, first_frame=options.first_frame is not None)
        self.trust = FileTrust(refiner, job.source, self.joint_map, self.photographs, options)
        self.exif = False
        self._largest = 0.0
        self._seen: set[int] = set()

    def run(self) -> dict:
        """Does this process's share; the last step of a job of one process is to merge. As `refine`."""
        index, shards = self.options.shard_of
        store, rows = self.start(shards)
        with store:
            mine = (part for part in self.job.parts() if part.number % shards == index)
            with Progress("refine", rows, unit="poses") as progress:
                done = self.refine(mine, store, progress)
            if shards > 1:
                self.draw(store, range(index, store.count, shards))
                return {"shard": self.options.shard, "rows": done, "of": rows}
            return self.finish(store)

    def start(self, shards: int = 1) -> tuple[Parts, int]:
        """Reads and checks everything, as `FileJob.start`. A process that calls `refine` does so first, or joins."""
        store, rows = self.job.start(
            settings=self._settings(), check=self._check, checked=self._checked_all, shards=shards
        )
        self.exif = store.report["exif"]["applied"]
        if self.options.pictures:
            claim(outputs_of(self.options.out)["pictures"], MADE_BY, store.job, replace=True)
        return store, rows

    def started(self, store: Parts) -> JobStart:
        """After `start`: what the other processes' `join` takes."""
        return JobStart(store.job, self.refiner.identity, self.job.content, self.job.writer.integer_ids)

    def join(self, start: JobStart) -> Parts:
        """The parts of a job that another process has started and holds. Raises PosefixError: this one sees other files."""
        folder = outputs_of(self.options.out)["parts"]
        if not (folder / MANIFEST).is_file() or JobManifest.read(folder).job != start.job:
            raise PosefixError(f"{folder}: not the job that was started; every process must see one --out")
        if self.refiner.identity != start.refiner:
            raise PosefixError(
                f"{self.options.checkpoint}: differs from the refiner of the process that started the job"
            )
        if self.source.digest() != start.content:
            raise PosefixError(f"{self.source.path}: differs from what the process that started the job read")
        store = Parts(self.options.out, JobManifest.read(folder))
        self.exif = store.report["exif"]["applied"]
        self.job.writer.integer_ids = start.integer_ids
        return store

    def finish(self, store: Parts) -> dict:
        """After all parts are done: draws pictures, writes the output, and returns the report."""
        self.draw(store, range(store.count))
        return merge(self.options.out, store.job)

    def draw(self, store: Parts, parts: Iterable[int]) -> None:
        """Pictures of the largest changes in some parts."""
        if not self.options.pictures or store.complete:
            return
        changes = [change for part in parts for change in store.header(part).get("changes", ())]
        write_pictures(
            changes,
            self.options.pictures,
            outputs_of(self.options.out)["pictures"],
            functools.partial(self.images.read_named, exif=self.exif),
            self.refiner.spec.skeleton,
            fraction=self.source.format.fraction,
        )

    def _settings(self) -> dict:
        """What the output depends on, beside the bytes of the input."""
        skip = {
            "out",
            "detections",
            "checkpoint",
            "threads",
            "pictures",
            "strict",
            "shard",
            "engine",
            "address",
            "workers",
        }
        fields = {key: str(value) for key, value in vars(self.options).items() if key not in skip}
        told = self.trust.told and [np.asarray(of).tolist() for of in self.trust.told]
        return {"refiner": self.refiner.identity, "batch": self.refiner.batch_size, **fields, "trust": told}

    def _checked_all(self, earlier: dict | None) -> dict:
        """After all rows are checked: how photographs were found and how far the poses are trusted, for the report."""
        self.photographs.check()
        check_units(self._largest, self.source)
        tell(self.photographs.summary())
        return {"photographs": dict(self.photographs.found)} | self.trust.decide(earlier)

    def _check(self, part: Part) -> None:
        """Whatever can be known without decoding is known before hours are spent."""
        for row, pose in enumerate(part.poses):
            reason = self._why_not(pose)
            self.photographs.count(pose.image)
            if reason is not None:
                self._skip(part, row, reason)
            elif (present := pose.joints[:, 2] > self.options.min_score).any():
                self._largest = max(self._largest, float(np.abs(pose.joints[present, :2]).max()))
                self.trust.consider(part.first_row + row, pose)
        if self.options.oks_nms:
            # Only an integer per photograph is remembered.
            now = {hash(str(image)) for image in part.by_image()}
            if now & self._seen:
                raise PosefixError(
                    f"{self.source.path}: rows of one photograph are far apart, near row {part.first_row}; --oks-nms "
                    "compares them: sort the file by image_id, or raise --part-rows"
                )
            self._seen |= now

    def _why_not(self, pose: Pose) -> str | None:
        return reason_to_skip(pose, self.photographs, category=self.options.category)

    def _skip(self, part: Part, row: int, reason: str) -> None:
        if self.options.strict:
            place = f"{self.source.path}: row {part.first_row + row}"
            raise PosefixError(f"{place} cannot be refined: {reason} (--strict)")
        part.reasons[row] = reason
        if self.options.rescore and not (part.poses[row].joints[:, 2] > 0).any():
            part.scores[row] = 0.0

    def refine(self, parts: Iterable[Part], store: Parts, progress: Progress) -> int:
        """Refines and writes those of the parts that are not done, in order; returns how many rows they have."""
        options = self.options
        trust = self.trust.told or uniform(store.report["trust"]["value"], self.refiner.spec.skeleton.num_joints)
        waiting: deque[tuple[Part, list[int]]] = deque()
        done = rows = 0
        begun, read_before = time.monotonic(), self.photographs.read

        def work() -> Iterator[list[Group]]:
            nonlocal done
            for part in parts:
                if self.job.has(part, store):
                    done += len(part.poses)
                    progress.skip(len(part.poses))
                    continue
                groups, usable = self._groups_of(part)
                done += len(part.reasons)
                waiting.append((part, usable))
                yield groups

        def on_done(count: int) -> None:
            nonlocal done
            done += count
            waits = self.refiner.engine.waits
            bound = max(waits, key=lambda what: waits[what])
            share = waits[bound] / (sum(waits.values()) or 1.0)
            name = {"decode": "decoding", "device": "the network"}[bound]
            pace = (self.photographs.read - read_before) / max(time.monotonic() - begun, 1e-6)
            progress.note = f"{pace:.1f} photographs/s, {share:.0%} of wait time: {name}"
            progress.update(done)

        run = self.refiner.engine.run(
            work(),
            functools.partial(self.photographs.pixels, exif=self.exif),
            trust=trust,
            threads=options.threads,
            min_score=options.min_score,
            fill_missing=options.missing == "fill",
            on_done=on_done,
        )
        for results in run:
            part, usable = waiting.popleft()
            rows += len(part.poses)
            self._place_back(part, usable, results)
            self.job.finish(part, store)
            progress.update(done)
        return rows

    def _groups_of(self, part: Part) -> tuple[list[Group], list[int]]:
        """The part's photographs with their usable poses, and the rows of these poses in order."""
        groups, rows = [], []
        for image, of_image in part.by_image().items():
            usable = []
            for row in of_image:
                reason = self._why_not(part.poses[row])
                if reason is None:
                    usable.append(row)
                else:
                    self._skip(part, row, reason)
            if usable:
                poses = np.stack([self.joint_map.to_refiner(part.poses[row].joints) for row in usable])
                boxes = [part.poses[row].box for row in usable] if self.options.boxes else None
                groups.append(Group(image, poses, self.source.format.fraction, boxes))
                rows += usable
        return groups, rows

    def _place_back(self, part: Part, rows: list[int], results: Results) -> None:
        """Puts the results into the part, in the file's joints and unit."""
        part.sizes |= results.sizes
        for row, result in zip(rows, results.poses, strict=True):
            if not isinstance(result, Refined):
                self._skip(part, row, result.reason)
                continue
            pose = part.poses[row]
            scale = self._scale(part, pose.image)
            old = self.joint_map.to_refiner(pose.joints) * scale
            part.joints[row] = self.joint_map.to_file(pose.joints, result.poses, old, scale)
            if self.options.rescore:
                score = 1.0 if pose.score is None else pose.score
                part.scores[row] = round(score * float(result.quality), 6)
        if self.options.oks_nms:
            for row in self._duplicates(part):
                part.dropped.add(row)
                part.reasons[row] = "OKS-NMS"
        if self.options.pictures:
            part.more["changes"] = [
                [change, part.first_row + row, part.poses[row].image, before.tolist(), after.tolist()]
                for change, row, before, after in largest_changes(
                    part, self.joint_map.to_refiner, self.options.pictures
                )
            ]

    def _scale(self, part: Part, image: ImageId) -> np.ndarray:
        """[3] what the file's unit is in image pixels."""
        height, width = part.sizes[image] if self.source.format.fraction else (1, 1)
        return np.array([width, height, 1.0])

    def _duplicates(self, part: Part) -> list[int]:
        """Refined rows that OKS-NMS leaves out, within a photograph and a file."""
        duplicates: list[int] = []
        files = [index for index, element in part.elements for _ in element.poses]
        for image, rows in part.by_image().items():
            refined = sorted((row for row in rows if row in part.joints), key=files.__getitem__)
            for _, some in groupby(refined, key=files.__getitem__):
                some = list(some)
                duplicates += self._duplicates_of(part, some, self._scale(part, image)) if len(some) > 1 else []
        return duplicates

    def _duplicates_of(self, part: Part, rows: list[int], scale: np.ndarray) -> list[int]:
        """Those of the rows that are left out; the area of a pose is that of its joints."""
        joints = np.stack([self.joint_map.to_refiner(part.joints[row]) * scale for row in rows])
        xy, present = joints[..., :2], joints[..., 2] > 0
        extents = [geometry.joint_extent(*pose) for pose in zip(xy, present, strict=True)]
        areas = np.array([geometry.PERSON_FILL * max(np.prod(extent[2:]), 1.0) for extent in extents])
        known = [part.scores.get(row, part.poses[row].score) for row in rows]
        scores = np.array([1.0 if score is None else score for score in known])
        skeleton = self.refiner.spec.skeleton
        kept = set(oks_nms(xy, scores, areas, self.options.oks_nms, skeleton, present).tolist())
        return [row for place, row in enumerate(rows) if place not in kept]


@dataclass(frozen=True)
class MergeOptions:
    """Combines the parts that all shards of `posefix refine --shard` wrote, and checks that none is missing."""

    out: Path
    """the --out of those runs"""
    allow_missing: bool = False
    """end with exit code 0 even if most rows could not be refined"""


def merge_shards(options: MergeOptions) -> dict:
    """Writes OUT; returns the report. Raises PosefixError as `merge`, or if a shard is still at work."""
    parts = outputs_of(options.out)["parts"]
    with held(parts) if mark_of(parts) else nullcontext():
        return merge(options.out)


def summary_of(report: dict, out: Path) -> str:
    """The report as a few lines for the terminal."""
    if "shard" in report:
        return (
            f"shard {report['shard']}: {report['rows']} of {report['of']} poses refined now; when every shard is done: "
            f"posefix merge {out}"
        )
    moved = f"{report['joints_moved']} joints moved or filled in"
    lines = [f"{report['refined']} of {report['rows']} poses refined ({report['format']}), {moved}: {out}"]
    for reason, count in report["reasons"].items():
        lines.append(f"{count} {'left out by' if reason == 'OKS-NMS' else 'passed through unchanged:'} {reason}")
    if mostly_skipped(report):
        lines.append("most poses could not be refined (exit code 3; --allow-missing if that is expected)")
    return "\n".join(lines)


def mostly_skipped(report: dict) -> bool:
    """Whether more than half of the rows of the category passed through unrefined."""
    skipped = sum(count for reason, count in report.get("reasons", {}).items() if not _is_meant(reason))
    return skipped > report.get("refined", 0)


def _is_meant(reason: str) -> bool:
    """Whether a row with this reason was to be left alone."""
    return reason == "OKS-NMS" or reason.startswith("category ")
