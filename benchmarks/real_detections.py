"""AP of estimators' poses before and after refinement, with the 95 % interval of the difference.

python benchmarks/real_detections.py --truth gt.json --images DIR [--checkpoint RUN] [--write] d1.json d2.json ...
"""

import argparse
import tempfile
from pathlib import Path

from measure import write_result

from posefix_jax.evaluate import EvaluateOptions, evaluate
from posefix_jax.refine import RefineOptions, refine_rows
from posefix_jax.refiner import Refiner


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--keep-margin", type=float)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("detections", type=Path, nargs="+")
    options = parser.parse_args()
    refiner = Refiner.load(options.checkpoint, keep_margin=options.keep_margin)
    figures = {"decode": str(refiner.spec.decode)}
    with tempfile.TemporaryDirectory() as folder:
        for detections in options.detections:
            out = Path(folder) / detections.name
            job = RefineOptions(detections=detections, images=options.images, out=out, annotations=options.truth)
            report = refine_rows(refiner, job)
            scores = evaluate(EvaluateOptions(results=out, annotations=options.truth, against=detections))
            low, high = scores["interval"]
            figures[detections.stem] = {
                "rows": report["rows"],
                "joints_moved": report["joints_moved"],
                "AP": [round(scores[side]["AP"], 4) for side in ("before", "after")],
                "difference": round(scores["difference"]["AP"], 4),
                "interval": [round(low, 4), round(high, 4)],
            }
    write_result("real_detections", figures)


if __name__ == "__main__":
    main()
