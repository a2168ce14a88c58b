"""`posefix package`: a trained refiner as a small checkpoint, with its decoder tuned on held-out people."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from posefix_jax.core.models import DecodeConfig, RefinerSpec
from posefix_jax.runtime.checkpoints import load_refiner, save_refiner
from posefix_jax.training.validation import Validator, best_keep_margin, keep_unpromising, line_of
from posefix_jax.types import PosefixError

TEMPERATURES = (1.0, 1.5)


@dataclass(frozen=True)
class PackageOptions:
    """Writes 16-bit weights and spec of a trained refiner to a folder, for use with `--checkpoint`."""

    checkpoint: Path
    """a training run or checkpoint"""
    out: Path
    """folder to write; must not exist"""
    tune: tuple[str, ...] = ()
    """prepared folders of people held out from training. Temperature and keep_margin get the values with the highest AP
    on their stored detections, or on synthetic poses if there are none; on a tie, the values that move fewer joints"""
    keep_margin: float | None = None
    """set the decoder's keep_margin: a joint moves only if its expected KS rises by more than this"""
    min_ks: float | None = None
    """set the decoder's min_ks: a joint moves only if its new expected KS is at least this. Protects good poses in
    images unlike the training images"""
    temperature: float | None = None
    """set the decoder's temperature, which divides the logits"""


def package(options: PackageOptions) -> str:
    """Writes the folder; returns a line for the terminal.

    Raises:
      PosefixError: the checkpoint has no refiner, the folder exists, or the people to tune on have another skeleton.
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


def tune(variables: dict, spec: RefinerSpec, folders: tuple[str, ...]) -> DecodeConfig:
    """The decoder with the highest AP on these people, with `min_ks` as in the spec. Prints a line per candidate.

    Not the highest mean KS: a refiner that improves bad joints a little and blurs good ones has a higher KS and a lower
    AP.
    """
    best, decode, min_ks = -1.0, spec.decode, spec.decode.min_ks
    for temperature in TEMPERATURES:
        # Refined once with margin 0: the poses of all other margins follow from their expected KS.
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
