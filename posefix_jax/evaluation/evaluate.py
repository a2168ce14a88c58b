"""`posefix evaluate`: scores a file of poses with its dataset's metric, alone or against another file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posefix_jax.core.joint_sets import CROWDPOSE, MPII, POSETRACK, POSETRACK17, WHOLEBODY, load_skeleton
from posefix_jax.core.skeleton import tell_joints
from posefix_jax.data.coco import read_annotation_files
from posefix_jax.data.detections import read_detections
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.categories import Categories, check_categories, in_categories
from posefix_jax.evaluation.crowdpose import crowdpose_scores
from posefix_jax.evaluation.oks import oks_scores
from posefix_jax.evaluation.pckh import pckh_scores
from posefix_jax.evaluation.posetrack import posetrack_scores
from posefix_jax.evaluation.scores import Scores, Truth, bootstrap_difference
from posefix_jax.evaluation.wholebody import whole_body_scores
from posefix_jax.files import check_apart, write_json
from posefix_jax.types import PosefixError

METRICS: dict[str, Callable[[Truth, Sequence[Pose]], Scores]] = {
    "oks": oks_scores,
    "posetrack": posetrack_scores,
    "pckh": pckh_scores,
    "crowdpose": crowdpose_scores,
}
_OF_SKELETON = {
    POSETRACK.name: "posetrack",
    POSETRACK17.name: "posetrack",
    MPII.name: "pckh",
    CROWDPOSE.name: "crowdpose",
}
_OF_100 = ("posetrack", "pckh")


@dataclass(frozen=True)
class EvaluateOptions:
    """Scores files of poses with their dataset's metric, before and after side by side."""

    results: Path
    """file of poses in any format that `posefix refine` reads (docs/formats.md), or a folder of them"""
    annotations: Path
    """COCO keypoint annotation file of the same photographs, or a folder of them (PoseTrack: one per video)"""
    metric: Literal["auto", "oks", "posetrack", "pckh", "crowdpose"] = "auto"
    """oks: COCO's AP; posetrack: AP per joint, by head size; pckh: MPII's; crowdpose: AP by crowding; auto: chosen by the
    annotations' joints"""
    skeleton: str | None = None
    """sigmas, flip pairs and limbs of the joints: a JSON file (docs/skeletons.md) or a built-in skeleton; by default from the
    annotations' joint names"""
    categories: Categories = "auto"
    """apart: a row counts in its own category_id only, and figures are means over the annotations' categories, as in
    pycocotools; together: categories are ignored; auto: apart, unless there are several and the rows name none"""
    against: Path | None = None
    """poses to compare with, typically those before refinement"""
    samples: int = 1000
    """bootstrap draws of photographs (PoseTrack: of sequences) for the 95% interval of the main figure's difference"""
    seed: int = 0
    """seed of those draws"""
    out: Path | None = None
    """also write the figures to this file, as JSON"""

    def __post_init__(self):
        if self.samples < 1:
            raise PosefixError(f"--samples must be positive, found {self.samples}")
        if self.metric not in ("auto", *METRICS):
            raise PosefixError(f"--metric must be auto, {', '.join(METRICS)}, found {self.metric!r}")
        check_categories(self.categories)


def evaluate(options: EvaluateOptions) -> dict:
    """Scores one or two files of poses.

    Returns:
      `metric`; `main`, the name of its main figure; `after` (and `before`, `difference`): figures by name; `interval`: of
      the main figure's difference, over `units` draws of `unit`; `photographs`: how many.

    Raises:
      PosefixError: a file is not valid, or has photographs that the annotations lack.
    """
    if options.out is not None:
        read = [path for path in (options.results, options.annotations, options.against) if path is not None]
        check_apart([options.out], [file for path in read for file in (path.iterdir() if path.is_dir() else [path])])
    annotations = read_annotation_files(
        options.annotations, load_skeleton(options.skeleton) if options.skeleton else None
    )
    truth = Truth(annotations.images, annotations.everybody, annotations.skeleton, annotations.categories)
    metric = options.metric
    if metric == "auto":
        metric = _OF_SKELETON.get(truth.skeleton.name, "oks")
    measure = METRICS[metric]
    if metric == "oks" and truth.skeleton == WHOLEBODY:
        measure = whole_body_scores
    files = {"after": options.results, **({"before": options.against} if options.against else {})}
    poses = {side: _detections(path, truth, metric, options.annotations) for side, path in files.items()}
    if metric in ("oks", "crowdpose"):
        people, placed = in_categories(
            truth.people,
            [(path, poses[side]) for side, path in files.items()],
            known=truth.categories,
            how=options.categories,
            annotations=options.annotations,
        )
        truth, poses = truth._replace(people=people), dict(zip(files, placed, strict=True))
        tell_joints(truth.skeleton, options.annotations)
    scores = {}
    for side in files:
        try:
            scores[side] = measure(truth, poses[side])
        except PosefixError as error:  # the poses are checked: the annotations are at fault
            raise PosefixError(f"{options.annotations}: {error}") from error
    report: dict = {"metric": metric, "main": scores["after"].main}
    report |= {side: score.figures for side, score in scores.items()}
    if options.against:
        report["difference"] = {name: report["after"][name] - report["before"][name] for name in report["after"]}
        report["interval"] = bootstrap_difference(
            scores["before"], scores["after"], samples=options.samples, seed=options.seed
        )
        report |= {"units": scores["after"].units, "unit": scores["after"].unit}
        report["photographs"] = len(truth.images)
    if options.out is not None:
        write_json(options.out, report)
    return report


def _detections(path: Path, truth: Truth, metric: str, annotations: Path) -> list[Pose]:
    """The poses of a file or folder, with what the metric reads of them checked."""
    poses = read_detections(
        path,
        images=truth.images,
        skeleton=truth.skeleton,
        annotations=annotations,
        joint_scores=metric == "posetrack",
    )
    ids = {(person.image_id, person.annotation_id) for person in truth.people}
    for index, pose in enumerate(poses):
        where = f"{path}: row {index}"
        named = pose.extras.get("annotation_id") if metric == "pckh" else None
        if named is not None and (pose.image, named) not in ids:
            raise PosefixError(
                f"{where} has annotation_id {named!r}, which is nobody in image {pose.image!r} of {annotations}; "
                "name the person by the annotation's id, or leave it out"
            )
    return poses


def table_of(report: dict) -> str:
    """The figures as a table for the terminal."""
    digits = 2 if report["metric"] in _OF_100 else 4
    width = max(5, *map(len, report["after"]))
    if "before" not in report:
        return "\n".join(f"{name:{width}s} {value:8.{digits}f}" for name, value in report["after"].items())
    lines = [f"{'':{width}s} {'before':>8s} {'after':>8s} {'change':>8s}"]
    for name, after in report["after"].items():
        before, change = report["before"][name], report["difference"][name]
        lines.append(f"{name:{width}s} {before:8.{digits}f} {after:8.{digits}f} {change:+8.{digits}f}")
    main, (low, high) = report["main"], report["interval"]
    lines.append(
        f"{main} changes by {report['difference'][main]:+.{digits}f}, 95% interval "
        f"[{low:+.{digits}f}, {high:+.{digits}f}] over {report['unit']}"
    )
    return "\n".join(lines)
