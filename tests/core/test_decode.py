"""The decoders on maps of known joints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posefix_jax.core import geometry, heatmaps
from posefix_jax.core.decode import DECODERS, view_probabilities
from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.models import STRIDE, DecodeConfig, ModelConfig, RefinerSpec

TOLERANCE = {"ks": 0.15, "soft-argmax": 0.01, "argmax": 2.0}
"""Crop pixels. The best expected KS blurs the map; the highest cell is off by up to half a cell of 4 pixels."""


@pytest.mark.parametrize(
    ("method", "frame"),
    [("ks", "unbiased"), ("argmax", "unbiased"), ("soft-argmax", "unbiased"), ("soft-argmax", "reference")],
)
@pytest.mark.parametrize("views", [1, 2])
def test_every_decoder_finds_certain_joints(method, frame, views):
    """Also from the mirrored view, whose maps have left and right exchanged."""
    spec = RefinerSpec(COCO, ModelConfig(crop_hw=(64, 96), frame=frame), (True,) * 17, DecodeConfig(method))
    crop_xy = np.random.default_rng(0).uniform(8, (80, 50), (3, 17, 2)).astype(np.float32)

    def logits(crop_xy):
        heat_xy = geometry.crop_to_heat(jnp.asarray(crop_xy), STRIDE, frame)
        maps = jax.vmap(lambda xy: heatmaps.one_hot(xy, spec.model.heat_hw).drawn())(heat_xy)
        return jnp.log(jnp.maximum(maps, 1e-30))

    mirrored = geometry.mirror_crop(crop_xy, 96)[:, COCO.flip_index]
    both = [logits(crop_xy), logits(mirrored)][:views]
    probability = sum(view_probabilities(both, spec)) / (1 if frame == "reference" else views)
    np.testing.assert_allclose(probability.sum(axis=(1, 2)), 1, atol=1e-5)
    found = DECODERS[method](both, probability, jnp.full((3, 17), 1.5), spec)
    np.testing.assert_allclose(found, crop_xy, atol=TOLERANCE[method])


def test_views_are_averaged():
    """Two views that disagree: each decoder has its own mean."""
    spec = RefinerSpec(COCO, ModelConfig(crop_hw=(64, 64)), (True,) * 17, DecodeConfig("soft-argmax"))
    logits = 3 * jax.random.normal(jax.random.key(0), (2, 2, 16, 16, 17))
    alone = [
        DECODERS["soft-argmax"]([view], *view_probabilities([view], spec), jnp.ones((2, 17)), spec) for view in logits
    ]
    maps = view_probabilities(list(logits), spec)
    both = DECODERS["soft-argmax"](list(logits), maps[0], jnp.ones((2, 17)), spec)
    mirrored = geometry.mirror_crop(np.asarray(alone[1]), 64)[:, COCO.flip_index]
    np.testing.assert_allclose(both, (alone[0] + mirrored) / 2, atol=1e-4)
    (own,) = view_probabilities([logits[1]], spec)
    np.testing.assert_allclose(maps[1], own[:, :, ::-1][..., COCO.flip_index], atol=1e-6)
