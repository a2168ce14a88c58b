"""`posefix refine`, and the `Refiner` it drives: poses in, better poses out, one row for one row."""

import functools
import hashlib
import json
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from posefix_jax import geometry
from posefix_jax.checkpoints import load_refiner
from posefix_jax.data.coco import joints_of, read_annotations, read_json, read_results, write_json
from posefix_jax.data.images import UnreadableImage, find_images, ordered_map, read_image, warp_affine
from posefix_jax.models import RefinerSpec
from posefix_jax.report.pictures import GREEN, RED, draw_pose, side_by_side, write_picture
from posefix_jax.report.progress import Progress
from posefix_jax.sharding import data_mesh, place_batch, replicated, split
from posefix_jax.step import Network, make_refine_step
from posefix_jax.types import PosefixError

SHIPPED = "shipped"
"""Folder of the package that holds the refiner loaded by default."""


class Crop(NamedTuple):
    """One pose made ready for the network: its crop, where that lies, and the pose in it."""

    pixels: np.ndarray
    geometry: geometry.CropGeometry
    crop_xy: np.ndarray
    present: np.ndarray


class Refiner:
    """A refiner that is ready to run. `Refiner.load()` gives the shipped one.

    Attributes:
      spec: skeleton, sizes, frames, decoding.
      batch_size: crops a step; more are run in several, fewer are padded, so nothing compiles twice.
    """

    def __init__(
        self, network: Network, variables: dict, spec: RefinerSpec, *, flip: bool = True, batch_size: int = 32
    ):
        self.spec = spec
        self._mesh = data_mesh()
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._variables = jax.device_put(variables, replicated(self._mesh))
        self._step = jax.jit(
            make_refine_step(network, spec, flip=flip),
            in_shardings=(replicated(self._mesh), *(split(self._mesh),) * 3),
            out_shardings=split(self._mesh),
        )

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None = None,
        *,
        flip: bool = True,
        batch_size: int = 32,
        keep_margin: float | None = None,
    ) -> "Refiner":
        """A refiner from a checkpoint, or the shipped one.

        Args:
          checkpoint: a training run's folder (its latest step), one step's folder, or a shipped one.
          flip: also run the mirrored crop and average.
          keep_margin: overrides the checkpoint's own; see `DecodeConfig`.

        Raises:
          PosefixError: no refiner there.
        """
        path = Path(checkpoint) if checkpoint is not None else Path(str(resources.files("posefix_jax") / SHIPPED))
        variables, spec = load_refiner(path)
        if keep_margin is not None:
            spec = replace(spec, decode=replace(spec.decode, keep_margin=keep_margin))
        return cls(spec.network().apply, variables, spec, flip=flip, batch_size=batch_size)

    def refine(self, image: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Refines poses in one photograph.

        Args:
          image: [H, W, 3] uint8, RGB.
          poses: [N, K, 2] or [N, K, 3]: image x, y, and a score; a joint with score 0 (or not finite) is missing.

        Returns:
          [N, K, 3] float64: image x, y, score. A joint that is kept has its input's values, a joint that was
          missing is filled in with its expected KS as score. A pose without a usable joint comes back as it is.

        Raises:
          PosefixError: shapes do not fit, or K is not the skeleton's.
        """
        image = np.asarray(image)
        poses = np.array(poses, np.float64)
        joints = self.spec.skeleton.num_joints
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise PosefixError(f"image must be [H, W, 3] uint8, found {image.shape} {image.dtype}")
        if poses.ndim != 3 or poses.shape[1] != joints or poses.shape[2] not in (2, 3):
            raise PosefixError(f"poses must be [N, {joints}, 2 or 3], found {poses.shape}")
        if poses.shape[2] == 2:
            poses = np.concatenate([poses, np.ones((*poses.shape[:2], 1))], axis=2)
        crops = [self.crop(image, pose) for pose in poses]
        usable = [i for i, crop in enumerate(crops) if crop is not None]
        for start in range(0, len(usable), self.batch_size):
            rows = usable[start : start + self.batch_size]
            for row, refined in zip(rows, self.finish(self.start([crops[i] for i in rows]), poses[rows]), strict=True):
                poses[row] = refined
        return poses

    def crop(self, image: np.ndarray, pose: np.ndarray, *, min_score: float = 0.0) -> Crop | None:
        """The crop around one pose ([K, 3], image frame); None if no joint that the model knows is usable.

        A joint is present if finite and its score is above `min_score`.
        """
        model = self.spec.model
        present = np.isfinite(pose).all(axis=1) & (pose[:, 2] > min_score)
        around = present & np.asarray(self.spec.trained_joints)
        if not around.any():
            return None
        xy = np.where(present[:, None], pose[:, :2], 0.0)
        box = geometry.crop_box_of_joints(xy, around, model.crop_hw)
        place = geometry.crop_geometry(box, model.crop_hw, frame=model.frame)
        pixels = warp_affine(image, place.image_to_crop, model.crop_hw, antialias=model.frame != "reference")
        return Crop(pixels, place, np.where(present[:, None], place.to_crop(xy), 0.0).astype(np.float32), present)

    def start(self, crops: list[Crop]):
        """Sends up to `batch_size` crops to the devices and returns at once; `finish` waits for the outcome."""
        fill = self.batch_size - len(crops)
        batch = [np.stack([crop[field] for crop in crops]) for field in (0, 2, 3)]
        batch = [np.concatenate([array, np.zeros((fill, *array.shape[1:]), array.dtype)]) for array in batch]
        return crops, self._step(self._variables, *place_batch(self._mesh, tuple(batch)))

    def finish(self, started, poses: np.ndarray, *, fill_missing: bool = True) -> np.ndarray:
        """The refined poses, [n, K, 3] in the image frame, of what `start` sent; `poses` are their inputs."""
        crops, outcome = started
        outcome = jax.device_get(outcome)
        refined = np.array(poses, np.float64)
        for i, crop in enumerate(crops):
            moved = outcome.moved[i] & (crop.present | fill_missing)
            image_xy = crop.geometry.to_image(outcome.crop_xy[i].astype(np.float64))
            refined[i, moved, :2] = image_xy[moved]
            filled = moved & ~crop.present
            refined[i, filled, 2] = outcome.output_ks[i, filled]
        return refined


@dataclass(frozen=True)
class RefineOptions:
    """Refines the poses of a COCO keypoint results file."""

    detections: Path
    """COCO keypoint results file (.json): rows with image_id, category_id, keypoints, score"""
    images: Path
    """folder with the photographs"""
    out: Path
    """results file to write: same rows, same order, other keys untouched; OUT.report.json beside it"""
    checkpoint: Path | None = None
    """a training run or checkpoint; the shipped refiner by default"""
    annotations: Path | None = None
    """COCO file whose images give the file name of each image_id; by default the id is looked for in file names"""
    flip: bool = True
    """also refine the mirrored crop and average"""
    keep_margin: float | None = None
    """gain of expected KS that a joint must promise to be moved; the checkpoint's own by default"""
    missing: str = "fill"
    """joints that the estimator left out: fill, or keep as they are"""
    min_score: float = 0.0
    """joints with a score up to this count as left out"""
    category: int = 1
    """rows of other categories pass through"""
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


def refine(options: RefineOptions) -> dict:
    """Runs the job; returns the report that is also written to OUT.report.json.

    Interrupted, it leaves OUT.partial, from which the same command goes on; OUT itself appears whole or not at all.

    Raises:
      PosefixError: bad input; with `strict` also a row that cannot be refined.
    """
    if options.missing not in ("fill", "keep"):
        raise PosefixError(f"--missing must be fill or keep, found {options.missing!r}")
    if options.batch_size < 1 or options.threads < 1:
        raise PosefixError(f"--batch-size and --threads must be positive, found {options.batch_size}, {options.threads}")
    refiner = Refiner.load(
        options.checkpoint, flip=options.flip, batch_size=options.batch_size, keep_margin=options.keep_margin
    )
    return refine_rows(refiner, options)


def refine_rows(refiner: Refiner, options: RefineOptions) -> dict:
    """As `refine`, with a refiner at hand."""
    skeleton = refiner.spec.skeleton
    rows = read_results(options.detections, skeleton)
    names = read_annotations(options.annotations).file_names if options.annotations else None
    files = find_images(options.images, [row["image_id"] for row in rows], names)
    poses = np.stack([joints_of(row, skeleton.num_joints, f"row {i}") for i, row in enumerate(rows)])

    with _Journal(options) as journal:
        _refine_missing(refiner, options, rows, poses, files, journal)
        report = _write_outcome(options, rows, journal)
        if options.pictures:
            _write_pictures(options, skeleton, rows, read_json(options.out), files)
    return report


def _refine_missing(refiner: Refiner, options: RefineOptions, rows, poses, files, journal: "_Journal") -> None:
    """Refines, into the journal, all rows that it does not hold yet."""
    refined, reasons = journal.refined, journal.reasons
    done = len(refined) + len(reasons)
    by_image = defaultdict(list)
    for index, row in enumerate(rows):
        by_image[row["image_id"]].append(index)

    def why_not(index) -> str | None:
        row = rows[index]
        if row.get("category_id", options.category) != options.category:
            return f"category {row['category_id']}, not {options.category}"
        if not np.isfinite(poses[index]).all():
            return "a value is not finite"
        return None if row["image_id"] in files else "photograph missing"

    def crops_of(image_id) -> list[tuple[int, Crop | str]]:
        """A crop, or the reason why there is none, for everybody in a photograph who is not done yet."""
        todo = [i for i in by_image[image_id] if i not in refined and i not in reasons]
        outcomes = {i: why_not(i) for i in todo}
        if None in outcomes.values():
            try:
                image = read_image(files[image_id], exif=options.exif)
            except UnreadableImage as error:
                image, unreadable = None, f"photograph unreadable: {error}"
            for i, reason in outcomes.items():
                if reason is None and image is None:
                    outcomes[i] = unreadable
                elif reason is None:
                    outcomes[i] = refiner.crop(image, poses[i], min_score=options.min_score) or "no usable joint"
        return list(outcomes.items())

    def take(started):
        indices, sent = started
        result = refiner.finish(sent, poses[indices], fill_missing=options.missing == "fill")
        journal.refine(indices, result)
        progress.update(len(refined) + len(reasons))

    with ThreadPoolExecutor(options.threads) as pool, Progress("refine", len(rows), unit="poses", done=done) as progress:
        waiting, in_flight = [], None
        for outcomes in ordered_map(pool, crops_of, by_image, ahead=4 * options.threads):
            for index, outcome in outcomes:
                if isinstance(outcome, str):
                    if options.strict:
                        raise PosefixError(f"{options.detections}: row {index} cannot be refined: {outcome} (--strict)")
                    journal.skip(index, outcome)
                else:
                    waiting.append((index, outcome))
                if len(waiting) == refiner.batch_size:
                    sent = ([i for i, _ in waiting], refiner.start([crop for _, crop in waiting]))
                    waiting = []
                    if in_flight is not None:
                        take(in_flight)
                    in_flight = sent
        if in_flight is not None:
            take(in_flight)
        if waiting:
            take(([i for i, _ in waiting], refiner.start([crop for _, crop in waiting])))
        progress.update(len(rows))


def _write_outcome(options: RefineOptions, rows: list[dict], journal: "_Journal") -> dict:
    """The output and its report, each whole; returns the report."""
    reasons = journal.reasons
    output, moved = [], 0
    for index, row in enumerate(rows):
        if index in journal.refined:
            keypoints, changed = _merge(row["keypoints"], journal.refined[index])
            moved += changed
            row = {**row, "keypoints": keypoints}
        output.append(row)
    report = {
        "detections": str(options.detections),
        "rows": len(rows),
        "refined": len(journal.refined),
        "joints_moved": moved,
        "passed_through": [
            {"row": i, "image_id": rows[i]["image_id"], "reason": reasons[i]} for i in sorted(reasons)
        ],
    }
    write_json(options.out, output)
    write_json(options.out.with_name(options.out.name + ".report.json"), report)
    return report


def summary_of(report: dict, out: Path) -> str:
    """A few lines for the terminal."""
    lines = [f"{report['refined']} of {report['rows']} poses refined, {report['joints_moved']} joints moved: {out}"]
    reasons = Counter(entry["reason"] for entry in report["passed_through"])
    lines += [f"{count} passed through unchanged: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def _merge(keypoints: list, refined: np.ndarray) -> tuple[list, int]:
    """The row's own values wherever a joint was kept, refined ones (3 decimals) elsewhere; and how many moved."""
    values, changed = list(keypoints), 0
    for joint, triple in enumerate(refined):
        own = values[3 * joint : 3 * joint + 3]
        if any(float(a) != float(b) for a, b in zip(own, triple, strict=True)):
            values[3 * joint : 3 * joint + 2] = [round(float(v), 3) for v in triple[:2]]
            if float(own[2]) != float(triple[2]):
                values[3 * joint + 2] = round(float(triple[2]), 4)
            changed += 1
    return values, changed


class _Journal:
    """What is refined so far, on disk as it comes, so that an interrupted job goes on. One JSON line an event."""

    def __init__(self, options: RefineOptions):
        self.path = options.out.with_name(options.out.name + ".partial")
        self.refined: dict[int, np.ndarray] = {}
        self.reasons: dict[int, str] = {}
        fingerprint = _fingerprint(options)
        lines = self._read(fingerprint)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "w")
        except OSError as error:
            raise PosefixError(f"{self.path}: cannot write ({error.strerror})") from error
        self._write({"job": fingerprint})
        for line in lines:
            self._write(line)
            self._note(line)

    def _read(self, fingerprint: str) -> list[dict]:
        """The whole lines of an earlier attempt at the same job; a torn last line is dropped."""
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        return lines[1:] if lines and lines[0] == {"job": fingerprint} else []

    def _write(self, line: dict) -> None:
        self._file.write(json.dumps(line) + "\n")

    def _note(self, line: dict) -> None:
        if "reason" in line:
            self.reasons[line["row"]] = line["reason"]
        else:
            self.refined[line["row"]] = np.asarray(line["pose"])

    def refine(self, indices, poses) -> None:
        for index, pose in zip(indices, poses, strict=True):
            self._write({"row": index, "pose": pose.tolist()})
            self.refined[index] = pose
        self._file.flush()

    def skip(self, index: int, reason: str) -> None:
        self._write({"row": index, "reason": reason})
        self.reasons[index] = reason

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *failed) -> None:
        self._file.close()
        if failed[0] is None:
            self.path.unlink()


def _fingerprint(options: RefineOptions) -> str:
    """Equal for two jobs whose refined rows are the same: same input bytes, same options that matter."""
    digest = hashlib.sha256(Path(options.detections).read_bytes())
    skip = {"out", "detections", "threads", "pictures", "strict", "batch_size"}
    fields = {key: str(value) for key, value in vars(options).items() if key not in skip}
    if options.checkpoint is not None and Path(options.checkpoint).exists():
        fields["checkpoint_written"] = str(os.stat(options.checkpoint).st_mtime_ns)
    digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()


def _write_pictures(options, skeleton, rows, output, files) -> None:
    def joints(row):
        return joints_of(row, skeleton.num_joints, "")

    def change(index):
        before, after = joints(rows[index]), joints(output[index])
        if not np.isfinite(before).all():
            return 0.0
        both = (before[:, 2] > 0) & (after[:, 2] > 0)
        size = np.sqrt(np.prod(np.maximum(geometry.joint_extent(after[:, :2], after[:, 2] > 0)[2:], 1)))
        return float(np.linalg.norm(before[both, :2] - after[both, :2], axis=1).sum() / size) if both.any() else 0.0

    changed = [i for i in sorted(range(len(rows)), key=change, reverse=True)[: options.pictures] if change(i) > 0]
    folder = options.out.with_name(options.out.name + ".pictures")
    for index in changed:
        image = read_image(files[rows[index]["image_id"]], exif=options.exif)
        write_picture(
            folder / f"row-{index:06d}.png", before_and_after(image, joints(rows[index]), joints(output[index]), skeleton)
        )


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
            draw(place.to_crop(before[:, :2]), present[0], colour=RED),
            draw(place.to_crop(after[:, :2]), present[1], colour=GREEN),
        ],
        ["before", "after"],
    )
