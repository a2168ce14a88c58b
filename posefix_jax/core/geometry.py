"""Coordinate transforms between a photograph and a crop, and between a crop and a heatmap.

The only module that knows image coordinates. An integer coordinate is the center of a pixel; boxes are (x, y, w, h).
Functions that take `xp` run on NumPy (the default, for the host) or on `jax.numpy` (for the device, under `jit` and
`vmap`). Their arrays are annotated `Any`: naming jax's type would import jax into the host code.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Real

FARTHEST = 1e9
"""Pixels. A joint that is farther away, at infinity or at NaN is missing, and a box of that size is none: the squares and
products of such numbers leave float32, in which people are stored and refined."""


def is_near(joints: Real[Any, "*K 3"]) -> Bool[Any, "*K"]:
    """Which joints (x, y, score) are places: numbers below `FARTHEST`."""
    return (abs(joints) < FARTHEST).all(axis=-1)


Frame = Literal["unbiased", "reference"]
"""`unbiased`: edges map to edges, (x + 0.5) s - 0.5. `reference`: x s, as in the released code."""


@dataclass(frozen=True)
class CropGeometry:
    """The place of one crop in its image: both affines, and the crop's size.

    Attributes:
      image_to_crop: affine from image pixels to crop pixels, float64.
      crop_to_image: its inverse.
      crop_hw: height and width in pixels.
    """

    image_to_crop: Float[np.ndarray, "2 3"]
    crop_to_image: Float[np.ndarray, "2 3"]
    crop_hw: tuple[int, int]

    def to_crop(self, image_xy: Real[np.ndarray, "*K 2"]) -> Float[np.ndarray, "*K 2"]:
        return apply_affine(self.image_to_crop, image_xy)

    def to_image(self, crop_xy: Real[np.ndarray, "*K 2"]) -> Float[np.ndarray, "*K 2"]:
        return apply_affine(self.crop_to_image, crop_xy)


def apply_affine(affine: Float[Any, "2 3"], xy: Real[Any, "*K 2"]) -> Float[Any, "*K 2"]:
    """Points through an affine."""
    return xy @ affine[:, :2].T + affine[:, 2].reshape(*[1] * (xy.ndim - 1), 2)


def invert_affine(affine: Float[Any, "2 3"], xp: ModuleType = np) -> Float[Any, "2 3"]:
    """The inverse of an affine. The affine must be invertible."""
    (a, b, tx), (c, d, ty) = affine
    det = a * d - b * c
    inverse = xp.stack([xp.stack([d, -b]), xp.stack([-c, a])]) / det
    return xp.concatenate([inverse, -(inverse @ xp.stack([tx, ty]))[:, None]], axis=1)


def joint_extent(xy: Real[Any, "K 2"], present: Bool[Any, " K"], xp: ModuleType = np) -> Float[Any, "4"]:
    """The box that the present joints span, in the frame of `xy`. Not finite if no joint is present."""
    low = xp.where(present[:, None], xy, xp.inf).min(axis=0)
    high = xp.where(present[:, None], xy, -xp.inf).max(axis=0)
    return xp.concatenate([low, high - low])


def grow_box(
    box: Real[Any, "4"], factor: float | Float[Any, ""], *, minimum: float = 0.0, xp: ModuleType = np
) -> Float[Any, "4"]:
    """Scales a box about its center. A side of zero length counts as `minimum`."""
    center, size = box[:2] + box[2:] / 2, box[2:]
    size = xp.where(size <= 0, minimum, size) * factor
    return xp.concatenate([center - size / 2, size])


def fit_aspect(box: Real[Any, "4"], crop_hw: tuple[int, int], xp: ModuleType = np) -> Float[Any, "4"]:
    """Grows one side of a box about its center until the box has the crop's aspect."""
    height, width = crop_hw
    center, (w, h) = box[:2] + box[2:] / 2, box[2:]
    size = xp.stack([xp.maximum(w, h * (width / height)), xp.maximum(h, w * (height / width))])
    return xp.concatenate([center - size / 2, size])


JOINT_BOX_GROWTH = 1.2
"""The box of a pose is the extent of its joints times this (released code, test time)."""
CROP_PADDING = 1.25
"""The crop is the box at the crop's aspect times this (released code)."""
EMPTY_EXTENT = 20.0
"""Side in pixels of the box around joints without extent (released code)."""


def crop_box(box: Real[Any, "4"], crop_hw: tuple[int, int], xp: ModuleType = np) -> Float[Any, "4"]:
    """The crop region for a person's annotated or detected box: the box at the crop's aspect, times 1.25."""
    return grow_box(fit_aspect(box, crop_hw, xp), CROP_PADDING, minimum=1.0, xp=xp)


def crop_box_of_joints(
    xy: Real[Any, "K 2"], present: Bool[Any, " K"], crop_hw: tuple[int, int], xp: ModuleType = np
) -> Float[Any, "4"]:
    """The crop region for an input pose: the joints' extent times 1.2, at the crop's aspect, times 1.25."""
    box = grow_box(joint_extent(xy, present, xp), JOINT_BOX_GROWTH, minimum=EMPTY_EXTENT, xp=xp)
    return crop_box(box, crop_hw, xp)


PERSON_FILL = 0.53
"""Area of a person over the area of their box: the mean over COCO's keypoint annotations."""


def pose_area(
    crop_xy: Real[Any, "K 2"], present: Bool[Any, " K"], crop_hw: tuple[int, int], xp: ModuleType = np
) -> Float[Any, ""]:
    """An estimate of the person's area from a pose, crop pixels squared: 0.53 of the area of the joints' extent.

    At least a hundredth of the crop, for poses of one joint or on one line. Without any joint: the area of a person who
    fills the crop.
    """
    side = JOINT_BOX_GROWTH * CROP_PADDING
    full = PERSON_FILL * crop_hw[0] * crop_hw[1] / side**2
    extent = joint_extent(xp.where(present[:, None], crop_xy, 0.0), present, xp)
    area = xp.where(present.any(), PERSON_FILL * extent[2] * extent[3], full)
    return xp.clip(area, 0.01 * crop_hw[0] * crop_hw[1], crop_hw[0] * crop_hw[1])


def crop_affine(
    box: Real[Any, "4"],
    crop_hw: tuple[int, int],
    *,
    frame: Frame,
    rotation: float | Float[Any, ""] = 0.0,
    mirror: bool | Bool[Any, ""] = False,
    xp: ModuleType = np,
) -> Float[Any, "2 3"]:
    """The affine from source pixels to crop pixels, for a region of the source.

    Args:
      box: the region at the crop's aspect, source pixels.
      crop_hw: static.
      frame: static. `unbiased` maps the box center to ((W - 1) / 2, (H - 1) / 2), `reference` to (W / 2, H / 2).
      rotation: radians, clockwise as seen (y points down), about the center.
      mirror: exchange left and right about the center.
    """
    height, width = crop_hw
    shift = 0.5 if frame == "unbiased" else 0.0
    center = box[:2] + box[2:] / 2
    scale = width / box[2]
    cos, sin = xp.cos(rotation) * scale, xp.sin(rotation) * scale
    sign = xp.where(mirror, -1.0, 1.0)
    linear = xp.stack([xp.stack([sign * cos, sign * -sin]), xp.stack([sin, cos])])
    middle = xp.asarray([width / 2 - shift, height / 2 - shift], dtype=linear.dtype)
    return xp.concatenate([linear, (middle - linear @ center)[:, None]], axis=1)


def crop_geometry(box: Real[np.ndarray, "4"], crop_hw: tuple[int, int], *, frame: Frame = "unbiased") -> CropGeometry:
    """The crop of an image region, on the host. `box` has the crop's aspect, image pixels."""
    affine = crop_affine(np.asarray(box, np.float64), crop_hw, frame=frame)
    return CropGeometry(affine, invert_affine(affine), crop_hw)


def crop_to_heat(crop_xy: Real[Any, "*K 2"], stride: int, frame: Frame) -> Float[Any, "*K 2"]:
    """Crop pixels to heatmap cells. A cell has `stride` crop pixels along each axis."""
    return (crop_xy + 0.5) / stride - 0.5 if frame == "unbiased" else crop_xy / stride


def heat_to_crop(heat_xy: Real[Any, "*K 2"], stride: int, frame: Frame) -> Float[Any, "*K 2"]:
    """The inverse of `crop_to_heat`."""
    return (heat_xy + 0.5) * stride - 0.5 if frame == "unbiased" else heat_xy * stride


def mirror_crop(crop_xy: Real[Any, "*K 2"], width: int) -> Float[Any, "*K 2"]:
    """Points of the crop after its pixels are mirrored: x -> W - 1 - x."""
    shape = (*[1] * (crop_xy.ndim - 1), 2)
    sign, shift = (np.array(pair, np.float32).reshape(shape) for pair in ((-1, 1), (width - 1, 0)))
    return crop_xy * sign + shift
