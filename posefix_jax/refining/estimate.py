"""`posefix estimate`: poses from boxes, without input poses (the paper's IntegralPose)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posefix_jax.data.formats import PoseFile
from posefix_jax.data.formats.coco import CocoBoxes
from posefix_jax.data.image_sources import open_binary
from posefix_jax.data.json_stream import JsonStream
from posefix_jax.data.pose_files import PoseFiles
from posefix_jax.files import check_apart
from posefix_jax.refining.refine_files import RefineOptions, refine_source
from posefix_jax.refining.refiner import Refiner
from posefix_jax.refining.resumable_output import outputs_of
from posefix_jax.runtime.devices import keep_compiled
from posefix_jax.types import PosefixError, tell


@dataclass(frozen=True)
class EstimateOptions:
    """Estimates poses in the boxes of people, with a refiner that was also trained without input poses."""

    boxes: Path
    """COCO detection results (image_id, bbox, score), or an annotation file, whose boxes are used"""
    images: str
    """the photographs: a folder, a .zip, .tar shards, a video, or a URL"""
    out: Path
    """COCO keypoint results file to write: a row per box, in order. Its score is the box's times the expected KS, 0 if the
    photograph is missing or the box has no area"""
    checkpoint: Path | None = None
    """a training run or checkpoint; the packaged refiner by default"""
    annotations: Path | None = None
    """COCO file whose images give the file name of each image_id; by default the boxes' own file, else file names are matched
    with the id"""
    flip: bool = True
    """also run the mirrored crop and average"""
    category: int = 1
    """boxes of other categories are left out"""
    exif: Literal["auto", "apply", "ignore"] = "auto"
    """whether the detector turned photographs as their EXIF orientation says; auto: ignore, since boxes do not tell"""
    first_frame: int | None = None
    """the number by which the file calls the photograph with the lowest number, or a video's first frame"""
    allow_missing: bool = False
    """end with exit code 0 even if most rows could not be estimated"""
    batch_size: int = 32
    """crops per step"""
    threads: int = 4
    """decoding threads"""


def estimate(options: EstimateOptions) -> dict:
    """Runs the job as a refinement of poses without a joint; returns the same report, and resumes in the same way.

    The rows of the report are those of OUT.

    Raises:
      PosefixError: bad input.
    """
    check_apart(outputs_of(options.out).values(), [options.boxes])
    keep_compiled()
    refiner = Refiner.load(options.checkpoint, flip=options.flip, batch_size=options.batch_size)
    skeleton = refiner.spec.skeleton
    with open_binary(str(options.boxes)) as opened:
        stream = JsonStream(opened, str(options.boxes))
        stream.space()
        annotated = stream.peek() == "{"
    file = PoseFile(str(options.boxes), CocoBoxes(options.category), "annotations" if annotated else "", skeleton)
    names = options.annotations or (options.boxes if annotated else None)
    left_out = boxes = 0
    for element in file.elements():
        boxes += len(element.poses)
        left_out += not element.lead
    if not boxes:
        raise PosefixError(
            f"{options.boxes}: no box of category {options.category}; expected a list of boxes (image_id, bbox, score), or "
            "a COCO annotation file with people"
        )
    if left_out:
        tell(f"leaves out {left_out} boxes of crowds or of categories other than {options.category}")
    if not all(refiner.spec.trained_joints):
        placed = zip(skeleton.joints, refiner.spec.trained_joints, strict=True)
        absent = [joint for joint, trained in placed if not trained]
        tell(f"the refiner never learned to place {', '.join(absent)}: they stay absent")
    job = RefineOptions(
        detections=(str(options.boxes),),
        images=options.images,
        out=options.out,
        annotations=names,
        boxes=True,
        rescore=True,
        category=options.category,
        exif=options.exif,
        first_frame=options.first_frame,
        batch_size=options.batch_size,
        threads=options.threads,
    )
    return refine_source(refiner, PoseFiles([file], names), job)
