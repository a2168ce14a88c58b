"""Poses as maps and back: coarse in (Gaussians), fine out (one-hot targets, soft-argmax, best expected KS).

One person a call, `vmap` to batch; crop pixels or heatmap cells as the names say; maps are [H, W, K]. Sizes,
strides and frames are static.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class SeparableMaps(NamedTuple):
    """Maps whose every value is one of its row times one of its column: those of a pose, which need not be drawn."""

    rows: Float[Array, "*B H K"]
    columns: Float[Array, "*B W K"]

    def drawn(self) -> Float[Array, "*B H W K"]:
        return self.rows[..., :, None, :] * self.columns[..., None, :, :]


def gaussians(
    crop_xy: Float[Array, "K 2"], present: Bool[Array, " K"], *, crop_hw: tuple[int, int], sigma: float
) -> SeparableMaps:
    """The coarse input pose: a Gaussian of height 1 a joint, `sigma` in crop pixels. Paper, section 5.2.

    A joint that is not present has an empty map, whatever its coordinates hold.
    """
    xy = jnp.where(present[:, None], crop_xy, 0.0)
    rows = jnp.exp(-0.5 * ((jnp.arange(crop_hw[0], dtype=xy.dtype)[:, None] - xy[None, :, 1]) / sigma) ** 2)
    columns = jnp.exp(-0.5 * ((jnp.arange(crop_hw[1], dtype=xy.dtype)[:, None] - xy[None, :, 0]) / sigma) ** 2)
    return SeparableMaps(jnp.where(present, rows, 0.0), columns)


def _hat(position: Float[Array, " K"], size: int) -> Float[Array, "S K"]:
    """Linear weights of the two cells around each position; cells outside drop out, the rest sum to 1."""
    distance = jnp.abs(jnp.arange(size, dtype=position.dtype)[:, None] - position[None, :])
    weight = jnp.maximum(1.0 - distance, 0.0)
    total = weight.sum(axis=0, keepdims=True)
    return weight / jnp.where(total > 0, total, 1.0)


def one_hot(heat_xy: Float[Array, "K 2"], heat_hw: tuple[int, int]) -> SeparableMaps:
    """The fine target: bilinear weights of the cells around each joint. Paper, section 5.2.

    Corners outside the map drop out and the rest are renormalised; a joint a whole cell outside has an empty map.
    """
    return SeparableMaps(_hat(heat_xy[:, 1], heat_hw[0]), _hat(heat_xy[:, 0], heat_hw[1]))


def probabilities(logits: Float[Array, "h w K"]) -> Float[Array, "h w K"]:
    """Softmax over the cells of each joint, in float32."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=(0, 1))


def argmax(heatmap: Float[Array, "h w K"]) -> Float[Array, "K 2"]:
    """The highest cell of each joint's map, a quarter of a cell towards its higher neighbour along each axis.

    Along an axis at whose end it lies it stays.
    The usual decoding of maps trained to be Gaussians (Newell et al., ECCV 2016).
    """
    h, w, k = heatmap.shape
    best = heatmap.reshape(h * w, k).argmax(axis=0)
    y, x = best // w, best % w
    padded = jnp.pad(heatmap, ((1, 1), (1, 1), (0, 0)), mode="edge")
    joint = jnp.arange(k)
    across = jnp.where((x > 0) & (x < w - 1), padded[y + 1, x + 2, joint] - padded[y + 1, x, joint], 0.0)
    down = jnp.where((y > 0) & (y < h - 1), padded[y + 2, x + 1, joint] - padded[y, x + 1, joint], 0.0)
    return jnp.stack([x, y], axis=-1).astype(jnp.float32) + 0.25 * jnp.sign(jnp.stack([across, down], axis=-1))


def soft_argmax(probability: Float[Array, "h w K"]) -> Float[Array, "K 2"]:
    """The mean position under each joint's probability map, in heatmap cells. Inverts `one_hot`."""
    h, w, _ = probability.shape
    x = jnp.einsum("wk,w->k", probability.sum(axis=0), jnp.arange(w, dtype=jnp.float32))
    y = jnp.einsum("hk,h->k", probability.sum(axis=1), jnp.arange(h, dtype=jnp.float32))
    return jnp.stack([x, y], axis=-1)


def mean_position(logits: Float[Array, "h w K"]) -> Float[Array, "K 2"]:
    """The soft-argmax of each joint's logits, in heatmap cells."""
    return soft_argmax(probabilities(logits))


def _ks_kernels(probability, heat_xy, scale):
    h, w, _ = probability.shape
    rows = jnp.exp(-0.5 * ((jnp.arange(h, dtype=jnp.float32)[:, None] - heat_xy[None, :, 1]) / scale[None]) ** 2)
    columns = jnp.exp(-0.5 * ((jnp.arange(w, dtype=jnp.float32)[:, None] - heat_xy[None, :, 0]) / scale[None]) ** 2)
    return rows, columns


def expected_ks(
    probability: Float[Array, "h w K"], heat_xy: Float[Array, "K 2"], scale: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The keypoint similarity that a guess will score if the joint lies where the map says it may.

    Args:
      probability: each joint's map sums to 1.
      heat_xy: the guess, heatmap cells.
      scale: 2 sigma sqrt(area) in cells, the standard deviation of KS as a function of distance.
    """
    rows, columns = _ks_kernels(probability, heat_xy, scale)
    return jnp.einsum("hwk,hk,wk->k", probability, rows, columns)


def best_expected_ks(
    probability: Float[Array, "h w K"], scale: Float[Array, " K"], *, iterations: int = 8
) -> Float[Array, "K 2"]:
    """The position with the highest expected KS under each joint's map, in heatmap cells.

    KS is a Gaussian of the distance, so its expectation is the map blurred; the best cell is climbed from by
    mean shift, which never goes down. Where the map has two modes the soft-argmax lies between them, this on
    the better one.
    """
    h, w, _ = probability.shape
    rows = jnp.arange(h, dtype=jnp.float32)
    columns = jnp.arange(w, dtype=jnp.float32)
    blur_rows = jnp.exp(-0.5 * ((rows[:, None] - rows[None, :])[..., None] / scale[None, None]) ** 2)
    blur_columns = jnp.exp(-0.5 * ((columns[:, None] - columns[None, :])[..., None] / scale[None, None]) ** 2)
    expected = jnp.einsum("hwk,yhk,xwk->yxk", probability, blur_rows, blur_columns)
    best = expected.reshape(h * w, -1).argmax(axis=0)
    start = jnp.stack([best % w, best // w], axis=-1).astype(jnp.float32)

    def climb(xy, _):
        weight_rows, weight_columns = _ks_kernels(probability, xy, scale)
        along_rows = jnp.einsum("hwk,wk->hk", probability, weight_columns) * weight_rows
        along_columns = jnp.einsum("hwk,hk->wk", probability, weight_rows) * weight_columns
        total = jnp.maximum(along_rows.sum(axis=0), 1e-12)
        x = jnp.einsum("wk,w->k", along_columns, columns) / total
        y = jnp.einsum("hk,h->k", along_rows, rows) / total
        return jnp.stack([x, y], axis=-1), None

    return jax.lax.scan(climb, start, length=iterations)[0]
