"""The engine alone: batches, order, what is skipped and why, what it takes from an endless source."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import identity_network

from posefix_jax.core.models import DecodeConfig
from posefix_jax.data.images import UnreadableImage
from posefix_jax.refining.engine import NO_JOINT, NO_JOINT_NOR_BOX, Engine, Group, Refined, Skipped

IMAGE = np.random.default_rng(0).integers(0, 255, (200, 240, 3), np.uint8)


@pytest.fixture(scope="module")
def engine(tiny_spec) -> Engine:
    spec = replace(tiny_spec, decode=DecodeConfig("soft-argmax"))
    return Engine(identity_network(spec), {}, spec, batch_size=8)


def poses(count: int, seed: int = 0) -> np.ndarray:
    xy = np.random.default_rng(seed).uniform(60, 140, (count, 17, 2))
    return np.concatenate([xy, np.ones((count, 17, 1))], axis=2)


def read(name):
    if name == "broken":
        raise UnreadableImage("empty file")
    return IMAGE


def test_results_come_per_piece_in_order(engine):
    """Pieces of 3, 0 and 20 poses; photographs that do not decode and poses without a joint are skipped with a reason."""
    nobody = np.zeros((1, 17, 3))
    work = [
        [Group("a", poses(2)), Group("broken", poses(1))],
        [],
        [Group("b", np.concatenate([poses(9, 1), nobody])), Group("c", poses(10, 2))],
        [Group("d", nobody, boxes=[None])],
    ]
    results = list(engine.run(work, read, threads=3))
    assert [len(each.poses) for each in results] == [3, 0, 20, 1]
    assert results[0].poses[2] == Skipped("photograph unreadable: empty file") and "broken" not in results[0].sizes
    assert results[2].poses[9] == Skipped(NO_JOINT) and results[3].poses[0] == Skipped(NO_JOINT_NOR_BOX)
    assert results[2].sizes == {"b": (200, 240), "c": (200, 240)}
    assert [sum(isinstance(result, Refined) for result in each.poses) for each in results] == [2, 0, 19, 0]
    for piece, groups in zip(results, work, strict=True):
        given = np.concatenate([group.poses for group in groups] or [np.zeros((0, 17, 3))])
        for result, pose in zip(piece.poses, given, strict=True):
            if isinstance(result, Refined):
                np.testing.assert_allclose(result.poses, pose, atol=0.01)
                assert 0 < result.quality <= 1


def test_batches_do_not_cross_pieces(engine, monkeypatch):
    """So that a result depends on its own piece alone, whatever comes after it."""
    sizes, send = [], Engine.send

    def counted(self, crops, trust=None):
        sizes.append(len(crops))
        return send(self, crops, trust)

    monkeypatch.setattr(Engine, "send", counted)
    list(engine.run([[Group("a", poses(11))], [Group("b", poses(5))], [Group("c", poses(8))]], read))
    assert sizes == [8, 3, 5, 8]


def test_an_endless_source_is_taken_as_needed(engine):
    taken = itertools.count()
    run = engine.run(([Group(next(taken), poses(4))] for _ in itertools.count()), read, threads=2)
    assert [len(next(run).poses) for _ in range(20)] == [4] * 20
    run.close()
    assert next(taken) < 60


def test_fractions_boxes_and_counts(engine):
    """Fractions of width and height come out in pixels; a box stands in for missing joints; every pose is counted."""
    part = poses(3) / [240, 200, 1]
    done = []
    boxed = Group("b", np.zeros((2, 17, 3)), boxes=[(50, 50, 100, 100), None])
    (results,) = engine.run([[Group("a", part, fraction=True), boxed]], read, on_done=done.append)
    for result, pose in zip(results.poses[:3], poses(3), strict=True):
        np.testing.assert_allclose(result.poses, pose, atol=0.01)
    assert isinstance(results.poses[3], Refined) and results.poses[4] == Skipped(NO_JOINT_NOR_BOX)
    assert sum(done) == 5


def test_an_error_of_the_reader_is_raised(engine):
    def fails(name):
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(engine.run([[Group("a", poses(1))]], fails))
