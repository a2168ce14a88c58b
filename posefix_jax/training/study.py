"""`posefix study`: trains, scores and compares a grid of configs and seeds."""

import csv
import hashlib
import io
import itertools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from posefix_jax.core.models import DecodeConfig
from posefix_jax.data.pipeline import People
from posefix_jax.files import claim, read_json, whole_file, write_json
from posefix_jax.report import check_report_packages
from posefix_jax.report.progress import format_seconds
from posefix_jax.runtime.checkpoints import load_refiner
from posefix_jax.runtime.devices import keep_compiled
from posefix_jax.training.config import Config
from posefix_jax.training.train import build_run, errors_read, train
from posefix_jax.training.validation import Validator
from posefix_jax.types import PosefixError, function_in_file, tell

COLUMNS = {
    "ap_refined": "gain in AP",
    "ks_refined": "gain in mean KS",
}


@dataclass(frozen=True)
class Study:
    """What the `study()` of a study file returns.

    Attributes:
      configs: by name. The others are compared with the first. The study sets their `out` and `seed`.
      inputs: what to score, by name: a prepared folder and the kind of input poses, `synthetic` (the paper's errors,
        drawn with a fixed key) or `detected` (the folder's first stored detections).
      tune: not used any more; study files of earlier versions name an input here.

    Raises:
      PosefixError: no config, no input, or an unknown kind of input.
    """

    configs: Mapping[str, Config]
    inputs: Mapping[str, tuple[str, str]]
    tune: str = ""

    def __post_init__(self):
        if not self.configs or not self.inputs:
            raise PosefixError("a study needs at least one config and one input to score")
        for name, (_, kind) in self.inputs.items():
            if kind not in ("synthetic", "detected"):
                raise PosefixError(f"a study's input {name!r}: expected synthetic or detected, found {kind!r}")
        if self.tune and self.tune not in self.inputs:
            raise PosefixError(f"a study's tune {self.tune!r} is not one of its inputs: {', '.join(self.inputs)}")
        for name in self.configs:
            if not name or "/" in name:
                raise PosefixError(f"a study's config {name!r}: expected a name without slash")


@dataclass(frozen=True)
class StudyOptions:
    """Trains every config with every seed, one run after another on all devices, and writes a table and a plot."""

    study: Path
    """Python file that defines study(), returning a posefix_jax.training.study.Study"""
    out: Path
    """folder for the runs and the table. The same command resumes a study that stopped"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds of weights, data order, augmentation and errors; every config is trained with each"""
    only: tuple[str, ...] = ()
    """train only these configs now; the table has all finished runs"""

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise PosefixError(f"--seeds must be one or more different numbers, found {list(self.seeds)}")


def study(options: StudyOptions) -> bool:
    """Trains and scores the runs that are not done yet. Prints and writes the table after every run.

    Returns:
      Whether all runs are done; False if interrupted.

    Raises:
      PosefixError: the file does not define a study, or a config does not fit its data.
    """
    check_report_packages("posefix study")
    keep_compiled()
    of = function_in_file(options.study, "study")()
    if not isinstance(of, Study):
        raise PosefixError(f"{options.study}: expected study() to return a posefix_jax.training.study.Study")
    unknown = set(options.only) - set(of.configs)
    if unknown:
        raise PosefixError(f"--only {' '.join(sorted(unknown))}: not among {', '.join(of.configs)}")
    # Seed by seed, so that early tables compare all configs.
    runs = [(seed, name) for seed, name in itertools.product(options.seeds, of.configs)]
    wanted = [run for run in runs if not options.only or run[1] in options.only]
    _check(of, options)
    claim(options.out, "posefix study")
    begun, trained = time.monotonic(), 0
    for number, (seed, name) in enumerate(wanted):
        if _done(of, options, seed, name):
            continue
        config = _config(of, options, seed, name)
        _say(f"run {number + 1} of {len(wanted)}: {name}, seed {seed}")
        _, complete = train(config)
        if not complete:
            return False
        settled = {"of": _settled(of, config), "scores": _scores(config, of)}
        write_json(Path(config.out) / "scores.json", settled)
        trained += 1
        left = (time.monotonic() - begun) / trained * (len(wanted) - number - 1)
        print(_write(of, options, runs), flush=True)
        _say(f"{number + 1} of {len(wanted)} runs done, about {format_seconds(left)} left")
    if not trained:
        print(_write(of, options, runs), flush=True)
    return True


def _check(of: Study, options: StudyOptions) -> None:
    """Finds what would stop any run before the first run begins."""
    for name, config in of.configs.items():
        if options.only and name not in options.only:
            continue
        try:
            _, spec, _ = build_run(config)
            if config.init and not Path(config.init).exists():
                raise PosefixError(f"init {config.init} does not exist; train it first")
        except PosefixError as error:
            raise PosefixError(f"{options.study}: config {name!r}: {error}") from error
        for folder, kind in dict.fromkeys(of.inputs.values()):
            people = People([folder])
            if people.skeleton.joints != spec.skeleton.joints:
                raise PosefixError(
                    f"{folder}: people of skeleton {people.skeleton.name}, but config {name!r} trains "
                    f"{spec.skeleton.name}"
                )
            if kind == "detected" and not people.manifests[0].detections:
                raise PosefixError(f"{folder}: no detections stored; prepare with --detections")


def _config(of: Study, options: StudyOptions, seed: int, name: str) -> Config:
    return replace(of.configs[name], out=str(options.out / name / f"seed-{seed}"), seed=seed)


def _settled(of: Study, config: Config) -> str:
    """A digest of everything that the scores of a run depend on."""
    read = (*config.data.train, *(folder for folder, _ in of.inputs.values()), *([config.init] if config.init else []))
    files = [_files_in(Path(path)) for path in dict.fromkeys(read)]
    content = (replace(config, out=""), errors_read(config), files, sorted(of.inputs.items()), of.tune)
    # A field that configs did not always have leaves no trace at its default: runs scored before it still count.
    return hashlib.sha256(repr(content).replace(", compute_dtype='auto'", "").encode()).hexdigest()


def _files_in(path: Path) -> list[tuple[str, int]]:
    """Names and sizes of the files, which change when a folder is written anew."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(file.relative_to(path)), file.stat().st_size) for file in files if file.is_file()]


def _done(of: Study, options: StudyOptions, seed: int, name: str) -> dict | None:
    """The scores of a run, None if it is not done."""
    config = _config(of, options, seed, name)
    path = Path(config.out) / "scores.json"
    content = read_json(path) if path.is_file() else {}
    return content["scores"] if content.get("of") == _settled(of, config) else None


def _say(line: str) -> None:
    tell(line)


def _scores(config: Config, of: Study) -> dict:
    """By input: mean KS and AP before and after refinement, without trust: what the network itself makes of the input."""
    variables, spec = load_refiner(Path(config.out))
    if spec.decode.method == "ks":
        spec = replace(spec, decode=DecodeConfig("ks"))
    scores = {}
    for kind in dict.fromkeys(kind for _, kind in of.inputs.values()):
        folders = list(dict.fromkeys(folder for folder, its in of.inputs.values() if its == kind))
        validator = Validator(folders, spec)
        poses = validator.poses(kind, variables)
        for name, (folder, its) in of.inputs.items():
            if its == kind:
                scores[name] = validator.score(poses, folder=folders.index(folder))
    return {name: scores[name] for name in of.inputs}


def _write(of: Study, options: StudyOptions, runs) -> str:
    """Writes table.md, scores.csv and plot.svg of the finished runs; returns the table."""
    from posefix_jax.report.plots import bars

    found: dict[str, dict[int, dict]] = {}
    for seed, name in runs:
        scores = _done(of, options, seed, name)
        if scores is not None:
            found.setdefault(name, {})[seed] = scores
    table = table_of(found, of.inputs, next(iter(of.configs)))
    fields = ("people", "ap_input", "ap_refined", "ks_input", "ks_refined")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("config", "seed", "input", *fields))
    for name, seeds in found.items():
        for seed, scores in seeds.items():
            for given, score in scores.items():
                rows.writerow((name, seed, given, *(f"{score[field]:.6g}" for field in fields)))
    gains = {
        name: [list(_gains(seeds, given, "ap_refined").values()) or [0.0] for given in of.inputs]
        for name, seeds in found.items()
    }
    plot = bars(
        list(of.inputs),
        {name: [float(np.mean(values)) for values in row] for name, row in gains.items()},
        title="Gain in AP: mean of the seeds, from the lowest to the highest",
        y_label="gain in AP",
        intervals={name: [(min(values), max(values)) for values in row] for name, row in gains.items()},
    )
    for file_name, content in (("table.md", f"{table}\n"), ("scores.csv", text.getvalue()), ("plot.svg", plot)):
        with whole_file(options.out / file_name) as file:
            file.write(content.encode())
    return table


def table_of(found: Mapping[str, Mapping[int, Mapping]], inputs: Iterable[str], baseline: str) -> str:
    """The gains in AP and mean KS over the input, as Markdown: one row per config, one column per input.

    A cell has the mean and the standard deviation over seeds. In brackets: the mean difference from the `baseline`'s
    run with the same seed, and the standard error of that mean.

    Args:
      found: scores by config, seed and input.
      inputs: their names, in the order of columns.
      baseline: the name of a config.
    """
    parts = []
    for metric, title in COLUMNS.items():
        heads, inputs_row = list(inputs), []
        for given in inputs:
            known = [score[given] for seeds in found.values() for score in seeds.values() if given in score]
            inputs_row.append(f"{known[0][_input(metric)]:.3f}" if known else "")
        lines = [f"| {title} | seeds | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
        lines.append(f"| *of the input itself* | | {' | '.join(inputs_row)} |")
        for name, seeds in found.items():
            cells = []
            for given in inputs:
                compared = {} if name == baseline else _gains(found.get(baseline, {}), given, metric)
                cells.append(_cell(_gains(seeds, given, metric), compared))
            lines.append(f"| {name} | {len(seeds)} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _input(metric: str) -> str:
    return f"{metric.split('_')[0]}_input"


def _gains(seeds, given: str, metric: str) -> dict[int, float]:
    return {
        seed: score[given][metric] - score[given][_input(metric)] for seed, score in seeds.items() if given in score
    }


def _cell(gain: dict[int, float], baseline: dict[int, float]) -> str:
    if not gain:
        return ""
    values = np.array(list(gain.values()))
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    text = f"{values.mean():+.3f}{spread}"
    differences = np.array([gain[seed] - baseline[seed] for seed in gain if seed in baseline])
    if len(differences):
        error = f" ± {differences.std(ddof=1) / len(differences) ** 0.5:.3f}" if len(differences) > 1 else ""
        text += f" [{differences.mean():+.3f}{error}]"
    return text
