"""`posefix ship`: a trained refiner as a small checkpoint of its own, without what only training needs."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from posefix_jax.checkpoints import load_refiner, save_refiner


@dataclass(frozen=True)
class ShipOptions:
    """Writes weights (16 bit) and spec of a trained refiner to a folder that `--checkpoint` takes."""

    checkpoint: Path
    """a training run or checkpoint"""
    out: Path
    """folder to write; must not exist"""
    keep_margin: float | None = None
    """set the gain of expected KS that a joint must promise to be moved"""
    temperature: float | None = None
    """set the divisor of the logits"""


def ship(options: ShipOptions) -> str:
    """Returns a line for the terminal. Raises PosefixError: no refiner there, or the folder exists."""
    variables, spec = load_refiner(options.checkpoint)
    given = {"keep_margin": options.keep_margin, "temperature": options.temperature}
    given = {key: value for key, value in given.items() if value is not None}
    spec = replace(spec, decode=replace(spec.decode, **given))
    save_refiner(options.out, variables, spec, dtype=np.float16)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    return f"{options.out}: {size / 1e6:.1f} MB, {spec.decode}"
