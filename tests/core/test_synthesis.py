"""The contract of all synthesizers, and the recorded statistics of the released one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from released import FIXTURES, sampler, sampler_case

from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.synthesis import (
    ERROR_MODELS,
    PAPER,
    VARIANTS,
    ErrorModel,
    Person,
    from_model,
    make_synthesizer,
    read_error_model,
    synthesize_pose,
)
from posefix_jax.runtime.devices import data_mesh, replicated, split
from posefix_jax.types import ErrorKind, PosefixError

DRAWS = 20000
SIGMAS = np.asarray(COCO.sigmas)


def draw(case: dict, seed: int = 0):
    return jax.tree.map(np.asarray, sampler(COCO)(jax.random.split(jax.random.key(seed), DRAWS), case))


RECORDED = np.load(FIXTURES / "synthesis.npz")


def recorded(name: str) -> dict:
    return sampler_case(RECORDED, name)


CASES = ("a_lone17", "b_9valid_2near", "e2_small_area")


def sources(case):
    """[S, K, 2] and [S, K]: itself, twin, others, others' twins."""
    flip = COCO.flip_index
    xy, on = np.asarray(case["xy"]), np.asarray(case["labelled"])
    others, others_on = np.asarray(case["others_xy"]), np.asarray(case["others_labelled"])
    stacked = np.concatenate([xy[None], xy[flip][None], others, others[:, flip]])
    exists = np.concatenate([on[None], (on[flip] & COCO.has_twin)[None], others_on, others_on[:, flip] & COCO.has_twin])
    return stacked, exists


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_contract(name):
    """Finite, in the rings and under the conditions of each kind; absent joints are zero."""
    case = recorded(name)
    pose = draw(case)
    labelled = np.asarray(case["labelled"])
    assert np.isfinite(pose.xy).all()
    assert (pose.present == labelled).all()
    assert (pose.kind[:, ~labelled] == ErrorKind.ABSENT).all() and (pose.xy[:, ~labelled] == 0).all()
    stacked, exists = sources(case)
    unit = 2 * SIGMAS * np.sqrt(float(case["area"]))
    d85, d50, d10 = (unit * np.sqrt(-2 * np.log(ks)) for ks in (0.85, 0.5, 0.1))
    away = np.linalg.norm(pose.xy[:, None] - stacked[None], axis=-1)  # [D, S, K]
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
@pytest.mark.slow
def test_rates_are_the_recorded_ones(name):
    """Every kind of every joint within the 99.9% interval of two binomials, over 3 x 85 comparisons."""
    case = recorded(name)
    labelled = np.asarray(case["labelled"])
    kinds = draw(case).kind
    ours = np.stack([(kinds == kind).mean(axis=0) for kind in range(5)], axis=1)[labelled]
    order = [4, 0, 2, 3, 1]  # recorded: jitter, miss, inversion, swap, good
    theirs = RECORDED[f"{name}/freq"][:, order][labelled]
    spread = np.sqrt(np.maximum(theirs * (1 - theirs), 1 / 20000) * 2 / 20000)
    assert (np.abs(ours - theirs) / spread).max() < 4.7  # two-sided p = 0.001 / 255 / 1.6


@pytest.mark.slow
def test_lengths_are_uniform_in_the_ring():
    """Good errors of a person alone: the length over d85 is uniform (Kolmogorov-Smirnov at 99.9%)."""
    case = recorded("a_lone17") | {
        "others_xy": jnp.zeros((0, 17, 2)),
        "others_labelled": jnp.zeros((0, 17), bool),
    }
    pose = draw(case)
    wrist = COCO.joints.index("left_wrist")
    good = pose.kind[:, wrist] == ErrorKind.GOOD
    length = np.linalg.norm(pose.xy[good, wrist] - np.asarray(case["xy"])[wrist], axis=-1)
    d85 = 2 * SIGMAS[wrist] * np.sqrt(float(case["area"])) * np.sqrt(-2 * np.log(0.85))
    quantile = np.sort(length / d85)
    deviation = np.abs(quantile - (np.arange(len(quantile)) + 0.5) / len(quantile)).max()
    assert deviation < 1.95 / np.sqrt(len(quantile))


TOGETHER = dataclasses.replace(
    PAPER,
    name="together",
    together=((0.1, 0.0), (0.5, 0.3), (0.2, 0.1), (0.3, 0.0)),
    lengths=(("wrist", tuple(tuple(np.linspace(0, 1, 5) ** 2) for _ in range(5))),),
)
MADE = {
    **{name: make_synthesizer((name,), (), COCO) for name in (*ERROR_MODELS, *VARIANTS)},
    "together": from_model(TOGETHER, COCO),
    "mixture": make_synthesizer(("posefix", "empirical", "limb"), (0.5, 0.3, 0.2), COCO),
}


def person(case: dict) -> Person:
    """The case as a synthesizer gets it, with two detections, one of them without joints."""
    moved = case["xy"] + 3.0
    return Person(
        xy=case["xy"],
        labelled=case["labelled"],
        others_xy=case["others_xy"],
        others_labelled=case["others_labelled"],
        others_area=jnp.full(len(case["others_xy"]), case["area"]),
        area=case["area"],
        overlap=case["overlap"],
        detected_xy=jnp.stack([jnp.where(case["labelled"][:, None], moved, 5.0), jnp.zeros_like(moved)]),
        detected=jnp.stack([jnp.ones(17, bool), jnp.zeros(17, bool)]),
    )


@pytest.mark.parametrize("name", MADE)
@pytest.mark.slow
def test_every_variant_keeps_the_contract(name):
    """Finite; zero where absent; true kinds; pure; blind to unlabelled joints; equal on 1 and 8 devices, jitted and eager."""
    case = recorded("b_9valid_2near")
    labelled = np.asarray(case["labelled"])
    draw = jax.jit(jax.vmap(MADE[name], in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(3), 256)
    once = draw(keys, person(case))
    pose = jax.tree.map(np.asarray, once)
    assert np.isfinite(pose.xy).all() and (pose.xy[~pose.present] == 0).all()
    assert np.isin(pose.kind, [int(kind) for kind in ErrorKind]).all()
    assert ((pose.kind == ErrorKind.ABSENT) == ~(pose.present & labelled)).all()
    if name not in ("empirical", "mixture"):  # detections have unlabelled joints too
        assert not pose.present[:, ~labelled].any()
    assert (
        pose.present.any(axis=1).all()
        and len(np.unique(pose.xy[:, labelled], axis=0)) > 1
        or name in ("empirical", "none")
    )
    hidden = person(case)._replace(
        xy=jnp.where(case["labelled"][:, None], case["xy"], 77.0),
        others_xy=jnp.where(case["others_labelled"][..., None], case["others_xy"], jnp.nan),
    )
    mesh = data_mesh()
    assert mesh.size == 8
    spread = draw(jax.device_put(keys, split(mesh)), jax.device_put(hidden, replicated(mesh)))
    assert len(spread.xy.sharding.device_set) == 8
    np.testing.assert_array_equal(once.kind, spread.kind)
    np.testing.assert_array_equal(once.present, spread.present)
    np.testing.assert_allclose(once.xy, spread.xy, rtol=1e-6, atol=1e-4)  # the last bit may be the compiler's
    if name in ("scalar", "together", "mixture"):  # the same functions with other numbers
        return
    eager = MADE[name](keys[0], person(case))
    np.testing.assert_array_equal(eager.kind, once.kind[0])
    np.testing.assert_allclose(eager.xy, once.xy[0], rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_correlated_errors_keep_their_rates():
    """The rates are those of independent errors; inversions of a person correlate as set, of twins more."""
    alone, together = (
        jax.tree.map(np.asarray, jax.jit(jax.vmap(from_model(model, COCO), in_axes=(0, None)))(
            jax.random.split(jax.random.key(5), DRAWS), person(recorded("a_lone17"))
        ))
        for model in (dataclasses.replace(TOGETHER, together=((0.0, 0.0),) * 4), TOGETHER)
    )  # fmt: skip
    for kind in range(5):
        for pose in (alone, together):
            np.testing.assert_allclose(
                (pose.kind == kind).mean(axis=0), (alone.kind == kind).mean(axis=0), atol=4.7 * 0.5 * (2 / DRAWS) ** 0.5
            )
    knee, other, wrist = (COCO.joints.index(j) for j in ("left_knee", "right_knee", "left_wrist"))
    inverted = {"alone": alone.kind == ErrorKind.INVERSION, "together": together.kind == ErrorKind.INVERSION}
    lift = {
        name: [(on[:, knee] & on[:, j]).mean() / (on[:, knee].mean() * on[:, j].mean()) for j in (wrist, other)]
        for name, on in inverted.items()
    }
    assert 0.5 < min(lift["alone"]) and max(lift["alone"]) < 1.6
    # Correlations 0.5 and 0.8 at rates of 0.06 and 0.03 (0.06): 5.3 and 8.5 times by the bivariate normal.
    assert 4.3 < lift["together"][0] < 6.3 and 7.3 < lift["together"][1] < 9.7
    many = {name: (on.sum(axis=1) * (on.sum(axis=1) >= 4)).sum() / on.sum() for name, on in inverted.items()}
    assert many["alone"] < 0.05 < 0.3 < many["together"]


def test_files_of_a_user(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from posefix_jax.core.synthesis import SyntheticPose\n"
        "def synthesizer(skeleton):\n"
        "    return lambda key, person: SyntheticPose(person.xy, person.labelled, -1 + 0 * person.labelled.astype(int))\n"
    )
    pose = make_synthesizer((str(own),), (), COCO)(jax.random.key(0), person(recorded("a_lone17")))
    np.testing.assert_array_equal(pose.xy, recorded("a_lone17")["xy"])
    model = tmp_path / "model.json"
    model.write_text(TOGETHER.to_json(evidence={"counts": 3}))
    assert read_error_model(model) == TOGETHER
    (tmp_path / "pair.py").write_text("def synthesizer(skeleton):\n    return lambda key, person: (person.xy, 0)\n")
    (tmp_path / "typo.py").write_text("def synthesizer(skeleton):\n    return lambda key, person: person.joints\n")
    for names, weights, message in (
        (("posefxi",), (), "did you mean 'posefix'"),
        (("posefix",), (0.5, 0.5), "one positive weight each"),
        ((str(tmp_path / "none.py"),), (), "no such file"),
        ((str(tmp_path / "none.json"),), (), "No such file"),
        ((str(tmp_path / "pair.py"),), (), "must return a SyntheticPose of xy float32"),
        ((str(tmp_path / "typo.py"),), (), "does not trace: AttributeError"),
    ):
        with pytest.raises(PosefixError, match=message):
            make_synthesizer(names, weights, COCO)


SPOT = {
    "xy": jnp.full((17, 2), 50.0),
    "others_xy": jnp.full((1, 17, 2), 50.0),
    "others_labelled": jnp.ones((1, 17), bool),
}
"""Two people whose joints all lie in one place"""


def test_only_a_miss_has_room_where_all_joints_coincide():
    """A joint with a twin or neighbor in its own place is nearest to neither: every joint is missed, in its ring."""
    case = recorded("a_lone17") | SPOT
    pose = draw(case)
    assert (pose.kind == ErrorKind.MISS).all() and pose.present.all()
    d50, d10 = (2 * SIGMAS * np.sqrt(float(case["area"]) * -2 * np.log(ks)) for ks in (0.5, 0.1))
    away = np.linalg.norm(pose.xy - 50.0, axis=-1)
    assert (away >= d50 * 0.999).all() and (away <= d10 * 1.001).all()
    assert (np.ptp(away, axis=0) > 0.9 * (d10 - d50)).all()


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_a_joint_for_which_nothing_has_room_is_good_and_stays(correlation):
    """The same two people, and an error model without misses: no kind of error that it draws has room."""
    rates = tuple(
        (group, (jitter, inversion, swap, ((0.0, 0.0),) * 3)) for group, (jitter, inversion, swap, _) in PAPER.rates
    )
    model = dataclasses.replace(PAPER, rates=rates, together=((correlation, 0.0),) * 4)
    case = recorded("a_lone17") | SPOT
    pose = jax.jit(jax.vmap(from_model(model, COCO), in_axes=(0, None)))(
        jax.random.split(jax.random.key(0), 100), person(case)
    )
    assert (pose.kind == ErrorKind.GOOD).all() and pose.present.all()
    assert (pose.xy == 50.0).all()


def test_program_does_not_grow_with_joints():
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
