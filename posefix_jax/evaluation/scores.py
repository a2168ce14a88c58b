"""What every metric takes and gives, and the interval of a difference between two results files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.coco import Person


class Truth(NamedTuple):
    """What results are held against.

    `images` are the annotation file's own entries by id; `people` includes those that are ignored.
    """

    images: Mapping
    people: Sequence[Person]
    skeleton: Skeleton


@dataclass(frozen=True)
class Scores:
    """The figures of one results file, and its main figure on any draw of photographs.

    Attributes:
      figures: by name, in the order of a table; -1 where nothing is annotated that it could count.
      main: the name of the figure that `resampled` gives.
      units: how many photographs (or sequences) there are to draw from; the same for every file against one truth.
      unit: what they are, for a sentence: `photographs`, `sequences`, `frames`.
      resampled: counts [units] -> the main figure where unit i is seen counts[i] times.
    """

    figures: dict[str, float]
    main: str
    units: int
    unit: str
    resampled: Callable[[np.ndarray], float]


def bootstrap_difference(before: Scores, after: Scores, *, samples: int = 500, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the difference in the main figure (after - before) over draws of units with replacement.

    Both sides see the same draws.
    """
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, before.units, (samples, before.units))
    counts = [np.bincount(draw, minlength=before.units) for draw in draws]
    differences = [after.resampled(count) - before.resampled(count) for count in counts]
    low, high = np.percentile(differences, (2.5, 97.5))
    return float(low), float(high)


def mean_of(values: Sequence[float]) -> float:
    """The mean of those that are numbers; -1, as pycocotools says it, where none is."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else -1.0
