"""`posefix estimate`: poses from boxes, without any input pose (the paper's IntegralPose)."""

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from posefix_jax.files import check_apart, read_json
from posefix_jax.refining.refine_files import RefineOptions, refine_rows
from posefix_jax.refining.refiner import Refiner
from posefix_jax.refining.resumable_output import outputs_of
from posefix_jax.runtime.devices import keep_compiled
from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class EstimateOptions:
    """Estimates poses in the boxes of people, by a refiner that learned without input poses too."""

    boxes: Path
    """COCO detection results (image_id, bbox, score), or an annotation file whose boxes are taken"""
    images: str
    """where the photographs are: a folder, a .zip, .tar shards, a video, or a URL"""
    out: Path
    """COCO keypoint results file to write: a row a box, in order; its score is the box's times the expected KS, 0 where
    there is no photograph or no area"""
    checkpoint: Path | None = None
    """a training run or checkpoint; the shipped refiner by default"""
    annotations: Path | None = None
    """COCO file whose images give the file name of each image_id; by default the boxes' own, or the id is looked for in
    file names"""
    flip: bool = True
    """also run the mirrored crop and average"""
    category: int = 1
    """boxes of other categories are left out"""
    batch_size: int = 32
    """crops a step"""
    threads: int = 4
    """decoding threads"""


def estimate(options: EstimateOptions) -> dict:
    """Runs the job as a refinement of poses without a joint; returns the same report. Interrupted, it goes on likewise.

    The rows of the report are those of OUT.

    Raises:
      PosefixError: bad input.
    """
    check_apart(outputs_of(options.out).values(), [options.boxes])
    keep_compiled()
    refiner = Refiner.load(options.checkpoint, flip=options.flip, batch_size=options.batch_size)
    content = read_json(options.boxes)
    annotated = isinstance(content, dict) and isinstance(content.get("annotations"), list)
    entries = content["annotations"] if annotated else content
    if not isinstance(entries, list) or not entries:
        raise PosefixError(
            f"{options.boxes}: expected a list of boxes (image_id, bbox, score), or a COCO annotation file with people"
        )
    empty = [0] * (3 * refiner.spec.skeleton.num_joints)
    rows, left_out = [], 0
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("bbox"), list) or "image_id" not in entry:
            raise PosefixError(f"{options.boxes}: row {number} has no image_id and bbox")
        if entry.get("category_id", options.category) != options.category or entry.get("iscrowd"):
            left_out += 1
            continue
        values = [*entry["bbox"], entry.get("score", 1.0)]
        if len(values) != 5 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise PosefixError(
                f"{options.boxes}: row {number} needs a bbox of 4 finite numbers and a finite score, found {values!r:.80}"
            )
        row = {"image_id": entry["image_id"], "category_id": options.category, "bbox": entry["bbox"]}
        rows.append(row | {"keypoints": empty, "score": entry.get("score", 1.0)})
    if not rows:
        raise PosefixError(f"{options.boxes}: no box of category {options.category}")
    if left_out:
        print(f"leaves out {left_out} boxes of crowds or of categories other than {options.category}", file=sys.stderr)
    placed = refiner.spec.trained_joints
    if not all(placed):
        absent = [joint for joint, has in zip(refiner.spec.skeleton.joints, placed, strict=True) if not has]
        print(f"the refiner never learned to place {', '.join(absent)}: they stay absent", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        stand_in = Path(folder) / "boxes.json"
        stand_in.write_text(json.dumps(rows))
        names = options.annotations or (options.boxes if annotated else None)
        return refine_rows(refiner, _as_refinement(options, stand_in, names), source=str(options.boxes))


def _as_refinement(options: EstimateOptions, stand_in: Path, names: Path | None) -> RefineOptions:
    return RefineOptions(
        detections=(str(stand_in),),
        images=options.images,
        out=options.out,
        annotations=names,
        boxes=True,
        rescore=True,
        category=options.category,
        batch_size=options.batch_size,
        threads=options.threads,
    )
