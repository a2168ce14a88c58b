"""Photographs: decoding, encoding, warping."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

import cv2
import numpy as np

from posefix_jax.data.limits import size_of_file


class UnreadableImage(Exception):
    """The photograph is missing or cannot be decoded; the message is the reason."""


def read_image(path: Path, *, exif: bool = False) -> np.ndarray:
    """`decode_image` of a file. Raises UnreadableImage."""
    try:
        size_of_file(str(path))
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UnreadableImage(getattr(error, "strerror", None) or str(error)) from error
    return decode_image(data, exif=exif)


def decode_image(data: bytes, *, exif: bool = False) -> np.ndarray:
    """Decodes to [H, W, 3] uint8 RGB. Grayscale is repeated, alpha dropped, 16 bits reduced to 8.

    Args:
      exif: rotate the photograph as its EXIF orientation says. COCO's annotations ignore it, so the default does too.

    Raises:
      UnreadableImage: OpenCV cannot decode it, or it has more pixels than the environment's
        OPENCV_IO_MAX_IMAGE_PIXELS allowed when OpenCV was imported: 2^30 by default, 2^28 in the `posefix` command.
    """
    flags = cv2.IMREAD_COLOR_RGB | (0 if exif else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except (cv2.error, MemoryError) as error:
        limit = "; raise the environment's OPENCV_IO_MAX_IMAGE_PIXELS" if "pixels" in str(error).lower() else ""
        raise UnreadableImage(f"OpenCV: {' '.join(str(getattr(error, 'err', error)).split())}{limit}") from error
    if image is None:
        raise UnreadableImage("not an image that OpenCV can decode" if data else "empty file")
    return image


def is_rotated(data: bytes) -> bool:
    """Whether a photograph's EXIF orientation turns or mirrors it, by what OpenCV makes of it. False for no photograph."""
    if not any(mark in data for mark in (b"Exif", b"eXIf", b"EXIF")):
        return False
    small, array = cv2.IMREAD_REDUCED_GRAYSCALE_8, np.frombuffer(data, np.uint8)
    try:
        turned, raw = (cv2.imdecode(array, small | flag) for flag in (0, cv2.IMREAD_IGNORE_ORIENTATION))
    except (cv2.error, MemoryError):
        return False
    return turned is not None and raw is not None and not np.array_equal(turned, raw)


def decode_jpeg(data: bytes) -> np.ndarray:
    """Decodes a record's patch to [H, W, 3] uint8 RGB. Raises UnreadableImage."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UnreadableImage("broken JPEG")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """The inverse of `decode_jpeg`, lossy."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise UnreadableImage("OpenCV could not encode the patch")
    return data.tobytes()


def warp_affine(
    image: np.ndarray, affine: np.ndarray, size_hw: tuple[int, int], *, antialias: bool = True
) -> np.ndarray:
    """Warps bilinearly, black outside. `affine` [2, 3] maps image to output pixels.

    Args:
      antialias: halve the region (area averaging) while it would shrink by more than two, so that details do not
        alias. The released code does not.
    """
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    if antialias and scale < 0.5:
        image, affine = _region(image, affine, size_hw)
        while scale < 0.5 and min(image.shape[:2]) > 1:
            h, w = image.shape[:2]
            half = cv2.resize(image, ((w + 1) // 2, (h + 1) // 2), interpolation=cv2.INTER_AREA)
            zoom = np.array([w / half.shape[1], h / half.shape[0]])
            # Edges map to edges: pixel x of the half is at (x + 0.5) zoom - 0.5 of the whole.
            shift = affine[:, :2] @ (0.5 * zoom - 0.5) + affine[:, 2]
            affine = np.concatenate([affine[:, :2] * zoom, shift[:, None]], axis=1)
            image, scale = half, scale * np.sqrt(zoom.prod())
    return cv2.warpAffine(image, affine, size_hw[::-1], flags=cv2.INTER_LINEAR)


def _region(image: np.ndarray, affine: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The region that the output shows, with a margin, and the affine from that region."""
    h, w = size_hw
    corners = np.array([[0, 0], [w, 0], [0, h], [w, h]], np.float64)
    source = (corners - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T
    margin = 4 / np.sqrt(abs(np.linalg.det(affine[:, :2])))
    limit = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor(source.min(axis=0) - margin), 0, limit - 1).astype(int)
    high = np.clip(np.ceil(source.max(axis=0) + margin), low + 1, limit).astype(int)
    moved = np.concatenate([affine[:, :2], (affine[:, :2] @ low + affine[:, 2])[:, None]], axis=1)
    return image[low[1] : high[1], low[0] : high[0]], moved


def ordered_map(pool: Executor, function: Callable, items: Iterable, ahead: int = 32) -> Iterator:
    """Maps on a pool; yields results in order, with at most `ahead` of them pending."""
    pending: deque[Future] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
