"""The picture of where a network looks (paper, figure 5)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.models import ModelConfig, RefinerSpec
from posefix_jax.refining.engine import Engine
from posefix_jax.refining.feature_pictures import feature_maps, feature_picture
from posefix_jax.types import PosefixError

CROP = (64, 64)


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = ModelConfig("resnet18", width=8, head_channels=8, crop_hw=CROP)
    spec = RefinerSpec(COCO, model, (True,) * 17)
    fields = jnp.zeros((1, *CROP, 3)), jnp.zeros((1, 17, 2)), jnp.ones((1, 17), bool)
    variables = jax.jit(spec.network().init)(jax.random.key(0), *fields)
    return Engine(spec.network().apply, variables, spec, batch_size=1)


def test_maps_follow_the_network_down_and_up(engine):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (90, 80, 3), np.uint8)
    pose = np.column_stack([rng.uniform(10, 70, (17, 2)), np.ones(17)])
    crop = engine.crop(image, pose)
    maps = feature_maps(engine.spec, engine.variables, crop)
    shapes = [each.shape[0] for each in maps]
    lowest = shapes.index(min(shapes))
    assert shapes[0] == 32 and min(shapes) == 2 and shapes[-1] == 16
    assert shapes[: lowest + 1] == sorted(shapes[: lowest + 1], reverse=True) and shapes[lowest:] == sorted(
        shapes[lowest:]
    )
    assert all(each.min() == 0 and each.max() == 1 for each in maps)
    fields = (jnp.asarray(of)[None] for of in (crop.pixels.astype(np.float32), crop.crop_xy, crop.present))
    logits = jax.jit(engine.spec.network().apply)(engine.variables, *fields)
    likely = np.asarray(jax.nn.softmax(logits[0].reshape(-1, 17), axis=0).max(axis=1)).reshape(16, 16)
    assert np.unravel_index(maps[-1].argmax(), (16, 16)) == np.unravel_index(likely.argmax(), (16, 16))
    picture = feature_picture(engine, image, pose, pose)
    half = -(-(len(maps) + 2) // 2)
    assert picture.shape == (2 * (26 + 64 + 6), half * 64 + (half - 1) * 6, 3)
    with pytest.raises(PosefixError, match="no usable joint"):
        feature_picture(engine, image, pose * [1, 1, 0], pose)
