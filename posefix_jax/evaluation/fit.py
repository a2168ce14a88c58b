"""`posefix analyze fit`: an error model from an estimator's detections and the truth."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jax.scipy.special import ndtr, ndtri

from posefix_jax.core.joint_sets import load_skeleton
from posefix_jax.core.skeleton import Skeleton, tell_joints
from posefix_jax.core.synthesis import PAPER, ErrorModel
from posefix_jax.core.synthesis.error_model import DRAW_ORDER, DRAWN
from posefix_jax.data.coco import read_annotation_files
from posefix_jax.evaluation.errors import Matched, match_file, with_overlapping_neighbors
from posefix_jax.evaluation.intervals import clustered
from posefix_jax.files import check_apart, whole_file
from posefix_jax.types import KINDS, ErrorKind, PosefixError

QUANTILES = 17
"""Quantiles stored for the offsets' lengths in each ring."""


@dataclass(frozen=True)
class FitOptions:
    """Measures which errors an estimator makes, and writes them as an error model for `posefix train --errors`."""

    detections: tuple[Path, ...]
    """files of poses of one estimator or several, in any format that `posefix refine` reads (docs/formats.md)"""
    annotations: Path
    """COCO keypoint annotation file of the same photographs, or a folder of them; use training photographs, not those you
    will report on"""
    out: Path
    """error model to write (.json)"""
    skeleton: str | None = None
    """sigmas, flip pairs and limbs of the joints: a JSON file (docs/skeletons.md) or a built-in skeleton; by default from the
    annotations' joint names"""
    correlation: bool = True
    """also fit how errors co-occur within a person; else joints are independent, as in the paper"""
    offsets: bool = False
    """also fit the distances of joints from the place of their error kind; else they are uniform, as in the paper"""
    least: int = 50
    """joints needed to estimate a rate; with fewer, the group's rate over all people is used, then the paper's"""

    def __post_init__(self):
        if not self.detections:
            raise PosefixError("--detections names no file")
        if self.least < 1:
            raise PosefixError(f"--least must be positive, found {self.least}")


def fit(options: FitOptions) -> str:
    """Writes the error model; returns lines for the terminal.

    Raises:
      PosefixError: a file is not valid, or no pose in it matches a true person.
    """
    annotations = read_annotation_files(
        options.annotations, load_skeleton(options.skeleton) if options.skeleton else None
    )
    check_apart([options.out], [*options.detections, options.annotations])
    parts = [match_file(path, annotations)[1] for path in options.detections]
    tell_joints(annotations.skeleton, options.annotations)
    name = "+".join(path.stem for path in options.detections)
    model, evidence = fit_error_model(
        parts,
        annotations.skeleton,
        name=name,
        correlation=options.correlation,
        offsets=options.offsets,
        least=options.least,
    )
    with whole_file(options.out) as file:
        file.write(model.to_json(evidence=evidence).encode())
    return _summary(model, evidence, options.out)


def fit_error_model(
    parts: list[Matched], skeleton: Skeleton, *, name: str, correlation: bool, offsets: bool, least: int
) -> tuple[ErrorModel, dict]:
    """An error model with the frequencies of these matched poses, and the evidence for them.

    Swaps are those to overlapping people, around whom the synthesizer draws them; elsewhere they are misses. Joints that the estimator left out, or that are not labelled, are not counted. Bins of labelled joints, crowding and
    radii are the paper's, except for the outer radius of misses: nine in ten are within it.

    Returns:
      The model; and per group: counts of good, jitter, inversion, swap, miss in each bin, their 95% intervals
      over all people, and notes on what was taken from elsewhere.
    """
    parts = [with_overlapping_neighbors(part, skeleton) for part in parts]
    kind = np.concatenate([part.kind for part in parts])
    count = np.concatenate([part.num_labelled for part in parts])
    overlap = np.concatenate([part.overlap for part in parts])
    groups = np.array(skeleton.groups)
    bins, crowded = PAPER.bin_of(count, overlap)
    paper = dict(PAPER.rates)
    notes, rates, evidence = [], [], {}
    for group in dict.fromkeys(skeleton.groups):
        counts = np.zeros((len(PAPER.count_bins) + 1, 2, 5), int)
        of_group = kind[:, groups == group]
        for each in range(5):
            np.add.at(counts[..., each], (bins, crowded), (of_group == each).sum(axis=1))
        total = counts.sum(axis=(0, 1))
        if total.sum() < least:
            notes.append(f"{group}: {total.sum()} joints, fewer than {least}: the paper's rates")
            rates.append((group, paper.get(group, paper["other"])))
            continue
        table = np.zeros((4, *counts.shape[:2]))
        for place in np.ndindex(counts.shape[:2]):
            few = counts[place].sum() < least
            taken = total if few else counts[place]
            table[(slice(None), *place)] = taken[1:] / taken.sum()
            if few and counts[place].sum():
                where = f"labelled joints {_bin_name(place[0])}, {'crowded' if place[1] else 'alone'}"
                notes.append(f"{group}, {where}: {counts[place].sum()} joints: the group's rates over all people")
        rates.append((group, tuple(tuple((float(a), float(b)) for a, b in row) for row in _rounded(table))))
        of_person = (of_group[..., None] == np.arange(5)).sum(axis=1)
        low, high = clustered(of_person, of_person.sum(axis=1, keepdims=True))
        evidence[group] = {
            "counts": counts.tolist(),
            "interval": {kind.name.lower(): [low[kind], high[kind]] for kind in KINDS},
        }
    model = replace(PAPER, name=name, rates=(*rates, ("other", paper["other"])))
    if "other" in skeleton.groups:
        model = replace(model, rates=tuple(rates))
    distances = _distances(parts, skeleton)
    missed = distances[kind == ErrorKind.MISS]
    if len(missed) >= least:
        outer = min(float(np.exp(-(np.quantile(missed, 0.9) ** 2) / 2)), PAPER.miss_ks)
        model = replace(model, miss_ks=max(outer, 1e-12))
    if offsets:
        model = replace(model, lengths=_lengths(kind, distances, skeleton, model, least, notes))
    if correlation:
        model = replace(model, together=_together(kind, (bins, crowded), skeleton, model, least, notes))
    return model, {"people": len(kind), "groups": evidence, "notes": notes}


def _bin_name(index: int) -> str:
    ends = PAPER.count_bins
    return f"<= {ends[index]}" if index < len(ends) else f"> {ends[-1]}"


def _rounded(table: np.ndarray) -> np.ndarray:
    """Rounded down to 5 decimals, so that their sum stays at most 1."""
    return np.floor(table * 1e5) / 1e5


def _distances(parts: list[Matched], skeleton: Skeleton) -> np.ndarray:
    """[M, K] distance of each joint to where its kind puts it, in units of 2 sigma sqrt(area).

    Good, jitter and miss: the joint itself; inversion: its twin; swap: the most similar joint of somebody else.
    """
    twin = skeleton.flip_index
    falloff = 2 * np.asarray(skeleton.sigmas)
    found = []
    for part in parts:

        def away(true_xy, area, xy=part.xy):
            return np.linalg.norm(xy - true_xy, axis=-1) / (falloff * np.sqrt(np.maximum(area, 1e-6))[..., None])

        own, inverted = away(part.true_xy, part.area), away(part.true_xy[:, twin], part.area)
        swapped = np.full(own.shape, np.inf)
        for n in range(part.others_xy.shape[1]):
            for joints in (slice(None), twin):
                other = away(part.others_xy[:, n, joints], part.others_area[:, n])
                swapped = np.minimum(swapped, np.where(part.others_labelled[:, n, joints], other, np.inf))
        distance = np.where(part.kind == ErrorKind.INVERSION, inverted, own)
        found.append(np.where(part.kind == ErrorKind.SWAP, swapped, distance))
    return np.concatenate(found)


def _lengths(kind, distances, skeleton: Skeleton, model: ErrorModel, least: int, notes: list[str]):
    """Quantiles of the offsets' lengths within the ring of each kind, a row per group."""
    ends = [(1.0, model.good_ks), (model.good_ks, model.jitter_ks), (model.confusion_ks, model.jitter_ks)]
    ends += [ends[2], (model.jitter_ks, model.miss_ks)]
    at = np.linspace(0, 1, QUANTILES)
    rows = []
    for group in dict.fromkeys(skeleton.groups):
        of_group = np.array(skeleton.groups) == group
        quantiles = []
        for each, ks in zip(KINDS, ends, strict=True):
            inner, outer = (math.sqrt(-2 * math.log(end)) for end in ks)
            lengths = distances[:, of_group][kind[:, of_group] == each]
            if len(lengths) < least:
                if len(lengths):
                    notes.append(
                        f"{group}, {each.name.lower()}: {len(lengths)} joints, fewer than {least}: uniform lengths"
                    )
                quantiles.append(tuple(at))
                continue
            share = np.clip((np.quantile(lengths, at) - inner) / (outer - inner), 0, 1)
            quantiles.append(tuple(np.round(share, 4)))
        rows.append((group, tuple(tuple(map(float, row)) for row in quantiles)))
    return tuple(rows)


def _together(kind, places, skeleton: Skeleton, model: ErrorModel, least: int, notes: list[str]):
    """Per kind, the correlation of two joints of a person, and how much twins have on top.

    Each is the correlation of two normal variables at which as many pairs of joints have the kind together as were
    counted, beyond what the rates of the person's bin (`places`) explain. As in the synthesizer a kind is looked at
    among the joints that have none of those before it in its order.
    """
    table = model.table(skeleton)
    left = table.sum(axis=-1)
    joints = range(skeleton.num_joints)
    pairs: dict[str, list[tuple[int, int]]] = {"other": [], "twin": []}
    for a in joints:
        for b in range(a + 1, skeleton.num_joints):
            pairs["twin" if skeleton.flip_index[a] == b else "other"].append((a, b))
    open_to = kind != ErrorKind.ABSENT
    found = {}
    for each in DRAW_ORDER:
        has = kind == each
        share = table[..., each] / np.maximum(left, 1e-9)
        left = left - table[..., each]
        correlation = {}
        for which, of in pairs.items():
            if not of or has.sum() < least:
                correlation[which] = 0.0
                continue
            a, b = np.array(of).T
            both_open = open_to[:, a] & open_to[:, b]
            counted = np.zeros((len(of), *table.shape[1:3]), int)
            np.add.at(counted, (slice(None), *places), both_open.T)
            both_have = int((has[:, a] & has[:, b]).sum())
            correlation[which] = _correlation(
                share[a].reshape(-1), share[b].reshape(-1), counted.reshape(-1), both_have
            )
        if has.sum() < least:
            notes.append(f"{each.name.lower()}: {has.sum()} joints, fewer than {least}: joints have it independently")
        person = min(correlation["other"], 0.9)
        found[each] = (round(person, 4), round(min(max(correlation["twin"] - person, 0.0), 0.95 - person), 4))
        open_to &= ~has
    return tuple(found[ErrorKind[name.upper()]] for name in DRAWN)


def _correlation(share_a, share_b, pairs, together: int) -> float:
    """The correlation of normal variables at which `together` of the `pairs` are expected to lie below both thresholds."""
    low, high = 0.0, 0.98
    for _ in range(30):
        middle = (low + high) / 2
        expected = (pairs * _both(share_a, share_b, middle)).sum()
        low, high = (middle, high) if expected < together else (low, middle)
    return low


def _both(share_a, share_b, correlation: float) -> np.ndarray:
    """The probability that two normal variables of this correlation lie below the `share_a` and `share_b` quantiles."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(48)

    def given(share):
        threshold = np.asarray(ndtri(np.clip(share, 1e-6, 1 - 1e-6)))[:, None]
        return np.asarray(ndtr((threshold - math.sqrt(correlation) * nodes) / math.sqrt(1 - correlation)))

    return (given(share_a) * given(share_b) * weights).sum(axis=1) / weights.sum()


def _summary(model: ErrorModel, evidence: dict, out: Path) -> str:
    names = [kind.name.lower() for kind in KINDS]
    lines = [f"{evidence['people']} poses matched; share of joints, with its 95% interval over all people:"]
    lines.append(f"{'':10s} {'joints':>7s}" + "".join(f"{name:>22s}" for name in names))
    for group, of in evidence["groups"].items():
        total = np.sum(of["counts"], axis=(0, 1))
        shares = zip(total / total.sum(), of["interval"].values(), strict=True)
        cells = "".join(f"{f'{share:.3f} [{low:.3f}, {high:.3f}]':>22s}" for share, (low, high) in shares)
        lines.append(f"{group:10s} {total.sum():7d}{cells}")
    if np.any(model.together):
        tied = ", ".join(f"{n} {p:.2f} (twins {p + t:.2f})" for n, (p, t) in zip(DRAWN, model.together, strict=True))
        lines.append(f"correlation within a person: {tied}")
    lines += evidence["notes"]
    return "\n".join([*lines, f"{out}: posefix train ... --errors {out}"])
