"""What `posefix package --tune` fits: trust from agreement, confidence from expected KS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.models import DecodeConfig
from posefix_jax.core.synthesis import Person
from posefix_jax.core.trust import measures, trust_of
from posefix_jax.training.tune import DETECTIONS, TRUSTS, Graded, fit, graded_inputs

K = COCO.num_joints


@pytest.fixture(scope="module")
def person() -> Person:
    rng = np.random.default_rng(0)
    xy = rng.uniform(50, 150, (K, 2)).astype(np.float32)
    detected = (xy + rng.normal(0, 9, (1, K, 2))).astype(np.float32)
    nobody = np.zeros((0, K, 2), np.float32)
    labelled = np.arange(K) != 3
    return Person(
        *map(
            jnp.asarray,
            (
                xy,
                labelled,
                nobody,
                np.zeros((0, K), bool),
                np.zeros(0, np.float32),
                np.float32(9000),
                np.int32(0),
                detected,
            ),
        ),
        jnp.ones((1, K), bool),
    )


def test_graded_inputs_are_what_their_names_say(person):
    inputs = graded_inputs(COCO, detections=True)
    unit = 2 * np.asarray(COCO.sigmas) * np.sqrt(9000)
    far = {}
    for name, synthesize in inputs.items():
        poses = jax.jit(jax.vmap(synthesize, in_axes=(0, None)))(jax.random.split(jax.random.key(0), 300), person)
        assert np.isfinite(poses.xy).all()
        away = (np.asarray(poses.xy) - np.asarray(person.xy)) / unit[:, None]
        far[name] = away[np.asarray(poses.present)]
        assert name == DETECTIONS or not np.asarray(poses.present)[:, 3].any(), "an unlabelled joint leaks"
    assert (far["true poses"] == 0).all()
    for spread in (0.1, 0.3, 0.7):
        assert far[f"normal errors, {spread}"].std() == pytest.approx(spread, rel=0.05)
    missed = np.linalg.norm(far["normal errors, 0.5, 10% missed"], axis=-1) > 2
    assert missed.mean() == pytest.approx(0.1, abs=0.02)
    uneven, even = (np.abs(far[f"normal errors, 0.3{name}"]) for name in (", uneven", ""))
    assert np.quantile(uneven, 0.99) > 1.3 * np.quantile(even, 0.99)
    half = np.abs(far["detections, errors x 0.5"]).mean()
    quarter = np.abs(far["detections, errors x 0.25"]).mean()
    assert half == pytest.approx(2 * quarter, rel=1e-3) and half > 0
    own = np.linalg.norm((np.asarray(person.detected_xy[0]) - np.asarray(person.xy)) / unit[:, None], axis=-1)
    some = np.linalg.norm(far["detections, 30% of the joints"], axis=-1).reshape(300, K - 1)
    assert (np.abs(some - np.delete(own, 3)) < 1e-3).mean() == pytest.approx(0.3, abs=0.05)


def estimator(good: bool, seed: int, people: int = 200) -> Graded:
    """Trust helps a good one, whose poses agree with the picture, and harms a poor one."""
    rng = np.random.default_rng(seed)
    level = 0.85 if good else 0.5
    input_ks = rng.uniform(level - 0.1, level + 0.1, (people, K))
    gain = np.asarray(TRUSTS) * 0.1 if good else 0.3 * (1 - np.asarray(TRUSTS))
    output_ks = np.clip(input_ks[None] + gain[:, None, None], 0, 1)
    weights = rng.uniform(5, 10, (people, 2))
    near = np.clip(rng.normal((0.7, 0.8, 0.9) if good else (0.2, 0.4, 0.6), 0.05, (people, 3)), 0, 1)
    sums = np.concatenate([near * weights[:, :1], near * weights[:, 1:], weights], axis=1)
    return Graded(np.zeros(people, int), np.ones((people, K), bool), input_ks, output_ks, output_ks**2, sums)


def test_fit_tells_estimators_apart_and_calibrates():
    found = {DETECTIONS: estimator(False, 0), "true poses": estimator(True, 1)}
    tuned = fit(found, DecodeConfig("ks", temperature=1.5, withhold_mirror=True), ("people",))
    new = {good: trust_of(measures(estimator(good, 7).agreement), tuned.decode) for good in (True, False)}
    assert new[True] > 0.9 and new[False] < 0.1
    assert len(tuned.lines) == 2 and "people, true poses" in tuned.lines[1]
    assert (tuned.decode.temperature, tuned.decode.withhold_mirror) == (1.5, True)
    # Expected KS was the square of the true one.
    slope, offset, with_trust = tuned.decode.confidence
    true = np.concatenate([found["true poses"].output_ks[-1].ravel(), found[DETECTIONS].output_ks[0].ravel()])
    trust = np.repeat([1.0, 0.0], true.size // 2)
    expected = np.clip(true**2, 1e-4, 1 - 1e-4)
    said = 1 / (1 + np.exp(-(slope * np.log(expected / (1 - expected)) + offset + with_trust * trust)))
    assert abs(said.mean() - true.mean()) < 0.02 < abs(expected.mean() - true.mean())
