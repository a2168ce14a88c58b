"""Files that other tools' own writers make, read here. Tools that are not installed are skipped."""

from pathlib import Path

import numpy as np
import pytest

from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.pose_files import PoseFiles, find_files

WIDTH, HEIGHT = 128, 96


@pytest.fixture
def made():
    """ultralytics' results of two people; joint 3 of the first is at (0, 0) with a confidence, as a masked one is."""
    results = pytest.importorskip("ultralytics.engine.results")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    joints = np.concatenate([rng.uniform(10, 90, (2, 17, 2)), rng.uniform(0.5, 1, (2, 17, 1))], axis=-1)
    joints[0, 3] = 0, 0, 0.3
    boxes = torch.tensor([[5.0, 6, 95, 90, 0.9, 0], [8.0, 9, 80, 85, 0.8, 0]])
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    made = results.Results(image, "im1.jpg", {0: "person"}, boxes=boxes, keypoints=torch.tensor(joints).float())
    return made, joints


def read(place: Path) -> tuple[str, list]:
    source = PoseFiles.open(find_files([str(place)], Path()), skeleton=None, preferred=COCO)
    return source.format.name, [pose for _, element in source.elements() for pose in element.poses]


@pytest.mark.parametrize("conf", [False, True])
def test_labels_that_ultralytics_saves(made, tmp_path, conf):
    results, joints = made
    (tmp_path / "labels").mkdir()
    results.save_txt(tmp_path / "labels/im1.txt", save_conf=conf)
    form, poses = read(tmp_path / "labels")
    assert form == "yolo" and [pose.image for pose in poses] == ["im1", "im1"]
    found = np.stack([pose.joints for pose in poses])
    np.testing.assert_allclose(found[..., :2] * [WIDTH, HEIGHT], joints[..., :2], atol=1e-3)
    assert found[0, 3, 2] == 0 and (np.delete(found[..., 2].reshape(-1), 3) > 0.4).all()
    assert [pose.score for pose in poses] == (pytest.approx([0.9, 0.8]) if conf else [None, None])


def test_json_that_ultralytics_writes(made, tmp_path):
    results, joints = made
    (tmp_path / "im1.json").write_text(results.to_json())
    form, poses = read(tmp_path / "im1.json")
    assert form == "ultralytics" and [pose.image for pose in poses] == ["im1", "im1"]
    found = np.stack([pose.joints for pose in poses])
    np.testing.assert_allclose(found[..., :2], joints[..., :2], atol=1e-3)
    assert found[0, 3, 2] == 0 and (np.delete(found[..., 2].reshape(-1), 3) > 0.4).all()
    assert [pose.score for pose in poses] == pytest.approx([0.9, 0.8]) and poses[0].box == pytest.approx((5, 6, 90, 84))
