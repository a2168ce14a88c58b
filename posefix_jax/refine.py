"""`posefix refine`: poses of a results file in, better poses out, one row for one row."""

import functools
import hashlib
import json
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from posefix_jax import geometry
from posefix_jax.data.coco import joints_of, read_file_names, read_results, write_json
from posefix_jax.data.images import UnreadableImage, find_images, ordered_map, read_image, warp_affine
from posefix_jax.evaluation.oks import oks_nms
from posefix_jax.refiner import Crop, Outcome, Refiner
from posefix_jax.report.pictures import GREEN, RED, draw_pose, side_by_side, write_picture
from posefix_jax.report.progress import Progress
from posefix_jax.types import PosefixError


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
    min_ks: float | None = None
    """expected KS that a joint's new place must promise; the checkpoint's own by default, 0 to take every move"""
    missing: Literal["fill", "keep"] = "fill"
    """joints that the estimator left out: fill, or keep as they are"""
    min_score: float = 0.0
    """joints with a score up to this count as left out"""
    rescore: bool = False
    """multiply the score of a refined row by the mean expected KS of its joints, which ranks good poses first"""
    oks_nms: float = 0.0
    """leave out refined rows whose OKS with a better-scored one of their photograph is above this (released code: 0.9);
    0 keeps every row"""
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

    def __post_init__(self):
        if self.batch_size < 1 or self.threads < 1 or self.pictures < 0:
            raise PosefixError(
                "--batch-size and --threads must be positive and --pictures not negative, found "
                f"{self.batch_size}, {self.threads}, {self.pictures}"
            )
        if not 0 <= self.oks_nms <= 1:
            raise PosefixError(f"--oks-nms must lie in 0..1, found {self.oks_nms}")


def refine(options: RefineOptions) -> dict:
    """Runs the job; returns the report that is also written to OUT.report.json.

    Interrupted, it leaves OUT.partial, from which the same command goes on; OUT itself appears whole or not at all.

    Raises:
      PosefixError: bad input; with `strict` also a row that cannot be refined.
    """
    refiner = Refiner.load(
        options.checkpoint,
        flip=options.flip,
        batch_size=options.batch_size,
        keep_margin=options.keep_margin,
        min_ks=options.min_ks,
    )
    return refine_rows(refiner, options)


def refine_rows(refiner: Refiner, options: RefineOptions) -> dict:
    """As `refine`, with a refiner at hand."""
    skeleton = refiner.spec.skeleton
    if options.out.resolve() == options.detections.resolve():
        raise PosefixError(f"--out {options.out} is the detections file itself; write elsewhere")
    if options.out.is_dir() or not options.out.name:
        raise PosefixError(f"--out {options.out} is a folder; expected the name of a file to write")
    rows = read_results(options.detections, skeleton)
    names = None
    if options.annotations is not None:
        names, joints = read_file_names(options.annotations)
        if joints is not None and joints != skeleton.joints:
            raise PosefixError(
                f"{options.annotations}: its joints are {', '.join(joints[:4])}, ...; the refiner's are "
                f"{', '.join(skeleton.joints[:4])}, ... ({skeleton.name}); take a refiner of that skeleton"
            )
    files = find_images(options.images, [row["image_id"] for row in rows], names)
    poses = np.stack([joints_of(row, skeleton.num_joints, f"row {i}") for i, row in enumerate(rows)])

    with _Journal(options, refiner.identity) as journal:
        _refine_missing(refiner, options, rows, poses, files, journal)
        output, report = _write_outcome(options, rows, journal, skeleton)
        if options.pictures:
            _write_pictures(options, skeleton, rows, output, files)
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

    def refuse(index: int, reason: str) -> None:
        if options.strict:
            raise PosefixError(f"{options.detections}: row {index} cannot be refined: {reason} (--strict)")
        reasons[index] = reason

    # What needs no decoding to be known is known before hours are spent.
    hopeless = {i: reason for i in range(len(rows)) if (reason := why_not(i)) is not None}
    for index, reason in hopeless.items():
        refuse(index, reason)

    def crops_of(image_id) -> list[tuple[int, Crop | str]]:
        """A crop, or the reason why there is none, for everybody in a photograph who is not done yet."""
        todo = [i for i in by_image[image_id] if i not in refined and i not in reasons]
        outcomes: dict[int, Crop | str | None] = dict.fromkeys(todo)
        if todo:
            try:
                image = read_image(files[image_id], exif=options.exif)
            except UnreadableImage as error:
                image, unreadable = None, f"photograph unreadable: {error}"
            for i in todo:
                crop = None if image is None else refiner.crop(image, poses[i], min_score=options.min_score)
                outcomes[i] = crop or (unreadable if image is None else "no usable joint")
        return list(outcomes.items())

    def take(started):
        indices, sent = started
        journal.refine(indices, refiner.finish(sent, poses[indices], fill_missing=options.missing == "fill"))
        progress.update(len(refined) + len(reasons))

    with (
        ThreadPoolExecutor(options.threads) as pool,
        Progress("refine", len(rows), unit="poses", done=done) as progress,
    ):
        waiting, in_flight = [], None
        for outcomes in ordered_map(pool, crops_of, by_image, ahead=4 * options.threads):
            for index, outcome in outcomes:
                if isinstance(outcome, str):
                    refuse(index, outcome)
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


def _write_outcome(options: RefineOptions, rows: list[dict], journal: "_Journal", skeleton) -> tuple[list, dict]:
    """The output rows, one an input row, and the report; the rows that stay and the report are each written whole."""
    reasons = journal.reasons
    output, moved = [], 0
    for index, row in enumerate(rows):
        if index in journal.refined:
            keypoints, changed = _merge(row["keypoints"], journal.refined[index])
            moved += changed
            row = {**row, "keypoints": keypoints}
            if options.rescore:
                row["score"] = round(float(row.get("score", 1.0)) * journal.quality[index], 6)
        output.append(row)
    doubles = _doubles(output, journal.refined, options.oks_nms, skeleton) if options.oks_nms else []
    report = {
        "detections": str(options.detections),
        "rows": len(rows),
        "refined": len(journal.refined),
        "joints_moved": moved,
        "passed_through": [{"row": i, "image_id": rows[i]["image_id"], "reason": reasons[i]} for i in sorted(reasons)],
        "left_out": [{"row": i, "image_id": rows[i]["image_id"], "reason": "OKS-NMS"} for i in doubles],
    }
    gone = set(doubles)
    write_json(options.out, [row for i, row in enumerate(output) if i not in gone])
    write_json(options.out.with_name(options.out.name + ".report.json"), report)
    return output, report


def _doubles(output: list[dict], refined, threshold: float, skeleton) -> list[int]:
    """Refined rows that OKS-NMS leaves out, each photograph by itself; the area of a pose is that of its joints."""
    by_image = defaultdict(list)
    for index in refined:
        by_image[output[index]["image_id"]].append(index)
    doubles = []
    for indices in by_image.values():
        joints = np.stack([joints_of(output[i], skeleton.num_joints, "") for i in indices])
        xy, present = joints[..., :2], joints[..., 2] > 0
        extents = [geometry.joint_extent(*pose) for pose in zip(xy, present, strict=True)]
        areas = geometry.PERSON_FILL * np.maximum([np.prod(extent[2:]) for extent in extents], 1.0)
        scores = np.array([output[i].get("score", 1.0) for i in indices])
        kept = set(oks_nms(xy, scores, areas, threshold, skeleton, present).tolist())
        doubles += [i for place, i in enumerate(indices) if place not in kept]
    return sorted(doubles)


def summary_of(report: dict, out: Path) -> str:
    """A few lines for the terminal."""
    moved = f"{report['joints_moved']} joints moved or filled in"
    lines = [f"{report['refined']} of {report['rows']} poses refined, {moved}: {out}"]
    reasons = Counter(entry["reason"] for entry in report["passed_through"])
    if report["left_out"]:
        lines.append(f"{len(report['left_out'])} left out by OKS-NMS")
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
    """The refined poses so far, on disk as they come, so that an interrupted job goes on. One JSON line a row."""

    def __init__(self, options: RefineOptions, identity: str):
        self.path = options.out.with_name(options.out.name + ".partial")
        self.refined: dict[int, np.ndarray] = {}
        self.quality: dict[int, float] = {}
        self.reasons: dict[int, str] = {}
        job = {"job": _fingerprint(options, identity)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read(job)
        self._file = open(self.path, "r+b" if whole else "wb")
        self._file.seek(whole)
        self._file.truncate()  # the torn last line of a killed attempt
        if not whole:
            self._write(job)

    def _read(self, job: dict) -> int:
        """Takes over the rows of an earlier attempt at the same job; returns the bytes of its whole lines."""
        whole = 0
        if not self.path.is_file():
            return whole
        with open(self.path, "rb") as file:
            for text in file:
                try:
                    line = json.loads(text) if text.endswith(b"\n") else None
                except ValueError:
                    break
                if line is None or (not whole and line != job):
                    break
                if whole:
                    self.refined[line["row"]] = np.asarray(line["pose"])
                    self.quality[line["row"]] = line["quality"]
                whole += len(text)
        return whole

    def _write(self, line: dict) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")

    def refine(self, indices, outcome: Outcome) -> None:
        for index, pose, quality in zip(indices, *outcome, strict=True):
            self._write({"row": index, "pose": pose.tolist(), "quality": float(quality)})
            self.refined[index], self.quality[index] = pose, float(quality)
        self._file.flush()

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *failed) -> None:
        self._file.close()
        if failed[0] is None:
            self.path.unlink()


def _fingerprint(options: RefineOptions, identity: str) -> str:
    """Equal for two jobs whose refined rows are the same: same input bytes, same refiner, same options that matter."""
    digest = hashlib.sha256(Path(options.detections).read_bytes())
    skip = {"out", "detections", "checkpoint", "threads", "pictures", "strict", "oks_nms", "rescore"}
    fields = {key: str(value) for key, value in vars(options).items() if key not in skip}
    digest.update(json.dumps({"refiner": identity, **fields}, sort_keys=True).encode())
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
            folder / f"row-{index:06d}.png",
            before_and_after(image, joints(rows[index]), joints(output[index]), skeleton),
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
