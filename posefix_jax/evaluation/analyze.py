"""`posefix analyze`: which errors a file of poses has, what they cost, and what a refinement changed; one page."""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from posefix_jax.core.joint_sets import load_skeleton
from posefix_jax.core.skeleton import tell_joints
from posefix_jax.data.coco import Annotations, Person, read_annotation_files
from posefix_jax.data.formats import Pose
from posefix_jax.data.image_sources import Images
from posefix_jax.data.images import UnreadableImage, encode_jpeg, warp_affine
from posefix_jax.evaluation.categories import Categories, check_categories, in_categories
from posefix_jax.evaluation.coco_analyze import coco_analyze_costs
from posefix_jax.evaluation.errors import Matched, joints_of, match_some, read_scored
from posefix_jax.evaluation.oks import FIGURES, keypoint_scores, truth_of
from posefix_jax.evaluation.profile import (
    ERRORS,
    STATES,
    TOGETHER,
    calibration,
    corrections,
    ks_changes,
    oks_changes,
    shares,
    together,
    transitions,
    true_scores,
    with_joints,
)
from posefix_jax.evaluation.scores import Scores, bootstrap_difference
from posefix_jax.files import check_apart, check_claim, claim, whole_file, write_json
from posefix_jax.report import check_report_packages
from posefix_jax.report.pictures import WHITE, draw_pose, side_by_side
from posefix_jax.report.progress import Progress
from posefix_jax.types import PosefixError

SHOWN_POINTS = 800
"""Matched detections in the scatter plot of score and OKS, spread evenly over the scores."""
TILE = 360
"""Longer side of a picture's tile, pixels."""


@dataclass(frozen=True)
class AnalyzeOptions:
    """Shows which errors a file of poses has (good, jitter, inversion, swap, miss), where, and what they cost in AP.

    `posefix analyze fit` writes what was measured as an error model for training.
    """

    results: Path
    """file of poses in any format that `posefix refine` reads (docs/formats.md), or a folder of them"""
    annotations: Path
    """COCO keypoint annotation file of the same photographs, or a folder of them (PoseTrack: one per video)"""
    out: Path
    """folder to write: index.html (one file, opens offline), analysis.json, errors.csv"""
    against: Path | None = None
    """file of poses to compare with, typically that before refinement"""
    images: str | None = None
    """the photographs (folder, archive, URL), to show the best and worst cases on the page"""
    skeleton: str | None = None
    """sigmas, flip pairs and limbs of the joints: a JSON file (docs/skeletons.md) or a built-in skeleton; by default from the
    annotations' joint names"""
    categories: Categories = "auto"
    """apart: a row belongs to people of its own category_id only, and AP is the mean over the annotations' categories, as
    in pycocotools; together: categories are ignored; auto: apart, unless there are several and the rows name none"""
    pictures: int = 6
    """how many of the best and of the worst cases to show"""
    samples: int = 1000
    """bootstrap draws of photographs for the 95% interval of the AP difference"""

    def __post_init__(self):
        if self.samples < 1 or self.pictures < 0:
            raise PosefixError(
                f"--samples must be positive and --pictures not negative, found {self.samples} and {self.pictures}"
            )
        check_categories(self.categories)


@dataclass(frozen=True)
class _Side:
    matched: Matched
    scores: Scores
    report: dict


def analyze(options: AnalyzeOptions) -> dict:
    """Measures the errors, and writes the page, the JSON and the CSV.

    Returns:
      What `analysis.json` holds.

    Raises:
      PosefixError: a file is not valid, or no detection matches a person.
    """
    check_report_packages("posefix analyze")
    from posefix_jax.report.error_page import error_page

    read = [
        place for place in (options.results, options.annotations, options.against, options.images) if place is not None
    ]
    check_apart([options.out], read)
    check_claim(options.out, "posefix analyze")
    annotations = read_annotation_files(
        options.annotations, load_skeleton(options.skeleton) if options.skeleton else None
    )
    files = {**({"before": options.against} if options.against else {}), "after": options.results}
    people, poses = in_categories(
        annotations.everybody,
        [(path, read_scored(path, annotations)) for path in files.values()],
        known=annotations.categories,
        how=options.categories,
        annotations=options.annotations,
    )
    annotations = replace(annotations, everybody=tuple(people))
    matches = {
        side: (rows, match_some(annotations, rows, path))
        for (side, path), rows in zip(files.items(), poses, strict=True)
    }
    images = Images(options.images, annotations.file_names or None) if options.images else None
    found = images.find_all(annotations.people[p].image_id for p in matches["after"][1].person) if images else {}
    tell_joints(annotations.skeleton, options.annotations)
    truth = truth_of(annotations.images, annotations.everybody, annotations.skeleton)
    sides = {}
    with Progress("analyze", len(files) * (len(ERRORS) + 5), unit="evaluations") as progress:
        for side, (detections, matched) in matches.items():
            sides[side] = _side(annotations, truth, detections, matched, progress)
    report = {
        "files": {side: str(path) for side, path in files.items()},
        "annotations": str(options.annotations),
        "skeleton": annotations.skeleton.name,
        **{side: content.report for side, content in sides.items()},
    }
    if options.against:
        report["change"] = _change(annotations, sides["before"], sides["after"], options.samples)
    pictures = _pictures(annotations, sides, images, found, options.pictures) if images else {}
    table = _csv(report)
    page = error_page(report, pictures)
    claim(options.out, "posefix analyze")
    for name, text in (("errors.csv", table), ("index.html", page)):
        with whole_file(options.out / name) as file:
            file.write(text.encode())
    write_json(options.out / "analysis.json", report)
    return report


def _side(annotations: Annotations, truth, detections: list[Pose], matched: Matched, progress: Progress) -> _Side:
    skeleton = annotations.skeleton
    joints = joints_of(detections, skeleton)

    def scores_of(poses):
        scores = keypoint_scores(truth, poses, skeleton)
        progress.update(progress.done + 1)
        return scores

    scores = scores_of(detections)
    ap_if = {
        name: scores_of(with_joints(detections, corrected)).figures["AP"]
        for name, corrected in corrections(matched, joints)
    }
    best = true_scores(matched, len(detections))
    rescored = [pose._replace(score=float(score)) for pose, score in zip(detections, best, strict=True)]
    ap_if["true scores"] = scores_of(rescored).figures["AP"]
    costs = coco_analyze_costs(list(annotations.images), annotations.everybody, detections, skeleton)
    progress.update(progress.done + 1)
    by_score = np.lexsort((matched.oks, matched.score))
    shown = by_score[np.unique(np.linspace(0, len(by_score) - 1, SHOWN_POINTS).astype(int))]
    report = {
        "rows": len(detections),
        "people": len(annotations.people),
        "matched": len(matched.row),
        "unmatched_rows": len(detections) - len(matched.row),
        "unmatched_people": len(annotations.people) - len(matched.row),
        "mean_oks": float(matched.oks.mean()),
        "figures": scores.figures,
        "shares": [asdict(share) for share in shares(matched, skeleton)],
        "together": {kind: asdict(share) for kind, share in together(matched).items()},
        "ap_if": ap_if,
        "ap_gain": {name: ap - scores.figures["AP"] for name, ap in ap_if.items()},
        "coco_analyze": costs,
        "calibration": calibration(matched),
        "score_and_oks": np.column_stack([matched.score, matched.oks])[shown].round(4).tolist(),
    }
    return _Side(matched, scores, report)


def _change(annotations: Annotations, before: _Side, after: _Side, samples: int) -> dict:
    changes = oks_changes(before.matched, after.matched)[:, 1]
    labelled = np.array([person.labelled for person in annotations.people])
    largest = np.abs(changes).max(initial=0)
    width = next(w for w in (0.01, 0.02, 0.05) if largest <= 20 * w or w == 0.05)
    around = math.ceil(largest / width)
    counts, edges = np.histogram(
        changes, (np.arange(-around, around + 2) - 0.5) * width
    )  # the middle bin is centered on 0
    used = np.flatnonzero(counts)
    shown = slice(min(used, default=around), max(used, default=around) + 1)
    return {
        **{name: after.scores.figures[name] - before.scores.figures[name] for name in FIGURES},
        "interval": bootstrap_difference(before.scores, after.scores, samples=samples),
        "people": len(changes),
        "better": int((changes > 1e-6).sum()),
        "worse": int((changes < -1e-6).sum()),
        "same": int((np.abs(changes) <= 1e-6).sum()),
        "mean_oks": float(changes.mean()) if len(changes) else 0.0,
        "ks": ks_changes(before.matched, after.matched, annotations.skeleton),
        "oks_histogram": {
            "counts": counts[shown].tolist(),
            "edges": edges[shown.start : shown.stop + 1].round(3).tolist(),
        },
        "transitions": {
            "states": [*STATES, "unmatched"],
            "counts": transitions(before.matched, after.matched, labelled).tolist(),
        },
    }


def _csv(report: dict) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "by", "bin", "kind", "count", "total", "share", "low", "high"))
    for side in ("before", "after"):
        for share in report.get(side, {}).get("shares", ()):
            writer.writerow((side, *(f"{v:.6f}" if isinstance(v, float) else v for v in share.values())))
    return text.getvalue()


def _pictures(annotations: Annotations, sides: dict[str, _Side], images: Images, found: dict, count: int) -> dict:
    """(caption, JPEG) per heading: the people whose OKS rose and fell most; for one file, those with the lowest and highest."""
    after = sides["after"].matched
    if "before" in sides:
        ordered = oks_changes(sides["before"].matched, after)
        names = ("Where OKS fell most", "Where OKS rose most")
    else:
        ordered = np.column_stack([after.person, after.oks])
        names = ("The lowest OKS", "The highest OKS")
    ordered = ordered[np.argsort(ordered[:, 1], kind="stable"), 0].astype(int).tolist()
    here = [p for p in ordered if annotations.people[p].image_id in found]
    low = here[: min(count, len(here) // 2)]
    high = here[::-1][: min(count, len(here) - len(low))]
    shown = {}
    with Progress("pictures", len(low) + len(high), unit="people") as progress:
        for name, chosen in zip(names, (low, high), strict=True):
            shown[name] = list(_drawn(annotations, sides, images, found, chosen, progress))
    return dict(reversed(shown.items())) if "before" in sides else shown


def _drawn(annotations, sides, images, found, chosen, progress) -> Iterator[tuple[str, bytes]]:
    for index in chosen:
        person = annotations.people[index]
        progress.update(progress.done + 1)
        caption = f"photograph {person.image_id}, annotation {person.annotation_id}"
        try:
            picture = _tiles(images.read(found[person.image_id]), annotations, sides, index)
            yield caption, encode_jpeg(picture, 85)
        except UnreadableImage as error:
            progress.note = f"{caption}: {error}"


def _tiles(image: np.ndarray, annotations: Annotations, sides: dict[str, _Side], index: int) -> np.ndarray:
    """The true pose, then the pose of each side, in one row."""
    person: Person = annotations.people[index]
    poses = {side: (of.matched, int(np.flatnonzero(of.matched.person == index)[0])) for side, of in sides.items()}
    x, y, w, h = person.box
    low, high = np.array([x, y]), np.array([x + w, y + h])
    points = [person.joints[person.labelled, :2], *(m.xy[i][m.present[i]] for m, i in poses.values())]
    # Joints far from the person are cut off, so that the person stays visible.
    near = np.clip(np.concatenate(points), low - 0.5 * (high - low), high + 0.5 * (high - low))
    low, high = np.minimum(low, near.min(axis=0)), np.maximum(high, near.max(axis=0))
    center, size = (low + high) / 2, (high - low) * 1.15
    size = np.maximum(size, (size[1] * 0.5, size[0] * 0.5)).clip(8)
    scale = TILE / size.max()
    corner = center - size / 2
    width, height = (int(v) for v in np.ceil(size * scale))
    affine = np.array([[scale, 0, -corner[0] * scale], [0, scale, -corner[1] * scale]])
    crop = warp_affine(image, affine, (height, width))
    skeleton = annotations.skeleton
    tiles = [draw_pose(crop, (person.joints[:, :2] - corner) * scale, person.labelled, skeleton)]
    captions = ["truth"]
    for side, (matched, i) in poses.items():
        in_tile = (matched.xy[i] - corner) * scale
        tiles.append(draw_pose(crop, in_tile, matched.present[i], skeleton, WHITE, kinds=matched.kind[i]))
        captions.append(f"{f'{side}, ' if len(sides) > 1 else ''}OKS {matched.oks[i]:.3f}")
    return side_by_side(tiles, captions)


def table_of(report: dict, out: Path) -> str:
    """The kinds of errors with their shares and costs, for the terminal."""
    sides = [report[side] for side in ("before", "after") if side in report]
    double = len(sides) == 2
    columns = ("share", "AP cost", "coco-analyze")
    if double:
        columns = ("before", "after", "cost before", "cost after", "c-a before", "c-a after")
    lines = [f"{'':11s}" + "".join(f"{name:>13s}" for name in columns)]
    for kind in (*STATES, "all errors", "true scores"):
        of = [next((s for s in side["shares"] if s["by"] == "total" and s["kind"] == kind), None) for side in sides]
        cells = [f"{s['share']:.1%}" if s else "" for s in of]
        for costs in ("ap_gain", "coco_analyze"):
            cells += [f"{side[costs][kind]:+.4f}" if kind in side[costs] else "" for side in sides]
        lines.append(f"{kind:11s}" + "".join(f"{cell:>13s}" for cell in cells))
    lines.append("AP cost: joints moved to their true place; coco-analyze (c-a): as Ronchi & Perona's code moves them")
    shown = []
    for kind in ("inversion", "swap", "miss"):
        of = [side["together"][kind] for side in sides]
        cells = [f"{s['share']:.1%} of {s['total']}" if s["total"] else "none" for s in of]
        shown.append(f"{kind} {' -> '.join(cells)}")
    lines.append(f"share of a kind in people with {TOGETHER} or more of it: {', '.join(shown)}")
    for name, side in zip(("before", "after") if double else ("",), sides, strict=True):
        lines.append(
            f"{name}{': ' if name else ''}AP {side['figures']['AP']:.4f}, {side['matched']} of {side['people']} people "
            f"matched, {side['unmatched_rows']} detections without a person, mean OKS {side['mean_oks']:.4f}"
        )
    if double:
        low, high = report["change"]["interval"]
        ks = [
            f"{of['bin']} {of['before']:.3f} -> {of['after']:.3f}"
            for of in report["change"]["ks"]
            if of["by"] != "joint"
        ]
        lines.append(f"mean KS of labelled joints of people matched in both: {', '.join(ks)}")
        lines.append(f"AP changes by {report['change']['AP']:+.4f}, 95% interval [{low:+.4f}, {high:+.4f}]")
    lines.append(f"page: {out / 'index.html'}")
    return "\n".join(lines)
