"""Poses to maps and back. In: Gaussians (coarse). Out: one-hot targets, soft-argmax, best expected KS (fine).

One person per call; `vmap` to batch. Coordinates are crop pixels (`crop_xy`) or heatmap cells (`heat_xy`); maps are
[H, W, K]. Sizes are static.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class SeparableMaps(NamedTuple):
    """Maps that are the outer product of a value per row and a value per column. Layers can use them undrawn."""

    rows: Float[Array, "*B H K"]
    columns: Float[Array, "*B W K"]

    def drawn(self) -> Float[Array, "*B H W K"]:
        """The full maps."""
        return self.rows[..., :, None, :] * self.columns[..., None, :, :]


def gaussians(
    crop_xy: Float[Array, "K 2"], present: Bool[Array, " K"], *, crop_hw: tuple[int, int], sigma: float
) -> SeparableMaps:
    """The coarse input pose: one Gaussian of height 1 per joint. Paper, section 5.2.

    Args:
      crop_xy: joints; may hold anything, NaN included, where not present.
      present: where False the map is empty.
      crop_hw: size of the maps.
      sigma: standard deviation, crop pixels.
    """
    xy = jnp.where(present[:, None], crop_xy, 0.0)
    rows = jnp.exp(-0.5 * ((jnp.arange(crop_hw[0], dtype=xy.dtype)[:, None] - xy[None, :, 1]) / sigma) ** 2)
    columns = jnp.exp(-0.5 * ((jnp.arange(crop_hw[1], dtype=xy.dtype)[:, None] - xy[None, :, 0]) / sigma) ** 2)
    return SeparableMaps(jnp.where(present, rows, 0.0), columns)


def _hat(position: Float[Array, " K"], size: int) -> Float[Array, "S K"]:
    """Linear weights of the two cells around each position. Cells outside the map drop out; the rest sum to 1."""
    distance = jnp.abs(jnp.arange(size, dtype=position.dtype)[:, None] - position[None, :])
    weight = jnp.maximum(1.0 - distance, 0.0)
    total = weight.sum(axis=0, keepdims=True)
    return weight / jnp.where(total > 0, total, 1.0)


def one_hot(heat_xy: Float[Array, "K 2"], heat_hw: tuple[int, int]) -> SeparableMaps:
    """The fine target: bilinear weights of the cells around each joint. Paper, section 5.2.

    Cells outside the map drop out and the rest are renormalized. A joint a whole cell outside has an empty map.
    """
    return SeparableMaps(_hat(heat_xy[:, 1], heat_hw[0]), _hat(heat_xy[:, 0], heat_hw[1]))


def probabilities(logits: Float[Array, "h w K"]) -> Float[Array, "h w K"]:
    """Softmax over the cells of each joint, in float32."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=(0, 1))


def argmax(heatmap: Float[Array, "h w K"]) -> Float[Array, "K 2"]:
    """The highest cell of each joint's map, moved a quarter cell toward its higher neighbor along each axis.

    On the border it does not move along that axis. The usual decoding of maps trained to be Gaussians (Newell et al.,
    ECCV 2016).
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
    """The mean position under each joint's probability map, in heatmap cells. The inverse of `one_hot`."""
    h, w, _ = probability.shape
    x = jnp.einsum("wk,w->k", probability.sum(axis=0), jnp.arange(w, dtype=jnp.float32))
    y = jnp.einsum("hk,h->k", probability.sum(axis=1), jnp.arange(h, dtype=jnp.float32))
    return jnp.stack([x, y], axis=-1)


def mean_position(logits: Float[Array, "h w K"]) -> Float[Array, "K 2"]:
    """The soft-argmax of each joint's logits, in heatmap cells."""
    return soft_argmax(probabilities(logits))


def ks_kernels(
    heat_hw: tuple[int, int], heat_xy: Float[Array, "K 2"], scale: Float[Array, " K"]
) -> tuple[Float[Array, "h K"], Float[Array, "w K"]]:
    """A Gaussian of height 1 around each position, as a value per row and one per column.

    Args:
      heat_hw: size of the map.
      heat_xy: the positions, heatmap cells.
      scale: standard deviation, cells.
    """
    h, w = heat_hw
    rows = jnp.exp(-0.5 * ((jnp.arange(h, dtype=jnp.float32)[:, None] - heat_xy[None, :, 1]) / scale[None]) ** 2)
    columns = jnp.exp(-0.5 * ((jnp.arange(w, dtype=jnp.float32)[:, None] - heat_xy[None, :, 0]) / scale[None]) ** 2)
    return rows, columns


def expected_ks(
    probability: Float[Array, "h w K"], heat_xy: Float[Array, "K 2"], scale: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The expected keypoint similarity of a position, if the map is the probability of the true one.

    Args:
      probability: each joint's map sums to 1.
      heat_xy: the position, heatmap cells.
      scale: 2 sigma sqrt(area) in cells: the standard deviation of KS as a Gaussian of the distance.
    """
    h, w, _ = probability.shape
    rows, columns = ks_kernels((h, w), heat_xy, scale)
    return jnp.einsum("hwk,hk,wk->k", probability, rows, columns)


def best_expected_ks(
    probability: Float[Array, "h w K"], scale: Float[Array, " K"], *, iterations: int = 8
) -> Float[Array, "K 2"]:
    """The position with the highest expected KS under each joint's map, in heatmap cells.

    KS is a Gaussian of the distance, so the expected KS is the blurred map. Mean shift climbs from its best cell and
    never goes down. Of two modes this finds the better one; the soft-argmax lies between them.

    Args:
      probability: each joint's map sums to 1.
      scale: as in `expected_ks`.
      iterations: of mean shift.
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
        weight_rows, weight_columns = ks_kernels((h, w), xy, scale)
        along_rows = jnp.einsum("hwk,wk->hk", probability, weight_columns) * weight_rows
        along_columns = jnp.einsum("hwk,hk->wk", probability, weight_rows) * weight_columns
        total = jnp.maximum(along_rows.sum(axis=0), 1e-12)
        x = jnp.einsum("wk,w->k", along_columns, columns) / total
        y = jnp.einsum("hk,h->k", along_rows, rows) / total
        return jnp.stack([x, y], axis=-1), None

    return jax.lax.scan(climb, start, length=iterations)[0]
