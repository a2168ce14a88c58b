"""Refines every folder under ROOT that holds `detections.json` and `photographs/`; writes `refined.json` beside them.

    python examples/refine_folders.py ROOT
    python examples/refine_folders.py ROOT --ray    # one Ray task per folder (pip install ray)

Folders with a result are skipped, and one that was interrupted resumes, so the same command continues after any stop.
"""

import argparse
from pathlib import Path

from posefix_jax import PosefixError, Refiner
from posefix_jax.refining.refine_files import RefineOptions, refine_rows, summary_of


def refine_folder(folder: Path, refiner: Refiner | None = None) -> str:
    """Refines one folder; returns a line that says what was done, or why it was not."""
    options = RefineOptions(
        detections=(str(folder / "detections.json"),), images=str(folder / "photographs"), out=folder / "refined.json"
    )
    try:
        report = refine_rows(refiner or Refiner.load(), options)
    except PosefixError as error:
        return f"{folder.name}: {error}"
    return summary_of(report, options.out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--ray", action="store_true", help="run the folders as Ray tasks")
    options = parser.parse_args(arguments)
    found = sorted(path.parent for path in options.root.glob("*/detections.json"))
    folders = [folder for folder in found if not (folder / "refined.json").exists()]
    if options.ray:
        import ray

        # Each task loads a refiner of its own; a GPU per task keeps two from sharing one.
        task = ray.remote(num_gpus=1)(refine_folder)
        waiting = [task.remote(folder) for folder in folders]
        while waiting:
            done, waiting = ray.wait(waiting)
            print(ray.get(done[0]), flush=True)
    else:
        refiner = Refiner.load()  # compiled once for all folders
        for folder in folders:
            print(refine_folder(folder, refiner), flush=True)


if __name__ == "__main__":
    main()
