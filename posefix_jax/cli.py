"""The `posefix` command. Imports a job, and all it needs, only when that job is asked for."""

import os
import sys

from posefix_jax.types import PosefixError, nearest_names

_JOBS = {
    "refine": "make the poses of any estimator's files better",
    "estimate": "find poses in the boxes of people, without input poses",
    "merge": "put the shards of a divided refine together",
    "convert": "write files of poses in another format",
    "evaluate": "score a results file, or two against each other",
    "analyse": "find which errors a results file has and what they cost; `analyse fit` writes them as an error model",
    "study": "train a grid of configs and seeds, and compare them",
    "synthesise": "draw spoiled poses and show them",
    "prepare": "turn annotations and photographs into training shards",
    "train": "train a refiner from a config",
    "import": "read the authors' weights, or ImageNet weights of a backbone",
    "export": "write a refiner as a program that jax alone runs",
    "ship": "write a trained refiner as a small checkpoint of its own",
    "demo": "refine a few people in sample photographs and show it",
}

_HELP = f"""posefix: refine human poses (PoseFix, in JAX)

usage: posefix JOB [options]

{chr(10).join(f"  {name:9s} {what}" for name, what in _JOBS.items())}

posefix JOB --help lists the options of a job."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 for a mistake of the user's."""
    own_process = arguments is None
    arguments = sys.argv[1:] if own_process else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP)
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("posefix-jax"))
        return 0
    job, rest = arguments[0], arguments[1:]
    try:
        if job not in _JOBS:
            raise PosefixError(f"unknown job {job!r}: {nearest_names(job, _JOBS)}")
        if own_process:
            use_huge_pages()
        return globals()[f"_{job}"](rest)
    except PosefixError as error:
        print(f"posefix: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"posefix: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"posefix: interrupted{'; the same command goes on' if job in ('refine', 'convert') else ''}",
            file=sys.stderr,
        )
        return 130


def use_huge_pages() -> None:
    """Starts this process anew with glibc's huge pages, a setting that is read only then. Nothing where one is given.

    XLA:CPU asks for its memory afresh at every call; by small pages that takes a good part of it (docs/scaling.md).
    """
    if sys.platform == "linux" and sys.executable and "GLIBC_TUNABLES" not in os.environ:
        environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _parse(options, rest: list[str], job: str, **more):
    import tyro

    return tyro.cli(options, args=rest, prog=f"posefix {job}", **more)


def _refine(rest: list[str]) -> int:
    from posefix_jax.refining.refine_files import RefineOptions, refine, summary_of

    if rest and not rest[0].startswith("-"):
        rest = ["--detections", *rest]
    options = _parse(RefineOptions, rest, "refine")
    print(summary_of(refine(options), options.out))
    return 0


def _estimate(rest: list[str]) -> int:
    from posefix_jax.refining.estimate import EstimateOptions, estimate
    from posefix_jax.refining.refine_files import summary_of

    if rest and not rest[0].startswith("-"):
        rest = ["--boxes", *rest]
    options = _parse(EstimateOptions, rest, "estimate")
    print(summary_of(estimate(options), options.out))
    return 0


def _merge(rest: list[str]) -> int:
    from pathlib import Path

    from posefix_jax.refining.refine_files import summary_of
    from posefix_jax.refining.resumable_output import merge

    if len(rest) != 1 or rest[0].startswith("-"):
        print("usage: posefix merge OUT, the --out of the posefix refine --shard runs")
        return 0 if rest in (["-h"], ["--help"]) else 2
    print(summary_of(merge(Path(rest[0])), Path(rest[0])))
    return 0


def _convert(rest: list[str]) -> int:
    from posefix_jax.refining.convert import ConvertOptions, convert

    if rest and not rest[0].startswith("-"):
        rest = ["--detections", *rest]
    options = _parse(ConvertOptions, rest, "convert")
    report = convert(options)
    print(f"{report['rows']} poses ({report['format']}): {options.out}")
    return 0


def _evaluate(rest: list[str]) -> int:
    from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate, table_of

    if rest and not rest[0].startswith("-"):
        rest = ["--results", *rest]
    print(table_of(evaluate(_parse(EvaluateOptions, rest, "evaluate"))))
    return 0


def _analyse(rest: list[str]) -> int:
    if rest and rest[0] == "fit":
        from posefix_jax.evaluation.fit import FitOptions, fit

        rest = rest[1:]
        if rest and not rest[0].startswith("-"):
            rest = ["--detections", *rest]
        print(fit(_parse(FitOptions, rest, "analyse fit")))
        return 0
    from posefix_jax.evaluation.analyze import AnalyseOptions, analyse, table_of

    if rest and not rest[0].startswith("-"):
        rest = ["--results", *rest]
    options = _parse(AnalyseOptions, rest, "analyse")
    print(table_of(analyse(options), options.out))
    return 0


def _prepare(rest: list[str]) -> int:
    from posefix_jax.data.prepare import PrepareOptions, prepare, summary_of

    options = _parse(PrepareOptions, rest, "prepare")
    print(summary_of(prepare(options)))
    return 0


def _train(rest: list[str]) -> int:
    from posefix_jax.training.config import Config, load_preset

    if not rest or rest[0].startswith("-"):
        if rest and rest[0] in ("-h", "--help"):
            _parse(Config, rest, "train CONFIG.py", default=Config())
        raise PosefixError("train needs a config file first: posefix train configs/NAME.py [--field value ...]")
    config = _parse(Config, rest[1:], f"train {rest[0]}", default=load_preset(rest[0]))

    from posefix_jax.training.train import train

    _, complete = train(config)
    return 0 if complete else 130


def _study(rest: list[str]) -> int:
    from posefix_jax.training.study import StudyOptions, study

    if rest and not rest[0].startswith("-"):
        rest = ["--study", *rest]
    return 0 if study(_parse(StudyOptions, rest, "study")) else 130


def _synthesise(rest: list[str]) -> int:
    from posefix_jax.training.synthesize import SynthesizeOptions, synthesize

    print(synthesize(_parse(SynthesizeOptions, rest, "synthesise")))
    return 0


def _ship(rest: list[str]) -> int:
    from posefix_jax.training.package import PackageOptions, package

    print(package(_parse(PackageOptions, rest, "ship")))
    return 0


def _export(rest: list[str]) -> int:
    from posefix_jax.refining.export import ExportOptions, export

    print(export(_parse(ExportOptions, rest, "export")))
    return 0


def _import(rest: list[str]) -> int:
    from posefix_jax.weights.import_weights import SOURCES, import_weights

    usage = f"posefix import {'|'.join(SOURCES)} FILE --out ... (--help after a source lists its options)"
    if rest and rest[0] in ("-h", "--help"):
        print(usage)
        return 0
    if not rest or rest[0] not in SOURCES:
        known = f"unknown source {rest[0]!r}: {nearest_names(rest[0], SOURCES)}; " if rest else ""
        raise PosefixError(f"{known}usage: {usage}")
    source, *rest = rest
    if rest and not rest[0].startswith("-"):
        rest = ["--weights", *rest]
    print(import_weights(_parse(SOURCES[source], rest, f"import {source}")))
    return 0


def _demo(rest: list[str]) -> int:
    from posefix_jax.refining.demo import DemoOptions, demo

    print(demo(_parse(DemoOptions, rest, "demo")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
