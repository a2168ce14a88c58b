import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posefix_jax.core import geometry
from posefix_jax.core.augment import (
    AugmentConfig,
    random_crop_affine,
    random_erase,
    warp,
    warp_by_pixel,
    warp_in_passes,
)
from posefix_jax.types import PosefixError


def test_warp_is_opencv_s():
    rng = np.random.default_rng(0)
    patch = cv2.GaussianBlur(rng.integers(0, 255, (80, 90, 3), dtype=np.uint8), (5, 5), 0)
    affine = geometry.crop_affine(np.array([10.0, 5, 60, 60]), (64, 64), frame="unbiased", rotation=0.4, mirror=True)
    ours = warp(jnp.asarray(patch), jnp.asarray(affine, jnp.float32), (64, 64))
    theirs = cv2.warpAffine(patch.astype(np.float32), affine, (64, 64), flags=cv2.INTER_LINEAR)
    # OpenCV rounds coordinates to 1/32 pixel.
    assert np.abs(np.asarray(ours) - theirs).mean() < 1 and np.percentile(np.abs(ours - theirs), 99) < 4


@functools.cache
def formulations():
    return jax.jit(
        lambda patch, affine: (warp_by_pixel(patch, affine, (64, 48)), warp_in_passes(patch, affine, (64, 48)))
    )


def turned_crop(degrees: float, scale: float, *, mirror: bool) -> np.ndarray:
    """The affine of a crop that lies partly outside a patch of 96 pixels."""
    box = np.array([-12.0, 20.0, 48 * scale, 64 * scale])
    affine = geometry.crop_affine(box, (64, 48), frame="unbiased", rotation=np.deg2rad(degrees), mirror=mirror)
    return np.asarray(affine, np.float32)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_both_warps_are_one_at_right_angles(degrees, scale, mirror):
    patch = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    pixels, passes = formulations()(patch, turned_crop(degrees, scale, mirror=mirror))
    np.testing.assert_allclose(passes, pixels, atol=0.01)
    assert np.ptp(pixels) > 200


@pytest.mark.parametrize("degrees", [3, 30, 44, 46, 80, -60, 135, -170])
def test_both_warps_see_the_same_ramp(degrees):
    """The two passes go along other lines between the pixels; a surface without curvature tells no difference."""
    y, x = np.mgrid[:96, :96]
    patch = np.stack([x + y, 2 * x, 190 - 2 * y], -1).astype(np.uint8)
    affine = turned_crop(degrees, 1.0, mirror=degrees > 0)
    pixels, passes = formulations()(patch, affine)
    back = geometry.invert_affine(affine)
    there = geometry.apply_affine(back, np.stack(np.meshgrid(np.arange(48.0), np.arange(64.0)), -1))
    within = ((there >= 1) & (there <= 94)).all(-1)
    assert within.mean() > 0.4
    np.testing.assert_allclose(np.asarray(passes)[within], np.asarray(pixels)[within], atol=0.01)
    outside = ((there < -2) | (there > 97)).any(-1)
    assert outside.any() and not np.asarray(passes)[outside].any()


@pytest.mark.parametrize(("degrees", "most"), [(10, 0.1), (35, 0.6)])
def test_the_warps_differ_little(degrees, most):
    """In grey levels, on a patch of full contrast and about as sharp as photographs. docs/scaling.md has real ones."""
    noise = np.random.default_rng(0).normal(size=(96, 96, 3))
    patch = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    pixels, passes = formulations()(patch, turned_crop(degrees, 1.0, mirror=False))
    assert 0.01 < np.abs(np.asarray(passes) - pixels).mean() < most


def test_points_move_with_the_pixels():
    """A bright spot is found where the affine says it went, under any draw."""
    config = AugmentConfig(shift=0.1)
    box = jnp.asarray([20.0, 20.0, 60.0, 80.0])
    spot = np.array([52.0, 66.0])
    patch = np.zeros((128, 128, 3), np.float32)
    y, x = np.mgrid[:128, :128]
    patch[...] = 255 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 18)[..., None]
    mirrored = set()
    for seed in range(12):
        affine, scale, mirror = random_crop_affine(jax.random.key(seed), box, config, (128, 96))
        mirrored.add(bool(mirror))
        np.testing.assert_allclose(abs(np.linalg.det(affine[:, :2])), scale, rtol=1e-4)
        crop = np.asarray(warp(jnp.asarray(patch.astype(np.uint8)), affine, (128, 96)))[..., 0]
        rows, columns = np.mgrid[:128, :96]
        found = np.array([(crop * columns).sum(), (crop * rows).sum()]) / crop.sum()
        np.testing.assert_allclose(found, geometry.apply_affine(np.asarray(affine), spot), atol=0.3)
    assert mirrored == {True, False}


def test_ranges():
    """Scale within 1 +- 0.3, rotation within 80 degrees and 0 in four of ten."""
    box = jnp.asarray([0.0, 0.0, 96.0, 128.0])
    keys = jax.random.split(jax.random.key(0), 4000)
    affine, scale, mirror = jax.vmap(lambda key: random_crop_affine(key, box, AugmentConfig(), (128, 96)))(keys)
    size = 1 / np.sqrt(scale)
    assert size.min() >= 0.7 - 1e-5 and size.max() <= 1.3 + 1e-5
    angle = np.degrees(np.arctan2(affine[:, 1, 0], affine[:, 1, 1]))
    assert np.abs(angle).max() <= 80.01
    assert abs((np.abs(angle) < 1e-3).mean() - 0.4) < 0.03
    assert abs(np.asarray(mirror).mean() - 0.5) < 0.03


def test_erased_rectangles():
    """The asked share of the crops loses something, never more than three of the largest rectangles; the rest stays."""
    crop = jnp.full((64, 48, 3), 300.0)  # not the color of a rectangle
    keys = jax.random.split(jax.random.key(0), 500)
    lost = np.asarray(jax.vmap(lambda key: (random_erase(key, crop, 0.4) != crop).all(-1))(keys)).mean((1, 2))
    assert abs((lost > 0).mean() - 0.4) < 0.07
    assert lost[lost > 0].min() > 0.005 and 0.1 < lost.max() < 3 * 0.37**2
    assert random_erase(keys[0], crop, 0.0) is crop


def test_later_epochs_vary_half_as_much():
    config = AugmentConfig(full_epochs=3)
    box = jnp.asarray([0.0, 0.0, 96.0, 128.0])
    keys = jax.random.split(jax.random.key(0), 500)
    spread = []
    for strength in (config.strength(jnp.int32(2)), config.strength(jnp.int32(3))):
        draw = functools.partial(random_crop_affine, box=box, config=config, crop_hw=(128, 96), strength=strength)
        affine, scale, _ = jax.vmap(draw)(keys)
        turned = np.abs(np.arcsin(affine[:, 1, 0] / np.sqrt(scale)))
        spread.append((np.ptp(1 / np.sqrt(scale)), turned.mean()))
    np.testing.assert_allclose(spread[0], 2 * np.array(spread[1]), rtol=1e-2)
    assert float(AugmentConfig().strength(jnp.int32(100))) == 1


def test_refuses_more_than_patches_hold():
    with pytest.raises(PosefixError, match="patches have room for"):
        AugmentConfig(scale=0.5)
