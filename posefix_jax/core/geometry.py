"""The way between a photograph and a crop, and the way between a crop and a heatmap.

The only module that knows image coordinates. An integer coordinate is the centre of a pixel. Functions that
take `xp` run on NumPy (the default, for the host) or on `jax.numpy` (for the device, under `jit` and `vmap`).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Frame = Literal["unbiased", "reference"]
"""`unbiased`: edges map to edges, (x + 0.5) s - 0.5. `reference`: x s, as in the authors' released code."""


@dataclass(frozen=True)
class CropGeometry:
    """One crop: both affines and its size, so that whatever went in comes back exactly.

    Attributes:
      image_to_crop: [2, 3] forward affine, float64.
      crop_to_image: [2, 3] its inverse.
      crop_hw: height and width in pixels.
    """

    image_to_crop: np.ndarray
    crop_to_image: np.ndarray
    crop_hw: tuple[int, int]

    def to_crop(self, image_xy: np.ndarray) -> np.ndarray:
        return apply_affine(self.image_to_crop, image_xy)

    def to_image(self, crop_xy: np.ndarray) -> np.ndarray:
        return apply_affine(self.crop_to_image, crop_xy)


def apply_affine(affine, xy):
    """[..., 2] points through a [2, 3] affine; NumPy or jax.numpy."""
    return xy @ affine[:, :2].T + affine[:, 2]


def invert_affine(affine, xp=np):
    """The inverse of a [2, 3] affine."""
    (a, b, tx), (c, d, ty) = affine
    det = a * d - b * c
    inverse = xp.stack([xp.stack([d, -b]), xp.stack([-c, a])]) / det
    return xp.concatenate([inverse, -(inverse @ xp.stack([tx, ty]))[:, None]], axis=1)


def joint_extent(xy, present, xp=np):
    """The box (x, y, w, h) that the present joints span, same frame as `xy` ([K, 2]).

    Without a present joint the box is not finite: callers check first.
    """
    low = xp.where(present[:, None], xy, xp.inf).min(axis=0)
    high = xp.where(present[:, None], xy, -xp.inf).max(axis=0)
    return xp.concatenate([low, high - low])


def grow_box(box, factor, *, minimum: float = 0.0, xp=np):
    """Scales a box about its centre; a side of zero becomes `minimum` first."""
    centre, size = box[:2] + box[2:] / 2, box[2:]
    size = xp.where(size <= 0, minimum, size) * factor
    return xp.concatenate([centre - size / 2, size])


def fit_aspect(box, crop_hw: tuple[int, int], xp=np):
    """Grows the shorter side of a box about its centre until it has the crop's aspect."""
    height, width = crop_hw
    centre, (w, h) = box[:2] + box[2:] / 2, box[2:]
    size = xp.stack([xp.maximum(w, h * (width / height)), xp.maximum(h, w * (height / width))])
    return xp.concatenate([centre - size / 2, size])


JOINT_BOX_GROWTH = 1.2
"""The box of a pose is its joints' extent times this (released code, test time)."""
CROP_PADDING = 1.25
"""The crop is the box at the crop's aspect times this (released code)."""
EMPTY_EXTENT = 20.0
"""Side in pixels of the box around joints without extent (released code)."""


def crop_box(box, crop_hw: tuple[int, int], xp=np):
    """The crop region (x, y, w, h) for a person's annotated or detected box: the crop's aspect, x 1.25."""
    return grow_box(fit_aspect(box, crop_hw, xp), CROP_PADDING, minimum=1.0, xp=xp)


def crop_box_of_joints(xy, present, crop_hw: tuple[int, int], xp=np):
    """The crop region (x, y, w, h) for an input pose: extent x 1.2, the crop's aspect, x 1.25."""
    box = grow_box(joint_extent(xy, present, xp), JOINT_BOX_GROWTH, minimum=EMPTY_EXTENT, xp=xp)
    return crop_box(box, crop_hw, xp)


PERSON_FILL = 0.53
"""Area of a person over the area of its box, the mean of COCO's keypoint annotations."""


def pose_area(crop_xy, present, crop_hw: tuple[int, int], xp=np):
    """The person's area, crop pixels squared, as a pose tells it: 0.53 of its joints' extent.

    Bounded below by a hundredth of the crop, for poses of one joint or on one line; without any joint it is
    that of a person who fills the crop.
    """
    side = JOINT_BOX_GROWTH * CROP_PADDING
    full = PERSON_FILL * crop_hw[0] * crop_hw[1] / side**2
    extent = joint_extent(xp.where(present[:, None], crop_xy, 0.0), present, xp)
    area = xp.where(present.any(), PERSON_FILL * extent[2] * extent[3], full)
    return xp.clip(area, 0.01 * crop_hw[0] * crop_hw[1], crop_hw[0] * crop_hw[1])


def crop_affine(box, crop_hw: tuple[int, int], *, frame: Frame, rotation=0.0, mirror=False, xp=np):
    """The [2, 3] affine that lays a region of the source over the crop.

    Args:
      box: (x, y, w, h) at the crop's aspect, source pixels.
      crop_hw: static.
      frame: static; `unbiased` maps the box centre to ((W-1)/2, (H-1)/2), `reference` to (W/2, H/2).
      rotation: radians, clockwise as seen (y points down), about the centre.
      mirror: exchanges left and right about the box centre.
    """
    height, width = crop_hw
    shift = 0.5 if frame == "unbiased" else 0.0
    centre = box[:2] + box[2:] / 2
    scale = width / box[2]
    cos, sin = xp.cos(rotation) * scale, xp.sin(rotation) * scale
    sign = xp.where(mirror, -1.0, 1.0)
    linear = xp.stack([xp.stack([sign * cos, sign * -sin]), xp.stack([sin, cos])])
    middle = xp.asarray([width / 2 - shift, height / 2 - shift], dtype=linear.dtype)
    return xp.concatenate([linear, (middle - linear @ centre)[:, None]], axis=1)


def crop_geometry(box: np.ndarray, crop_hw: tuple[int, int], *, frame: Frame = "unbiased") -> CropGeometry:
    """The crop of an image region at the crop's aspect, on the host."""
    affine = crop_affine(np.asarray(box, np.float64), crop_hw, frame=frame)
    return CropGeometry(affine, invert_affine(affine), crop_hw)


def crop_to_heat(crop_xy, stride: int, frame: Frame):
    """Crop pixels to heatmap cells; `stride` crop pixels a cell."""
    return (crop_xy + 0.5) / stride - 0.5 if frame == "unbiased" else crop_xy / stride


def heat_to_crop(heat_xy, stride: int, frame: Frame):
    """The inverse of `crop_to_heat`."""
    return (heat_xy + 0.5) * stride - 0.5 if frame == "unbiased" else heat_xy * stride


def mirror_crop(crop_xy, width: int):
    """Where a point of the crop lies after the crop's pixels are mirrored: x -> W - 1 - x."""
    return crop_xy * np.array([-1, 1], np.float32) + np.array([width - 1, 0], np.float32)
