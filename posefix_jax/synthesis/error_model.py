"""How often an estimator makes each kind of error on each joint, as data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posefix_jax.skeleton import Skeleton
from posefix_jax.types import ErrorKind, PosefixError, nearest_names

_DRAWN = ("jitter", "inversion", "swap", "miss")
Rates = tuple[tuple[tuple[float, float], ...], ...]
"""[jitter, inversion, swap, miss][count bin][alone, crowded]"""


@dataclass(frozen=True)
class ErrorModel:
    """Rates and radii of pose errors. Frozen, hashed by value: static under `jit`.

    Attributes:
      name: for reports.
      rates: per joint name or joint group: the probability of jitter, inversion, swap and miss, per bin of the
        person's labelled-joint count, alone and crowded; the rest is good. A joint's own name goes before its
        group; `other` catches what has no row.
      count_bins: upper ends, inclusive, of all bins but the last.
      crowded: a person is crowded if, for any (n, o) here, at most n joints are labelled and at least o people
        overlap.
      good_ks, jitter_ks, miss_ks: the KS at which good ends, jitter ends, miss ends.
      confusion_ks: the KS to the wrong joint at which an inversion or swap begins. 1 puts it at that joint itself
        (released code); 0.85 is the jitter ring (the paper's text).
      miss_weight: weight of a miss candidate around any source but the joint itself.

    Raises:
      PosefixError: for rates outside 0..1 or summing over 1, or radii out of order.
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

    def __post_init__(self):
        where = f"error model {self.name}"
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
            if not (table >= 0).all() or not (table.sum(axis=0) <= 1).all():
                raise PosefixError(f"{where}: rates of {group} must be probabilities with a sum of at most 1")

    def table(self, skeleton: Skeleton) -> np.ndarray:
        """[K, count bins, alone/crowded, kinds] probabilities, kinds as `ErrorKind`, good filled in.

        Raises:
          PosefixError: when a joint has no row.
        """
        rows = dict(self.rates)
        tables = []
        for joint, group in zip(skeleton.joints, skeleton.groups, strict=True):
            row = next((rows[key] for key in (joint, group, "other") if key in rows), None)
            if row is None:
                raise PosefixError(f"error model {self.name} has no row for joint {joint!r} or its group {group!r}")
            drawn = np.asarray(row, np.float32)
            full = np.zeros((*drawn.shape[1:], 5), np.float32)
            full[..., 1:] = np.moveaxis(drawn, 0, -1)
            full[..., ErrorKind.GOOD] = 1 - full.sum(-1)
            tables.append(full)
        return np.stack(tables)

    def to_json(self) -> str:
        """Readable JSON; `from_json` inverts it."""
        fields = {key: value for key, value in vars(self).items() if key != "rates"}
        fields["rates"] = {group: dict(zip(_DRAWN, rates, strict=True)) for group, rates in self.rates}
        return json.dumps(fields, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "ErrorModel":
        """Raises PosefixError when the text is no error model."""
        try:
            fields = json.loads(text)
            rates = tuple(
                (group, tuple(tuple(tuple(pair) for pair in row[kind]) for kind in _DRAWN))
                for group, row in fields.pop("rates").items()
            )
            fields["count_bins"] = tuple(fields["count_bins"])
            fields["crowded"] = tuple(tuple(pair) for pair in fields["crowded"])
            return cls(rates=rates, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PosefixError(f"not an error model: {error}") from error


def _paper() -> ErrorModel:
    """The released code's table (main/gen_batch.py); face is nose, eyes, ears."""

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


PAPER = _paper()
ERROR_MODELS: Mapping[str, ErrorModel] = {"paper": PAPER}


def load_error_model(name_or_file: str) -> ErrorModel:
    """A built-in error model by name, or one from a JSON file.

    Raises:
      PosefixError: for an unknown name, a missing file, or one that is not an error model.
    """
    if name_or_file in ERROR_MODELS:
        return ERROR_MODELS[name_or_file]
    if not name_or_file.endswith(".json"):
        raise PosefixError(f"unknown error model {name_or_file!r}: {nearest_names(name_or_file, ERROR_MODELS)}")
    try:
        return ErrorModel.from_json(Path(name_or_file).read_text())
    except OSError as error:
        raise PosefixError(f"error model {name_or_file}: {error.strerror}") from error
    except PosefixError as error:
        raise PosefixError(f"{name_or_file}: {error}") from error
