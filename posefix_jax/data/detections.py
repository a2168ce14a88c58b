"""An estimator's poses in the terms of annotations: their photographs, their joints, image pixels."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from posefix_jax.core.geometry import FARTHEST, is_near
from posefix_jax.core.skeleton import Skeleton, joints_in, to_skeleton
from posefix_jax.data.formats import Pose
from posefix_jax.data.image_sources import PhotographNames, number_of
from posefix_jax.data.pose_files import PoseFiles, find_files
from posefix_jax.types import PosefixError, is_number, warn_once


def read_detections(
    place: Path,
    *,
    images: Mapping,
    skeleton: Skeleton,
    annotations: Path,
    scored: bool = True,
    joint_scores: bool = False,
    skip_unknown: bool = False,
) -> list[Pose]:
    """The poses of a file, or of all files of a folder, in any format that `posefix refine` reads.

    Photographs are matched by id ('139' is 139 if it is no file's name), else by file name; a number that is no id of the annotations is of another photograph,
    whatever numbers their file names have. Joints are matched by name. A joint with a value that is not finite, or
    beyond `FARTHEST`, becomes (0, 0, 0): it is missing, and similar to nothing.

    Args:
      place: a file, folder, pattern or URL.
      images: the annotations' own entries by id.
      skeleton: the annotations' joints, which are those of the result.
      annotations: their file, for messages.
      scored: every pose must have a score that is a number.
      joint_scores: a COCO row's `scores`, one per joint, will do instead.
      skip_unknown: poses of photographs that the annotations lack are left out, with a warning, instead of an error.

    Raises:
      PosefixError: not such a file, nobody in it, a pose of another photograph or without a score; says which.
    """
    source = PoseFiles.open(find_files([str(place)], Path()), skeleton=None, preferred=skeleton, certain=True)
    if source.skeleton.joints != skeleton.joints:
        if (joints_in(skeleton.joints, source.skeleton.joints) < 0).all():
            raise PosefixError(
                f"{source.path}: its joints are those of {source.skeleton.name}, none of which is in {annotations} "
                f"({', '.join(skeleton.joints[:4])}, ...)"
            )
        warn_once(
            f"{source.path} has the joints of {source.skeleton.name}, {annotations} those of {skeleton.name}: they are "
            "matched by name, and those without a partner are missing"
        )
    ids, poses, unknown = _Ids(images), [], 0
    for where, pose in _rows(source):
        image = ids.of(pose.image, source.name_of(pose.image))
        if image is None:
            unknown += 1
            if skip_unknown:
                continue
            raise PosefixError(
                f"{where} is of image {pose.image!r}, which {annotations} does not have; the two files are of different "
                "photographs"
            )
        by_joint = joint_scores and pose.extras.get("scores")
        if scored and not by_joint and not is_number(pose.score):
            annotated = source.format.name == "coco-annotations"
            hint = "; this is an annotation file, expected an estimator's poses" if annotated else ""
            raise PosefixError(f"{where} has no score that is a finite number, found {pose.score!r:.40}{hint}")
        if by_joint:
            _check_scores(pose.extras["scores"], source.skeleton, where)
        joints = _joints(pose, source, skeleton, images[image], where)
        poses.append(pose._replace(image=image, joints=joints, extras=_extras(pose, source.skeleton, skeleton)))
    if not poses and not unknown:
        raise PosefixError(f"{source.path}: no poses to work on")
    if unknown:
        warn_once(
            f"{source.path}: {unknown} poses are of photographs that {annotations} does not have; they are left out"
        )
    return poses


def _rows(source: PoseFiles) -> Iterator[tuple[str, Pose]]:
    """Every pose, with its place for messages."""
    rows = [0] * len(source.files)
    for index, element in source.elements():
        for pose in element.poses:
            yield f"{source.files[index].path}: row {rows[index]}", pose
            rows[index] += 1


def _joints(pose: Pose, source: PoseFiles, skeleton: Skeleton, image: Mapping, where: str) -> np.ndarray:
    joints = np.where(is_near(pose.joints)[:, None], pose.joints, 0.0)
    if source.format.fraction:
        size = image.get("width"), image.get("height")
        if not all(value is not None and is_number(value, FARTHEST) and value > 0 for value in size):
            raise PosefixError(
                f"{where}: {source.format.name} has coordinates in fractions of the photograph's width and height, which the "
                f"annotations lack for image {image.get('id')!r}; convert the file to coco with --images first"
            )
        joints = joints * [*size, 1]
    return to_skeleton(joints, source.skeleton, skeleton)


def _check_scores(scores: object, skeleton: Skeleton, where: str) -> None:
    fits = isinstance(scores, list) and len(scores) == skeleton.num_joints
    if not fits or not all(is_number(s) for s in scores):  # type: ignore[attr-defined]
        raise PosefixError(
            f"{where}: scores must be {skeleton.num_joints} numbers, one per joint of {skeleton.name}, found {scores!r:.40}"
        )


def _extras(pose: Pose, given: Skeleton, wanted: Skeleton) -> Mapping:
    scores = pose.extras.get("scores")
    if given.joints == wanted.joints or not isinstance(scores, list) or len(scores) != given.num_joints:
        return pose.extras
    index = joints_in(wanted.joints, given.joints)
    return {**pose.extras, "scores": [scores[i] if i >= 0 else 0.0 for i in index.tolist()]}


class _Ids:
    """The annotations' image ids, by what a file calls a photograph."""

    def __init__(self, images: Mapping):
        self._images = images
        self._of_name = {str(image["file_name"]): i for i, image in images.items() if "file_name" in image}
        self._names = PhotographNames(self._of_name) if self._of_name else None

    def of(self, image: int | str, name: str | None) -> int | str | None:
        """The id; None if the annotations lack the photograph."""
        if image in self._images:
            return image
        found = None
        if self._names is not None:
            found = None if name is None else self._names.find(name)
            if found is None and isinstance(image, str):
                found = self._names.find(image)
        if found is not None:
            return self._of_name[found]
        number = number_of(image) if isinstance(image, str) else None
        return number if number in self._images else None
