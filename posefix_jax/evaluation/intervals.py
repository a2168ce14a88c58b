"""Confidence intervals of shares."""

import numpy as np
from numpy.typing import ArrayLike


def wilson(count: ArrayLike, total: ArrayLike, z: float = 1.959964) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of the share count / total, 95% by default; (0, 1) where the total is 0.

    Args:
      count, total: numbers or arrays that broadcast.
      z: normal quantile of the interval.

    Returns:
      The lower and upper ends, of the broadcast shape.
    """
    count, total = np.broadcast_arrays(np.asarray(count, np.float64), np.asarray(total, np.float64))
    known = np.maximum(total, 1)
    share = count / known
    center = share + z**2 / (2 * known)
    half = z * np.sqrt(share * (1 - share) / known + z**2 / (4 * known**2))
    scale = 1 + z**2 / known
    # The ends are exact at counts of 0 and of the total, where rounding would leave 1e-17 of them.
    low = np.where(count > 0, np.maximum((center - half) / scale, 0), 0.0)
    return low, np.where(count < total, np.minimum((center + half) / scale, 1), 1.0)


def clustered(count: ArrayLike, total: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% interval of sum(count) / sum(total), for items that may be correlated within a cluster.

    Both sums are divided by the design effect: the variance of the share over draws of clusters, relative to that of
    independent items (at least 1; Kish, Survey Sampling, 1965).

    Args:
      count, total: [clusters, ...] how many items of a cluster count, and how many it has.

    Returns:
      The lower and upper ends, [...].
    """
    count, total = np.broadcast_arrays(np.asarray(count, np.float64), np.asarray(total, np.float64))
    counted, things = count.sum(axis=0), total.sum(axis=0)
    share = counted / np.maximum(things, 1)
    clusters = (total > 0).sum(axis=0)
    between = ((count - share * total) ** 2).sum(axis=0) * clusters / np.maximum(clusters - 1, 1)
    alone = things * share * (1 - share)
    effect = np.maximum(np.divide(between, alone, out=np.ones_like(alone), where=alone > 0), 1)
    return wilson(counted / effect, things / effect)
