"""`posefix inspect`: what a file of poses is, and what `posefix refine` would make of it, in a second."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posefix_jax.core.joint_sets import COCO, load_skeleton
from posefix_jax.data.formats.base import ImageId, Pose
from posefix_jax.data.formats.cells import columns_of
from posefix_jax.data.image_sources import Images
from posefix_jax.data.images import UnreadableImage
from posefix_jax.data.pose_files import PoseFiles, find_files
from posefix_jax.refining.file_photographs import FilePhotographs, check_units, reason_to_skip
from posefix_jax.types import PosefixError

LOOKED_AT, SIZED = 64, 8
"""Photographs whose EXIF rotation is looked at, and those that are decoded to see whether joints lie inside."""


@dataclass(frozen=True)
class InspectOptions:
    """Says what files of poses are and what `posefix refine` would make of them: format, joints, photographs, units."""

    detections: tuple[str, ...]
    """files of poses, folders or patterns of them, or URLs; the format is detected"""
    images: str | None = None
    """the photographs: a folder, a .zip, .tar shards, a video, or a URL"""
    annotations: Path | None = None
    """COCO file whose images give the file name of each image_id; by default file names are matched with the id"""
    skeleton: str | None = None
    """the files' joints, a name or a JSON file, if neither the file nor the number of joints says what they are"""
    columns: tuple[str, ...] = ()
    """OURS=THEIRS for columns of a CSV table whose names posefix does not know: image_id=clip nose_x=n.x nose_y=n.y"""
    category: int = 1
    """rows of other categories would be skipped"""
    first_frame: int | None = None
    """the number by which the file calls the photograph with the lowest number, or a video's first frame"""
    rows: int = 10000
    """look at so many poses; 0: at all of them"""

    def __post_init__(self):
        if self.rows < 0:
            raise PosefixError(f"--rows must not be negative, found {self.rows}")


def inspect_files(options: InspectOptions) -> dict:
    """Looks at the first rows of the files, and at some of their photographs.

    Returns:
      `files`, `format`, `joints` (their `names`, the set's `name`, what they are `told_by`, whether their OKS `sigmas` are
      known), `rows`, `complete` (whether these are all), `categories`, `coordinates` (`unit`, ranges of `x` and `y`),
      `missing_joints` (their share), `joint_scores` and `scores` (ranges), `skipped` (rows by the reason why refine would
      pass them through), `photographs` (None without --images) and `problems` (what refine would refuse).

    Raises:
      PosefixError: no such file, or a row that does not fit.
    """
    given = None if options.skeleton is None else load_skeleton(options.skeleton)
    files = find_files(options.detections, Path())
    source = PoseFiles.open(
        files, skeleton=given, preferred=COCO, annotations=options.annotations, columns=columns_of(options.columns)
    )
    photographs = None
    if options.images is not None:
        images = Images(options.images, source.names, first_frame=options.first_frame)
        photographs = FilePhotographs(images, source.path, first_frame=options.first_frame is not None)
    poses, complete = _first(source, options.rows)
    if not poses:
        raise PosefixError(f"{source.path}: no poses to work on")
    joints = np.stack([pose.joints for pose in poses])
    present = np.isfinite(joints).all(axis=-1) & (joints[..., 2] > 0)
    seen = joints[present]
    skipped: Counter[str] = Counter()
    for pose, joint in zip(poses, present.any(axis=1).tolist(), strict=True):
        if photographs is not None:
            photographs.count(pose.image)
        reason = reason_to_skip(pose, photographs, category=options.category)
        reason = "no usable joint" if reason is None and not joint else reason
        skipped.update(() if reason is None else (reason,))
    problems = []
    checks: list[Callable[[], None]] = [lambda: check_units(float(np.abs(seen[:, :2]).max(initial=0.0)), source)]
    for check in checks if photographs is None else [*checks, photographs.check]:
        try:
            check()
        except PosefixError as error:
            problems.append(str(error))
    scores = [pose.score for pose in poses if pose.score is not None]
    return {
        "files": len(files),
        "first_file": source.path,
        "format": source.format.name,
        "joints": {
            "name": source.skeleton.name,
            "names": list(source.skeleton.joints),
            "told_by": _told_by(source, given=given is not None),
            "sigmas": "guessed" if source.skeleton.sigmas_guessed else "known",
        },
        "rows": len(poses),
        "complete": complete,
        "categories": {str(category): n for category, n in Counter(pose.category for pose in poses).items()},
        "coordinates": {
            "unit": "fractions of the photograph's width and height" if source.format.fraction else "pixels",
            "x": _range(seen[:, 0]),
            "y": _range(seen[:, 1]),
        },
        "missing_joints": round(1 - float(present.mean()), 4),
        "joint_scores": _range(seen[:, 2]),
        "scores": _range(np.array(scores)),
        "skipped": dict(skipped),
        "photographs": None if photographs is None else _photographs(poses, present, photographs, source),
        "problems": problems,
    }


def _told_by(source: PoseFiles, *, given: bool) -> str:
    """What says which joints the files have."""
    file = source.files[0]
    if given:
        return "--skeleton"
    if file.format.skeleton is not None:
        return "the format"
    return "their names" if file.joints_named else "their number"


def _first(source: PoseFiles, most: int) -> tuple[list[Pose], bool]:
    """The first poses, and whether they are all; `most` 0: all."""
    poses: list[Pose] = []
    for _, element in source.elements():
        if most and len(poses) >= most and element.poses:
            return poses[:most], False
        poses += element.poses
    return (poses[:most], len(poses) <= most) if most else (poses, True)


def _range(values: np.ndarray) -> list[float] | None:
    values = values[np.isfinite(values)]
    return [round(float(values.min()), 4), round(float(values.max()), 4)] if values.size else None


def _photographs(poses: Sequence[Pose], present: np.ndarray, photographs: FilePhotographs, source: PoseFiles) -> dict:
    """How the photographs were found, and what some of them, spread over the rows, are like."""
    rows: dict[ImageId, list[int]] = {}
    for row, pose in enumerate(poses):
        rows.setdefault(pose.image, []).append(row)
    there = [image for image in rows if photographs.find(image) is not None]
    some = there[:: max(1, -(-len(there) // LOOKED_AT))]
    inside = list(
        _inside(poses, present, photographs, source, [(i, rows[i]) for i in some[:: max(1, len(some) // SIZED)]])
    )
    return {
        "place": photographs.images.place,
        "distinct": len(rows),
        "found": dict(photographs.found),
        "summary": photographs.summary(),
        "looked_at": len(some),
        "rotated_by_exif": sum(photographs.is_rotated(image) for image in some),
        "joints_inside": round(float(np.mean(inside)), 4) if inside else None,
    }


def _inside(
    poses: Sequence[Pose],
    present: np.ndarray,
    photographs: FilePhotographs,
    source: PoseFiles,
    rows: Sequence[tuple[ImageId, Sequence[int]]],
) -> Iterator[bool]:
    """Of each joint on some photographs, whether it lies within the photograph as it is stored, without EXIF's rotation."""
    for image, of_image in rows:
        try:
            height, width = photographs.pixels(image, exif=False).shape[:2]
        except UnreadableImage:
            continue
        size = (1, 1) if source.format.fraction else (width, height)
        for row in of_image:
            xy = poses[row].joints[present[row], :2]
            yield from np.all((xy >= 0) & (xy <= size), axis=1).tolist()


def text_of(report: dict) -> str:
    """The report as lines for the terminal."""
    joints, spots, sights = report["joints"], report["coordinates"], report["photographs"]
    more = f" and {report['files'] - 1} more" if report["files"] > 1 else ""
    rows = f"{report['rows']} poses" + ("" if report["complete"] else " looked at (--rows 0 for all)")
    advice = "; --skeleton overrules" if joints["told_by"] == "their number" else ""
    lines = {
        "file": f"{report['first_file']}{more}: {report['format']}",
        "joints": f"{len(joints['names'])}, those of {joints['name']} (told by {joints['told_by']}{advice})",
        "OKS sigmas": f"{joints['sigmas']} ({joints['name']})"
        + ("; give measured ones with --skeleton FILE" if joints["sigmas"] == "guessed" else ""),
        "rows": rows + "".join(f", {n} of category {c}" for c, n in report["categories"].items() if c != "None"),
        "coordinates": f"{spots['unit']}, x {_span(spots['x'])}, y {_span(spots['y'])}",
        "missing": f"{report['missing_joints']:.1%} of joints",
        "scores": f"joints {_span(report['joint_scores'])}, people {_span(report['scores'])}",
    }
    if sights is None:
        lines["photographs"] = "give --images to look for them"
    else:
        lines["photographs"] = sights["summary"].partition(": ")[2]
        lines["EXIF"] = f"{sights['rotated_by_exif']} of {sights['looked_at']} photographs looked at are rotated"
        if sights["joints_inside"] is not None:
            lines["inside"] = f"{sights['joints_inside']:.1%} of joints lie within their photographs"
    skipped = sum(report["skipped"].values())
    why = ", ".join(f"{count} {reason}" for reason, count in report["skipped"].items())
    lines["refine"] = f"would refine {report['rows'] - skipped} and skip {skipped}" + (f": {why}" if why else "")
    return "\n".join(
        [f"{name:12s} {text}" for name, text in lines.items()] + [f"refused      {line}" for line in report["problems"]]
    )


def _span(values: Sequence[float] | None) -> str:
    return "none" if values is None else f"{values[0]:g} to {values[1]:g}"
