"""`posefix convert`: poses from one format to another, as they are."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.images import ordered_map
from posefix_jax.refining.file_job import Job, Part
from posefix_jax.refining.resumable_output import merge
from posefix_jax.report.progress import Progress
from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class ConvertOptions:
    """Writes files of poses in another format; joints are matched by name."""

    detections: tuple[str, ...]
    """files of poses, folders or patterns of them, or URLs; their format is found out"""
    out: Path
    """file to write (.jsonl, .gz by its name), or folder for a format of one file a photograph"""
    to: str
    """coco, coco-annotations, mmpose, openpose, posetrack17, mediapipe, yolo, parquet"""
    images: str | None = None
    """where the photographs are; needed from or to a format that counts in parts of their width and height"""
    annotations: Path | None = None
    """COCO file whose images give the file name of each image_id"""
    skeleton: str | None = None
    """the file's joints, a name or a JSON file, where it does not say them and their number is not enough"""
    threads: int = 4
    """decoding threads"""


def convert(options: ConvertOptions) -> dict:
    """Runs the job; returns its report.

    Raises:
      PosefixError: bad input, or a row that the format cannot hold.
    """
    job = Job(
        options.detections,
        options.out,
        to=options.to,
        images=options.images,
        annotations=options.annotations,
        skeleton=options.skeleton,
        preferred=COCO,
        rows_a_part=4096,
    )
    sized = job.fractions != job.target.fraction
    if sized and job.images is None:
        raise PosefixError(
            f"{options.to} or its input counts in parts of the photograph's width and height: give --images"
        )

    def with_sizes(part: Part) -> Part:
        for image in part.by_image() if sized else ():
            job.size_of(part, image)
        return part

    store = job.start(settings={"convert": options.images}, check=lambda part: None, shards=1)
    with (
        ThreadPoolExecutor(options.threads) as pool,
        Progress("convert", job.rows, unit="poses") as progress,
    ):
        todo = (part for part in job.split() if not store.has(part.number))
        for part in ordered_map(pool, with_sizes, todo, ahead=options.threads):
            job.finish(part, store)
            progress.update(part.first_row + len(part.poses))
    return merge(options.out, store.job)
