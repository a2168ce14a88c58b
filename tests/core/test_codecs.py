"""Round trips that hold for any crop and any pose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from posefix_jax.core import geometry, heatmaps
from posefix_jax.core.models import STRIDE

HEAT_HW = (64, 48)
FRAMES = ("unbiased", "reference")
# No deadline: the first example compiles. No database: a run leaves nothing behind.
quick = settings(max_examples=50, deadline=None, database=None)


def numbers(low: float, high: float):
    return st.floats(low, high, allow_nan=False, width=32)


def points(low: float, high: float, count: int = 5):
    return arrays.arrays(np.float64, (count, 2), elements=numbers(low, high))


@quick
@given(
    corner=points(-3000, 3000, 1),
    height=numbers(8, 2000),
    crop_hw=st.sampled_from([(256, 192), (384, 288), (96, 64)]),
    frame=st.sampled_from(FRAMES),
    rotation=numbers(-4, 4),
    mirror=st.booleans(),
    crop_xy=points(-50, 450),
)
def test_crop_after_its_inverse_is_the_identity(corner, height, crop_hw, frame, rotation, mirror, crop_xy):
    box = np.array([*corner[0], height * crop_hw[1] / crop_hw[0], height])
    affine = geometry.crop_affine(box, crop_hw, frame=frame, rotation=rotation, mirror=mirror)
    image_xy = geometry.apply_affine(geometry.invert_affine(affine), crop_xy)
    np.testing.assert_allclose(geometry.apply_affine(affine, image_xy), crop_xy, atol=1e-5)
    middle = np.array([crop_hw[1] / 2, crop_hw[0] / 2]) - (0.5 if frame == "unbiased" else 0.0)
    np.testing.assert_allclose(geometry.apply_affine(affine, box[:2] + box[2:] / 2), middle, atol=1e-5)


@quick
@given(crop_xy=points(-1000, 1000), stride=st.sampled_from([2, 4, 8]), frame=st.sampled_from(FRAMES))
def test_heatmap_cells_and_crop_pixels_are_inverse(crop_xy, stride, frame):
    heat_xy = geometry.crop_to_heat(crop_xy, stride, frame)
    np.testing.assert_allclose(geometry.heat_to_crop(heat_xy, stride, frame), crop_xy, atol=1e-9)
    # A crop and its heatmap have the same edges in the unbiased frame, the same origin in the other.
    corner = np.array([[-0.5, -0.5]]) if frame == "unbiased" else np.zeros((1, 2))
    np.testing.assert_allclose(geometry.crop_to_heat(corner, stride, frame), corner, atol=1e-12)


@quick
@given(crop_xy=points(-1000, 1000), width=st.integers(1, 2000))
def test_mirroring_twice_is_the_identity(crop_xy, width):
    once = geometry.mirror_crop(crop_xy, width)
    np.testing.assert_array_equal(once[:, 1], crop_xy[:, 1])
    np.testing.assert_allclose(once[:, 0] + crop_xy[:, 0], width - 1, atol=1e-9)
    np.testing.assert_allclose(geometry.mirror_crop(once, width), crop_xy, atol=1e-9)


@quick
@given(xy=points(-200, 900), present=arrays.arrays(bool, 5))
def test_the_crop_of_a_pose_holds_its_joints(xy, present):
    if not present.any():
        return
    crop_hw = (256, 192)
    place = geometry.crop_geometry(geometry.crop_box_of_joints(xy, present, crop_hw), crop_hw)
    crop_xy = place.to_crop(xy)[present]
    assert (crop_xy > 0).all() and (crop_xy < [191, 255]).all()
    np.testing.assert_allclose(place.to_image(place.to_crop(xy)), xy, atol=1e-6)


@pytest.mark.parametrize("frame", FRAMES)
@quick
@given(share=points(0, 1))
def test_decoding_inverts_encoding(frame, share):
    """Within 0.01 crop pixels, for joints whose cells all lie in the map."""
    heat_xy = share * [HEAT_HW[1] - 1, HEAT_HW[0] - 1]
    crop_xy = geometry.heat_to_crop(heat_xy, STRIDE, frame)
    maps = heatmaps.one_hot(jnp.asarray(geometry.crop_to_heat(crop_xy, STRIDE, frame), jnp.float32), HEAT_HW).drawn()
    np.testing.assert_allclose(maps.sum(axis=(0, 1)), 1, atol=1e-5)
    decoded = geometry.heat_to_crop(np.asarray(heatmaps.soft_argmax(maps)), STRIDE, frame)
    np.testing.assert_allclose(decoded, crop_xy, atol=0.01)


@jax.jit
def decoded(logits, scale):
    """By each decoder, and the expected KS of the best place and of the highest cell."""
    probability = heatmaps.probabilities(logits)
    best, cell = heatmaps.best_expected_ks(probability, scale), heatmaps.argmax(logits)
    expected = [heatmaps.expected_ks(probability, xy, scale) for xy in (best, jnp.round(cell))]
    return (heatmaps.mean_position(logits), best, cell), *expected


@quick
@given(logits=arrays.arrays(np.float32, (6, 5, 2), elements=numbers(-80, 80)), scale=numbers(0.5, 20))
def test_decoded_joints_lie_within_the_map(logits, scale):
    """Whatever the network says; and an expected KS is at most 1, and highest at the best place."""
    places, at_best, at_cell = decoded(logits, np.full(2, scale, np.float32))
    for xy in places:
        assert (xy >= -1e-4).all() and (xy <= np.array([[4, 5]]) + 1e-4).all()
    assert (at_best <= 1 + 1e-4).all() and (at_best >= at_cell - 1e-3).all()
