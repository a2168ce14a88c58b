"""Trust: how far a refiner believes the pose it is given against the picture, and what tells how far it may.

The network's maps say where each joint may be. `fuse` multiplies them by the likelihood of the input joint: a Gaussian of
its distance, on a floor that lets the picture win where it is sure. `agreement` measures how an input agrees with maps that
were made without it; `trust_of` turns these measurements of a file into one number.

Distances are in fall-offs: units of 2 sigma sqrt(area), in which KS is exp(-d^2 / 2).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from posefix_jax.core import heatmaps
from posefix_jax.core.models import DecodeConfig
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.synthesis.error_model import ErrorModel
from posefix_jax.types import ErrorKind, PosefixError

SPREAD = 0.8
"""Standard deviation of the likelihood, in fall-offs, unless an error model says it. Inputs with a normal error of 0.3 per
axis gain most with it, and true poses lose nothing (docs/model-card.md, "Trust")."""
SPREAD_PER_ERROR = 2.7
"""Spread of the likelihood over the standard deviation of the input's error: 0.8 / 0.3. More than 1, because the maps were
made with the pose in view and count it already."""
GROSS = 0.2
"""Share of gross errors (inversion, swap, miss) from which an estimator deserves no more trust than the training inputs."""
NARROWEST = 0.35
"""Least standard deviation of a likelihood, heatmap cells: a narrower one falls between the cells."""
MEASURES = ("near, sure", "middle, sure", "wide, sure", "near, unsure", "middle, unsure", "wide, unsure")
"""What `agreement` measures per joint: a Gaussian of the distance between the input and the best place of the map made
without it, at three widths, weighed toward joints of which that map is sure, then toward the others."""
WIDTHS = (0.3, 1.0, 2.0)
"""The three widths, fall-offs."""


class Trust(NamedTuple):
    """Trust in an input pose, per joint. Arrays, traced under `jit`.

    Attributes:
      weight: 0: the input counts only as far as the network itself reads it. 1: it is near the true place for certain.
        The likelihood's floor is 1 - weight.
      spread: standard deviation of the likelihood, fall-offs.
    """

    weight: Float[Any, " K"]
    spread: Float[Any, " K"]


def uniform(value: float, joints: int) -> Trust:
    """The same trust in every joint.

    Raises:
      PosefixError: `value` is not in 0..1.
    """
    if not 0 <= value <= 1:
        raise PosefixError(f"trust must lie in 0..1, found {value}")
    return Trust(np.full(joints, value, np.float32), np.full(joints, SPREAD, np.float32))


def from_errors(errors: ErrorModel, skeleton: Skeleton) -> Trust:
    """The trust that an estimator's measured errors deserve, per joint.

    The weight falls from 1 without gross errors (inversion, swap, miss) to 0 at a share of `GROSS`. The spread follows from
    the shares of good joints and of jitter, if these are errors of a normal distribution.

    Raises:
      PosefixError: a joint has no row in the model.
    """
    rates = errors.table(skeleton).mean(axis=(1, 2))
    gross = rates[:, [ErrorKind.INVERSION, ErrorKind.SWAP, ErrorKind.MISS]].sum(axis=1)
    good = rates[:, ErrorKind.GOOD] / np.maximum(rates[:, ErrorKind.GOOD] + rates[:, ErrorKind.JITTER], 1e-6)
    deviations = np.linspace(0.05, 2.0, 400)
    within = [1 - ks ** (1 / deviations**2) for ks in (errors.good_ks, errors.jitter_ks)]
    expected = within[0] / within[1]  # falls with the deviation
    deviation = np.interp(-good, -expected, deviations)
    spread = np.clip(SPREAD_PER_ERROR * deviation, SPREAD / 2, 2.0)
    return Trust(np.clip(1 - gross / GROSS, 0, 1).astype(np.float32), spread.astype(np.float32))


def fuse(
    probability: Float[Array, "B h w K"],
    heat_xy: Float[Array, "B K 2"],
    present: Bool[Array, "B K"],
    scale: Float[Array, "B K"],
    trust: Trust,
) -> Float[Array, "B h w K"]:
    """The maps given that the input joints were observed; each sums to 1.

    Args:
      probability: each joint's map sums to 1.
      heat_xy: input joints, heatmap cells; not used where not present.
      present: where False the map stays as it is.
      scale: the fall-off in cells.
      trust: per joint.
    """
    spread = jnp.maximum(trust.spread[None] * scale, NARROWEST)
    weight = jnp.where(present, trust.weight[None], 0.0)[:, None, None, :]
    _, h, w, _ = probability.shape
    rows, columns = jax.vmap(heatmaps.ks_kernels, in_axes=(None, 0, 0))((h, w), heat_xy, spread)
    fused = probability * (1 - weight + weight * rows[:, :, None, :] * columns[:, None, :, :])
    return fused / jnp.maximum(fused.sum(axis=(1, 2), keepdims=True), 1e-30)


def agreement(
    probability: Float[Array, "B h w K"],
    heat_xy: Float[Array, "B K 2"],
    counted: Bool[Array, "B K"],
    scale: Float[Array, "B K"],
) -> Float[Array, "B 8"]:
    """How each input pose agrees with maps that were made without it, as sums over its joints.

    Args:
      probability: from the crop alone; each joint's map sums to 1.
      heat_xy: input joints, heatmap cells.
      counted: the joints that take part.
      scale: the fall-off in cells.

    Returns:
      The sums of `MEASURES`, each joint times its weight, then the sums of the two weights.
    """
    best_xy = jax.vmap(heatmaps.best_expected_ks)(probability, scale)
    sure = jax.vmap(heatmaps.expected_ks)(probability, best_xy, scale)
    squared = ((heat_xy - best_xy) ** 2).sum(axis=-1)
    near = [jnp.exp(-0.5 * squared / jnp.maximum(width * scale, 0.5) ** 2) for width in WIDTHS]
    weights = [jnp.where(counted, weight, 0.0) for weight in (sure**2, (1 - sure) ** 2)]
    sums = [(weight * of).sum(axis=-1) for weight in weights for of in near]
    return jnp.stack([*sums, *(weight.sum(axis=-1) for weight in weights)], axis=-1)


def measures(sums: Float[np.ndarray, "N 8"]) -> Float[np.ndarray, "6"]:
    """The `MEASURES` of many poses together, each in 0..1, from their `agreement`."""
    total = np.asarray(sums, np.float64).sum(axis=0)
    return total[:6] / np.maximum(np.repeat(total[6:], 3), 1e-9)


def trust_of(measured: Float[np.ndarray, "6"], decode: DecodeConfig) -> float:
    """The trust that a file's measures deserve, by the weights that `posefix package --tune` fitted."""
    *weights, offset = decode.trust_weights
    return float(1 / (1 + np.exp(-(np.dot(weights, measured) + offset))))
