import jax
import jax.numpy as jnp
import numpy as np
import pytest
from released import FIXTURES

from posefix_jax.core.heatmaps import argmax, gaussians
from posefix_jax.core.losses import LossConfig, integral_loss
from posefix_jax.types import PosefixError


def test_against_a_plain_computation():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 6, 5, 3)).astype(np.float32)
    xy = rng.uniform(0, 4, (2, 3, 2)).astype(np.float32)
    valid = np.array([[True, True, False], [True, False, True]])
    heatmap = coordinate = 0.0
    for b in range(2):
        for k in range(3):
            if not valid[b, k]:
                continue
            p = np.exp(logits[b, :, :, k]) / np.exp(logits[b, :, :, k]).sum()
            x, y = xy[b, k]
            for row in (int(y), int(y) + 1):
                for column in (int(x), int(x) + 1):
                    weight = (1 - abs(x - column)) * (1 - abs(y - row))
                    heatmap -= weight * np.log(p[row, column])
            rows, columns = np.mgrid[:6, :5]
            coordinate += abs((p * columns).sum() - x) + abs((p * rows).sum() - y)
    terms = integral_loss(jnp.asarray(logits), jnp.asarray(xy), jnp.asarray(valid))
    np.testing.assert_allclose(terms["heatmap"], heatmap / 6, rtol=1e-5)
    np.testing.assert_allclose(terms["coordinate"], coordinate / 12, rtol=1e-5)


def test_an_invalid_joint_has_no_gradient_whatever_its_target():
    logits = jnp.zeros((1, 4, 4, 2))
    xy = jnp.asarray([[[1.0, 1.0], [jnp.nan, 1e9]]])
    valid = jnp.asarray([[True, False]])
    gradient = jax.grad(lambda x: sum(integral_loss(x, xy, valid).values()))(logits)
    assert np.isfinite(gradient).all() and np.abs(gradient[..., 1]).max() == 0 and np.abs(gradient[..., 0]).max() > 0


def test_terms_can_be_left_out_and_the_target_be_a_gaussian():
    """Figure 6 of the paper: each term alone is that of both; a Gaussian target is its own best map."""
    rng = np.random.default_rng(0)
    logits, xy = jnp.asarray(rng.normal(size=(1, 6, 5, 2)), jnp.float32), jnp.asarray([[[1.5, 2.0], [3.0, 4.25]]])
    valid = jnp.asarray([[True, False]])
    both = integral_loss(logits, xy, valid)
    heatmap = integral_loss(logits, xy, valid, LossConfig(coordinate=False))
    coordinate = integral_loss(logits, xy, valid, LossConfig("none"))
    assert heatmap == both | {"coordinate": 0} and coordinate == both | {"heatmap": 0}
    coarse = LossConfig("gaussian", coordinate=False, sigma=1.5)
    target = gaussians(xy[0], valid[0], crop_hw=(6, 5), sigma=1.5).drawn()
    away = np.where(np.asarray(valid), np.asarray(((logits - target[None]) ** 2).sum(axis=(1, 2))), 0).mean()
    np.testing.assert_allclose(integral_loss(logits, xy, valid, coarse)["heatmap"], away, rtol=1e-5)
    assert integral_loss(target[None], xy, valid, coarse)["heatmap"] == 0
    for wrong in ({"heatmap": "none", "coordinate": False}, {"heatmap": "gaussian"}, {"sigma": 0.0}):
        with pytest.raises(PosefixError):
            LossConfig(**wrong)


def test_argmax_goes_a_quarter_toward_the_higher_neighbor():
    xy = jnp.asarray([[2.3, 3.6], [0.0, 5.0], [2.0, 2.0]])
    found = argmax(gaussians(xy, jnp.ones(3, bool), crop_hw=(6, 5), sigma=1.0).drawn())
    np.testing.assert_allclose(found, [[2.25, 3.75], [0.0, 5.0], [2.0, 2.0]])


def test_is_the_recorded_loss_of_single_joints():
    """Both terms and the gradient of seven of the recording's 85 joints: on cells, between them, on edges, outside.

    The excerpt holds whole maps, and every second row and column of their gradients.
    """
    data = np.load(FIXTURES / "loss.npz")
    count = len(data["ce"])
    xy = jnp.asarray(data["target_coord"][None]) / 4
    valid = jnp.asarray(data["target_valid"][None] > 0)
    logits = jnp.asarray(data["logits"].transpose(1, 2, 0)[None])
    assert valid.any() and not valid.all() and (data["onehot_sum"] == 0).sum() == 1
    terms = integral_loss(logits, xy, valid)
    on = data["target_valid"] > 0
    np.testing.assert_allclose(terms["heatmap"], np.where(on, data["ce"], 0).mean(), rtol=1e-5)
    away = np.abs(data["coord"] - data["target_coord"]) / 4
    np.testing.assert_allclose(terms["coordinate"], np.where(on[:, None], away, 0).mean(), rtol=1e-5)
    gradient = jax.grad(lambda x: sum(integral_loss(x, xy, valid).values()))(logits)[0, ::2, ::2].transpose(2, 0, 1)
    inside = (data["onehot_sum"] > 0)[:, None, None]  # see the next test
    theirs = data["grad_logits"] * 85 / count
    np.testing.assert_allclose(np.where(inside, gradient, 0), np.where(inside, theirs, 0), atol=1e-5)


def test_is_the_recorded_loss(golden):
    """Both terms and the gradient of the released code, 1e-5, on the whole recording."""
    data = golden("heatmap_loss_256x192.npz")
    xy = jnp.asarray(data["target_coord"]) / 4
    valid = jnp.asarray(data["target_valid"] > 0)
    logits = jnp.asarray(data["logits"])
    terms = integral_loss(logits, xy, valid)
    np.testing.assert_allclose(terms["heatmap"], data["loss_heatmap"], rtol=1e-5)
    np.testing.assert_allclose(terms["coordinate"], data["loss_coord"], rtol=1e-5)
    gradient = jax.grad(lambda x: sum(integral_loss(x, xy, valid).values()))(logits)
    # TensorFlow's gradient assumes that every target sums to 1. The target of a joint outside the map is empty; its
    # gradient there is not that of the loss. Training masks such joints.
    inside = (data["onehot"].sum(axis=(2, 3)) > 0)[:, None, None, :]
    assert not inside.all()
    np.testing.assert_allclose(np.where(inside, gradient, 0), np.where(inside, data["grad_logits"], 0), atol=1e-6)
