"""Values of pose files, checked and rounded alike in every format."""

from collections.abc import Mapping

import numpy as np

from posefix_jax.core.geometry import joint_extent
from posefix_jax.data.formats.base import ImageId, Pose


def triples(values: object, where: str = "keypoints") -> np.ndarray:
    """[K, 3] float64 of a flat list. Raises ValueError naming `where`."""
    if not isinstance(values, list) or not values or len(values) % 3:
        found = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise ValueError(f"{where}: expected a flat list of x, y, score of every joint, found {found}")
    return numbers(values, where, axes=1).reshape(-1, 3)


def numbers(values: object, where: str = "keypoints", *, axes: int) -> np.ndarray:
    """Float64 of lists that are nested `axes` deep; None becomes NaN. Raises ValueError naming `where`."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError("a keypoint value is no number") from error
    if array.dtype.kind not in "iufb":
        if not all(value is None or isinstance(value, int | float) for value in array.ravel().tolist()):
            raise ValueError("a keypoint value is no number")
        array = array.astype(np.float64)  # an integer beyond 64 bits becomes a float
    if array.ndim != axes:
        form = "a flat list of numbers" if axes == 1 else "a list of lists of numbers"
        raise ValueError(f"{where}: expected {form}, found {'lists in it' if array.ndim > axes else 'a flat one'}")
    return array.astype(np.float64, copy=False)


def score_of(entry: Mapping, key: str = "score") -> float | None:
    """A person's score, None if it has none. Raises ValueError."""
    value = entry.get(key)
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is not None and not isinstance(value, int | float):
        raise ValueError(f"{key}: expected a number, found {value!r:.30}")
    return None if value is None else float(value)


def image_id(value: object) -> ImageId:
    """An image id that is one. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("has no image_id (an integer or a name)")
    return value


IMAGE_KEYS = ("image_id", "file_name", "img_name", "image", "frame_id", "frame_index", "frame")


def image_of(entry: Mapping, image: ImageId) -> ImageId:
    """The photograph that an entry names, else `image`. Raises ValueError."""
    return next((image_id(entry[key]) for key in IMAGE_KEYS if key in entry), image)


def flat(pose: Pose) -> list[float]:
    """x, y, score of every joint, rounded, to write."""
    return [round(v, 3 if i % 3 < 2 else 4) for i, v in enumerate(pose.joints.reshape(-1).tolist())]


def box_of(joints: np.ndarray) -> list[float]:
    """x, y, width, height around the joints that are present, to write."""
    present = joints[:, 2] > 0
    return [round(v, 3) for v in joint_extent(joints[:, :2], present).tolist()] if present.any() else [0.0] * 4
