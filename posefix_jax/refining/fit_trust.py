"""`posefix fit-trust`: the trust that suits an estimator best, from a sample of its poses with ground truth."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate
from posefix_jax.refining.refine_files import RefineOptions, refine_rows
from posefix_jax.refining.refiner import Refiner
from posefix_jax.runtime.devices import keep_compiled
from posefix_jax.types import PosefixError

TRUSTS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 1.0)
"""The candidates."""


@dataclass(frozen=True)
class FitTrustOptions:
    """Refines a labelled sample of an estimator's poses with several trusts, and says which one suits it best."""

    detections: Path
    """file of poses in any format that `posefix refine` reads; a hundred people suffice"""
    images: str
    """the photographs: a folder, a .zip, .tar shards, a video, or a URL"""
    annotations: Path
    """COCO keypoint annotation file of the same photographs"""
    checkpoint: Path | None = None
    """a training run or checkpoint; the packaged refiner by default"""
    skeleton: str | None = None
    """the file's joints, a name or a JSON file, if neither the file nor the number of joints says what they are"""
    exif: Literal["auto", "apply", "ignore"] = "auto"
    """whether the estimator turned photographs as their EXIF orientation says; auto: as the poses fit"""
    min_score: float = 0.0
    """joints with a score up to this count as missing"""
    samples: int = 1000
    """bootstrap draws of photographs for the 95% intervals"""


def fit_trust(options: FitTrustOptions) -> dict:
    """Refines the sample with each of `TRUSTS` and scores it.

    Returns:
      `trust`: the one with the highest AP; on a tie the highest trust, which moves joints least. `AP`: of the input. `by_trust`:
      for each trust its AP, the difference to the input's, and the 95% interval of that difference.

    Raises:
      PosefixError: bad input.
    """
    keep_compiled()
    refiner = Refiner.load(options.checkpoint)
    if refiner.spec.decode.method != "ks":
        raise PosefixError(f"this refiner decodes by {refiner.spec.decode.method}, which knows no trust")
    by_trust: dict[float, dict] = {}
    folder = Path(tempfile.mkdtemp(prefix="posefix-"))
    try:
        job = RefineOptions(
            (str(options.detections),),
            options.images,
            folder / f"refined{''.join(options.detections.suffixes)}",
            annotations=options.annotations,
            skeleton=options.skeleton,
            exif=options.exif,
            min_score=options.min_score,
        )
        for trust in TRUSTS:
            refine_rows(refiner, replace(job, trust=trust))
            scores = evaluate(
                EvaluateOptions(
                    results=job.out,
                    annotations=options.annotations,
                    against=options.detections,
                    skeleton=options.skeleton,
                    samples=options.samples,
                )
            )
            by_trust[trust] = {"AP": scores["after"]["AP"], "difference": scores["difference"]["AP"]}
            by_trust[trust]["interval"] = list(scores["interval"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    best = max(TRUSTS, key=lambda trust: (by_trust[trust]["AP"], trust))
    return {"trust": best, "AP": scores["before"]["AP"], "by_trust": by_trust}


def table_of(report: dict) -> str:
    """The scores by trust, for the terminal."""
    lines = [f"AP of the input: {report['AP']:.4f}", f"{'trust':>6s} {'AP':>8s} {'change':>8s}  95% interval"]
    for trust, of in report["by_trust"].items():
        low, high = of["interval"]
        mark = "  <- best" if trust == report["trust"] else ""
        lines.append(f"{trust:6.2f} {of['AP']:8.4f} {of['difference']:+8.4f}  [{low:+.4f}, {high:+.4f}]{mark}")
    lines.append(f"refine with --trust {report['trust']}")
    return "\n".join(lines)
