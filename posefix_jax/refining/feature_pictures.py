"""Where the network looks, layer by layer, on the way from a photograph and a pose to a better pose (paper, figure 5)."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.models.features import feature_strengths
from posefix_jax.refining.engine import Crop, Engine
from posefix_jax.report.pictures import GREEN, RED, draw_pose, sheet, side_by_side
from posefix_jax.types import PosefixError


def feature_maps(spec: RefinerSpec, variables: dict, crop: Crop) -> list[np.ndarray]:
    """How strong the features are at each place of a crop.

    Args:
      spec, variables: of the refiner.
      crop: as `Engine.crop` cuts it.

    Returns:
      [h, w] float for each resolution that the network goes through, as `feature_strengths` has them, stretched to 0..1.
      The last map, at a 4th of the crop, is the highest probability of any joint.
    """
    fields = (jnp.asarray(of) for of in (crop.pixels.astype(np.float32), crop.crop_xy, crop.present))
    strengths, last = jax.jit(feature_strengths, static_argnums=0)(spec, variables, *fields)
    passed = [np.asarray(strength, np.float64) for strength in strengths]
    logits = np.asarray(last, np.float64)
    likely = np.exp(logits - logits.max(axis=(0, 1)))
    passed.append((likely / likely.sum(axis=(0, 1))).max(axis=-1))
    return [(strength - strength.min()) / max(float(np.ptp(strength)), 1e-12) for strength in passed]


def feature_picture(engine: Engine, image: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The maps of one person over the crop, between its pose before and after.

    Args:
      engine: that refines.
      image: the photograph, [H, W, 3] uint8 RGB.
      before, after: [K, 3] x, y, score in the image frame.

    Raises:
      PosefixError: no joint of `before` is usable.
    """
    crop = engine.crop(image, before)
    if crop is None:
        raise PosefixError("no usable joint in the pose")
    skeleton = engine.spec.skeleton
    tiles = [draw_pose(crop.pixels, crop.crop_xy, crop.present, skeleton, RED)]
    names = ["before"]
    for strength in feature_maps(engine.spec, engine.variables, crop):
        tiles.append(_over(crop.pixels, strength))
        names.append(f"{strength.shape[1]} x {strength.shape[0]}")
    names[-1] = "heatmaps"
    tiles.append(draw_pose(crop.pixels, crop.geometry.to_crop(after[:, :2]), after[:, 2] > 0, skeleton, GREEN))
    names.append("after")
    half = -(-len(tiles) // 2)
    return sheet([side_by_side(tiles[:half], names[:half]), side_by_side(tiles[half:], names[half:])])


def _over(pixels: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """A map in colors over a crop in gray."""
    size = pixels.shape[1::-1]
    fine = np.clip(cv2.resize(strength.astype(np.float32), size, interpolation=cv2.INTER_CUBIC), 0, 1)
    colors = cv2.applyColorMap((255 * fine).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    gray = pixels.mean(axis=2, keepdims=True)
    return (0.45 * gray + 0.55 * colors).astype(np.uint8)
