"""`Refiner.refine_results`: objects of other libraries, the same kind back. Those that are not installed are skipped."""

import dataclasses

import numpy as np
import pytest
from conftest import identity_network

from posefix_jax.core.joint_sets import HALPE26
from posefix_jax.refining.refiner import Refiner
from posefix_jax.types import PosefixError

IMAGE = np.full((96, 128, 3), 90, np.uint8)
IMAGE[..., 0] = 200  # red, so that an exchange of channels shows


@pytest.fixture
def seen() -> list:
    """Photographs that reached the refiner."""
    return []


@pytest.fixture
def refiner(tiny_spec, seen, monkeypatch) -> Refiner:
    """Moves joints 1.5 pixels to the right, and places missing ones."""
    moving = Refiner(identity_network(tiny_spec), {}, tiny_spec, batch_size=4)
    refine = moving.refine

    def moved(images, poses, **options):
        seen.extend(images)
        found = refine(images, poses, **options)
        for one, given in zip(found, poses, strict=True):
            there = given[..., 2] > 0
            one.poses[there] = (given + [1.5, 0, 0])[there]
        return found

    monkeypatch.setattr(moving, "refine", moved)
    return moving


def people(count: int = 2, joints: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """xy [N, K, 2] and scores [N, K]."""
    rng = np.random.default_rng(0)
    xy = rng.uniform([20, 20], [100, 80], (count, joints, 2)).astype(np.float32)
    return xy, rng.uniform(0.5, 1, (count, joints)).astype(np.float32)


def assert_moved(new, old, missing=()):
    """Joints lie 1.5 to the right; missing ones were placed."""
    new, old = np.asarray(new, np.float64), np.asarray(old, np.float64)
    rest = np.ones(old.shape[:2], bool)
    for place in missing:
        rest[place] = False
        assert new[place].any()
    np.testing.assert_allclose(new[rest], (old + [1.5, 0])[rest], atol=1e-3)


def test_arrays_as_rtmlib_returns_them(refiner):
    xy, scores = people()
    xy[0, 3] = 0
    given = xy.copy(), scores.copy()
    new_xy, new_scores = refiner.refine_results((xy, scores), IMAGE)
    assert new_xy.dtype == np.float32 and new_scores.dtype == np.float32
    assert_moved(new_xy, xy, [(0, 3)])
    np.testing.assert_allclose(new_scores[1], scores[1])
    np.testing.assert_array_equal(xy, given[0])
    np.testing.assert_array_equal(scores, given[1])
    both = refiner.refine_results([(xy, scores), (xy[:1], scores[:1])], [IMAGE, IMAGE])
    assert [len(one[0]) for one in both] == [2, 1]


def test_joints_that_the_refiner_lacks_stay(refiner):
    xy, scores = people(joints=26)
    new, _ = refiner.refine_results((xy, scores), IMAGE)
    own = [HALPE26.joints.index(name) for name in refiner.spec.skeleton.joints]
    assert_moved(new[:, own], xy[:, own])
    others = np.setdiff1d(np.arange(26), own)
    np.testing.assert_array_equal(new[:, others], xy[:, others])
    with pytest.raises(PosefixError, match="poses of 7 joints, expected 17; say which"):
        refiner.refine_results((xy[:, :7], scores[:, :7]), IMAGE)
    with pytest.raises(PosefixError, match="poses of 17 joints, expected 26"):
        refiner.refine_results(people(), IMAGE, skeleton=HALPE26)


def test_dictionaries_of_mmposes_inferencer(refiner):
    xy, scores = people()
    instances = [
        {"keypoints": pose.tolist(), "keypoint_scores": of.tolist(), "bbox": ([0, 0, 9, 9],), "bbox_score": 0.7}
        for pose, of in zip(xy, scores, strict=True)
    ]
    result = {"visualization": [], "predictions": [instances, []]}
    new = refiner.refine_results(result, [IMAGE, IMAGE])
    assert new["predictions"][1] == [] and new["visualization"] == []
    assert_moved([person["keypoints"] for person in new["predictions"][0]], xy)
    assert new["predictions"][0][0]["bbox_score"] == 0.7 and isinstance(new["predictions"][0][0]["keypoints"], list)
    assert result["predictions"][0][0]["keypoints"] == xy[0].tolist()
    assert refiner.refine_results(instances, IMAGE)[0].keys() == instances[0].keys()


def test_what_cannot_be_refined_is_said(refiner, tmp_path):
    xy, scores = people()
    with pytest.raises(PosefixError, match=r"result 0 \(rtmlib .*\) has no photograph: give it as images"):
        refiner.refine_results((xy, scores))
    with pytest.raises(PosefixError, match="2 results need as many photographs, found 1"):
        refiner.refine_results([(xy, scores), (xy, scores)], [IMAGE])
    with pytest.raises(PosefixError, match="results of builtins.int are not known; expected one or a list of: ultra"):
        refiner.refine_results([7], [IMAGE])
    with pytest.raises(PosefixError, match="nowhere.jpg"):
        refiner.refine_results((xy, scores), tmp_path / "nowhere.jpg")
    nobody = (np.zeros((0, 17, 2)), np.zeros((0, 17)))
    assert refiner.refine_results(nobody, IMAGE)[0].shape == (0, 17, 2)
    assert refiner.refine_results([]) == []


def test_supervision(refiner):
    supervision = pytest.importorskip("supervision")
    xy, scores = people()
    xy[0, 3] = 0
    names = {field.name for field in dataclasses.fields(supervision.KeyPoints)}
    score = "keypoint_confidence" if "keypoint_confidence" in names else "confidence"
    given = supervision.KeyPoints(xy=xy, **{score: scores}, class_id=np.array([0, 0]), data={"name": ["a", "b"]})
    new = refiner.refine_results(given, IMAGE)
    assert isinstance(new, supervision.KeyPoints) and new.xy.dtype == np.float32
    assert_moved(new.xy, xy, [(0, 3)])
    assert list(new.data["name"]) == ["a", "b"] and (new.class_id == 0).all()
    np.testing.assert_allclose(getattr(new, score)[1], scores[1])
    bare = refiner.refine_results(supervision.KeyPoints(xy=xy), IMAGE)
    assert getattr(bare, score) is None and bare.xy.shape == xy.shape
    assert len(refiner.refine_results(supervision.KeyPoints.empty(), IMAGE)) == 0


def test_ultralytics(refiner, seen):
    results = pytest.importorskip("ultralytics.engine.results")
    torch = pytest.importorskip("torch")
    xy, scores = people()
    xy[0, 3], scores[0, 3] = 0, 0.3
    scores[1, 5] = 0.2  # a constructor would move it to (0, 0)
    data = torch.tensor(np.concatenate([xy, scores[..., None]], axis=-1))
    boxes = torch.tensor([[0.0, 0, 90, 90, 0.9, 0]] * 2)
    given = results.Results(IMAGE[..., ::-1].copy(), path="a.jpg", names={0: "person"}, boxes=boxes, keypoints=data)
    xy = given.keypoints.xy.numpy()
    new = refiner.refine_results([given])[0]
    np.testing.assert_array_equal(seen[0], IMAGE)
    assert isinstance(new, results.Results) and new.keypoints.data.dtype == torch.float32
    placed = [(0, 3)] + ([(1, 5)] if not xy[1, 5].any() else [])
    assert_moved(new.keypoints.xy, xy, placed)
    assert_moved(new.keypoints.xyn.numpy() * [128, 96], xy, placed)
    np.testing.assert_array_equal(given.keypoints.xy.numpy(), xy)
    assert new.path == "a.jpg" and len(new.boxes) == 2 and new.to_json()
    assert isinstance(refiner.refine_results(given.numpy()).keypoints.data, np.ndarray)
    empty = results.Results(IMAGE, path="", names={0: "person"}, boxes=torch.zeros(0, 6))
    assert refiner.refine_results(empty).keypoints is None


@pytest.mark.parametrize("tensors", [False, True])
def test_samples_of_mmpose(refiner, tmp_path, tensors):
    """mmpose's PoseDataSample is mmengine's BaseDataElement with these fields."""
    structures = pytest.importorskip("mmengine.structures")
    torch = pytest.importorskip("torch")
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), IMAGE[..., ::-1])
    xy, scores = people()
    instances = structures.InstanceData()
    instances.keypoints = torch.tensor(xy) if tensors else xy
    instances.keypoint_scores = torch.tensor(scores) if tensors else scores
    instances.bboxes = np.zeros((2, 4))
    sample = structures.BaseDataElement(metainfo={"img_path": str(tmp_path / "a.png")}, pred_instances=instances)
    new = refiner.refine_results([sample])[0]
    assert isinstance(new, structures.BaseDataElement) and type(new.pred_instances.keypoints) is type(
        instances.keypoints
    )
    assert_moved(new.pred_instances.keypoints, xy)
    np.testing.assert_array_equal(np.asarray(sample.pred_instances.keypoints), xy)
