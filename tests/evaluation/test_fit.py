"""An error model fitted to draws of a known one is that one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_synthesis import TOGETHER

from posefix_jax.cli import main
from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.synthesis import PAPER, ErrorModel, Person, from_model, read_error_model
from posefix_jax.data.coco import OVERLAP_IOU, box_iou

PEOPLE, AREA = 1500, 400.0
HALF = ((0.03, 0.06), (0.06, 0.08), (0.14, 0.2), (0.2, 0.36), (0.22, 0.5), (0.1, 0.52), (0.11, 0.75), (0.12, 0.96))
"""Right half of a standing figure of height 1, from eye to ankle"""


def without_swaps(model: ErrorModel) -> ErrorModel:
    """Nobody else is there: no room for a swap."""
    none = tuple((0.0, 0.0) for _ in range(3))
    rates = tuple((group, (jitter, inversion, none, miss)) for group, (jitter, inversion, _, miss) in model.rates)
    return dataclasses.replace(model, rates=rates)


def write_draws(folder, model: ErrorModel):
    """Annotations of people whose joints lie far apart, and draws of the model as an estimator's results."""
    rng = np.random.default_rng(0)
    cells = np.stack([np.arange(17) % 5, np.arange(17) // 5], axis=1) * 100 + 100.0
    true_xy = cells + rng.uniform(-10, 10, (PEOPLE, 17, 2))

    def draw(key, xy):
        nobody = jnp.zeros((0, 17, 2)), jnp.zeros((0, 17), bool)
        person = Person(xy, jnp.ones(17, bool), *nobody, jnp.zeros(0), jnp.float32(AREA), jnp.int32(0), *nobody)
        return from_model(model, COCO)(key, person)

    keys = jax.random.split(jax.random.key(1), PEOPLE)
    pose = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys, jnp.asarray(true_xy, jnp.float32)))

    def flat(xy, last):
        return np.concatenate([xy, np.full((17, 1), last)], axis=1).reshape(-1).tolist()

    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 640} for i in range(PEOPLE)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.joints), "skeleton": []}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "area": AREA, "bbox": [90, 90, 430, 330],
             "keypoints": flat(xy, 2), "num_keypoints": 17}
            for i, xy in enumerate(true_xy)
        ],
    }  # fmt: skip
    rows = [{"image_id": i, "category_id": 1, "keypoints": flat(xy, 1), "score": 0.5} for i, xy in enumerate(pose.xy)]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(rows))
    return pose.kind


def fitted(folder, *options: str) -> tuple[ErrorModel, dict]:
    arguments = [
        str(folder / "found.json"),
        "--annotations",
        str(folder / "truth.json"),
        "--out",
        str(folder / "m.json"),
    ]
    assert main(["analyze", "fit", *arguments, *options]) == 0
    return read_error_model(folder / "m.json"), json.loads((folder / "m.json").read_text())["evidence"]


@pytest.mark.slow
def test_recovers_the_model_that_the_detections_were_drawn_from(tmp_path, capsys):
    """The paper's rates within 95% intervals as often as that says; lengths uniform; joints independent."""
    model = without_swaps(PAPER)
    kinds = write_draws(tmp_path, model)
    found, evidence = fitted(tmp_path, "--offsets")
    assert "shoulder" in capsys.readouterr().out
    true, groups = model.table(COCO)[:, 2, 0], np.array(COCO.groups)
    assert evidence["people"] > 0.99 * PEOPLE
    inside = []
    for group, of in evidence["groups"].items():
        counts = np.sum(of["counts"], axis=(0, 1))
        if evidence["people"] == PEOPLE:  # the taxonomy sees the very kinds that were drawn
            np.testing.assert_array_equal(counts, [(kinds[:, groups == group] == kind).sum() for kind in range(5)])
        for expected, (low, high) in zip(true[groups == group].mean(axis=0), of["interval"].values(), strict=True):
            inside.append(low <= expected <= high)
    assert len(inside) == 40 and sum(inside) >= 35  # binomial, 95% each: fewer with a probability below 0.02
    assert np.max(found.together) < 0.1
    for _, lengths in found.lengths:
        np.testing.assert_allclose(lengths[0], np.linspace(0, 1, 17), atol=0.06)


@pytest.mark.slow
def test_recovers_how_errors_come_together(tmp_path):
    model = without_swaps(dataclasses.replace(TOGETHER, lengths=()))
    write_draws(tmp_path, model)
    found, _ = fitted(tmp_path)
    np.testing.assert_allclose(np.array(found.together)[[0, 1, 3]], np.array(model.together)[[0, 1, 3]], atol=0.12)
    assert found.lengths == () and "swap: 0 joints" in (tmp_path / "m.json").read_text()
    alone, _ = fitted(tmp_path, "--no-correlation")
    assert not np.any(alone.together) and alone.rates == found.rates


def write_crowds(folder, photographs=300):
    """Three overlapping people of different sizes in each photograph, a small one apart, and draws of the paper's errors.

    Returns:
      The kinds drawn, [people, 17].
    """
    rng = np.random.default_rng(0)
    figure = np.array([(0.5, 0.08), *[(0.5 + s * x, y) for x, y in HALF for s in (1, -1)]])
    size = rng.uniform(80, 260, (photographs, 4))
    size[:, 3] = 40
    corner = 100 + rng.uniform(0, 50, (photographs, 4, 2))
    corner[:, 3] += 500
    xy = corner[:, :, None] + size[..., None, None] * (figure + rng.normal(0, 0.02, (photographs, 4, 17, 2)))
    box = np.concatenate([corner, np.stack([0.6 * size, size], axis=-1)], axis=-1)
    area = 0.3 * size**2
    near = np.array([[box_iou(b, boxes) >= OVERLAP_IOU for b in boxes] for boxes in box]) & ~np.eye(4, dtype=bool)

    def draw(key, xy, others_xy, others, area, others_area):
        none = jnp.zeros((0, 17, 2)), jnp.zeros((0, 17), bool)
        on = jnp.broadcast_to(others[:, None], (4, 17))
        overlap = others.sum()
        person = Person(xy, jnp.ones(17, bool), others_xy, on, others_area, area, overlap, *none)
        return from_model(dataclasses.replace(PAPER, crowded=((17, 1),)), COCO)(key, person)

    keys = jax.random.split(jax.random.key(2), photographs * 4).reshape(photographs, 4)
    in_photograph = jax.vmap(draw, in_axes=(0, 0, None, 0, 0, None))
    pose = jax.tree.map(
        np.asarray,
        jax.jit(jax.vmap(in_photograph))(
            keys, *(jnp.asarray(a, jnp.float32) for a in (xy, xy)), near, *[jnp.asarray(area, jnp.float32)] * 2
        ),
    )
    ids = [(i, p) for i in range(photographs) for p in range(4)]

    def flat(xy, last):
        return np.concatenate([xy, np.full((17, 1), last)], axis=1).reshape(-1).tolist()

    truth = {
        "images": [{"id": i, "width": 900, "height": 900} for i in range(photographs)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.joints), "skeleton": []}],
        "annotations": [
            {"id": 4 * i + p, "image_id": i, "category_id": 1, "iscrowd": 0, "area": area[i, p],
             "bbox": box[i, p].tolist(), "keypoints": flat(xy[i, p], 2), "num_keypoints": 17}
            for i, p in ids
        ],
    }  # fmt: skip
    rows = [{"image_id": i, "category_id": 1, "keypoints": flat(pose.xy[i, p], 1), "score": 0.5} for i, p in ids]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(rows))
    return pose.kind.reshape(-1, 17)


@pytest.mark.slow
def test_swaps_of_crowds_are_recovered(tmp_path):
    """Sizes differ, and a joint may come to lie on somebody who does not overlap: the kinds are still those drawn."""
    kinds = write_crowds(tmp_path)
    _, evidence = fitted(tmp_path, "--no-correlation")
    found = np.sum([of["counts"] for of in evidence["groups"].values()], axis=(0, 1, 2))
    drawn = np.bincount(kinds.reshape(-1), minlength=5)
    assert evidence["people"] > 0.97 * len(kinds)
    np.testing.assert_allclose(found / found.sum(), drawn / drawn.sum(), atol=0.004)
    groups, inside = np.array(COCO.groups), []
    for group, of in evidence["groups"].items():
        for kind, (low, high) in enumerate(of["interval"].values()):
            inside.append(low <= (kinds[:, groups == group] == kind).mean() <= high)
    assert np.mean(inside) >= 0.95


def test_mistakes(tmp_path, capsys):
    write_draws(tmp_path, PAPER)
    rows = json.loads((tmp_path / "found.json").read_text())
    (tmp_path / "far.json").write_text(json.dumps([row | {"keypoints": [1e5, 1e5, 1] * 17} for row in rows[:5]]))
    (tmp_path / "other.json").write_text(json.dumps([rows[0] | {"image_id": 99999}]))
    for name, message in (("far", "no pose in it lies on a person"), ("other", "different photographs")):
        arguments = ["--annotations", str(tmp_path / "truth.json"), "--out", str(tmp_path / "m.json")]
        assert main(["analyze", "fit", str(tmp_path / f"{name}.json"), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("wrong", [((0.5, 0.6),) * 4, ((-0.1, 0.0),) * 4, ((0.1, 0.1),) * 3])
def test_correlations_are_checked(wrong):
    from posefix_jax.types import PosefixError

    with pytest.raises(PosefixError, match="together needs"):
        dataclasses.replace(PAPER, together=wrong)
