"""What a refiner knows of its input, tuned on held-out people: when to trust a pose, and how sure to be of the result.

The people are refined from inputs of every quality: true poses, true poses with normal errors, the paper's errors, stored
detections, and mixtures that stand in for better estimators. `posefix package --tune` stores what is found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from posefix_jax.core import geometry
from posefix_jax.core.models import STRIDE, DecodeConfig, RefinerSpec
from posefix_jax.core.refine_step import decode_maps, make_maps
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.synthesis import Person, Synthesizer, SyntheticPose, make_synthesizer
from posefix_jax.core.synthesis.variants import gaussian, none
from posefix_jax.core.taxonomy import similarity
from posefix_jax.core.train_step import Batch, crop_around, person_of, sample_keys
from posefix_jax.core.trust import Trust, agreement, measures, trust_of, uniform
from posefix_jax.data.pipeline import People, evaluation_batches
from posefix_jax.report.progress import Progress
from posefix_jax.runtime.devices import compiler_options, data_mesh, place_batch, replicated

TRUSTS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 1.0)
"""Every input is refined with each of these."""
DETECTIONS = "detections"
"""The input that counts three times: it is a real estimator's."""
HARM = 4.0
"""Weight of accuracy lost against the input, over that of accuracy not gained."""
SAMPLE, SAMPLES = 64, 8
"""People per sample, and samples of each input: the trust must be right for a small file too."""
STEPS = 2500
"""Steps of Adam in each fit: both have a handful of parameters."""


def graded_inputs(skeleton: Skeleton, *, detections: bool) -> dict[str, Synthesizer]:
    """Input poses of every quality, by name.

    Args:
      skeleton: static.
      detections: also those made of stored detections.
    """
    inputs = {"true poses": none(skeleton)}
    inputs |= {f"normal errors, {spread}": gaussian(skeleton, spread=spread) for spread in (0.1, 0.2, 0.3, 0.5, 0.7)}
    inputs |= {
        "normal errors, 0.3, uneven": _uneven(skeleton, 0.3),
        "normal errors, 0.3, 5% missed": _missed(skeleton, 0.3, 0.05),
        "normal errors, 0.5, 2% missed": _missed(skeleton, 0.5, 0.02),
        "normal errors, 0.5, 10% missed": _missed(skeleton, 0.5, 0.1),
        "the paper's errors": make_synthesizer(("posefix",), (), skeleton),
    }
    if detections:
        empirical = make_synthesizer(("empirical",), (), skeleton)
        inputs[DETECTIONS] = empirical
        inputs |= {f"detections, errors x {share}": _shrunk(empirical, share) for share in (0.25, 0.5, 0.75)}
        inputs |= {f"detections, {share:.0%} of the joints": _some(empirical, share, skeleton) for share in (0.3, 0.6)}
    return inputs


def _uneven(skeleton: Skeleton, spread: float) -> Synthesizer:
    """Normal errors whose size differs by joint and person: a log-normal factor of 0.7."""

    def synthesize(key, person: Person) -> SyntheticPose:
        size_key, key = jax.random.split(key)
        pose = gaussian(skeleton, spread=spread)(key, person)
        size = jnp.exp(0.7 * jax.random.normal(size_key, pose.present.shape))
        return pose._replace(xy=person.xy + size[:, None] * (pose.xy - person.xy))

    return synthesize


def _missed(skeleton: Skeleton, spread: float, share: float) -> Synthesizer:
    """Normal errors, and a share of the joints two to six fall-offs away."""

    def synthesize(key, person: Person) -> SyntheticPose:
        miss_key, way_key, key = jax.random.split(key, 3)
        pose = gaussian(skeleton, spread=spread)(key, person)
        turn, far = jax.random.uniform(way_key, (2, *pose.present.shape))
        unit = 2 * jnp.asarray(skeleton.sigmas) * jnp.sqrt(person.area)
        way = jnp.stack([jnp.cos(2 * jnp.pi * turn), jnp.sin(2 * jnp.pi * turn)], axis=-1)
        missed = jax.random.bernoulli(miss_key, share, pose.present.shape)
        away = person.xy + way * (unit * (2 + 4 * far))[:, None]
        return pose._replace(xy=jnp.where(missed[:, None], away, pose.xy))

    return synthesize


def _shrunk(empirical: Synthesizer, share: float) -> Synthesizer:
    """A detection whose errors are scaled down: a better estimator that is wrong in the same places."""

    def synthesize(key, person: Person) -> SyntheticPose:
        pose = empirical(key, person)
        return pose._replace(xy=person.xy + share * (pose.xy - person.xy), present=pose.present & person.labelled)

    return synthesize


def _some(empirical: Synthesizer, share: float, skeleton: Skeleton) -> Synthesizer:
    """A share of the joints from a detection, the others with normal errors of 0.15."""

    def synthesize(key, person: Person) -> SyntheticPose:
        which_key, near_key, key = jax.random.split(key, 3)
        pose, near = empirical(key, person), gaussian(skeleton, spread=0.15)(near_key, person)
        use = jax.random.bernoulli(which_key, share, pose.present.shape) & pose.present
        some = pose.present.any() & person.labelled
        return pose._replace(xy=jnp.where(use[:, None], pose.xy, near.xy), present=some)

    return synthesize


class Graded(NamedTuple):
    """People refined from one kind of input with every trust. P people, T trusts.

    Attributes:
      folder: which prepared folder each person is from.
      labelled: joints that count: labelled and trained.
      input_ks: KS of the input; 0 where it is absent.
      output_ks, expected_ks: KS of the refined joints, and what the refiner expected.
      agreement: `trust.agreement` of each input.
    """

    folder: Any
    labelled: Any
    input_ks: Any
    output_ks: Any
    expected_ks: Any
    agreement: Any

    def of_folder(self, folder: int) -> "Graded":
        """The people of one folder."""
        mine = self.folder == folder
        return Graded(
            self.folder[mine],
            self.labelled[mine],
            self.input_ks[mine],
            self.output_ks[:, mine],
            self.expected_ks[:, mine],
            self.agreement[mine],
        )

    def accuracy(self) -> np.ndarray:
        """[1 + T] the mean over OKS thresholds 0.5 to 0.95 of the share of people above: input, then by trust.

        AP without its ranking: it does not depend on scores, which synthetic inputs do not have.
        """
        count = np.maximum(self.labelled.sum(axis=-1), 1)
        ks = np.concatenate([self.input_ks[None], self.output_ks])
        oks = np.where(self.labelled, ks, 0).sum(axis=-1) / count
        used = self.labelled.any(axis=-1)
        return np.mean([(oks[:, used] >= t).mean(axis=1) for t in np.arange(0.5, 0.96, 0.05)], axis=0)


def make_graded_step(spec: RefinerSpec) -> Callable[[Any, Batch, Array, Array], tuple[Array, ...]]:
    """Builds (variables, batch, input_xy [B, K, 2] patch pixels, present [B, K]) -> the fields of `Graded` but `folder`."""
    maps_of = make_maps(spec.network().apply, spec)
    trained = jnp.asarray(spec.trained_joints)[None]

    def step(variables, batch: Batch, input_xy, present):
        crops, affines = crop_around(batch.patch, input_xy, present & trained, spec)
        to_crop = jax.vmap(geometry.apply_affine)
        crop_xy = jnp.where(present[..., None], to_crop(affines, input_xy), 0.0)
        true_xy = to_crop(affines, batch.patch_xy)
        area = batch.area * jnp.abs(jnp.linalg.det(affines[:, :, :2]))
        maps = maps_of(variables, crops, crop_xy, present)

        def ks(xy):
            return similarity(((xy - true_xy) ** 2).sum(axis=-1), area, spec.skeleton, jnp)

        def with_trust(value):
            out_xy, _, expected = decode_maps(maps, crop_xy, present, spec, Trust(*map(jnp.asarray, value)))
            return ks(out_xy), expected

        results = [with_trust(uniform(value, spec.skeleton.num_joints)) for value in TRUSTS]
        output_ks, expected_ks = (jnp.stack(of) for of in zip(*results, strict=True))
        heat_xy = geometry.crop_to_heat(crop_xy, STRIDE, spec.model.frame)
        agreed = agreement(maps.probability[1], heat_xy, present & trained, maps.scale)
        return batch.labelled & trained, jnp.where(present, ks(crop_xy), 0.0), output_ks, expected_ks, agreed

    return step


def refine_graded(
    folders: Sequence[str], variables: dict, spec: RefinerSpec, *, batch_size: int = 32
) -> dict[str, Graded]:
    """The people of prepared folders, refined from each of `graded_inputs`. People without the input are left out."""
    people = People(folders)
    mesh = data_mesh()
    batch_size = -(-min(batch_size, len(people)) // mesh.size) * mesh.size
    inputs = graded_inputs(spec.skeleton, detections=any(manifest.detections for manifest in people.manifests))
    trained = np.asarray(spec.trained_joints)
    variables = jax.device_put(variables, replicated(mesh))
    step = jax.jit(make_graded_step(spec), out_shardings=replicated(mesh), compiler_options=compiler_options())
    ends = np.cumsum([manifest.people for manifest in people.manifests])
    folder = np.searchsorted(ends, np.arange(len(people)), side="right")
    found = {}
    with Progress("tune", len(inputs) * len(people), unit="poses") as progress:
        for name, synthesize in inputs.items():
            draw = jax.jit(
                lambda batch, root, synthesize=synthesize: jax.vmap(synthesize)(
                    sample_keys(root, batch.epoch, batch.sample),
                    jax.vmap(lambda record: person_of(record, trained))(batch),
                )
            )
            parts = []
            for arrays in evaluation_batches(people, batch_size=batch_size):
                batch = place_batch(mesh, Batch(**arrays))
                pose = draw(batch, jax.random.key(0))
                labelled, *rest, agreed = jax.device_get(step(variables, batch, pose.xy, pose.present))
                used = np.asarray(pose.present).any(axis=1) & (np.asarray(batch.weight) > 0)
                parts.append((labelled & used[:, None], *rest, agreed))
                progress.update(progress.done + len(agreed))
            labelled, input_ks, output_ks, expected_ks, agreed = zip(*parts, strict=True)
            keep = slice(len(people))
            labelled = np.concatenate(labelled)[keep]
            used = labelled.any(axis=1)
            found[name] = Graded(
                folder[used],
                labelled[used],
                np.concatenate(input_ks)[keep][used],
                np.concatenate(output_ks, axis=1)[:, keep][:, used],
                np.concatenate(expected_ks, axis=1)[:, keep][:, used],
                np.concatenate(agreed)[keep][used],
            )
    return found


class Tuned(NamedTuple):
    """What the fits found.

    Attributes:
      decode: with `trust`, `trust_weights` and `confidence`.
      lines: a line per folder and input: its accuracy before and after, and the trust it got.
      accuracy: mean over the inputs of the accuracy with the trust they got.
    """

    decode: DecodeConfig
    lines: list[str]
    accuracy: float


def fit(found: Mapping[str, Graded], decode: DecodeConfig, folders: Sequence[str]) -> Tuned:
    """Fits the trust that a file deserves, the default trust, and the confidence of the result.

    Each input of each folder is an estimator. Its trust is a logistic function of the `measures` of its poses, whose
    weights minimize the accuracy that is not gained, and `HARM` times that which is lost against the input.
    """
    cases = [(folder, name, of.of_folder(i)) for i, folder in enumerate(folders) for name, of in found.items()]
    cases = [case for case in cases if len(case[2].folder)]
    accuracy = np.stack([of.accuracy() for *_, of in cases])
    before, by_trust = accuracy[:, 0], accuracy[:, 1:]
    rng = np.random.default_rng(0)
    measured = np.stack(
        [
            [measures(of.agreement), *(measures(rng.choice(of.agreement, SAMPLE)) for _ in range(SAMPLES))]
            for *_, of in cases
        ]
    )
    weight = np.array([3.0 if name == DETECTIONS else 1.0 for _, name, _ in cases])
    mean, deviation = measured.mean(axis=(0, 1)), measured.std(axis=(0, 1)) + 1e-3
    inputs, curves = jnp.asarray((measured - mean) / deviation), jnp.asarray(by_trust)

    def cost(trust):
        """[cases, samples] of trusts, to the cost of each case."""
        got = jax.vmap(lambda trust, curve: jnp.interp(trust, jnp.asarray(TRUSTS), curve))(trust, curves)
        lost = HARM * jnp.maximum(before[:, None] - got, 0) + curves.max(axis=1, keepdims=True) - got
        return (lost * weight[:, None]).mean()

    def loss(parameters):
        return cost(jax.nn.sigmoid(inputs @ parameters[:6] + parameters[6])) + 1e-4 * (parameters[:6] ** 2).mean()

    parameters = _minimized(loss, jnp.zeros(7))
    weights = parameters[:6] / deviation
    trust_weights = (*weights, parameters[6] - (weights * mean).sum())
    same = np.linspace(0, 1, 21)
    default = same[np.argmin([float(cost(jnp.full((len(cases), 1), trust))) for trust in same])]
    decode = replace(
        decode, trust=round(float(default), 2), trust_weights=tuple(round(float(value), 3) for value in trust_weights)
    )
    trusts = [trust_of(values[0], decode) for values in measured]
    got = [np.interp(trust, TRUSTS, curve) for trust, curve in zip(trusts, by_trust, strict=True)]
    decode = replace(decode, confidence=_fit_confidence([of for *_, of in cases], trusts))
    lines = [
        f"{folder}, {name}: {was:.3f} -> {now:.3f} with trust {trust:.2f} ({curve.max():.3f} with the best of {TRUSTS})"
        for (folder, name, _), was, now, trust, curve in zip(cases, before, got, trusts, by_trust, strict=True)
    ]
    return Tuned(decode, lines, float(np.average(got, weights=weight)))


def _fit_confidence(cases: Sequence[Graded], trusts: Sequence[float]) -> tuple[float, ...]:
    """Slope, offset and effect of trust that make the expected KS the mean KS, by logistic regression over joints."""
    expected, true, trust = [], [], []
    for of, value in zip(cases, trusts, strict=True):
        nearest = int(np.argmin(np.abs(np.asarray(TRUSTS) - value)))
        expected.append(of.expected_ks[nearest][of.labelled])
        true.append(of.output_ks[nearest][of.labelled])
        trust.append(np.full(len(true[-1]), TRUSTS[nearest]))
    e, true, trust = (jnp.asarray(np.concatenate(of), jnp.float32) for of in (expected, true, trust))
    logit = jax.scipy.special.logit(jnp.clip(e, 1e-4, 1 - 1e-4))

    def loss(parameters):
        return optax.sigmoid_binary_cross_entropy(
            parameters[0] * logit + parameters[1] + parameters[2] * trust, true
        ).mean()

    return tuple(round(float(value), 3) for value in _minimized(loss, jnp.asarray([1.0, 0.0, 0.0])))


def _minimized(loss, start: Float[Array, " n"]) -> np.ndarray:
    """The parameters with a low loss, by Adam."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, STEPS))

    @jax.jit
    def run(parameters):
        def update(carry, _):
            parameters, state = carry
            step, state = optimizer.update(jax.grad(loss)(parameters), state)
            return (optax.apply_updates(parameters, step), state), None

        return jax.lax.scan(update, (parameters, optimizer.init(parameters)), length=STEPS)[0][0]

    return np.asarray(run(start), np.float64)
