"""AP of estimators' poses before and after refinement, and rescored, with 95% intervals of the differences.

python benchmarks/real_detections.py --truth gt.json --images DIR [--checkpoint RUN] [--write] d1.json d2.json ...

`--holdout 0.05` evaluates only the people that `posefix prepare --holdout 0.05` holds out; `--variants` also runs each option
of `posefix refine` that changes the result, one at a time; `--jitter 0 0.1 0.3` also refines the true poses with normal errors
of these standard deviations, in units of 2 sigma sqrt(area), which stand in for strong estimators (`0.5,2`: and 2% of the
joints missed); `--trust T` says the trust instead of leaving it to the poses.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from measure import write_result

from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.prepare import held_out
from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate
from posefix_jax.refining.refine_files import RefineOptions, refine_rows
from posefix_jax.refining.refiner import Refiner


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--trust", type=float)
    parser.add_argument("--jitter", nargs="*", default=[])
    parser.add_argument("--holdout", type=float)
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("detections", type=Path, nargs="*")
    options = parser.parse_args()
    refiner = Refiner.load(options.checkpoint)
    figures = {"decode": str(refiner.spec.decode)}
    with tempfile.TemporaryDirectory() as folder:
        if options.holdout is not None:
            _keep_held_out(options, Path(folder))
        options.detections += [_jittered(options.truth, each, Path(folder)) for each in options.jitter]
        if options.variants:
            figures["variants"] = _variants(options, Path(folder, "variant.json"))
        for detections in options.detections:
            rescored, refined = (Path(folder) / f"{kind}.json" for kind in ("rescored", "refined"))
            job = RefineOptions(
                detections=(str(detections),),
                images=str(options.images),
                out=rescored,
                annotations=options.truth,
                rescore=True,
                trust=options.trust,
            )
            report = refine_rows(refiner, job)
            rows = [json.loads(path.read_text()) for path in (detections, rescored)]
            refined.write_text(
                json.dumps([{**after, "score": before["score"]} for before, after in zip(*rows, strict=True)])
            )
            figures[detections.stem] = {
                "rows": report["rows"],
                "trust": report["trust"]["value"],
                "fit": report["trust"].get("fit"),
            }
            for kind, path in (("refined", refined), ("rescored", rescored)):
                scores = evaluate(EvaluateOptions(results=path, annotations=options.truth, against=detections))
                figures[detections.stem] |= {
                    "before": round(scores["before"]["AP"], 4),
                    kind: round(scores["after"]["AP"], 4),
                    f"{kind}_difference": round(scores["difference"]["AP"], 4),
                    f"{kind}_interval": [round(value, 4) for value in scores["interval"]],
                }
    write_result("real_detections", figures)


def _keep_held_out(options, folder: Path) -> None:
    """Replaces the files of the options by their rows of held-out photographs."""

    def kept(rows: list, key: str) -> list:
        return [row for row in rows if held_out(row[key], options.holdout)]

    truth = json.loads(options.truth.read_text())
    truth |= {"images": kept(truth["images"], "id"), "annotations": kept(truth["annotations"], "image_id")}
    options.truth = folder / options.truth.name
    options.truth.write_text(json.dumps(truth))
    for i, detections in enumerate(options.detections):
        options.detections[i] = folder / detections.name
        options.detections[i].write_text(json.dumps(kept(json.loads(detections.read_text()), "image_id")))


def _jittered(truth: Path, jitter: str, folder: Path) -> Path:
    """A file of the labelled people's true poses with normal errors, and some of the joints two to six units away."""
    spread, _, missed = jitter.partition(",")
    content = json.loads(truth.read_text())
    names = next(category["keypoints"] for category in content["categories"] if "keypoints" in category)
    unit = 2 * np.array(COCO.sigmas)[[COCO.joints.index(name) for name in names]]
    rng = np.random.default_rng(0)
    rows = []
    for person in content["annotations"]:
        joints = np.array(person["keypoints"], np.float64).reshape(-1, 3)
        labelled = joints[:, 2] > 0
        if not labelled.any() or person.get("iscrowd"):
            continue
        unit_px = (unit * np.sqrt(person["area"]))[:, None]
        xy = joints[:, :2] + float(spread) * unit_px * rng.standard_normal((len(unit), 2))
        turn, far = 2 * np.pi * rng.random(len(unit)), 2 + 4 * rng.random(len(unit))
        away = joints[:, :2] + unit_px * far[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])
        xy = np.where((rng.random(len(unit)) < float(missed or 0) / 100)[:, None], away, xy)
        pose = np.where(labelled[:, None], np.column_stack([xy, np.ones(len(unit))]), 0)
        rows.append(
            {"image_id": person["image_id"], "category_id": 1, "keypoints": pose.reshape(-1).tolist(), "score": 1.0}
        )
    path = folder / f"jitter_{jitter.replace(',', '_missed_')}.json"
    path.write_text(json.dumps(rows))
    return path


def _variants(options, out: Path) -> dict:
    """AP of each estimator's poses with one option at a time other than its default."""
    variants = {
        "default": ({}, {}),
        "no flip": ({"flip": False}, {}),
        "2 iterations": ({"iterations": 2}, {}),
        "3 iterations": ({"iterations": 3}, {}),
        "missing kept": ({}, {"missing": "keep"}),
        "min score 0.2": ({}, {"min_score": 0.2}),
        "min score 0.4": ({}, {"min_score": 0.4}),
        "rescored": ({}, {"rescore": True}),
        "OKS-NMS 0.9": ({}, {"oks_nms": 0.9}),
        "trust 0": ({}, {"trust": 0.0}),
        "trust 0.5": ({}, {"trust": 0.5}),
        "trust 1": ({}, {"trust": 1.0}),
    }
    figures: dict = {name: {} for name in variants}
    for name, (of_refiner, of_job) in variants.items():
        refiner = Refiner.load(options.checkpoint, **of_refiner)
        for detections in options.detections:
            places = {"images": str(options.images), "annotations": options.truth, "out": out}
            refine_rows(refiner, RefineOptions((str(detections),), **places, **of_job))
            scores = evaluate(EvaluateOptions(results=out, annotations=options.truth, against=detections, samples=200))
            figures[name][detections.stem] = round(scores["difference"]["AP"], 4)
    return figures


if __name__ == "__main__":
    main()
