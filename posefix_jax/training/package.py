"""`posefix ship`: a trained refiner as a small checkpoint of its own, its decoder tuned on people held out."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from posefix_jax.core.models import DecodeConfig
from posefix_jax.runtime.checkpoints import load_refiner, save_refiner
from posefix_jax.training.validation import Validator, best_keep_margin, keep_unpromising, line_of
from posefix_jax.types import PosefixError

TEMPERATURES = (1.0, 1.5)


@dataclass(frozen=True)
class PackageOptions:
    """Writes weights (16 bit) and spec of a trained refiner to a folder that `--checkpoint` takes."""

    checkpoint: Path
    """a training run or checkpoint"""
    out: Path
    """folder to write; must not exist"""
    tune: tuple[str, ...] = ()
    """prepared folders of people held out from training: temperature and keep_margin are chosen for the highest AP of
    their stored detections (of synthetic poses where there are none), the more careful on a tie"""
    keep_margin: float | None = None
    """set the gain of expected KS that a joint must promise to be moved"""
    min_ks: float | None = None
    """set the expected KS that a new place must promise; guards poses that are good, on photographs unlike the training
    ones"""
    temperature: float | None = None
    """set the divisor of the logits"""


def package(options: PackageOptions) -> str:
    """Returns a line for the terminal.

    Raises:
      PosefixError: no refiner there, the folder exists, or the people to tune on are of another skeleton.
    """
    if options.out.exists():
        raise PosefixError(f"{options.out}: exists; remove it or write elsewhere")
    variables, spec = load_refiner(options.checkpoint)
    spec = replace(spec, decode=spec.decode.given(min_ks=options.min_ks))
    if options.tune:
        spec = replace(spec, decode=tune(variables, spec, options.tune))
    given = spec.decode.given(keep_margin=options.keep_margin, temperature=options.temperature)
    spec = replace(spec, decode=given)
    save_refiner(options.out, variables, spec, dtype=np.float16)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    return f"{options.out}: {size / 1e6:.1f} MB, {spec.decode}"


def tune(variables, spec, folders: tuple[str, ...]) -> DecodeConfig:
    """The decoder with the highest AP on these people, `min_ks` as in the spec; prints a line for each that was tried.

    AP, not mean KS: refinement that lifts bad joints a little and blurs good ones raises KS and costs AP.
    """
    best, decode, min_ks = -1.0, spec.decode, spec.decode.min_ks
    for temperature in TEMPERATURES:
        # With a margin of 0 every joint that promises any gain moves: the other margins follow from its promises.
        open_spec = replace(spec, decode=DecodeConfig("ks", temperature=temperature))
        validator = Validator(folders, open_spec)
        poses = {kind: validator.poses(kind, variables) for kind in validator.kinds}

        def ap_of(keep_margin, validator=validator, poses=poses, temperature=temperature) -> float:
            scores = {}
            for kind, moved in poses.items():
                scores[kind] = validator.score(keep_unpromising(moved, keep_margin, min_ks))
                line = f"temperature {temperature}, keep_margin {keep_margin}: {line_of(kind, scores[kind])}"
                print(line, file=sys.stderr, flush=True)
            return scores[validator.kinds[-1]]["ap_refined"]

        keep_margin, ap = best_keep_margin(ap_of)
        if ap >= best:
            best, decode = ap, DecodeConfig("ks", keep_margin, min_ks, temperature)
    return decode
