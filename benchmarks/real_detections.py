"""AP of estimators' poses before and after refinement, and rescored, with 95 % intervals of the differences.

python benchmarks/real_detections.py --truth gt.json --images DIR [--checkpoint RUN] [--write] d1.json d2.json ...
"""

import argparse
import json
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
    parser.add_argument("--min-ks", type=float)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("detections", type=Path, nargs="+")
    options = parser.parse_args()
    refiner = Refiner.load(options.checkpoint, keep_margin=options.keep_margin, min_ks=options.min_ks)
    figures = {"decode": str(refiner.spec.decode)}
    with tempfile.TemporaryDirectory() as folder:
        for detections in options.detections:
            rescored, refined = (Path(folder) / f"{kind}.json" for kind in ("rescored", "refined"))
            job = RefineOptions(
                detections=(str(detections),),
                images=str(options.images),
                out=rescored,
                annotations=options.truth,
                rescore=True,
            )
            report = refine_rows(refiner, job)
            rows = [json.loads(path.read_text()) for path in (detections, rescored)]
            refined.write_text(
                json.dumps([{**after, "score": before["score"]} for before, after in zip(*rows, strict=True)])
            )
            figures[detections.stem] = {"rows": report["rows"], "joints_moved": report["joints_moved"]}
            for kind, path in (("refined", refined), ("rescored", rescored)):
                scores = evaluate(EvaluateOptions(results=path, annotations=options.truth, against=detections))
                figures[detections.stem] |= {
                    "before": round(scores["before"]["AP"], 4),
                    kind: round(scores["after"]["AP"], 4),
                    f"{kind}_difference": round(scores["difference"]["AP"], 4),
                    f"{kind}_interval": [round(value, 4) for value in scores["interval"]],
                }
    write_result("real_detections", figures)


if __name__ == "__main__":
    main()
