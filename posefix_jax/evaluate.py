"""`posefix evaluate`: the COCO keypoint figures of a results file, alone or against another."""

from dataclasses import dataclass
from pathlib import Path

from posefix_jax.data.coco import read_annotations, read_results, write_json
from posefix_jax.evaluation.oks import FIGURES, bootstrap_difference, keypoint_scores, truth_of
from posefix_jax.skeleton import Skeleton
from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class EvaluateOptions:
    """The ten COCO keypoint figures (pycocotools), before and after side by side."""

    results: Path
    """COCO keypoint results file (.json)"""
    annotations: Path
    """COCO keypoint annotation file of the same photographs"""
    against: Path | None = None
    """results file to compare with, typically the one that was refined"""
    samples: int = 1000
    """draws of photographs for the 95 % interval of the AP difference"""
    seed: int = 0
    """of those draws"""
    out: Path | None = None
    """also write the figures here, as JSON"""

    def __post_init__(self):
        if self.samples < 1:
            raise PosefixError(f"--samples must be positive, found {self.samples}")


def evaluate(options: EvaluateOptions) -> dict:
    """Scores one or two results files.

    Returns:
      `after` (and `before`, `difference`, `interval`): figures by name.

    Raises:
      PosefixError: a file is not what it should be, or speaks of photographs that the annotations lack.
    """
    annotations = read_annotations(options.annotations)
    people = [
        {"image_id": p.image_id, "joints": p.joints, "box": p.box, "area": p.area, "ignored": ignored}
        for group, ignored in ((annotations.people, False), (annotations.ignored, True))
        for p in group
    ]
    truth = truth_of(annotations.images, people, annotations.skeleton)
    files = {"after": options.results, **({"before": options.against} if options.against else {})}
    scores = {}
    for side, path in files.items():
        rows = _checked_rows(path, annotations.images, annotations.skeleton, options.annotations)
        scores[side] = keypoint_scores(truth, rows, annotations.skeleton)
    report = {side: score.figures for side, score in scores.items()}
    if options.against:
        report["difference"] = {name: report["after"][name] - report["before"][name] for name in FIGURES}
        report["interval"] = bootstrap_difference(
            scores["before"], scores["after"], samples=options.samples, seed=options.seed
        )
        report["photographs"] = len(annotations.images)
    if options.out is not None:
        write_json(options.out, report)
    return report


def _checked_rows(path: Path, images: dict, skeleton: Skeleton, annotations: Path) -> list[dict]:
    rows = read_results(path, skeleton)
    for index, row in enumerate(rows):
        if row["image_id"] not in images:
            raise PosefixError(
                f"{path}: row {index} is of image {row['image_id']!r}, which {annotations} does not have; "
                "the two files are of different photographs"
            )
        if not isinstance(row.get("score"), int | float):
            raise PosefixError(f"{path}: row {index} has no score")
    return rows


def table_of(report: dict) -> str:
    """The figures as a table for the terminal."""
    if "before" not in report:
        return "\n".join(f"{name:5s} {report['after'][name]:8.4f}" for name in FIGURES)
    lines = [f"{'':5s} {'before':>8s} {'after':>8s} {'change':>8s}"]
    for name in FIGURES:
        change = report["difference"][name]
        lines.append(f"{name:5s} {report['before'][name]:8.4f} {report['after'][name]:8.4f} {change:+8.4f}")
    low, high = report["interval"]
    lines.append(
        f"AP changes by {report['difference']['AP']:+.4f}, 95 % interval [{low:+.4f}, {high:+.4f}] over photographs"
    )
    return "\n".join(lines)
