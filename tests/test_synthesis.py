"""The contract that every synthesiser keeps, and the recorded statistics of the released one."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from released import sampler, sampler_case

from posefix_jax.sharding import data_mesh, split
from posefix_jax.skeleton import COCO
from posefix_jax.synthesis import PAPER, ErrorModel, synthesize_pose
from posefix_jax.types import ErrorKind, PosefixError

DRAWS = 20000
SIGMAS = np.asarray(COCO.sigmas)


def draw(case: dict, seed: int = 0):
    return jax.tree.map(np.asarray, sampler(COCO)(jax.random.split(jax.random.key(seed), DRAWS), case))


RECORDED = np.load(Path(__file__).parent / "fixtures" / "synthesis.npz")


def recorded(name: str) -> dict:
    return sampler_case(RECORDED, name)


CASES = ("a_lone17", "b_9valid_2near", "e2_small_area")


def sources(case):
    """[S, K, 2] and [S, K]: itself, twin, others, others' twins."""
    flip = COCO.flip_index
    xy, on = np.asarray(case["crop_xy"]), np.asarray(case["labelled"])
    others, others_on = np.asarray(case["others_xy"]), np.asarray(case["others_labelled"])
    stacked = np.concatenate([xy[None], xy[flip][None], others, others[:, flip]])
    exists = np.concatenate([on[None], (on[flip] & COCO.has_twin)[None], others_on, others_on[:, flip] & COCO.has_twin])
    return stacked, exists


@pytest.mark.parametrize("name", CASES)
def test_contract(name):
    """Finite; in the promised rings; the conditions of each kind; absent joints empty."""
    case = recorded(name)
    pose = draw(case)
    labelled = np.asarray(case["labelled"])
    assert np.isfinite(pose.crop_xy).all()
    assert (pose.present == labelled).all()
    assert (pose.kind[:, ~labelled] == ErrorKind.ABSENT).all() and (pose.crop_xy[:, ~labelled] == 0).all()
    stacked, exists = sources(case)
    unit = 2 * SIGMAS * np.sqrt(float(case["area"]))
    d85, d50, d10 = (unit * np.sqrt(-2 * np.log(ks)) for ks in (0.85, 0.5, 0.1))
    away = np.linalg.norm(pose.crop_xy[:, None] - stacked[None], axis=-1)  # [D, S, K]
    away = np.where(exists[None], away, np.inf)
    tol = 1e-3 * unit.max() + 1e-3
    own, twin = away[:, 0], away[:, 1]
    others = away[:, 2:].min(axis=1, initial=np.inf)
    for kind in ErrorKind:
        at = pose.kind == kind

        def check(condition, at=at, kind=kind):
            assert condition[at].all(), kind.name

        if kind is ErrorKind.GOOD:
            check(own <= d85 + tol)
            check(own <= np.minimum(twin, others) + tol)
        elif kind is ErrorKind.JITTER:
            check((own >= d85 - tol) & (own <= d50 + tol))
            check(own <= np.minimum(twin, others) + tol)
        elif kind is ErrorKind.INVERSION:
            check((twin <= d50 + tol) & (twin <= np.minimum(own, others) + tol))
        elif kind is ErrorKind.SWAP:
            check((others <= d50 + tol) & (others <= np.minimum(own, twin) + tol))
        elif kind is ErrorKind.MISS:
            nearest = away.min(axis=1)
            check((nearest >= d50 - tol) & (nearest <= d10 + tol))


@pytest.mark.parametrize("name", CASES)
def test_rates_are_the_recorded_ones(name):
    """Every kind of every joint within the 99.9 % interval of two binomials, over 3 x 85 comparisons."""
    case = recorded(name)
    labelled = np.asarray(case["labelled"])
    kinds = draw(case).kind
    ours = np.stack([(kinds == kind).mean(axis=0) for kind in range(5)], axis=1)[labelled]
    order = [4, 0, 2, 3, 1]  # recorded: jitter, miss, inversion, swap, good
    theirs = RECORDED[f"{name}/freq"][:, order][labelled]
    spread = np.sqrt(np.maximum(theirs * (1 - theirs), 1 / 20000) * 2 / 20000)
    assert (np.abs(ours - theirs) / spread).max() < 4.7  # two-sided p = 0.001 / 255 / 1.6


def test_lengths_are_uniform_in_the_ring():
    """Good errors of a person alone: the length over d85 is uniform (Kolmogorov-Smirnov at 99.9 %)."""
    case = recorded("a_lone17") | {
        "others_xy": jnp.zeros((0, 17, 2)),
        "others_labelled": jnp.zeros((0, 17), bool),
    }
    pose = draw(case)
    wrist = COCO.joints.index("left_wrist")
    good = pose.kind[:, wrist] == ErrorKind.GOOD
    length = np.linalg.norm(pose.crop_xy[good, wrist] - np.asarray(case["crop_xy"])[wrist], axis=-1)
    d85 = 2 * SIGMAS[wrist] * np.sqrt(float(case["area"])) * np.sqrt(-2 * np.log(0.85))
    quantile = np.sort(length / d85)
    deviation = np.abs(quantile - (np.arange(len(quantile)) + 0.5) / len(quantile)).max()
    assert deviation < 1.95 / np.sqrt(len(quantile))


def test_pure_and_the_same_on_eight_devices_and_without_jit():
    case = recorded("b_9valid_2near")
    keys = jax.random.split(jax.random.key(3), 16)
    once = sampler(COCO)(keys, case)
    mesh = data_mesh()
    assert mesh.size == 8
    spread = sampler(COCO)(jax.device_put(keys, split(mesh)), case)
    assert len(spread.crop_xy.sharding.device_set) == 8
    for a, b in zip(once, spread, strict=True):
        np.testing.assert_array_equal(a, b)
    eager = synthesize_pose(keys[0], **case, skeleton=COCO, errors=PAPER)
    np.testing.assert_array_equal(eager.kind, once.kind[0])
    np.testing.assert_allclose(eager.crop_xy, once.crop_xy[0], rtol=1e-5, atol=1e-4)


def test_an_unlabelled_joint_never_leaks():
    case = recorded("b_9valid_2near")
    moved = case | {
        "crop_xy": jnp.where(case["labelled"][:, None], case["crop_xy"], 77.0),
        "others_xy": jnp.where(case["others_labelled"][..., None], case["others_xy"], jnp.nan),
    }
    for a, b in zip(draw(case), draw(moved), strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_people_on_one_spot():
    """No condition can be met: every joint is good, where it is, and nothing is NaN."""
    case = recorded("a_lone17")
    spot = case | {"crop_xy": jnp.full((17, 2), 50.0), "others_xy": jnp.full((1, 17, 2), 50.0)}
    spot["others_labelled"] = jnp.ones((1, 17), bool)
    pose = draw(spot)
    assert np.isfinite(pose.crop_xy).all()


def test_program_does_not_grow_with_joints():
    import dataclasses

    half = dataclasses.replace(
        COCO,
        joints=COCO.joints[:9],
        flip_pairs=COCO.flip_pairs[:4],
        sigmas=COCO.sigmas[:9],
        groups=COCO.groups[:9],
        limbs=(),
    )

    def size(skeleton):
        k = skeleton.num_joints
        trace = jax.make_jaxpr(
            lambda key: synthesize_pose(
                key,
                jnp.zeros((k, 2)),
                jnp.ones(k, bool),
                others_xy=jnp.zeros((2, k, 2)),
                others_labelled=jnp.ones((2, k), bool),
                area=jnp.float32(100),
                skeleton=skeleton,
                errors=PAPER,
            )
        )
        return len(trace(jax.random.key(0)).eqns)

    assert size(half) == size(COCO)


def test_error_model_round_trip_and_checks():
    assert ErrorModel.from_json(PAPER.to_json()) == PAPER
    np.testing.assert_allclose(PAPER.table(COCO).sum(axis=-1), 1, atol=1e-6)
    hip, few, crowded = COCO.joints.index("left_hip"), 0, 1
    np.testing.assert_allclose(PAPER.table(COCO)[hip, few, crowded], [0.34, 0.25, 0.06, 0.10, 0.25], atol=1e-6)
    with pytest.raises(PosefixError, match="good_ks > jitter_ks"):
        ErrorModel(name="x", rates=(), jitter_ks=0.9)
    with pytest.raises(PosefixError, match="not an error model"):
        ErrorModel.from_json('{"name": "x"}')
