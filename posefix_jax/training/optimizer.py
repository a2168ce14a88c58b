"""The update rule as one optax chain."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax

from posefix_jax.types import PosefixError, nearest_names


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights are updated. Static under `jit`."""

    recipe: Literal["reference", "modern"] = "modern"
    """reference: Adam, /10 at 9/14 and 12/14 of the run, L2 on kernels; modern: AdamW, warm-up, cosine, clipping"""
    learning_rate: float = 1e-3
    """highest learning rate"""
    weight_decay: float = 0.05
    """modern: AdamW's decay of kernels; reference: factor of the L2 term (released code: 1e-5)"""
    warmup_steps: int = 200
    """modern: steps of linear warm-up"""
    clip_norm: float = 1.0
    """modern: largest global norm of the gradient"""
    average_decay: float = 0.999
    """modern: decay of the averaged parameters, which are saved and evaluated; 0: no averaging"""
    accumulate: int = 1
    """steps whose gradients are averaged into one update, for batches that do not fit; batch statistics are per step"""

    def __post_init__(self):
        if self.recipe not in ("reference", "modern"):
            raise PosefixError(
                f"unknown optimizer.recipe {self.recipe!r}: {nearest_names(self.recipe, ('reference', 'modern'))}"
            )
        if min(self.learning_rate, self.clip_norm) <= 0 or min(self.weight_decay, self.warmup_steps) < 0:
            raise PosefixError(
                "optimizer.learning_rate and clip_norm must be positive, weight_decay and warmup_steps not negative, "
                f"found {self.learning_rate}, {self.clip_norm}, {self.weight_decay}, {self.warmup_steps}"
            )
        if self.accumulate < 1:
            raise PosefixError(f"optimizer.accumulate must be positive, found {self.accumulate}")
        if not 0 <= self.average_decay < 1:
            raise PosefixError(f"optimizer.average_decay must lie in [0, 1), found {self.average_decay}")

    @property
    def averages(self) -> float:
        """Decay of the averaged parameters; 0 with `reference`."""
        return self.average_decay if self.recipe == "modern" else 0.0


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at each update of a run of so many steps."""
    updates = max(steps // config.accumulate, 1)
    if config.recipe == "reference":
        # Epochs 90 and 120 of 140: paper, section 6.
        drops = {updates * 90 // 140: 0.1, updates * 120 // 140: 0.1}
        return optax.piecewise_constant_schedule(config.learning_rate, drops)
    warmup = min(config.warmup_steps, max(updates // 10, 1))
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(updates, warmup + 1))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The update rule of a run of so many steps."""

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    rate = learning_rate(config, steps)
    if config.recipe == "reference":
        decay = optax.add_decayed_weights(config.weight_decay, mask=kernels)
        chain = optax.chain(decay, optax.adam(rate, eps=1e-8))
    else:
        chain = optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.adamw(rate, weight_decay=config.weight_decay, mask=kernels),
        )
    if config.accumulate == 1:
        return chain
    return optax.MultiSteps(chain, config.accumulate).gradient_transformation()
