"""The `posefix` command: a table of jobs. A job's module, and all it needs, is imported only when it is asked for."""

import os
import sys
from collections.abc import Callable
from importlib import import_module

from posefix_jax.types import PosefixError, nearest_names


class Job:
    """One job of the command.

    A plain class without dataclasses or typing, whose import would slow down every start.

    Args:
      summary: a line for `posefix --help`.
      run: the function that runs it, as "module:function"; it takes the options.
      options: its dataclass of options, as "module:class".
      positional: the option that an argument without a name is.
      network: whether it runs a network on this machine.
      show: what its result and options give: lines to print, or an exit code.
      parse: turns the remaining arguments into options, if a dataclass alone does not.
    """

    def __init__(
        self,
        summary: str,
        *,
        run: str,
        options: str = "",
        positional: str = "",
        network: bool = False,
        show: Callable = lambda result, options: result,
        parse: Callable | None = None,
    ):
        self.summary, self.run, self.options, self.positional = summary, run, options, positional
        self.network, self.show, self.parse = network, show, parse


def _load(place: str):
    module, name = place.split(":")
    return getattr(import_module(f"posefix_jax.{module}"), name)


def _parse(options, rest: list[str], job: str, positional: str = "", **more):
    import tyro

    if positional and rest and not rest[0].startswith("-"):
        rest = [f"--{positional}", *rest]
    return tyro.cli(options, args=rest, prog=f"posefix {job}", **more)


def _train(rest: list[str]) -> object:
    config, load_preset = (_load(f"training.config:{name}") for name in ("Config", "load_preset"))
    if not rest or rest[0].startswith("-"):
        if rest and rest[0] in ("-h", "--help"):
            _parse(config, rest, "train CONFIG.py", default=config())
        raise PosefixError("train needs a config file first: posefix train configs/NAME.py [--field value ...]")
    return _parse(config, rest[1:], f"train {rest[0]}", default=load_preset(rest[0]))


def _import(rest: list[str]) -> object:
    sources = _load("weights.import_weights:SOURCES")
    usage = f"posefix import {'|'.join(sources)} FILE --out ... (--help after a source lists its options)"
    if rest and rest[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(0)
    if not rest or rest[0] not in sources:
        known = f"unknown source {rest[0]!r}: {nearest_names(rest[0], sources)}; " if rest else ""
        raise PosefixError(f"{known}usage: {usage}")
    return _parse(sources[rest[0]], rest[1:], f"import {rest[0]}", "weights")


def _summary(result: dict, options) -> int:
    summary_of, mostly_skipped = (_load(f"refining.refine_files:{f}") for f in ("summary_of", "mostly_skipped"))
    print(summary_of(result, options.out))
    return 3 if mostly_skipped(result) and not options.allow_missing else 0


JOBS = {
    "refine": Job(
        "improve the poses in files of any estimator",
        run="refining.refine_files:refine",
        options="refining.refine_files:RefineOptions",
        positional="detections",
        network=True,
        show=_summary,
    ),
    "estimate": Job(
        "find poses in the boxes of people, without input poses",
        run="refining.estimate:estimate",
        options="refining.estimate:EstimateOptions",
        positional="boxes",
        network=True,
        show=_summary,
    ),
    "fit-trust": Job(
        "find how far to trust an estimator's poses, from a labelled sample of them",
        run="refining.fit_trust:fit_trust",
        options="refining.fit_trust:FitTrustOptions",
        positional="detections",
        network=True,
        show=lambda report, _: _load("refining.fit_trust:table_of")(report),
    ),
    "merge": Job(
        "combine the shards of a divided refine",
        run="refining.refine_files:merge_shards",
        options="refining.refine_files:MergeOptions",
        positional="out",
        show=_summary,
    ),
    "convert": Job(
        "write files of poses in another format",
        run="refining.convert:convert",
        options="refining.convert:ConvertOptions",
        positional="detections",
        show=lambda report, options: f"{report['rows']} poses ({report['format']}): {options.out}",
    ),
    "evaluate": Job(
        "score a file of poses, or two against each other",
        run="evaluation.evaluate:evaluate",
        options="evaluation.evaluate:EvaluateOptions",
        positional="results",
        show=lambda report, _: _load("evaluation.evaluate:table_of")(report),
    ),
    "analyze": Job(
        "show which errors a file of poses has and what they cost; `analyze fit` writes them as an error model",
        run="evaluation.analyze:analyze",
        options="evaluation.analyze:AnalyzeOptions",
        positional="results",
        show=lambda report, options: _load("evaluation.analyze:table_of")(report, options.out),
    ),
    "analyze fit": Job(
        "measure an estimator's errors, and write them as an error model",
        run="evaluation.fit:fit",
        options="evaluation.fit:FitOptions",
        positional="detections",
    ),
    "study": Job(
        "train a grid of configs and seeds, and compare them",
        run="training.study:study",
        options="training.study:StudyOptions",
        positional="study",
        network=True,
        show=lambda complete, _: 0 if complete else 130,
    ),
    "synthesize": Job(
        "draw poses with synthetic errors and show them",
        run="training.synthesize:synthesize",
        options="training.synthesize:SynthesizeOptions",
    ),
    "prepare": Job(
        "turn annotations and photographs into training shards",
        run="data.prepare:prepare",
        options="data.prepare:PrepareOptions",
        show=lambda manifests, _: _load("data.prepare:summary_of")(manifests),
    ),
    "train": Job(
        "train a refiner from a config",
        run="training.train:train",
        network=True,
        show=lambda result, _: 0 if result[1] else 130,
        parse=_train,
    ),
    "import": Job(
        "read the authors' weights, or ImageNet weights of a backbone",
        run="weights.import_weights:import_weights",
        parse=_import,
    ),
    "export": Job(
        "write a refiner as a program that jax alone runs",
        run="refining.export:export",
        options="refining.export:ExportOptions",
        network=True,
    ),
    "package": Job(
        "write a trained refiner as a small checkpoint of its own",
        run="training.package:package",
        options="training.package:PackageOptions",
        network=True,
    ),
    "demo": Job(
        "refine a few people in sample photographs and show it",
        run="refining.demo:demo",
        options="refining.demo:DemoOptions",
        network=True,
    ),
}

ALIASES = {"analyse": "analyze", "synthesise": "synthesize", "ship": "package"}
"""Other names of jobs."""

_RESUMABLE = ("refine", "estimate", "convert")


def help_text() -> str:
    """What `posefix --help` prints."""
    listed = "\n".join(f"  {name:10s} {job.summary}" for name, job in JOBS.items() if " " not in name)
    return (
        "posefix: refine human poses (PoseFix, in JAX)\n\nusage: posefix JOB [options]\n\n"
        f"{listed}\n\nposefix JOB --help lists the options of a job."
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for a user's mistake, 3 when most rows were skipped, 130 when
    interrupted."""
    own_process = arguments is None
    arguments = sys.argv[1:] if own_process else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if arguments[0] == "--version":
        from posefix_jax import __version__

        print(__version__)
        return 0
    name, rest = ALIASES.get(arguments[0], arguments[0]), arguments[1:]
    if rest and f"{name} {rest[0]}" in JOBS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    try:
        if name not in JOBS:
            raise PosefixError(f"unknown job {name!r}: {nearest_names(name, [*JOBS, *ALIASES])}")
        job = JOBS[name]
        _set_up_libraries()
        if own_process and job.network:
            use_huge_pages()
        options = job.parse(rest) if job.parse else _parse(_load(job.options), rest, name, job.positional)
        result = job.show(_load(job.run)(options), options)
        if isinstance(result, int):
            return result
        print(result)
        return 0
    except PosefixError as error:
        print(f"posefix: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"posefix: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"posefix: interrupted{'; the same command resumes' if name in _RESUMABLE else ''}", file=sys.stderr)
        return 130


def _set_up_libraries() -> None:
    """Settings of the whole process, which belong to the command and not to an import of the package."""
    import logging

    # A small file can claim to be a huge photograph. OpenCV reads its limit once, when it is imported.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
    # The report says what cannot be decoded, not the terminal.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    # Orbax warns through absl of what it does by design here.
    logging.getLogger("absl").setLevel(logging.ERROR)


def use_huge_pages() -> None:
    """Starts this process anew with glibc's huge pages, a setting that is read only at the start. Nothing if one is set.

    XLA:CPU allocates its memory afresh at every call; with small pages that takes a good part of the call
    (docs/scaling.md).
    """
    if sys.platform == "linux" and sys.executable and "GLIBC_TUNABLES" not in os.environ:
        environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


if __name__ == "__main__":
    sys.exit(main())
