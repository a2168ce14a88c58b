"""The input and output of every metric, and the interval of a difference between two results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.coco import Person


class Truth(NamedTuple):
    """What results are compared with.

    Attributes:
      images: the annotation file's own entries, by id.
      people: all annotated people in file order, including those that are ignored.
      skeleton: their joints.
      categories: ids of their categories, the main one first.
    """

    images: Mapping
    people: Sequence[Person]
    skeleton: Skeleton
    categories: tuple[int | str, ...] = (1,)


@dataclass(frozen=True)
class Scores:
    """The figures of one results file, and its main figure on any resampling of photographs.

    Attributes:
      figures: by name, in the order of a table; -1 if nothing is annotated that it could count.
      main: name of the figure that `resampled` returns.
      units: how many photographs (or sequences) there are to draw from; equal for all files with the same truth.
      unit: what they are, as a plural noun: `photographs`, `sequences`, `frames`.
      resampled: from counts [units], the main figure if unit i occurs counts[i] times.
    """

    figures: dict[str, float]
    main: str
    units: int
    unit: str
    resampled: Callable[[np.ndarray], float]


def bootstrap_difference(before: Scores, after: Scores, *, samples: int = 500, seed: int = 0) -> tuple[float, float]:
    """The 95% bootstrap interval of the change of the main figure (after - before), over units drawn with replacement.

    Args:
      before, after: scores against the same truth; both see the same draws.
      samples: how many draws.
      seed: of the draws.

    Returns:
      The ends of the interval.
    """
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, before.units, (samples, before.units))
    counts = [np.bincount(draw, minlength=before.units) for draw in draws]
    differences = [after.resampled(count) - before.resampled(count) for count in counts]
    low, high = np.percentile(differences, (2.5, 97.5))
    return float(low), float(high)


def mean_of(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; -1 if there is none, as in pycocotools."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else -1.0
