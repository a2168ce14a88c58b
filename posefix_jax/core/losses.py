"""The integral loss based on cross-entropy. Paper, section 5.2; averaging as in the released main/model.py."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from posefix_jax.core.heatmaps import gaussians, mean_position, one_hot
from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class LossConfig:
    """The terms of the loss. Static under `jit`. Paper, section 6 and figure 6."""

    heatmap: Literal["one-hot", "gaussian", "none"] = "one-hot"
    """one-hot: cross-entropy to the bilinear one-hot target; gaussian: squared error to a Gaussian map (the paper's
    coarse-to-coarse; needs coordinate off and decode.method argmax); none"""
    coordinate: bool = True
    """add the L1 distance of the soft-argmax"""
    sigma: float = 2.0
    """standard deviation of the Gaussian target, heatmap cells"""

    def __post_init__(self):
        if self.heatmap not in ("one-hot", "gaussian", "none"):
            raise PosefixError(f"loss.heatmap must be one-hot, gaussian or none, found {self.heatmap!r}")
        if self.heatmap == "none" and not self.coordinate:
            raise PosefixError("the loss has no term: loss.heatmap is none and loss.coordinate is off")
        if self.heatmap == "gaussian" and self.coordinate:
            raise PosefixError("with loss.heatmap gaussian the map is not a probability: set loss.coordinate off")
        if self.sigma <= 0:
            raise PosefixError(f"loss.sigma must be positive, found {self.sigma}")


INTEGRAL = LossConfig()
"""The paper's loss."""


def integral_loss(
    logits: Float[Array, "B h w K"],
    heat_xy: Float[Array, "B K 2"],
    valid: Bool[Array, "B K"],
    config: LossConfig = INTEGRAL,
) -> dict[str, Float[Array, ""]]:
    """Both terms: heatmap (cross-entropy to the bilinear one-hot target) and coordinate (L1 of the soft-argmax).

    Each is a mean over batch and joints (and both coordinates). Joints that are not valid count as 0, as in the
    released code. Computed in float32.

    Args:
      logits: any float dtype.
      heat_xy: targets, heatmap cells; may hold anything where not valid.
      valid: annotated and inside the map.
      config: static. The squared error to a Gaussian target is summed over the map.

    Returns:
      `heatmap` and `coordinate`, 0 if off. Their unweighted sum is the paper's loss.
    """
    logits = logits.astype(jnp.float32)
    heat_xy = jnp.where(valid[..., None], heat_xy, 0.0)
    heat_hw = logits.shape[1:3]
    heatmap, coordinate = jnp.zeros(valid.shape), jnp.zeros(heat_xy.shape)
    if config.heatmap == "gaussian":
        target = jax.vmap(lambda xy, on: gaussians(xy, on, crop_hw=heat_hw, sigma=config.sigma))(heat_xy, valid)
        heatmap = ((logits - target.drawn()) ** 2).sum(axis=(1, 2))
    elif config.heatmap == "one-hot":
        target = jax.vmap(lambda xy: one_hot(xy, heat_hw))(heat_xy)
        heatmap = -(target.drawn() * jax.nn.log_softmax(logits, axis=(1, 2))).sum(axis=(1, 2))
    if config.coordinate:
        predicted = jax.vmap(mean_position)(logits)
        coordinate = jnp.abs(predicted - heat_xy)
    return {
        "heatmap": jnp.where(valid, heatmap, 0.0).mean(),
        "coordinate": jnp.where(valid[..., None], coordinate, 0.0).mean(),
    }
