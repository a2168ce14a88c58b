import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posefix_jax.core import geometry


@pytest.mark.parametrize("frame", ["unbiased", "reference"])
@pytest.mark.parametrize("mirror", [False, True])
def test_affine_and_its_inverse(frame, mirror):
    box = np.array([30.0, -20, 75, 100])
    affine = geometry.crop_affine(box, (256, 192), frame=frame, rotation=0.7, mirror=mirror)
    points = np.random.default_rng(0).uniform(-50, 300, (20, 2))
    back = geometry.apply_affine(geometry.invert_affine(affine), geometry.apply_affine(affine, points))
    np.testing.assert_allclose(back, points, atol=1e-9)
    np.testing.assert_allclose(abs(np.linalg.det(affine[:, :2])), (192 / 75) ** 2)


def test_unbiased_maps_edges_to_edges():
    # The box covers pixels 10..24 completely: edges at 9.5 and 24.5 in pixel-center coordinates.
    place = geometry.crop_geometry(np.array([9.5, 9.5, 15, 20]), (80, 60), frame="unbiased")
    np.testing.assert_allclose(place.to_crop(np.array([[9.5, 9.5], [24.5, 29.5]])), [[-0.5, -0.5], [59.5, 79.5]])


def test_mirror_is_the_mirror_of_pixels():
    box = np.array([5.0, 7, 30, 40])
    points = np.array([[3.0, 4.0], [20, 9]])
    plain, mirrored = (
        geometry.apply_affine(geometry.crop_affine(box, (64, 48), frame="unbiased", mirror=mirror), points)
        for mirror in (False, True)
    )
    np.testing.assert_allclose(mirrored, geometry.mirror_crop(plain, 48), atol=1e-9)


@pytest.mark.parametrize("frame", ["unbiased", "reference"])
def test_heat_round_trip(frame):
    xy = np.random.default_rng(0).uniform(0, 190, (9, 2))
    np.testing.assert_allclose(geometry.heat_to_crop(geometry.crop_to_heat(xy, 4, frame), 4, frame), xy)


def test_boxes():
    xy = np.array([[10.0, 20], [30, 20], [999, 999]])
    present = np.array([True, True, False])
    np.testing.assert_allclose(geometry.joint_extent(xy, present), [10, 20, 20, 0])
    box = geometry.crop_box_of_joints(xy, present, (256, 192))
    np.testing.assert_allclose(box[2] / box[3], 192 / 256)
    np.testing.assert_allclose(box[:2] + box[2:] / 2, [20, 20])  # centered on the joints
    # A side of zero counts as 20 px; both x 1.2, then the aspect (24 wide: 32 high), then x 1.25.
    np.testing.assert_allclose(box[2:], [30, 40])


def test_device_and_host_agree():
    xy = np.random.default_rng(1).uniform(0, 200, (17, 2)).astype(np.float32)
    present = np.arange(17) % 3 > 0
    host = geometry.crop_box_of_joints(xy, present, (256, 192))
    device = jax.jit(lambda a, b: geometry.crop_box_of_joints(a, b, (256, 192), xp=jnp))(xy, present)
    np.testing.assert_allclose(device, host, rtol=1e-5)
    affine = geometry.crop_affine(host, (256, 192), frame="unbiased", rotation=0.3)
    on_device = geometry.crop_affine(
        jnp.asarray(host, jnp.float32), (256, 192), frame="unbiased", rotation=jnp.float32(0.3), xp=jnp
    )
    np.testing.assert_allclose(on_device, affine, rtol=1e-4, atol=1e-3)


def test_reference_crops_are_the_recorded_ones(golden):
    """The released code's test-time box and affine, coordinates within 1e-3 px."""
    data = golden("data_256x192.npz")
    for box, info, affine in zip(data["ipl_out_bbox"], data["test_crop_info"], data["test_trans"], strict=True):
        region = np.array([*info[:2], *(info[2:] - info[:2])])
        box = np.asarray(box, np.float64)
        ours = geometry.grow_box(geometry.fit_aspect(box, (256, 192)), geometry.CROP_PADDING)
        np.testing.assert_allclose(ours, region, atol=1e-3)
        corners = np.array([[0, 0], [639.0, 479]])
        place = geometry.crop_geometry(ours, (256, 192), frame="reference")
        np.testing.assert_allclose(place.to_crop(corners), geometry.apply_affine(affine, corners), atol=1e-3)
