"""Pictures of the poses that a refinement changed most, before and after."""

import functools
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from posefix_jax.core import geometry
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.images import UnreadableImage, warp_affine
from posefix_jax.data.pose_writer import Part
from posefix_jax.report.pictures import GREEN, RED, draw_pose, side_by_side, write_picture


def largest_changes(
    part: Part, to_refiner: Callable[[np.ndarray], np.ndarray], count: int
) -> Iterator[tuple[float, int, np.ndarray, np.ndarray]]:
    """Up to `count` rows whose joints moved most: (how far in sizes of the pose, row, before [K, 3], after [K, 3]).

    Poses are in the file's unit, and in the joints that `to_refiner` gives.
    """
    poses = {row: (to_refiner(part.poses[row].joints), to_refiner(after)) for row, after in part.joints.items()}
    changes = ((_change(*pose), row) for row, pose in poses.items())
    for change, row in heapq.nlargest(count, (change for change in changes if change[0] > 0)):
        yield change, row, *poses[row]


def _change(before: np.ndarray, after: np.ndarray) -> float:
    both = (before[:, 2] > 0) & (after[:, 2] > 0)
    if not both.any():
        return 0.0
    size = math.sqrt(np.prod(np.maximum(geometry.joint_extent(after[:, :2], after[:, 2] > 0)[2:], 1e-3)))
    return float(np.linalg.norm(before[both, :2] - after[both, :2], axis=1).sum() / size)


def write_pictures(
    changes: Sequence, count: int, folder: Path, read: Callable, skeleton: Skeleton, *, fraction: bool
) -> None:
    """Draws the `count` largest of (change, row, image, before, after); `read` gives the photographs."""
    for _, row, image, before, after in heapq.nlargest(count, changes, key=lambda change: change[0]):
        try:
            pixels = read(image)
        except UnreadableImage:  # it was readable when it was refined
            continue
        scale = [pixels.shape[1], pixels.shape[0], 1] if fraction else 1
        poses = np.asarray(before) * scale, np.asarray(after) * scale
        write_picture(folder / f"row-{row:06d}.png", before_and_after(pixels, *poses, skeleton))


def before_and_after(image: np.ndarray, before: np.ndarray, after: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """A picture of one person: [K, 3] poses in the image frame, cropped around both, 400 px high."""
    present = [pose[:, 2] > 0 for pose in (before, after)]
    points = np.concatenate([before[present[0], :2], after[present[1], :2]])
    box = geometry.grow_box(geometry.joint_extent(points, np.ones(len(points), bool)), 1.4, minimum=20.0)
    height = 400
    width = int(np.clip(height * box[2] / box[3], 200, 800))
    place = geometry.crop_geometry(geometry.fit_aspect(box, (height, width)), (height, width))
    crop = warp_affine(image, place.image_to_crop, (height, width))
    draw = functools.partial(draw_pose, crop, skeleton=skeleton)
    return side_by_side(
        [
            draw(place.to_crop(before[:, :2]), present[0], color=RED),
            draw(place.to_crop(after[:, :2]), present[1], color=GREEN),
        ],
        ["before", "after"],
    )
