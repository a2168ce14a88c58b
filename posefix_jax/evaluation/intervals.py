"""Intervals of shares."""

import numpy as np


def wilson(count, total, z: float = 1.959964) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of the share count / total, 95 % by default; (0, 1) where the total is 0.

    Args:
      count, total: any shapes that broadcast.
      z: normal quantile of the interval.
    """
    count, total = np.broadcast_arrays(np.asarray(count, np.float64), np.asarray(total, np.float64))
    known = np.maximum(total, 1)
    share = count / known
    centre = share + z**2 / (2 * known)
    half = z * np.sqrt(share * (1 - share) / known + z**2 / (4 * known**2))
    scale = 1 + z**2 / known
    low = np.where(total > 0, np.maximum((centre - half) / scale, 0), 0.0)
    return low, np.where(total > 0, np.minimum((centre + half) / scale, 1), 1.0)
