"""The `posefix` command: a table of jobs. A job's module, and all it needs, is imported only when it is asked for."""

import contextlib
import os
import sys
from collections.abc import Callable
from importlib import import_module

from posefix_jax.types import PosefixError, nearest_names, printable, set_quiet


class Job:
    """One job of the command.

    A plain class without dataclasses or typing, whose import would slow down every start.

    Args:
      summary: a line for `posefix --help`.
      run: the function that runs it, as "module:function"; it takes the options.
      options: its dataclass of options, as "module:class".
      positional: the option that an argument without a name is.
      example: arguments of a typical call, for its --help.
      network: whether it runs a network on this machine.
      show: the lines to print, of its result and options.
      code: the exit code, of its result and options.
      parse: turns the remaining arguments into options, if a dataclass alone does not.
    """

    def __init__(
        self,
        summary: str,
        *,
        run: str,
        options: str = "",
        positional: str = "",
        example: str = "",
        network: bool = False,
        show: Callable = lambda result, options: result,
        code: Callable = lambda result, options: 0,
        parse: Callable | None = None,
    ):
        self.summary, self.run, self.options, self.positional, self.example = summary, run, options, positional, example
        self.network, self.show, self.code, self.parse = network, show, code, parse


def _load(place: str):
    module, name = place.split(":")
    return getattr(import_module(f"posefix_jax.{module}"), name)


def _parse(options, rest: list[str], job: str, positional: str = "", example: str = "", **more):
    import tyro

    if positional and rest and not rest[0].startswith("-"):
        rest = [f"--{positional}", *rest]
    if example:
        more["description"] = f"{options.__doc__}\n\nExample: posefix {job} {example}\n\n{COMMON}"
    return tyro.cli(options, args=rest, prog=f"posefix {job}", **more)


def _train(rest: list[str]) -> object:
    config, load_preset = (_load(f"training.config:{name}") for name in ("Config", "load_preset"))
    if not rest or rest[0].startswith("-"):
        if rest and rest[0] in ("-h", "--help"):
            _parse(config, rest, "train", example=JOBS["train"].example, default=config())
        raise PosefixError("train needs a config file first: posefix train configs/NAME.py [--field value ...]")
    return _parse(config, rest[1:], f"train {rest[0]}", default=load_preset(rest[0]))


def _import(rest: list[str]) -> object:
    sources = _load("weights.import_weights:SOURCES")
    usage = f"posefix import {'|'.join(sources)} FILE --out ... (--help after a source lists its options)"
    example = f"Example: posefix import {JOBS['import'].example}"
    if rest and rest[0] in ("-h", "--help"):
        print(f"{usage}\n{example}")
        raise SystemExit(0)
    if not rest or rest[0] not in sources:
        known = f"unknown source {rest[0]!r}: {nearest_names(rest[0], sources)}; " if rest else ""
        raise PosefixError(f"{known}usage: {usage}")
    return _parse(sources[rest[0]], rest[1:], f"import {rest[0]}", "weights")


def _completion(rest: list[str]) -> object:
    usage = f"usage: posefix completion {'|'.join(SHELLS)}"
    if rest and rest[0] in ("-h", "--help"):
        print(f"{usage}\n{completion.__doc__}\n\n{COMMON}")
        raise SystemExit(0)
    if len(rest) != 1 or rest[0] not in SHELLS:
        raise PosefixError(usage)
    return rest[0]


def completion(shell: str) -> str:
    """The script by which a shell completes jobs, options and files: `eval "$(posefix completion bash)"`."""
    import io
    from typing import Annotated, Union

    import tyro

    options = {name: _load(job.options) for name, job in JOBS.items() if job.options and " " not in name}
    options["train"] = _load("training.config:Config")
    named = tuple(Annotated[of, tyro.conf.subcommand(name)] for name, of in options.items())
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(Union[named], args=["--tyro-print-completion", shell], prog="posefix")  # type: ignore[call-overload] # noqa: UP007
    # tyro 1.0 offers the further lines of a description as words; a script completes files where no option is due.
    lines = [
        line.replace("\\n", " ") if "COMPLETION_SPEC = " in line else line for line in script.getvalue().split("\n")
    ]
    return "\n".join(lines).replace("complete -F", "complete -o default -F")


def _summary(result: dict, options) -> str:
    return _load("refining.refine_files:summary_of")(result, options.out)


def _mostly_skipped(result: dict, options) -> int:
    return 3 if _load("refining.refine_files:mostly_skipped")(result) and not options.allow_missing else 0


SHELLS = ("bash", "zsh")
COMMON = "Every job also takes --quiet (no progress and notes, only warnings) and --json (the result as JSON)."

JOBS = {
    "inspect": Job(
        "say what a file of poses is, and what refine would make of it",
        run="refining.inspect_files:inspect_files",
        example="d.json --images photographs/",
        options="refining.inspect_files:InspectOptions",
        positional="detections",
        show=lambda report, _: _load("refining.inspect_files:text_of")(report),
    ),
    "refine": Job(
        "improve the poses in files of any estimator",
        run="refining.refine_files:refine",
        example="d.json --images photographs/ --out r.json",
        options="refining.refine_files:RefineOptions",
        positional="detections",
        network=True,
        show=_summary,
        code=_mostly_skipped,
    ),
    "estimate": Job(
        "find poses in the boxes of people, without input poses",
        run="refining.estimate:estimate",
        example="boxes.json --checkpoint runs/estimator_mnv2_96x64 --images photographs/ --out e.json",
        options="refining.estimate:EstimateOptions",
        positional="boxes",
        network=True,
        show=_summary,
        code=_mostly_skipped,
    ),
    "fit-trust": Job(
        "find how far to trust an estimator's poses, from a labelled sample of them",
        run="refining.fit_trust:fit_trust",
        example="d.json --images photographs/ --annotations gt.json",
        options="refining.fit_trust:FitTrustOptions",
        positional="detections",
        network=True,
        show=lambda report, _: _load("refining.fit_trust:table_of")(report),
    ),
    "merge": Job(
        "combine the shards of a divided refine",
        run="refining.refine_files:merge_shards",
        example="r.json",
        options="refining.refine_files:MergeOptions",
        positional="out",
        show=_summary,
        code=_mostly_skipped,
    ),
    "convert": Job(
        "write files of poses in another format",
        run="refining.convert:convert",
        example="d.json --to mmpose --out m.json",
        options="refining.convert:ConvertOptions",
        positional="detections",
        show=lambda report, options: f"{report['rows']} poses ({report['format']}): {options.out}",
    ),
    "evaluate": Job(
        "score a file of poses, or two against each other",
        run="evaluation.evaluate:evaluate",
        example="r.json --against d.json --annotations gt.json",
        options="evaluation.evaluate:EvaluateOptions",
        positional="results",
        show=lambda report, _: _load("evaluation.evaluate:table_of")(report),
    ),
    "analyze": Job(
        "show which errors a file of poses has and what they cost; `analyze fit` writes them as an error model",
        run="evaluation.analyze:analyze",
        example="r.json --against d.json --annotations gt.json --images photographs/ --out report/",
        options="evaluation.analyze:AnalyzeOptions",
        positional="results",
        show=lambda report, options: _load("evaluation.analyze:table_of")(report, options.out),
    ),
    "analyze fit": Job(
        "measure an estimator's errors, and write them as an error model",
        run="evaluation.fit:fit",
        example="d.json --annotations gt.json --out mine.json",
        options="evaluation.fit:FitOptions",
        positional="detections",
    ),
    "study": Job(
        "train a grid of configs and seeds, and compare them",
        run="training.study:study",
        example="configs/studies/errors.py --out runs/study --seeds 0 1 2",
        options="training.study:StudyOptions",
        positional="study",
        network=True,
        show=lambda complete, _: "",
        code=lambda complete, _: 0 if complete else 130,
    ),
    "synthesize": Job(
        "draw poses with synthetic errors and show them",
        run="training.synthesize:synthesize",
        example="--data prepared/coco --errors mine.json --preview sheet.png",
        options="training.synthesize:SynthesizeOptions",
    ),
    "prepare": Job(
        "turn annotations and photographs into training shards",
        run="data.prepare:prepare",
        example="--annotations person_keypoints_train2017.json --images train2017/ --out prepared/coco",
        options="data.prepare:PrepareOptions",
        show=lambda manifests, _: _load("data.prepare:summary_of")(manifests),
    ),
    "train": Job(
        "train a refiner from a config",
        run="training.train:train",
        example="configs/posefix_r50_256x192.py --data.batch-size 64 --out runs/mine",
        network=True,
        show=lambda result, _: "",
        code=lambda result, _: 0 if result[1] else 130,
        parse=_train,
    ),
    "import": Job(
        "read the authors' weights, or ImageNet weights of a backbone",
        run="weights.import_weights:import_weights",
        example="movenet movenet-thunder.json --out runs/movenet_thunder.npz",
        parse=_import,
    ),
    "export": Job(
        "write a refiner as a program that jax alone runs",
        run="refining.export:export",
        example="--out refiner.stablehlo",
        options="refining.export:ExportOptions",
        network=True,
    ),
    "package": Job(
        "write a trained refiner as a small checkpoint of its own",
        run="training.package:package",
        example="--checkpoint runs/mine --out my-refiner --tune prepared/coco-val",
        options="training.package:PackageOptions",
        network=True,
    ),
    "demo": Job(
        "refine a few people in sample photographs and show it",
        run="refining.demo:demo",
        example="--out demo",
        options="refining.demo:DemoOptions",
        network=True,
    ),
    "completion": Job(
        "print the script by which bash or zsh completes jobs and options",
        run="cli:completion",
        parse=_completion,
    ),
}

ALIASES = {"analyse": "analyze", "synthesise": "synthesize", "ship": "package"}
"""Other names of jobs."""

FLAGS = {"--quiet", "--json"}
"""What every job takes."""

_RESUMABLE = ("refine", "estimate", "convert")


def help_text() -> str:
    """What `posefix --help` prints."""
    listed = "\n".join(f"  {name:10s} {job.summary}" for name, job in JOBS.items() if " " not in name)
    return (
        "posefix: refine human poses (PoseFix, in JAX)\n\nusage: posefix JOB [options]\n\n"
        f"{listed}\n\nposefix JOB --help lists the options of a job. {COMMON}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for a user's mistake, 3 when most rows were skipped, 130 when
    interrupted."""
    own_process = arguments is None
    _set_up_streams()
    arguments = sys.argv[1:] if own_process else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print(help_text())
        return 0
    if arguments[0] == "--version":
        from posefix_jax import __version__

        print(__version__)
        return 0
    name, rest = ALIASES.get(arguments[0], arguments[0]), [word for word in arguments[1:] if word not in FLAGS]
    flags = FLAGS.intersection(arguments[1:])
    set_quiet("--quiet" in flags)
    if rest and f"{name} {rest[0]}" in JOBS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    try:
        if name not in JOBS:
            raise PosefixError(f"unknown job {name!r}: {nearest_names(name, [*JOBS, *ALIASES])}")
        job = JOBS[name]
        _set_up_libraries()
        if own_process and job.network:
            use_huge_pages()
        options = job.parse(rest) if job.parse else _parse(_load(job.options), rest, name, job.positional, job.example)
        result = _load(job.run)(options)
        shown = job.show(result, options)
        if "--json" in flags:
            _print(json_of(result if isinstance(result, dict) else {"summary": shown}))
        elif shown:
            _print(printable(shown, longest=None))
        return job.code(result, options)
    except PosefixError as error:
        print(f"posefix: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"posefix: {' '.join(printable(f'{place}{error.strerror or error}').split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "Unable to initialize backend" not in str(error):
            raise
        print(f"posefix: JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"posefix: interrupted{'; the same command resumes' if name in _RESUMABLE else ''}", file=sys.stderr)
        return 130


def _print(text: str) -> None:
    """Prints a result. Whoever reads it may have seen enough: the job is done all the same."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _set_up_streams() -> None:
    """Output that is closed or that lacks a letter is no reason to fail."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(getattr(sys, name), "reconfigure"):
            with contextlib.suppress(OSError):
                getattr(sys, name).reconfigure(errors="backslashreplace")


def json_of(result: dict) -> str:
    """A job's result as JSON; what is not finite is null, as in every JSON that other programs read."""
    import json
    import math

    def plain(value):
        if isinstance(value, dict):
            return {str(key): plain(of) for key, of in value.items()}
        if isinstance(value, list | tuple):
            return [plain(of) for of in value]
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(result), default=str)


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
        with contextlib.suppress(OSError):  # then it is only slower
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


if __name__ == "__main__":
    sys.exit(main())
