"""Photographs in."""

import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path

import cv2
import numpy as np

from posefix_jax.types import PosefixError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class UnreadableImage(Exception):
    """The photograph is missing or cannot be decoded; the message is the reason."""


def read_image(path: Path, *, exif: bool = False) -> np.ndarray:
    """[H, W, 3] uint8, RGB. Grayscale is repeated, alpha dropped, 16 bits reduced to 8.

    Args:
      exif: turn the photograph as its EXIF orientation says. COCO's annotations ignore it, and so do we by default.

    Raises:
      UnreadableImage: no such file, or not an image that OpenCV decodes.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error
    flags = cv2.IMREAD_COLOR if exif else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise UnreadableImage(f"OpenCV: {error.err}") from error
    if image is None:
        raise UnreadableImage("empty file" if not data.size else "not an image that OpenCV decodes")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_jpeg(data: bytes) -> np.ndarray:
    """[H, W, 3] uint8, RGB, of a record's patch. Raises UnreadableImage."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UnreadableImage("broken JPEG")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """The inverse of `decode_jpeg`, with loss."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise UnreadableImage("OpenCV could not encode the patch")
    return data.tobytes()


def warp_affine(
    image: np.ndarray, affine: np.ndarray, size_hw: tuple[int, int], *, antialias: bool = True
) -> np.ndarray:
    """Bilinear, black outside; `affine` [2, 3] maps image to output pixels.

    Args:
      antialias: halve the region (by area) while it is to shrink by more than two, so that no detail aliases.
        The released code does not.
    """
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    if antialias and scale < 0.5:
        image, affine = _region(image, affine, size_hw)
        while scale < 0.5 and min(image.shape[:2]) > 1:
            h, w = image.shape[:2]
            half = cv2.resize(image, ((w + 1) // 2, (h + 1) // 2), interpolation=cv2.INTER_AREA)
            zoom = np.array([w / half.shape[1], h / half.shape[0]])
            # Edges on edges: a pixel of the half lies at (x + 0.5) zoom - 0.5 of the whole.
            shift = affine[:, :2] @ (0.5 * zoom - 0.5) + affine[:, 2]
            affine = np.concatenate([affine[:, :2] * zoom, shift[:, None]], axis=1)
            image, scale = half, scale * np.sqrt(zoom.prod())
    return cv2.warpAffine(image, affine, size_hw[::-1], flags=cv2.INTER_LINEAR)


def _region(image, affine, size_hw):
    """The part of the image that the output shows, with a margin, and the affine from there."""
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
    """Maps on a pool, results in order, a bounded number of them waiting."""
    pending = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def find_images(folder: Path, image_ids: Iterable[int | str], names: Mapping | None = None) -> dict:
    """The file of each image id: by the name an annotation file gives, else by a file stem equal to the id.

    A stem that is a number equals the id whatever its leading zeros (COCO's `000000000139.jpg` is 139); the last
    number of a stem counts if no stem is a bare number (`im00012.jpg` is 12). Ids without a file are left out.

    Raises:
      PosefixError: no such folder, not one of the ids has a file in it, or an id could be two files.
    """
    if not folder.is_dir():
        raise PosefixError(f"{folder}: no such image folder")
    ids = list(dict.fromkeys(image_ids))
    if names is not None:
        found = {}
        for i in ids:
            # COCO's names are bare; where a name has folders, the file may lie there or right here.
            places = [folder / names[i], folder / Path(names[i]).name] if i in names else []
            path = next((path for path in places if path.is_file()), None)
            if path is not None:
                found[i] = path
    else:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        by_stem, by_number, by_last_number = defaultdict(list), defaultdict(list), defaultdict(list)
        for path in files:
            by_stem[path.stem].append(path)
            digits = re.findall(r"\d+", path.stem)
            if path.stem.isdecimal():
                by_number[int(path.stem)].append(path)
            elif digits:
                by_last_number[int(digits[-1])].append(path)
        by_number = by_number or by_last_number
        found = {}
        for i in ids:
            paths = by_stem.get(str(i)) or (by_number.get(int(i), []) if str(i).isdecimal() else [])
            if len(paths) > 1:
                raise PosefixError(
                    f"{folder}: image id {i} may be {paths[0].name} or {paths[1].name}; give --annotations for the names"
                )
            if paths:
                found[i] = paths[0]
    if ids and not found:
        example = names.get(ids[0], ids[0]) if names is not None else ids[0]
        raise PosefixError(
            f"{folder}: none of the {len(ids)} photographs is here (looked for {example!r} and others by "
            f"{'file name' if names is not None else 'image id'}); check --images"
            + ("" if names is not None else ", or give --annotations for the file names")
        )
    return found
