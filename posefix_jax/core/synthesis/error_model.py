"""The error model: how often an estimator makes each kind of error on each joint, as data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from posefix_jax.core.skeleton import LEAST_SIGMA, Skeleton
from posefix_jax.types import ErrorKind, PosefixError, check_fields, is_name, short

DRAWN = ("jitter", "inversion", "swap", "miss")
DRAW_ORDER = (ErrorKind.INVERSION, ErrorKind.SWAP, ErrorKind.MISS, ErrorKind.JITTER)
"""The order of correlated draws: each kind is drawn among the joints that have none of the kinds before it."""
Rates = tuple[tuple[tuple[float, float], ...], ...]
"""[jitter, inversion, swap, miss][count bin][alone, crowded]"""
Lengths = tuple[tuple[float, ...], ...]
"""[good, jitter, inversion, swap, miss][quantile]: share of the way from the inner to the outer radius of the ring"""


@dataclass(frozen=True)
class ErrorModel:
    """Rates and radii of pose errors. Frozen, hashed by value: static under `jit`.

    Attributes:
      name: for reports.
      rates: per joint name or joint group, the probabilities of jitter, inversion, swap and miss, by bin of the
        person's number of labelled joints, alone and crowded; the rest is good. The row of a joint's own name comes
        first, then that of its group, then `other`.
      count_bins: inclusive upper ends of all bins but the last.
      crowded: a person is crowded if, for any (n, o) here, at most n joints are labelled and at least o people overlap.
      good_ks, jitter_ks, miss_ks: least KS of a good joint, of jitter, and of a miss.
      confusion_ks: highest KS to the wrong joint in an inversion or swap. 1 includes that joint's place (released
        code); 0.85 is the jitter ring (the paper's text).
      miss_weight: weight of a miss around any source but the joint itself.
      sigma: OKS falloff of every joint; 0 for the skeleton's.
      together: for jitter, inversion, swap and miss, the correlation between the joints of a person, and the additional
        correlation of a joint and its twin, in the normal variables that decide the kinds. 0: errors are independent,
        as in the paper.
      lengths: per joint name or group, evenly spaced quantiles (from lowest to highest) of the lengths within the ring
        of each kind. Uniform where there is no row, as in the paper.

    Raises:
      PosefixError: rates outside 0..1 or with a sum over 1, radii out of order, invalid correlations or lengths.
    """

    name: str
    rates: tuple[tuple[str, Rates], ...]
    count_bins: tuple[int, ...] = (5, 10)
    crowded: tuple[tuple[int, int], ...] = ((10, 1), (15, 3))
    good_ks: float = 0.85
    jitter_ks: float = 0.50
    miss_ks: float = 0.10
    confusion_ks: float = 1.0
    miss_weight: float = 0.25
    sigma: float = 0.0
    together: tuple[tuple[float, float], ...] = ((0.0, 0.0),) * 4
    lengths: tuple[tuple[str, Lengths], ...] = ()

    def __post_init__(self):
        where = f"error model {short(self.name)}"
        check_fields(self, f"{where}: ")
        if not is_name(self.name) or not all(map(is_name, (group for group, _ in (*self.rates, *self.lengths)))):
            raise PosefixError(f"{where}: it and its groups need names of one line")
        if not 1 > self.good_ks > self.jitter_ks > self.miss_ks > 0:
            raise PosefixError(
                f"{where}: expected 1 > good_ks > jitter_ks > miss_ks > 0, found "
                f"{self.good_ks}, {self.jitter_ks}, {self.miss_ks}"
            )
        if not 1 >= self.confusion_ks > self.jitter_ks:
            raise PosefixError(f"{where}: confusion_ks must lie in (jitter_ks, 1], found {self.confusion_ks}")
        bins = len(self.count_bins) + 1
        for group, rates in self.rates:
            table = np.asarray(rates, float)
            if table.shape != (4, bins, 2):
                raise PosefixError(f"{where}: {group} needs rates of shape (4, {bins}, 2), found {table.shape}")
            if not (table >= 0).all() or not (table.sum(axis=0) <= 1 + 1e-9).all():
                raise PosefixError(f"{where}: rates of {group} must be probabilities with a sum of at most 1")
        together = np.asarray(self.together, float)
        if together.shape != (4, 2) or not (together >= 0).all() or not (together.sum(axis=1) < 1).all():
            raise PosefixError(
                f"{where}: together needs two correlations, of all joints and in addition of twins, for each of "
                f"{', '.join(DRAWN)}; neither negative, with a sum below 1; found {self.together}"
            )
        if not 0 <= self.sigma <= 1 / LEAST_SIGMA or 0 < self.sigma < LEAST_SIGMA:
            raise PosefixError(
                f"{where}: sigma must be 0, or from {LEAST_SIGMA:g} to {1 / LEAST_SIGMA:g}, found {self.sigma}"
            )
        if self.miss_weight < 0:
            raise PosefixError(f"{where}: miss_weight must not be negative, found {self.miss_weight}")
        if max(map(abs, (*self.count_bins, *np.ravel(self.crowded).tolist())), default=0) >= 2**31:
            raise PosefixError(f"{where}: count_bins and crowded must be numbers of joints and people")
        for group, lengths in self.lengths:
            table = np.asarray(lengths, float)
            rising = table.ndim == 2 and (np.diff(table, axis=1) >= 0).all() and (table >= 0).all()
            if not rising or len(table) != 5 or table.shape[1] < 2 or not (table <= 1).all():
                raise PosefixError(
                    f"{where}: lengths of {group} must be 5 rows of at least 2 rising numbers in 0..1, of shape (5, n)"
                )
        if len({np.shape(lengths) for _, lengths in self.lengths}) > 1:
            raise PosefixError(f"{where}: lengths must have the same number of quantiles for every group")

    def bin_of(self, count: Int[Any, "..."], overlap: Int[Any, "..."]) -> tuple[Int[Any, "..."], Int[Any, "..."]]:
        """The indices into `table` of people: the count bin, and 1 if crowded, else 0.

        Args:
          count: number of labelled joints.
          overlap: number of people who overlap the person.
        """
        ends, few, many = (np.asarray(of, np.int32) for of in (self.count_bins, *np.reshape(self.crowded, (-1, 2)).T))
        crowded = (count[..., None] <= few) & (overlap[..., None] >= many)
        return (count[..., None] > ends).sum(axis=-1), crowded.any(axis=-1).astype(np.int32)

    def table(self, skeleton: Skeleton) -> np.ndarray:
        """[K, count bins, alone/crowded, kinds] probabilities of all kinds, indexed by `ErrorKind`.

        Raises:
          PosefixError: a joint has no row.
        """
        tables = []
        for joint, group, row in self._rows(self.rates, skeleton):
            if row is None:
                raise PosefixError(f"error model {self.name} has no row for joint {joint!r} or its group {group!r}")
            drawn = np.asarray(row, np.float32)
            full = np.zeros((*drawn.shape[1:], 5), np.float32)
            full[..., 1:] = np.moveaxis(drawn, 0, -1)
            full[..., ErrorKind.GOOD] = np.maximum(1 - full.sum(-1), 0)
            tables.append(full)
        return np.stack(tables)

    def length_table(self, skeleton: Skeleton) -> np.ndarray | None:
        """[kinds, K, Q] quantiles of the lengths within the rings; None if all are uniform."""
        if not self.lengths:
            return None
        uniform = np.linspace(0, 1, len(self.lengths[0][1][0]))
        rows = [np.tile(uniform, (5, 1)) if row is None else row for *_, row in self._rows(self.lengths, skeleton)]
        return np.stack(rows, axis=1).astype(np.float32)

    @staticmethod
    def _rows(rows: tuple, skeleton: Skeleton):
        """(joint, group, row) of each joint; the row of its own name, its group or `other`, in this order, or None."""
        by_name = dict(rows)
        for joint, group in zip(skeleton.joints, skeleton.groups, strict=True):
            yield joint, group, next((by_name[key] for key in (joint, group, "other") if key in by_name), None)

    def to_json(self, **more: Any) -> str:
        """Readable JSON. `from_json` is the inverse; it ignores `evidence` in `more`."""
        fields = {key: value for key, value in vars(self).items() if key not in ("rates", "together", "lengths")}
        fields["together"] = dict(zip(DRAWN, self.together, strict=True))
        fields["lengths"] = dict(self.lengths)
        fields |= more
        fields["rates"] = {group: dict(zip(DRAWN, rates, strict=True)) for group, rates in self.rates}
        return json.dumps(fields, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "ErrorModel":
        """The inverse of `to_json`.

        Raises:
          PosefixError: the text is not an error model.
        """
        try:
            fields = json.loads(text)
            rates = tuple(
                (group, tuple(tuple(tuple(pair) for pair in row[kind]) for kind in DRAWN))
                for group, row in fields.pop("rates").items()
            )
            fields["count_bins"] = tuple(fields["count_bins"])
            fields["crowded"] = tuple(tuple(pair) for pair in fields["crowded"])
            if "together" in fields:
                fields["together"] = tuple(tuple(fields["together"][kind]) for kind in DRAWN)
            lengths = fields.pop("lengths", {})
            fields["lengths"] = tuple((group, tuple(tuple(row) for row in rows)) for group, rows in lengths.items())
            fields.pop("evidence", None)
            check_fields({**fields, "rates": rates}, "", cls)
            return cls(rates=rates, **fields)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise PosefixError(f"not an error model: {error}") from error


def _paper() -> ErrorModel:
    """The table of the released code (main/gen_batch.py)."""

    def rates(jitter, inversion, swap, miss) -> Rates:
        few, many = jitter
        return (
            ((few, few), (few, few), (many, many)),
            ((inversion, inversion),) * 3,
            (swap,) * 3,
            tuple((p, p) for p in miss),
        )

    head = {"inversion": 0.01, "swap": (0.01, 0.02), "miss": (0.15, 0.10, 0.02)}
    arm = {"jitter": (0.20, 0.15), "inversion": 0.03, "swap": (0.06, 0.15)}
    leg = {"jitter": (0.15, 0.10), "inversion": 0.06, "swap": (0.03, 0.10)}
    end_of_limb, middle = (0.20, 0.13, 0.05), (0.25, 0.15, 0.10)
    return ErrorModel(
        name="paper",
        rates=(
            ("nose", rates((0.15, 0.10), **head)),
            ("face", rates((0.20, 0.15), **head)),
            ("head", rates((0.20, 0.15), **head)),
            ("neck", rates((0.20, 0.15), **head)),
            ("shoulder", rates(**arm, miss=end_of_limb)),
            ("elbow", rates(**arm, miss=middle)),
            ("wrist", rates(**arm, miss=middle)),
            ("hip", rates((0.25, 0.20), inversion=0.06, swap=(0.03, 0.10), miss=middle)),
            ("knee", rates(**leg, miss=middle)),
            ("ankle", rates(**leg, miss=end_of_limb)),
            ("other", rates(**arm, miss=middle)),
        ),
    )


def _scalar(jitter: float, inversion: float, swap: float, miss: float) -> Rates:
    return tuple(((p, p),) * 3 for p in (jitter, inversion, swap, miss))


PAPER = _paper()
# The defaults of DeepLabCut's conditional top-down sampler: one sigma for all joints.
SCALAR = ErrorModel(name="scalar", rates=(("other", _scalar(0.16, 0.03, 0.08, 0.10)),), sigma=0.1)
ERROR_MODELS: Mapping[str, ErrorModel] = {"posefix": PAPER, "scalar": SCALAR}


def read_error_model(path: str | Path) -> ErrorModel:
    """An error model from a JSON file, as `posefix analyze fit` writes it.

    Raises:
      PosefixError: a missing file, or one that is not an error model.
    """
    try:
        return ErrorModel.from_json(Path(path).read_text())
    except OSError as error:
        raise PosefixError(f"error model {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PosefixError(f"error model {path}: not JSON text ({error})") from error
    except PosefixError as error:
        raise PosefixError(f"{path}: {error}") from error
