"""The cross-entropy-based integral loss. Paper, section 5.2; REFERENCE of the numbers: the released main/model.py."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from posefix_jax.heatmaps import encode_one_hot, probabilities, soft_argmax


def integral_loss(
    logits: Float[Array, "B h w K"], heat_xy: Float[Array, "B K 2"], valid: Bool[Array, "B K"]
) -> dict[str, Float[Array, ""]]:
    """Both terms: heatmap (cross-entropy to the bilinear one-hot target) and coordinate (L1 of the soft-argmax).

    Each is averaged over all batch x joints (x 2 for the coordinate); joints that are not valid count as 0, as in
    the released code. Computed in float32.

    Args:
      logits: any float dtype.
      heat_xy: targets in heatmap cells; may be anything where not valid.
      valid: annotated, and inside the map.

    Returns:
      `heatmap` and `coordinate`; their unweighted sum is the paper's loss.
    """
    logits = logits.astype(jnp.float32)
    heat_xy = jnp.where(valid[..., None], heat_xy, 0.0)
    target = jax.vmap(lambda xy: encode_one_hot(xy, logits.shape[1:3]))(heat_xy)
    log_probability = jax.nn.log_softmax(logits, axis=(1, 2))
    cross_entropy = -(target * log_probability).sum(axis=(1, 2))
    predicted = jax.vmap(lambda one: soft_argmax(probabilities(one)))(logits)
    distance = jnp.abs(predicted - heat_xy)
    return {
        "heatmap": jnp.where(valid, cross_entropy, 0.0).mean(),
        "coordinate": jnp.where(valid[..., None], distance, 0.0).mean(),
    }
