"""`posefix convert`: writes poses in another format, unchanged."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.images import ordered_map
from posefix_jax.data.pose_writer import Part
from posefix_jax.refining.file_job import FileJob, open_files
from posefix_jax.refining.resumable_output import merge
from posefix_jax.report.progress import Progress
from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class ConvertOptions:
    """Writes files of poses in another format; joints are matched by name."""

    detections: tuple[str, ...]
    """files of poses, folders or patterns of them, or URLs; the format is detected"""
    out: Path
    """file to write (a name in .jsonl gives lines, .gz is compressed), or folder for a format with a file per photograph"""
    to: str
    """coco, coco-annotations, coco-wholebody, mmpose, openpose, posetrack17, mediapipe, yolo, parquet, csv, npz"""
    images: str | None = None
    """the photographs; needed from or to a format with coordinates in fractions of their width and height"""
    annotations: Path | None = None
    """COCO file whose images give the file name of each image_id"""
    skeleton: str | None = None
    """the file's joints, a name or a JSON file, if neither the file nor the number of joints says what they are"""
    columns: tuple[str, ...] = ()
    """OURS=THEIRS for columns of a CSV table whose names posefix does not know: image_id=clip nose_x=n.x nose_y=n.y"""
    threads: int = 4
    """decoding threads"""


def convert(options: ConvertOptions) -> dict:
    """Runs the job; returns its report.

    Raises:
      PosefixError: bad input, or a row that the format cannot hold.
    """
    source = open_files(
        options.detections,
        options.out,
        images=options.images,
        annotations=options.annotations,
        skeleton=options.skeleton,
        columns=options.columns,
        preferred=COCO,
    )
    job = FileJob(source, options.out, to=options.to, images=options.images, rows_per_part=4096)
    writer = job.writer
    if writer.converts_units and job.images is None:
        raise PosefixError(
            f"{options.to} or its input has coordinates in fractions of the photograph's width and height: give --images"
        )

    def with_sizes(part: Part) -> Part:
        for image in part.by_image() if writer.converts_units else ():
            writer.size_of(part, image)
        return part

    store, rows = job.start(settings={"convert": options.images})
    with (
        store,
        ThreadPoolExecutor(options.threads) as pool,
        Progress("convert", rows, unit="poses") as progress,
    ):
        todo = (part for part in job.parts() if not job.has(part, store))
        for part in ordered_map(pool, with_sizes, todo, ahead=options.threads):
            job.finish(part, store)
            progress.update(part.first_row + len(part.poses))
        return merge(options.out, store.job)
