"""Trust: maps fused with the input, and what tells how far an input may be trusted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posefix_jax.core import heatmaps
from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.models import DecodeConfig
from posefix_jax.core.synthesis import PAPER, ErrorModel
from posefix_jax.core.trust import SPREAD, Trust, agreement, from_errors, fuse, measures, trust_of, uniform
from posefix_jax.types import PosefixError

HW = (32, 24)


def gaussian_map(heat_xy, deviation: float) -> jnp.ndarray:
    """[B, h, w, K] a normal distribution around each place."""
    xy = jnp.asarray(heat_xy, jnp.float32)
    deviations = jnp.full(xy.shape[:2], deviation)
    rows, columns = jax.vmap(heatmaps.ks_kernels, in_axes=(None, 0, 0))(HW, xy, deviations)
    maps = rows[:, :, None, :] * columns[:, None, :, :]
    return maps / maps.sum(axis=(1, 2), keepdims=True)


def mean_of(maps) -> np.ndarray:
    return np.asarray(jax.vmap(heatmaps.soft_argmax)(maps))


def test_fused_gaussians_are_the_closed_form():
    """Of a normal map and a normal likelihood: their precisions add up."""
    picture, given = np.full((1, 1, 2), 10.0), np.array([[[13.0, 16.0]]])
    scale, deviation, spread = 2.0, 3.0, 1.5
    trust = Trust(jnp.ones(1), jnp.full(1, spread))
    fused = fuse(
        gaussian_map(picture, deviation), jnp.asarray(given), jnp.ones((1, 1), bool), jnp.full((1, 1), scale), trust
    )
    np.testing.assert_allclose(fused.sum(axis=(1, 2)), 1, atol=1e-5)
    share = deviation**2 / (deviation**2 + (spread * scale) ** 2)
    np.testing.assert_allclose(mean_of(fused), picture + share * (given - picture), atol=0.02)


def test_floor_lets_a_sure_picture_win():
    """A narrow map far from the input: only full trust holds the joint back."""
    picture, given = np.full((1, 1, 2), 6.0), np.full((1, 1, 2), 18.0)
    maps = 0.98 * gaussian_map(picture, 1.0) + 0.02 * gaussian_map(given, 1.0)
    on, scale = jnp.ones((1, 1), bool), jnp.full((1, 1), 2.0)

    def best(weight):
        fused = fuse(maps, jnp.asarray(given), on, scale, uniform(weight, 1))
        return np.asarray(jax.vmap(heatmaps.best_expected_ks)(fused, scale))[0, 0]

    np.testing.assert_allclose(best(0.0), picture[0, 0], atol=0.1)
    np.testing.assert_allclose(best(0.9), picture[0, 0], atol=0.1)
    np.testing.assert_allclose(best(1.0), given[0, 0], atol=0.5)


def test_missing_joints_and_no_trust_change_nothing():
    maps = gaussian_map(np.random.default_rng(0).uniform(4, 20, (2, 3, 2)), 2.0)
    xy, scale = jnp.full((2, 3, 2), 9.0), jnp.full((2, 3), 1.0)
    absent = fuse(maps, xy, jnp.zeros((2, 3), bool), scale, uniform(1.0, 3))
    np.testing.assert_allclose(absent, maps, atol=1e-6)
    np.testing.assert_allclose(fuse(maps, xy, jnp.ones((2, 3), bool), scale, uniform(0.0, 3)), maps, atol=1e-6)
    # Nowhere probable, and a likelihood that is zero almost everywhere: still finite.
    far = fuse(
        gaussian_map(jnp.zeros((1, 1, 2)), 0.3),
        jnp.full((1, 1, 2), 1e4),
        jnp.ones((1, 1), bool),
        jnp.ones((1, 1)),
        uniform(1.0, 1),
    )
    assert np.isfinite(far).all()


def test_agreement_is_high_for_the_map_s_own_places_only():
    places = np.random.default_rng(0).uniform(6, 18, (64, 5, 2)).astype(np.float32)
    maps, scale, on = gaussian_map(places, 1.0), jnp.full((64, 5), 2.0), jnp.ones((64, 5), bool)
    own = measures(np.asarray(agreement(maps, jnp.asarray(places), on, scale)))
    off = measures(np.asarray(agreement(maps, jnp.asarray(places + 4), on, scale)))
    assert own.shape == (6,) and (own > 0.95).all() and (off < own - 0.2).all()
    # Joints that do not count have no weight, and a person without any joint none at all.
    some = np.asarray(agreement(maps, jnp.asarray(places), on.at[0].set(False), scale))
    assert (some[0] == 0).all() and (some[1:] > 0).any()


def test_trust_of_a_file_is_a_logistic_function_of_its_measures():
    decode = DecodeConfig(trust_weights=(1.0, 0.0, 0.0, 0.0, 2.0, 0.0, -1.0))
    measured = np.array([0.5, 0.1, 0.1, 0.1, 0.75, 0.1])
    assert trust_of(measured, decode) == pytest.approx(1 / (1 + np.exp(-1.0)))


def rates(jitter: float, miss: float) -> ErrorModel:
    kinds = [[[share, share]] * 3 for share in (jitter, 0.0, 0.0, miss)]
    table = tuple(tuple(tuple(pair) for pair in kind) for kind in kinds)
    return ErrorModel("measured", tuple((name, table) for name in (*COCO.groups, "other")))


def test_error_model_becomes_trust():
    """Full trust without gross errors, none at a fifth of them; the spread follows the jitter of a normal error."""
    deviation = 0.3
    good, jitter = (1 - ks ** (1 / deviation**2) for ks in (0.85, 0.5))
    trust = from_errors(rates(1 - good / jitter, 0.0), COCO)
    np.testing.assert_allclose(trust.weight, 1)
    np.testing.assert_allclose(trust.spread, SPREAD, rtol=0.03)
    np.testing.assert_allclose(from_errors(rates(0.1, 0.1), COCO).weight, 0.5, atol=1e-6)
    np.testing.assert_allclose(from_errors(rates(0.1, 0.3), COCO).weight, 0)
    assert (from_errors(rates(0.4, 0.0), COCO).spread > trust.spread).all()
    assert from_errors(PAPER, COCO).weight.shape == (17,)


def test_trust_out_of_range_is_refused():
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(PosefixError, match="trust must lie in 0..1"):
            uniform(value, 3)
