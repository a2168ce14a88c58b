"""`posefix package`: a trained refiner as a small checkpoint, tuned on held-out people to know how good its input is."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from posefix_jax.core.models import DecodeConfig, RefinerSpec
from posefix_jax.runtime.checkpoints import load_refiner, save_refiner
from posefix_jax.training.tune import fit, refine_graded
from posefix_jax.types import PosefixError, tell

TEMPERATURE = 1.5
"""Of tuned refiners. 1.0 served the packaged one as well: a mean accuracy of 0.7935 instead of 0.7936."""


@dataclass(frozen=True)
class PackageOptions:
    """Writes 16-bit weights and spec of a trained refiner to a folder, for use with `--checkpoint`."""

    checkpoint: Path
    """a training run or checkpoint"""
    out: Path
    """folder to write; must not exist"""
    tune: tuple[str, ...] = ()
    """prepared folders of people held out from training: what tells a file's trust, the default trust and the confidence are
    fitted on inputs of every quality made from them. Needs a run trained with inputs.withhold_pose"""
    trust: float | None = None
    """set the default trust in an input pose, 0..1"""
    temperature: float | None = None
    """set the decoder's temperature, which divides the logits; by default 1.5 with --tune, else the run's"""


def package(options: PackageOptions) -> str:
    """Writes the folder; returns a line for the terminal.

    Raises:
      PosefixError: the checkpoint has no refiner, the folder exists, or the people to tune on have another skeleton.
    """
    if options.out.exists():
        raise PosefixError(f"{options.out}: exists; remove it or write elsewhere")
    variables, spec = load_refiner(options.checkpoint)
    if options.tune:
        spec = replace(spec, decode=tune(variables, spec, options.tune, options.temperature or TEMPERATURE))
    given = spec.decode.given(trust=options.trust, temperature=options.temperature)
    spec = replace(spec, decode=given)
    save_refiner(options.out, variables, spec, dtype=np.float16)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    return f"{options.out}: {size / 1e6:.1f} MB, {spec.decode}"


def tune(variables: dict, spec: RefinerSpec, folders: tuple[str, ...], temperature: float) -> DecodeConfig:
    """The decoder, fitted on these people. Prints a line per folder and input."""
    decode = DecodeConfig("ks", temperature=temperature, withhold_mirror=True)
    tuned = fit(refine_graded(folders, variables, replace(spec, decode=decode)), decode, folders)
    tell("\n".join([*tuned.lines, f"mean accuracy {tuned.accuracy:.4f}"]))
    return tuned.decode
