"""`Refiner` in Python: what it takes, what it gives back, and how its settings act."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import identity_network, shift_network

from posefix_jax.core.models import DecodeConfig, RefinerSpec
from posefix_jax.core.synthesis import PAPER
from posefix_jax.refining.refiner import Refiner
from posefix_jax.types import PosefixError


def pose_of(xy: np.ndarray) -> np.ndarray:
    return np.concatenate([xy, np.ones((*xy.shape[:2], 1))], axis=2)


def test_flip_is_undone(tiny_spec):
    """A network that pushes right in the crop it sees pushes left in the mirrored one: averaged, x stays, y moves."""
    spec = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, tiny_spec.trained_joints, DecodeConfig("soft-argmax"))
    image, pose = np.zeros((200, 200, 3), np.uint8), np.random.default_rng(0).uniform(60, 140, (1, 17, 2))
    pose[0, :2] = [[50, 50], [150, 150]]
    scale = 150 / 64  # extent 100, x 1.2 x 1.25, over 64 crop pixels
    for flip, expected in ((False, (8, 8)), (True, (0, 8))):
        refined = Refiner(shift_network(spec), {}, spec, flip=flip, batch_size=8).refine(image, pose).poses
        moved = (refined[0, :, :2] - pose[0]) / scale
        np.testing.assert_allclose(moved, np.broadcast_to(expected, (17, 2)), atol=1e-3)


def test_untrained_joints_stay(tiny_spec):
    """Exactly."""
    image, pose = np.zeros((200, 200, 3), np.uint8), np.random.default_rng(0).uniform(60, 140, (1, 17, 2))
    trained = tuple(i >= 5 for i in range(17))
    spec = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, trained, DecodeConfig("ks"))
    refined = Refiner(shift_network(spec), {}, spec, flip=False, batch_size=8).refine(image, pose).poses
    assert (refined[0, :5, :2] == pose[0, :5]).all() and (refined[0, 5:, :2] != pose[0, 5:]).all()


def test_trust_weighs_the_input_against_the_picture(tiny_spec):
    """Maps around a place 8 crop pixels from the input, with a little doubt: the more trust, the nearer the joint stays."""
    image, pose = np.zeros((200, 200, 3), np.uint8), np.random.default_rng(0).uniform(60, 140, (1, 17, 2))
    spec = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, tiny_spec.trained_joints, DecodeConfig("ks"))
    shifted = shift_network(spec)

    def doubtful(*arguments):
        return jnp.logaddexp(shifted(*arguments), jnp.log(1e-4))

    refiner = Refiner(doubtful, {}, spec, flip=False, batch_size=8)
    moved = []
    for trust in (None, 0.0, 0.9, 1.0):
        refiner.trust = trust
        moved.append(np.abs(refiner.refine(image, pose).poses[0, :, :2] - pose[0]).max(axis=1))
    eyes, hips = slice(1, 3), slice(11, 13)
    assert (moved[0] == moved[1]).all() and (moved[1] >= moved[2] - 1e-3).all() and (moved[1][eyes] > 10).all()
    # 8 pixels are many fall-offs of an eye and less than one of a hip.
    assert (moved[3][eyes] < 3).all() and (moved[3][hips] > 3).all()
    refiner.trust = PAPER
    assert (refiner.trust.weight < 1).any() and refiner.trust.weight.shape == (17,)
    with pytest.raises(PosefixError, match="trust must lie in 0..1"):
        refiner.trust = 1.5


def test_python_refuses_what_does_not_fit(identity):
    with pytest.raises(PosefixError, match=r"poses must be \[N, 17"):
        identity.refine(np.zeros((9, 9, 3), np.uint8), np.zeros((1, 16, 2)))
    with pytest.raises(PosefixError, match="uint8"):
        identity.refine(np.zeros((9, 9, 3)), np.zeros((1, 17, 2)))
    with pytest.raises(PosefixError, match="2 photographs need as many arrays of poses"):
        identity.refine([np.zeros((9, 9, 3), np.uint8)] * 2, [np.zeros((1, 17, 2))])
    with pytest.raises(PosefixError, match=r"boxes must be \[1, 4\]"):
        identity.refine(np.zeros((9, 9, 3), np.uint8), np.zeros((1, 17, 2)), boxes=np.zeros((2, 4)))
    with pytest.raises(PosefixError, match="nowhere.jpg: No such file"):
        identity.refine("nowhere.jpg", np.zeros((1, 17, 2)))
    nobody = identity.refine(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 17, 3)))
    assert nobody.poses.shape == (0, 17, 3) and nobody.quality.shape == (0,)


def test_python_takes_one_or_many(identity, people, caplog):
    """A pose or several, a photograph or several, as array, greyscale or path: the same poses; quality says how good."""
    path = sorted(people[1].glob("*.png"))[0]
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    grey = image[..., 0]
    poses = pose_of(np.random.default_rng(0).uniform(60, 140, (3, 17, 2)))
    many = identity.refine(image, poses)
    assert many.poses.shape == (3, 17, 3) and many.quality.shape == (3,) and (many.quality > 0).all()
    one = identity.refine(path, poses[0])
    np.testing.assert_allclose(one.poses, many.poses[0], atol=1e-4)
    assert one.quality == pytest.approx(many.quality[0], abs=1e-5)
    several = identity.refine([image, grey, path], [poses, poses[1], poses[:2]])
    assert [np.shape(found.quality) for found in several] == [(3,), (), (2,)]
    np.testing.assert_allclose(several[2].poses, many.poses[:2], atol=1e-4)
    with caplog.at_level("INFO", "posefix_jax"):
        Refiner(identity_network(identity.spec), {}, identity.spec, batch_size=8).refine(image, poses)
    assert "compiling for batches of 8 crops" in caplog.text


def test_python_boxes_scores_and_missing_joints(identity, people):
    """A pose without a joint is estimated in its box, or comes back as it was with quality 0."""
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    poses = pose_of(np.random.default_rng(1).uniform(60, 140, (2, 17, 2)))
    poses[0, :, 2] = 0.2
    poses[1, 3, 2] = 0.0
    plain = identity.refine(image, poses, min_score=0.3)
    np.testing.assert_array_equal(plain.poses[0], poses[0])
    assert plain.quality[0] == 0 < plain.quality[1] and plain.poses[1, 3, 2] > 0
    kept = identity.refine(image, poses, min_score=0.3, fill_missing=False)
    np.testing.assert_array_equal(kept.poses[1, 3], poses[1, 3])
    boxes = identity.refine(image, poses, boxes=[(50, 50, 100, 100), (0, 0, 0, 0)], min_score=0.3)
    assert boxes.quality[0] > 0 and (boxes.poses[0] != poses[0]).any()


def test_iterations_go_on_from_where_the_last_one_left(tiny_spec):
    """A network that pushes every joint two cells right pushes three times as far in three iterations."""
    spec = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, tiny_spec.trained_joints, DecodeConfig("soft-argmax"))
    image, pose = np.zeros((200, 200, 3), np.uint8), np.random.default_rng(0).uniform(90, 110, (1, 17, 2))
    pose[0, :2] = [[50, 50], [150, 150]]
    inner = np.arange(17) > 1  # the two corners are pushed to the border of the map
    once, thrice = (
        Refiner(shift_network(spec), {}, spec, flip=False, batch_size=8, iterations=k).refine(image, pose).poses
        for k in (1, 3)
    )
    np.testing.assert_allclose(
        (thrice - pose_of(pose))[0, inner, :2], 3 * (once - pose_of(pose))[0, inner, :2], atol=0.01
    )


def test_stream_is_refine_in_order(identity, people):
    """Poses as they come, of photographs in any order, some without one: as `refine` gives them, one for one."""
    _, images = people
    rng = np.random.default_rng(0)
    names = [1, 1, 3, 77, 2, 1, *[2] * 20, 3]
    poses = [rng.uniform(60, 140, (17, 3)) for _ in names]
    poses[4][:, 2] = 0
    refined = list(identity.stream(zip(names, poses, strict=True), images, threads=2))
    assert len(refined) == len(poses)
    for name, pose, out in zip(names, poses, refined, strict=True):
        assert (name == 77 or (pose[:, 2] == 0).all()) == bool((pose == out).all())
        np.testing.assert_allclose(out[:, :2], pose[:, :2], atol=0.01)
    endless = identity.stream((row for row in iter(lambda: (1, poses[0][:, :2]), None)), images)
    assert [next(endless).shape for _ in range(40)] == [(17, 3)] * 40
    endless.close()
    with pytest.raises(PosefixError, match=r"of 1 must be \[N, 17, 2 or 3\], found \(1, 16, 2\)"):
        list(identity.stream([(1, np.zeros((16, 2)))], images))


@pytest.mark.parametrize("people_count", [3, 9])
def test_few_people_do_not_wait_for_a_batch(identity, people_count):
    """On 8 devices a batch of 32 runs as 8 where that is enough, and the people come out the same."""
    refiner = Refiner(identity_network(identity.spec), {}, identity.spec, batch_size=32)
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    poses = pose_of(np.random.default_rng(1).uniform(60, 140, (people_count, 17, 2)))
    engine = refiner.engine
    crops, started = engine.send([engine.crop(image, pose) for pose in poses])
    assert len(crops) == people_count and started.crop_xy.shape == (8 if people_count < 9 else 32, 17, 2)
    np.testing.assert_allclose(refiner.refine(image, poses).poses, poses, atol=0.01)
