"""The options of `posefix refine`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class RefineOptions:
    """Refines the poses in files of any estimator; docs/formats.md lists the formats."""

    detections: tuple[str, ...]
    """files of poses, folders or patterns of them, or URLs; the format is detected"""
    images: str
    """the photographs: a folder, a .zip, .tar shards, a video, or a URL"""
    out: Path
    """file to write, or folder if there are several input files: same rows, same order, other keys untouched; OUT.report.json
    is written beside it"""
    to: str | None = None
    """write another format: coco, coco-annotations, coco-wholebody, mmpose, openpose, posetrack17, mediapipe, yolo, parquet, csv, npz"""
    checkpoint: Path | None = None
    """a training run or checkpoint; the packaged refiner by default"""
    annotations: Path | None = None
    """COCO file whose images give the file name of each image_id; by default file names are matched with the id"""
    skeleton: str | None = None
    """the file's joints, a name or a JSON file, if neither the file nor the number of joints says what they are"""
    columns: tuple[str, ...] = ()
    """OURS=THEIRS for columns of a CSV table whose names posefix does not know: image_id=clip nose_x=n.x nose_y=n.y"""
    flip: bool = True
    """also refine the mirrored crop and average"""
    iterations: int = 1
    """how many times to refine, each time from the pose before"""
    trust: float | None = None
    """trust in the input poses, from 0 (go where the picture says) to 1 (stay near the input); by default told by how the
    poses agree with the photographs"""
    input_errors: Path | None = None
    """the errors of the estimator, as `posefix analyze fit` wrote them: joints are trusted accordingly"""
    boxes: bool = False
    """estimate the pose of a row that has a bbox but no usable joint, from the photograph alone (for refiners trained with
    inputs.withhold_pose)"""
    missing: Literal["fill", "keep"] = "fill"
    """joints that the estimator left out: fill them in, or keep them as they are"""
    min_score: float = 0.0
    """joints with a score up to this count as missing"""
    rescore: bool = False
    """multiply the score of a refined row by its expected OKS, which ranks good poses first; a row without a joint scores
    0"""
    oks_nms: float = 0.0
    """leave out refined rows whose OKS with a better-scored row of their photograph is above this (released code: 0.9); 0
    keeps every row"""
    category: int = 1
    """rows of other categories pass through unchanged"""
    exif: Literal["auto", "apply", "ignore"] = "auto"
    """whether the estimator turned photographs as their EXIF orientation says; auto: as the poses fit, ignore if they do not
    tell"""
    first_frame: int | None = None
    """the number by which the file calls the photograph with the lowest number, or a video's first frame; by default numbers
    are those of the file names, and frames count from 0"""
    check: bool = True
    """stop before the work if the poses clearly fit other photographs, mirrored ones, or exchanged left and right"""
    allow_missing: bool = False
    """end with exit code 0 even if most rows could not be refined"""
    strict: bool = False
    """a row that cannot be refined is an error instead of passing through, and so are poses that do not fit the photographs"""
    batch_size: int = 32
    """crops per step"""
    threads: int = 4
    """decoding threads"""
    pictures: int = 0
    """draw this many rows before and after, those that changed most, into OUT.pictures/"""
    shard: str = "0/1"
    """do only every n-th part of the job, starting at the i-th (i/n); when all n are done, run posefix merge OUT"""
    part_rows: int = 1024
    """rows per part; an interruption loses at most the work on one part"""
    engine: Literal["local", "ray"] = "local"
    """ray: divide the parts among the devices of a Ray cluster, which see the same files; needs posefix-jax[ray]"""
    address: str | None = None
    """of the Ray cluster, auto for the one that this machine belongs to; by default one is started on this machine"""
    workers: int = 0
    """processes on the Ray cluster; 0: one for each GPU, or one for each machine without any"""

    def __post_init__(self):
        if min(self.batch_size, self.threads, self.iterations, self.part_rows) < 1 or self.pictures < 0:
            raise PosefixError(
                "--batch-size, --threads, --iterations and --part-rows must be positive and --pictures not negative, "
                f"found {self.batch_size}, {self.threads}, {self.iterations}, {self.part_rows}, {self.pictures}"
            )
        if self.trust is not None and self.input_errors is not None:
            raise PosefixError("--trust and --input-errors both say how far to trust the poses: give one of them")
        if self.trust is not None and not 0 <= self.trust <= 1:
            raise PosefixError(f"--trust must lie in 0..1, found {self.trust}")
        if not 0 <= self.oks_nms <= 1:
            raise PosefixError(f"--oks-nms must lie in 0..1, found {self.oks_nms}")
        if self.workers < 0 or (self.engine == "local" and (self.address or self.workers)):
            raise PosefixError("--address and --workers go with --engine ray; --workers must not be negative")
        if self.shard_of[1] > 1 and self.engine == "ray":
            raise PosefixError("--engine ray divides the job by itself; leave out --shard")

    @property
    def shard_of(self) -> tuple[int, int]:
        """(i, n) of `shard`. Raises PosefixError if it is not of that form."""
        first, _, count = self.shard.partition("/")
        if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
            raise PosefixError(f"--shard must be i/n with 0 <= i < n, found {self.shard!r}")
        return int(first), int(count)
