"""Poses drawn over photographs."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.files import whole_file
from posefix_jax.types import ErrorKind, PosefixError

Color = tuple[int, int, int]
"""RGB, 0 to 255."""

GREEN, RED, WHITE = (60, 200, 80), (235, 70, 60), (255, 255, 255)
KIND_COLORS = {
    ErrorKind.GOOD: (60, 200, 80),
    ErrorKind.JITTER: (250, 210, 60),
    ErrorKind.INVERSION: (70, 140, 255),
    ErrorKind.SWAP: (200, 90, 220),
    ErrorKind.MISS: (235, 70, 60),
    ErrorKind.ABSENT: (200, 200, 200),
}


def draw_pose(
    image: np.ndarray,
    image_xy: np.ndarray,
    present: np.ndarray,
    skeleton: Skeleton,
    color: Color = GREEN,
    *,
    kinds: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of an image with a pose drawn over it.

    Args:
      image: [H, W, 3] uint8 RGB.
      image_xy: [K, 2] pixels.
      present: [K] which joints to draw; limbs need both ends.
      skeleton: of the K joints.
      color: of limbs, and of joints without `kinds`.
      kinds: [K] `ErrorKind` of each joint, drawn in its own color.
    """
    image = np.ascontiguousarray(image).copy()
    size = max(1, round(min(image.shape[:2]) / 160))
    points = [tuple(int(round(float(v) * 8)) for v in xy) for xy in np.nan_to_num(image_xy)]
    for a, b in skeleton.limbs:
        if present[a] and present[b]:
            cv2.line(image, points[a], points[b], color, size, cv2.LINE_AA, shift=3)
    for joint, point in enumerate(points):
        if present[joint]:
            of_kind = color if kinds is None else KIND_COLORS[ErrorKind(int(kinds[joint]))]
            cv2.circle(image, point, (size + 1) * 8 + 8, of_kind, -1, cv2.LINE_AA, shift=3)
    return image


def kind_legend() -> np.ndarray:
    """A legend of the colors of error kinds; gray joints are of unknown kind."""
    bar = np.full((22, 78 * len(ErrorKind), 3), 255, np.uint8)
    for i, kind in enumerate(ErrorKind):
        cv2.circle(bar, (10 + i * 78, 11), 5, KIND_COLORS[kind], -1, cv2.LINE_AA)
        name = "unknown" if kind is ErrorKind.ABSENT else kind.name.lower()
        cv2.putText(bar, name, (19 + i * 78, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (30, 30, 30), 1, cv2.LINE_AA)
    return bar


def side_by_side(images: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Images of equal height in a row, each below its caption."""
    tiles = []
    for image, caption in zip(images, captions, strict=True):
        bar = np.full((26, image.shape[1], 3), 255, np.uint8)
        cv2.putText(bar, caption, (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
        tiles.append(np.concatenate([bar, image]))
        tiles.append(np.full((len(tiles[-1]), 6, 3), 255, np.uint8))
    return np.concatenate(tiles[:-1], axis=1)


def sheet(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows below each other, padded with white to the widest."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [np.pad(row, ((0, 6), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )


def write_picture(path: Path, image: np.ndarray) -> None:
    """Writes an RGB image as a whole, in the format that the name's suffix says.

    Raises:
      PosefixError: OpenCV does not know the format.
    """
    try:
        data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    except cv2.error as error:
        raise PosefixError(f"{path}: expected a name that ends in .png or .jpg") from error
    with whole_file(path) as file:
        file.write(data.tobytes())
