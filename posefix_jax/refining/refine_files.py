"""`posefix refine`: poses of any estimator's files in, better poses out, one row for one row."""

import functools
import heapq
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from posefix_jax.core import geometry
from posefix_jax.core.skeleton import joints_in
from posefix_jax.data.images import UnreadableImage, warp_affine
from posefix_jax.data.tables import has_scores
from posefix_jax.evaluation.oks import oks_nms
from posefix_jax.files import claim
from posefix_jax.refining.file_job import Job, Part
from posefix_jax.refining.refiner import Group, Outcome, Refiner
from posefix_jax.refining.resumable_output import MADE_BY, Parts, merge, outputs_of
from posefix_jax.report.pictures import GREEN, RED, draw_pose, side_by_side, write_picture
from posefix_jax.report.progress import Progress
from posefix_jax.runtime.devices import keep_compiled
from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class RefineOptions:
    """Refines the poses of any estimator's files; docs/formats.md lists what is read and written."""

    detections: tuple[str, ...]
    """files of poses, folders or patterns of them, or URLs; their format is found out"""
    images: str
    """where the photographs are: a folder, a .zip, .tar shards, a video, or a URL"""
    out: Path
    """file to write, or folder where several files come in: same rows, same order, other keys untouched;
    OUT.report.json beside it"""
    to: str | None = None
    """write another format: coco, coco-annotations, mmpose, openpose, posetrack17, mediapipe, yolo, parquet"""
    checkpoint: Path | None = None
    """a training run or checkpoint; the shipped refiner by default"""
    annotations: Path | None = None
    """COCO file whose images give the file name of each image_id; by default the id is looked for in file names"""
    skeleton: str | None = None
    """the file's joints, a name or a JSON file, where it does not say them and their number is not enough"""
    flip: bool = True
    """also refine the mirrored crop and average"""
    iterations: int = 1
    """refine so many times, each from where the last left the pose"""
    keep_margin: float | None = None
    """gain of expected KS that a joint must promise to be moved; the checkpoint's own by default"""
    min_ks: float | None = None
    """expected KS that a joint's new place must promise; the checkpoint's own by default, 0 to take every move"""
    boxes: bool = False
    """estimate the pose of a row that has no usable joint but a bbox, from the photograph in it alone (the refiner must have
    learned without poses too: inputs.withhold_pose)"""
    missing: Literal["fill", "keep"] = "fill"
    """joints that the estimator left out: fill, or keep as they are"""
    min_score: float = 0.0
    """joints with a score up to this count as left out"""
    rescore: bool = False
    """multiply the score of a refined row by the mean expected KS of its joints, which ranks good poses first; a row that
    has no joint in the end scores 0"""
    oks_nms: float = 0.0
    """leave out refined rows whose OKS with a better-scored one of their photograph is above this (released code: 0.9);
    0 keeps every row"""
    category: int = 1
    """rows of other categories pass through, where rows have one"""
    exif: bool = False
    """turn photographs as their EXIF orientation says; COCO's poses ignore it"""
    strict: bool = False
    """a row that cannot be refined is an error instead of passing through"""
    batch_size: int = 32
    """crops a step"""
    threads: int = 4
    """decoding threads"""
    pictures: int = 0
    """before/after pictures of this many rows, those that changed most, in OUT.pictures/"""
    shard: str = "0/1"
    """do only every n-th part of the job, from the i-th on (i/n); when all n are done, posefix merge OUT"""
    part_rows: int = 1024
    """rows of which an interruption may lose the work; each part appears whole in OUT.parts/"""

    def __post_init__(self):
        if min(self.batch_size, self.threads, self.iterations, self.part_rows) < 1 or self.pictures < 0:
            raise PosefixError(
                "--batch-size, --threads, --iterations and --part-rows must be positive and --pictures not negative, "
                f"found {self.batch_size}, {self.threads}, {self.iterations}, {self.part_rows}, {self.pictures}"
            )
        if not 0 <= self.oks_nms <= 1:
            raise PosefixError(f"--oks-nms must lie in 0..1, found {self.oks_nms}")
        if self.shard_of is None:
            raise PosefixError(f"--shard must be i/n with 0 <= i < n, found {self.shard!r}")

    @property
    def shard_of(self) -> tuple[int, int] | None:
        first, _, count = self.shard.partition("/")
        if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
            return None
        return int(first), int(count)


def refine(options: RefineOptions) -> dict:
    """Runs the job; returns the report of OUT.report.json, with its lists summed up as `reasons`.

    Interrupted, it leaves OUT.parts, from which the same command goes on; OUT itself appears whole or not at all.
    Of several shards, each returns the report of its own and `merge` writes OUT.

    Raises:
      PosefixError: bad input; with `strict` also a row that cannot be refined.
    """
    keep_compiled()
    refiner = Refiner.load(
        options.checkpoint,
        flip=options.flip,
        batch_size=options.batch_size,
        iterations=options.iterations,
        keep_margin=options.keep_margin,
        min_ks=options.min_ks,
    )
    return refine_rows(refiner, options)


def refine_rows(refiner: Refiner, options: RefineOptions, source: str | None = None) -> dict:
    """As `refine`, with a refiner at hand; `source` is what the report calls the input."""
    job = Job(
        options.detections,
        options.out,
        to=options.to,
        images=options.images,
        annotations=options.annotations,
        skeleton=options.skeleton,
        preferred=refiner.spec.skeleton,
        rows_a_part=options.part_rows,
        source=source,
    )
    return _Run(refiner, options, job).run()


class _Run:
    """One process's share of a job."""

    def __init__(self, refiner: Refiner, options: RefineOptions, job: Job):
        self.refiner, self.options, self.job = refiner, options, job
        ours, theirs = refiner.spec.skeleton, job.skeleton
        self._ours_in_theirs = joints_in(ours.joints, theirs.joints)
        self._theirs_in_ours = joints_in(theirs.joints, ours.joints)
        if not (np.asarray(refiner.spec.trained_joints) & (self._ours_in_theirs >= 0)).any():
            raise PosefixError(
                f"{job.documents[0].path}: its joints ({theirs.name}: {', '.join(theirs.joints[:4])}, ...) share none "
                f"with those that the refiner moves ({ours.name}: {', '.join(ours.joints[:4])}, ...)"
            )
        layout, place = job.layout, job.documents[0].path
        scored = job.target.scored if job.target is not None else layout.score is not None
        if layout.name == "parquet" and job.target is None:
            scored = has_scores(place)
        if options.rescore and not scored:
            kind = options.to or layout.name
            raise PosefixError(f"{place}: {kind} files have no place for a person's score to --rescore; add --to coco")
        if options.oks_nms and not layout.whole and options.to is None:
            raise PosefixError(
                f"{place}: --oks-nms leaves out rows, and people of a {layout.name} file are not rows; add --to coco"
            )
        self._places: dict = {}
        self._seen: set = set()

    def run(self) -> dict:
        options, job = self.options, self.job
        index, shards = options.shard_of
        self._found = self._rows = 0
        store = job.start(settings=self._settings(), check=self._check, shards=shards)
        if self._rows and not self._found:
            raise job.images.none_of(self._example)
        if options.pictures:
            claim(outputs_of(options.out)["pictures"], MADE_BY, store.job, replace=True)
        files = f"{len(job.documents)} {job.layout.name} file{'s' * (len(job.documents) > 1)}"
        print(f"reads {files} with the joints of {job.skeleton.name}, {job.rows} poses", file=sys.stderr)
        with Progress("refine", job.rows, unit="poses") as progress:
            mine = self._refine_parts(store, index, shards, progress)
        if options.pictures:
            self._write_pictures(store, index, shards)
        if shards > 1:
            return {"shard": options.shard, "rows": mine, "of": job.rows}
        return merge(options.out, store.job)

    def _settings(self) -> dict:
        """What the output depends on, beside the bytes of the input."""
        skip = {"out", "detections", "checkpoint", "threads", "pictures", "strict", "shard"}
        fields = {key: str(value) for key, value in vars(self.options).items() if key not in skip}
        return {"refiner": self.refiner.identity, "batch": self.refiner.batch_size, **fields}

    def _check(self, part: Part) -> None:
        """What needs no decoding to be known is known before hours are spent."""
        for row, pose in enumerate(part.poses):
            reason = self._why_not(pose)
            self._rows += 1
            if reason != "photograph missing":
                self._found += 1
            elif self._rows == 1:
                self._example = pose.image
            if reason is not None:
                self._refuse(part, row, reason)
        if self.options.oks_nms:
            # An integer a photograph is all that is remembered.
            now = {hash(str(image)) for image in part.by_image()}
            if now & self._seen:
                raise PosefixError(
                    f"{self.job.documents[0].path}: rows of one photograph stand far apart, near row {part.first_row}; "
                    "--oks-nms compares them: sort the file by image_id, or raise --part-rows"
                )
            self._seen |= now

    def _why_not(self, pose) -> str | None:
        if pose.category is not None and str(pose.category) != str(self.options.category):
            return f"category {pose.category}, not {self.options.category}"
        if not np.isfinite(pose.joints).all():
            return "a value is not finite"
        return None if self._place(pose.image) is not None else "photograph missing"

    def _place(self, image):
        """Where a photograph is; the last ones are remembered."""
        if image not in self._places:
            if len(self._places) > 1 << 16:
                self._places.clear()
            self._places[image] = self.job.images.find(image)
        return self._places[image]

    def _refuse(self, part: Part, row: int, reason: str) -> None:
        if self.options.strict:
            place = f"{self.job.documents[0].path}: row {part.first_row + row}"
            raise PosefixError(f"{place} cannot be refined: {reason} (--strict)")
        part.reasons[row] = reason
        if self.options.rescore and not (part.poses[row].joints[:, 2] > 0).any():
            part.scores[row] = 0.0

    def _refine_parts(self, store: Parts, index: int, shards: int, progress: Progress) -> int:
        """Refines and writes this process's parts that are not there yet; returns how many rows they have."""
        waits: dict[str, float] = {}
        left: dict[int, int] = {}
        done = mine = photographs = 0
        begun = time.monotonic()

        def finish(part: Part) -> None:
            nonlocal mine
            mine += len(part.poses)
            self.job.finish(self._judged(part), store)

        def groups() -> Iterator[Group | None]:
            nonlocal done
            for part in self.job.split():
                if part.number % shards != index or store.has(part.number):
                    done += len(part.poses)
                    progress.skip(len(part.poses))
                    continue
                some = []
                for image, rows in part.by_image().items():
                    usable = []
                    for row in rows:
                        reason = self._why_not(part.poses[row])
                        if reason is None:
                            usable.append(row)
                        else:
                            self._refuse(part, row, reason)
                    if usable:
                        poses = np.stack([self._as_ours(part.poses[row].joints) for row in usable])
                        boxes = tuple(part.poses[row].box for row in usable) if self.options.boxes else None
                        some.append(Group(image, poses, (part, usable), self.job.fractions, boxes=boxes))
                done += len(part.reasons)
                left[part.number] = len(part.poses) - len(part.reasons)
                if some:
                    yield from some
                    yield None
                else:
                    finish(part)
                    progress.update(done)

        def read(image):
            return self.job.images.read(self.job.images.find(image), exif=self.options.exif)

        options = {"threads": self.options.threads, "min_score": self.options.min_score}
        for group, i, outcome in self.refiner.run(
            groups(), read, fill_missing=self.options.missing == "fill", waits=waits, **options
        ):
            part, rows = group.tag
            if isinstance(outcome, str):
                self._refuse(part, rows[i], outcome)
            else:
                self._take(part, rows[i], group, i, outcome)
            if group.size_hw is not None:
                part.sizes[group.image] = group.size_hw
            left[part.number] -= 1
            done += 1
            photographs += i == 0
            both = sum(waits.values()) or 1.0
            bound = max(waits, key=waits.get, default="decode")
            pace = photographs / max(time.monotonic() - begun, 1e-6)
            share = 100 * waits.get(bound, 0) / both
            progress.note = f"{pace:.1f} photographs/s, of its waiting {share:.0f} % is for {bound}"
            progress.update(done)
            if not left[part.number]:
                del left[part.number]
                finish(part)
        return mine

    def _as_ours(self, joints: np.ndarray) -> np.ndarray:
        """A pose of the file in the refiner's joints; those that the file lacks are missing."""
        index = self._ours_in_theirs
        return np.where(index[:, None] >= 0, joints[index], 0.0)

    def _take(self, part: Part, row: int, group: Group, i: int, outcome: Outcome) -> None:
        """Puts a refined pose back into the file's joints and unit; a joint that stayed keeps its very values."""
        ours = np.flatnonzero(self._theirs_in_ours >= 0)
        new, old = outcome.poses[self._theirs_in_ours[ours]], group.poses[i][self._theirs_in_ours[ours]]
        joints = np.array(part.poses[row].joints)
        changed = (new != old).any(axis=1)
        if group.fraction:
            new = new / [group.size_hw[1], group.size_hw[0], 1]
        joints[ours[changed]] = new[changed]
        part.joints[row] = joints
        if self.options.rescore:
            score = part.poses[row].score
            part.scores[row] = round((1.0 if score is None else score) * float(outcome.quality), 6)

    def _judged(self, part: Part) -> Part:
        """The part with its doubles left out and the rows that changed most noted."""
        options = self.options
        if options.oks_nms:
            doubles: list[int] = []
            files = [index for index, element in part.elements for _ in element.poses]
            for rows in part.by_image().values():
                refined = [row for row in rows if row in part.joints]
                for _, some in groupby(sorted(refined, key=files.__getitem__), key=files.__getitem__):
                    doubles += self._doubles(part, list(some))
            for row in doubles:
                part.dropped.add(row)
                part.reasons[row] = "OKS-NMS"
        if options.pictures:
            changes = ((self._change(part, row), row) for row in part.joints)
            largest = heapq.nlargest(options.pictures, (change for change in changes if change[0] > 0))
            part.more["changes"] = [
                [change, part.first_row + row, part.poses[row].image]
                + [self._as_ours(joints).tolist() for joints in (part.poses[row].joints, part.joints[row])]
                for change, row in largest
            ]
        return part

    def _doubles(self, part: Part, rows: list[int]) -> list[int]:
        """Refined rows of a photograph that OKS-NMS leaves out; the area of a pose is that of its joints."""
        if len(rows) < 2:
            return []
        scale = [*part.sizes[part.poses[rows[0]].image][::-1], 1] if self.job.fractions else 1
        joints = np.stack([self._as_ours(part.joints[row]) * scale for row in rows])
        xy, present = joints[..., :2], joints[..., 2] > 0
        areas = [
            geometry.PERSON_FILL * max(np.prod(geometry.joint_extent(*p)[2:]), 1.0)
            for p in zip(xy, present, strict=True)
        ]
        known = [part.scores.get(row, part.poses[row].score) for row in rows]
        scores = np.array([1.0 if score is None else score for score in known])
        kept = set(
            oks_nms(xy, scores, np.array(areas), self.options.oks_nms, self.refiner.spec.skeleton, present).tolist()
        )
        return [row for place, row in enumerate(rows) if place not in kept]

    def _change(self, part: Part, row: int) -> float:
        """How far the joints went, in sizes of the pose."""
        before, after = self._as_ours(part.poses[row].joints), self._as_ours(part.joints[row])
        both = (before[:, 2] > 0) & (after[:, 2] > 0)
        if not both.any():
            return 0.0
        size = math.sqrt(np.prod(np.maximum(geometry.joint_extent(after[:, :2], after[:, 2] > 0)[2:], 1e-3)))
        return float(np.linalg.norm(before[both, :2] - after[both, :2], axis=1).sum() / size)

    def _write_pictures(self, store: Parts, index: int, shards: int) -> None:
        """Of the rows of this process's parts that changed most."""
        folder = outputs_of(self.options.out)["pictures"]
        numbers = range(index, store.count, shards)
        changes = (change for number in numbers for change in store.header(number).get("changes", ()))
        for _, row, image, before, after in heapq.nlargest(self.options.pictures, changes, key=lambda c: c[0]):
            try:
                pixels = self.job.images.read(self._place(image), exif=self.options.exif)
            except UnreadableImage:  # it was readable when it was refined
                continue
            scale = [pixels.shape[1], pixels.shape[0], 1] if self.job.fractions else 1
            poses = np.asarray(before) * scale, np.asarray(after) * scale
            picture = before_and_after(pixels, *poses, self.refiner.spec.skeleton)
            write_picture(folder / f"row-{row:06d}.png", picture)


def summary_of(report: dict, out: Path) -> str:
    """A few lines for the terminal."""
    if "shard" in report:
        return (
            f"shard {report['shard']}: {report['rows']} of {report['of']} poses refined now; when every shard is done: "
            f"posefix merge {out}"
        )
    moved = f"{report['joints_moved']} joints moved or filled in"
    lines = [f"{report['refined']} of {report['rows']} poses refined ({report['format']}), {moved}: {out}"]
    for reason, count in report["reasons"].items():
        lines.append(f"{count} {'left out by' if reason == 'OKS-NMS' else 'passed through unchanged:'} {reason}")
    return "\n".join(lines)


def before_and_after(image: np.ndarray, before: np.ndarray, after: np.ndarray, skeleton) -> np.ndarray:
    """A picture of one person: [K, 3] poses in the image frame, cropped around both, 400 px high."""
    present = [pose[:, 2] > 0 for pose in (before, after)]
    points = np.concatenate([before[present[0], :2], after[present[1], :2]])
    box = geometry.grow_box(geometry.joint_extent(points, np.ones(len(points), bool)), 1.4, minimum=20.0)
    height = 400
    width = int(np.clip(height * box[2] / box[3], 200, 800))
    place = geometry.crop_geometry(geometry.fit_aspect(box, (height, width)), (height, width))
    crop = warp_affine(image, place.image_to_crop, (height, width))
    draw = functools.partial(draw_pose, crop, skeleton=skeleton)
    return side_by_side(
        [
            draw(place.to_crop(before[:, :2]), present[0], color=RED),
            draw(place.to_crop(after[:, :2]), present[1], color=GREEN),
        ],
        ["before", "after"],
    )
