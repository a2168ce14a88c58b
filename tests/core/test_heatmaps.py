import jax.numpy as jnp
import numpy as np
import pytest

from posefix_jax.core import heatmaps


def test_soft_argmax_inverts_encode():
    rng = np.random.default_rng(0)
    xy = jnp.asarray(rng.uniform((0, 0), (11, 15), (40, 2)), jnp.float32)
    decoded = heatmaps.soft_argmax(heatmaps.one_hot(xy, (16, 12)).drawn())
    np.testing.assert_allclose(decoded, xy, atol=1e-5)


def test_encode_at_and_beyond_the_border():
    xy = jnp.asarray([[0.0, 0.0], [-0.4, 3.0], [-1.0, 3.0], [11.5, 15.2]])
    maps = np.asarray(heatmaps.one_hot(xy, (16, 12)).drawn())
    assert maps[0, 0, 0] == 1
    assert maps[3, 0, 1] == 1  # the corner outside drops out, the rest is renormalized
    assert maps[..., 2].sum() == 0  # a whole cell outside: nothing
    assert maps[15, 11, 3] == 1


def test_gaussians():
    xy = jnp.asarray([[10.0, 20.0], [5.0, 5.0]])
    maps = np.asarray(heatmaps.gaussians(xy, jnp.asarray([True, False]), crop_hw=(32, 24), sigma=3.0).drawn())
    y, x = np.mgrid[:32, :24]
    np.testing.assert_allclose(maps[..., 0], np.exp(-((x - 10) ** 2 + (y - 20) ** 2) / 18), atol=1e-6)
    assert maps[..., 1].max() == 0


def test_absent_joint_may_hold_nan():
    xy = jnp.asarray([[jnp.nan, jnp.inf]])
    maps = heatmaps.gaussians(xy, jnp.asarray([False]), crop_hw=(8, 8), sigma=2.0).drawn()
    assert float(jnp.abs(maps).max()) == 0


def test_expected_ks_of_a_certain_map_is_ks():
    xy, guess, scale = jnp.asarray([[4.0, 7.0]]), jnp.asarray([[6.0, 8.0]]), jnp.asarray([3.0])
    certain = heatmaps.one_hot(xy, (16, 12)).drawn()
    np.testing.assert_allclose(heatmaps.expected_ks(certain, guess, scale), np.exp(-5 / 18), rtol=1e-5)


@pytest.mark.parametrize("place", [(3.3, 4.7), (0.2, 14.9), (10.6, 0.1)])
def test_best_expected_ks_finds_a_certain_joint(place):
    xy = jnp.asarray([place])
    best = heatmaps.best_expected_ks(heatmaps.one_hot(xy, (16, 12)).drawn(), jnp.asarray([1.5]))
    np.testing.assert_allclose(best, xy, atol=0.03)  # the map itself holds the place in bilinear weights only


def test_best_expected_ks_takes_the_better_of_two_modes():
    """Where the soft-argmax lies between a joint and its twin, and scores nothing."""
    two = heatmaps.one_hot(jnp.asarray([[2.0, 8.0], [9.0, 8.0]]), (16, 12)).drawn()
    mixed = 0.6 * two[..., :1] + 0.4 * two[..., 1:]
    scale = jnp.asarray([1.0])
    best = heatmaps.best_expected_ks(mixed, scale)
    np.testing.assert_allclose(best, [[2.0, 8.0]], atol=0.01)
    mean = heatmaps.soft_argmax(mixed)
    assert float(heatmaps.expected_ks(mixed, mean, scale)[0]) < 0.1
    np.testing.assert_allclose(heatmaps.expected_ks(mixed, best, scale), [0.6], atol=0.01)


def test_best_expected_ks_is_the_best_on_a_fine_grid():
    rng = np.random.default_rng(0)
    probability = heatmaps.probabilities(jnp.asarray(3 * rng.normal(size=(10, 8, 3)), jnp.float32))
    scale = jnp.asarray([1.0, 1.5, 2.5])
    best = heatmaps.expected_ks(probability, heatmaps.best_expected_ks(probability, scale, iterations=30), scale)
    for x in np.arange(0, 7.01, 0.25):
        for y in np.arange(0, 9.01, 0.25):
            guess = jnp.full((3, 2), jnp.asarray([x, y], jnp.float32))
            assert (heatmaps.expected_ks(probability, guess, scale) <= best + 0.002).all()


def test_gaussians_are_the_recorded_ones(golden):
    data = golden("heatmap_loss_256x192.npz")
    xy = jnp.asarray(data["target_coord"][0])
    on = jnp.asarray(data["pose_valid"][0] > 0)
    ours = 255 * heatmaps.gaussians(xy, on, crop_hw=(256, 192), sigma=float(data["sigma"])).drawn()
    np.testing.assert_allclose(ours, data["gaussian_b0_valid"], rtol=1e-4, atol=1e-3)
