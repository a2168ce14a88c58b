"""How a file's photographs are to be read, told by how a sample of its poses fits them: EXIF, frames, mirrors, sides."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.formats.base import Pose
from posefix_jax.refining.file_photographs import FilePhotographs
from posefix_jax.refining.refine_options import RefineOptions
from posefix_jax.refining.refiner import Measured
from posefix_jax.types import PosefixError, tell, warn

POOR_FIT, FEW = 0.55, 8
"""Poses with a smaller `Measured.fit` are not on these photographs; not said of fewer poses than `FEW`."""
BETTER = 0.1
"""Another reading is better if its fit is larger by so much. Between right and wrong readings lie 0.4 and more."""
TRIED = 64
"""Other readings are tried on so many poses."""


class Reading(NamedTuple):
    """A way to put poses on photographs.

    Attributes:
      exif: photographs are turned as their EXIF orientation says.
      shift: the photograph that many after the one of the row's number.
      mirror: photographs are mirrored.
      joints: [K] the joint of the pose that each of the refiner's joints is; None: itself.
    """

    exif: bool = False
    shift: int = 0
    mirror: bool = False
    joints: np.ndarray | None = None


class Other(NamedTuple):
    """Another reading, what it means of the poses, and what to do about it."""

    reading: Reading
    what: str
    advice: str


Measure = Callable[[Sequence[Pose], Reading], Measured | None]
"""How poses fit photographs read in a way; None if the refiner cannot tell."""


def decide_exif(
    sample: Sequence[Pose], photographs: FilePhotographs, measure: Measure, options: RefineOptions, source: str
) -> dict:
    """Whether photographs are turned as EXIF says, as an entry of the report. Prints it where it matters.

    `auto` takes the reading that the poses on rotated photographs fit better, and ignores EXIF where none tells.
    """
    if options.exif != "auto":
        return {"applied": options.exif == "apply", "from": "--exif"}
    turned = {image for image in {pose.image for pose in sample} if photographs.is_rotated(image)}
    rotated = [pose for pose in sample if pose.image in turned]
    if not rotated:
        return {"applied": False, "from": "no photograph of the sample is rotated"}
    some = rotated[:TRIED]
    fits = [measure(some, Reading(exif=exif)) for exif in (False, True)]
    if None in fits or abs(fits[1].fit - fits[0].fit) < BETTER:  # type: ignore[union-attr]
        warn(
            f"{source}: {len(rotated)} of {len(sample)} poses looked at are on photographs with an EXIF "
            "rotation, and do not tell whether their estimator applied it: it is ignored; give --exif apply or --exif ignore"
        )
        return {"applied": False, "from": "the poses do not tell", "poses_measured": len(some)}
    ignored, applied = (measured.fit for measured in fits if measured is not None)
    better, worse = max(ignored, applied), min(ignored, applied)
    tell(
        f"EXIF rotation is {'applied' if applied > ignored else 'ignored'}: {len(some)} poses on rotated photographs fit them "
        f"so ({better:.2f}, otherwise {worse:.2f})"
    )
    entry = {"applied": applied > ignored, "from": "the poses", "poses_measured": len(some)}
    return entry | {"fit_applied": applied, "fit_ignored": ignored}


def check_fit(
    sample: Sequence[Pose],
    photographs: FilePhotographs,
    measured: Measured,
    measure: Measure,
    options: RefineOptions,
    *,
    skeleton: Skeleton,
    exif: bool,
    source: str,
) -> None:
    """Says when poses do not fit their photographs, or fit the ones beside better, and how they would fit.

    Args:
      sample: poses, spread over the file.
      photographs: of the file.
      measured: of the sample, read as the job does.
      measure: measures another reading.
      options: of the job.
      skeleton: the refiner's.
      exif: whether the job applies EXIF.
      source: the file, for messages.

    Raises:
      PosefixError: they do not fit, but fit another reading; or `strict`, and they do not fit.
    """
    if measured.people < FEW:
        return
    poor = measured.fit < POOR_FIT
    best: tuple[float, Other] | None = None
    for other in _others(sample, photographs, options, skeleton, exif=exif, poor=poor) if options.check else ():
        found = measure(sample[:TRIED] if poor else sample[: TRIED // 2], other.reading)
        if found is not None and found.fit > max(measured.fit + BETTER, POOR_FIT) and found.fit > (best or (0.0,))[0]:
            best = found.fit, other
    if best is not None:
        fit, other = best
        line = (
            f"{source}: the poses fit their photographs worse ({measured.fit:.2f}) than {other.what} ({fit:.2f}): "
            f"{other.advice}"
        )
        if poor or options.strict:
            raise PosefixError(f"{line}, or --no-check to refine them as they are")
        warn(line)
    elif poor:
        line = (
            f"{source}: most poses do not fit their photographs (fit {measured.fit:.2f} of {measured.people} poses, expected "
            "0.7 or more): check that names or ids match the photographs, joints are in the right order, and coordinates are "
            "pixels of these photographs"
        )
        if options.strict:
            raise PosefixError(f"{line} (--strict)")
        warn(line)


def _others(
    sample: Sequence[Pose],
    photographs: FilePhotographs,
    options: RefineOptions,
    skeleton: Skeleton,
    *,
    exif: bool,
    poor: bool,
) -> list[Other]:
    """What to try: the photographs beside where they are numbered; where the fit is poor, mirrors too."""
    others = []
    for shift in (-1, 1) if options.first_frame is None else ():
        beside = sum(photographs.images.find(pose.image, shift) is not None for pose in sample)
        if 2 * beside > len(sample):
            what = f"those numbered one {'higher' if shift > 0 else 'lower'}"
            first = (photographs.images.numbers or (0, 0))[0] - shift
            others.append(Other(Reading(exif, shift), what, f"give --first-frame {first}"))
    if poor:
        exchanged = "left and right exchanged"
        advice = "give --skeleton FILE with the joints in their order"
        if options.skeleton is None:
            others.append(Other(Reading(exif, joints=skeleton.flip_index), f"with {exchanged}", advice))
        others.append(
            Other(Reading(exif, mirror=True), "mirrored ones", "give the photographs that the estimator was given")
        )
    return others
