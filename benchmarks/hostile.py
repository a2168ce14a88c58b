"""Hostile files other than poses and photographs: every command ends with a result, or with one line and exit code 2.

    python benchmarks/hostile.py [--cases 10000] [--seed 0] [--what annotations skeletons ...] [--write]

Each case damages one small valid file by its seed (other values, names or structure, or other bytes) and runs a command
in this process. Kinds: annotations (evaluate, analyze, analyze fit, prepare), detections (the same commands), skeletons
(--skeleton), errors (train --errors), configs (train CONFIG), imports (import), manifests (train --data.train), specs
(package and refine --checkpoint) and inits (train --init).
"""

import argparse
import contextlib
import functools
import io
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from damage import damaged_arrays, damaged_bytes, damaged_json, damaged_text
from files import tiny_spec
from measure import write_result

from posefix_jax.cli import main as posefix

VALID, LINE, OTHER = "valid", "one line", "other"
SECONDS = 60
"""A case that takes longer is counted as `other`."""
READ = "must be a multiple of the 8 devices"
"""How `train` ends where the damaged file was read and did no harm."""
LINES = 12
"""Most lines on the terminal, warnings included."""


class Bench:
    """Small valid files in a folder, and per kind the cases made from them."""

    def __init__(self, folder: Path):
        import conftest

        self.folder, self.truth = folder, folder / "people" / "truth.json"
        _, self.images = conftest.make_people(folder / "people")
        self.detections = folder / "d.json"
        self.detections.write_text(json.dumps(conftest.detections_of(self.truth)))
        self.annotations = self.truth.read_text()
        self.spec = tiny_spec()
        self.kinds: dict[str, Callable[[random.Random, Path], list[str]]] = {
            name.removeprefix("_case_"): getattr(self, name) for name in dir(self) if name.startswith("_case_")
        }

    def _case_annotations(self, rng: random.Random, place: Path) -> list[str]:
        text = rng.choice([self.annotations, self._rich_annotations])
        truth = place / "truth.json"
        truth.write_bytes(damaged_text(rng, text))
        return self._commands(rng, place, truth, self.detections, text is not self.annotations)

    def _case_detections(self, rng: random.Random, place: Path) -> list[str]:
        detections = place / "d.json"
        detections.write_bytes(damaged_text(rng, self.detections.read_text()))
        truth = rng.choice([self.truth, self._rich_path])
        return self._commands(rng, place, truth, detections, truth is not self.truth)

    def _commands(self, rng, place: Path, truth: Path, detections: Path, rich: bool) -> list[str]:
        """One of the four commands that read annotations."""
        metric = rng.choice(["oks", "crowdpose", "posetrack", "pckh"]) if rich else "auto"
        commands = [["evaluate", str(detections), "--metric", metric, "--samples", "5"]] * 2
        commands += [["analyze", str(detections), "--out", str(place / "page"), "--samples", "5"]]
        commands += [["analyze", "fit", str(detections), "--out", str(place / "e.json"), "--least", "2", "--offsets"]]
        prepare = ["prepare", "--images", str(self.images), "--out", str(place / "p"), "--patch", "64"]
        commands += [[*prepare, *(["--detections", str(detections)] if rng.random() < 0.5 else [])]]
        return [*rng.choice(commands), "--annotations", str(truth)]

    @functools.cached_property
    def _rich_annotations(self) -> str:
        """With what the other metrics read: MPII's and PoseTrack's joints, heads, crowding, videos, two categories."""
        from posefix_jax.core.joint_sets import POSETRACK

        content = json.loads(self.annotations)
        joints = [{"left_ear": "neck"}.get(name, name) for name in POSETRACK.joints]
        content["categories"][0] |= {"keypoints": joints, "sigmas": [0.05] * 17, "name": "person of a name"}
        content["categories"].append(content["categories"][0] | {"id": 2, "name": "another"})
        for number, image in enumerate(content["images"]):
            image |= {"crowdIndex": 0.3, "vid_id": str(number // 2), "ignore_regions_x": [[1, 9, 9]]}
            image["ignore_regions_y"] = [[1, 1, 9]]
        for number, entry in enumerate(content["annotations"]):
            entry |= {"bbox_head": [10, 10, 20, 20], "head_size": 12.5, "category_id": 1 + number % 2}
        return json.dumps(content)

    @functools.cached_property
    def _rich_path(self) -> Path:
        path = self.folder / "rich.json"
        path.write_text(self._rich_annotations)
        return path

    def _case_skeletons(self, rng: random.Random, place: Path) -> list[str]:
        from posefix_jax.core.joint_sets import COCO

        path = place / "skeleton.json"
        path.write_bytes(damaged_text(rng, json.dumps(COCO.to_dict())))
        jobs = ["evaluate", "analyze", "prepare", "fit", "inspect", *(["refine"] if rng.random() < 0.2 else [])]
        job = rng.choice(jobs)
        if job in ("inspect", "refine"):
            command = [job, str(self.detections), "--images", str(self.images), "--skeleton", str(path)]
            return command + (self._refine(place) if job == "refine" else [])
        commands = iter(lambda: self._commands(rng, place, self.truth, self.detections, False), None)
        return [*next(c for c in commands if job in c[:2]), "--skeleton", str(path)]

    def _refine(self, place: Path) -> list[str]:
        more = ["--checkpoint", str(self._refiner), "--out", str(place / "r.json"), "--batch-size", "8", "--no-check"]
        return [*more, "--no-flip", "--trust", "0", "--allow-missing"]

    @functools.cached_property
    def _refiner(self) -> Path:
        """A packaged refiner without checksums: who forges a spec forges them too."""
        import jax

        from posefix_jax.runtime.checkpoints import abstract_variables, save_refiner

        folder = self.folder / "refiner"
        shapes = abstract_variables(self.spec)
        save_refiner(folder, jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, np.float32), shapes), self.spec)
        (folder / "sha256.json").unlink(missing_ok=True)
        return folder

    def _case_specs(self, rng: random.Random, place: Path) -> list[str]:
        folder = place / "refiner"
        shutil.copytree(self._refiner, folder)
        part = rng.choice(["spec/metadata"] * 8 + ["model/_METADATA", "model/manifest.ocdbt", "_CHECKPOINT_METADATA"])
        path = folder / part
        data = path.read_bytes()
        as_json = part != "model/manifest.ocdbt"
        path.write_bytes(damaged_text(rng, data.decode()) if as_json else damaged_bytes(rng, data))
        if rng.random() < 0.1:
            command = ["refine", str(self.detections), "--images", str(self.images), *self._refine(place)]
            return command + ["--checkpoint", str(folder)]
        return ["package", "--checkpoint", str(folder), "--out", str(place / "packaged")]

    @functools.cached_property
    def _prepared(self) -> Path:
        out = self.folder / "prepared"
        command = ["prepare", "--annotations", str(self.truth), "--images", str(self.images), "--out", str(out)]
        if posefix([*command, "--patch", "64", "--detections", str(self.detections), "--quiet"]):
            raise RuntimeError("cannot prepare the good files")
        return out

    def _train(self, place: Path, *more: str, config: Path | None = None, data: Path | None = None) -> list[str]:
        """Ends before the first step: no devices divide a batch of 3."""
        if config is None:
            config = place / "config.py"
            config.write_text(CONFIG.format(init='""', batch_size=3))
        folder = str(data or self._prepared)
        return ["train", str(config), "--out", str(place / "run"), "--data.train", folder, *more]

    def _case_errors(self, rng: random.Random, place: Path) -> list[str]:
        path = place / "errors.json"
        path.write_bytes(damaged_text(rng, self._errors))
        return self._train(place, "--errors", str(path))

    @functools.cached_property
    def _errors(self) -> str:
        from posefix_jax.core.synthesis import PAPER

        lengths = tuple((0.0, 0.5, 1.0) for _ in range(5))
        model = type(PAPER)(**vars(PAPER) | {"lengths": (("wrist", lengths), ("other", lengths))})
        return model.to_json(evidence={"people": 3})

    def _case_manifests(self, rng: random.Random, place: Path) -> list[str]:
        folder = place / "data"
        shutil.copytree(self._prepared, folder)
        path = folder / "manifest.json"
        if rng.random() < 0.8:
            path.write_bytes(damaged_text(rng, path.read_text()))
        else:
            shard = next(folder.glob("*.array_record"))
            shard.write_bytes(damaged_bytes(rng, shard.read_bytes()))
        return self._train(place, data=folder)

    def _case_configs(self, rng: random.Random, place: Path) -> list[str]:
        path = place / "config.py"
        fields = {
            "seed": 1,
            "epochs": 1,
            "errors": ["posefix"],
            "init": "",
            "data": {"batch_size": 3, "repeats": [1.0]},
        }
        fields["model"] = {
            "backbone": "resnet18",
            "width": 4,
            "head_channels": 4,
            "crop_hw": [64, 64],
            "pose_sigma": 2.0,
        }
        fields |= {"decode": {"method": "ks", "temperature": 1.0, "trust": 0.1}, "stop_after": 0.0, "keep": 1}
        text = damaged_json(rng, json.dumps(fields)).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        path.write_text(CONFIG_OF_JSON.format(text=text), errors="replace")
        return self._train(place, "--data.batch-size", "3", config=path)

    def _case_inits(self, rng: random.Random, place: Path) -> list[str]:
        path = place / "init.npz"
        with np.load(self._backbone) as file:
            arrays = dict(file)
        if rng.random() < 0.3:
            path.write_bytes(damaged_bytes(rng, self._backbone.read_bytes()))
        else:
            if rng.random() < 0.2:
                arrays["backbone"] = np.asarray(damaged_json(rng, str(arrays["backbone"])))
            with contextlib.suppress(ValueError):  # a name that no archive can have
                np.savez(path, **damaged_arrays(rng, arrays))
        config = place / "config.py"
        config.write_text(CONFIG.format(init=repr(str(path)), batch_size=8))
        return self._train(place, "--stop-after", "1e-9", config=config)

    @functools.cached_property
    def _backbone(self) -> Path:
        out = self.folder / "backbone.npz"
        _, arrays = self._torch
        self._safetensors(self.folder / "b.safetensors", arrays)
        if posefix(["import", "resnet", str(self.folder / "b.safetensors"), "--out", str(out), "--quiet"]):
            raise RuntimeError("cannot import the good backbone")
        return out

    @functools.cached_property
    def _torch(self) -> tuple[str, dict[str, np.ndarray]]:
        """A ResNet-18 of width 4, by torchvision's names."""
        from weights.test_weights import torch_resnet18

        arrays = torch_resnet18(np.random.default_rng(0))
        return "resnet", {name: array[tuple(slice(_narrow(n)) for n in array.shape)] for name, array in arrays.items()}

    def _safetensors(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)

    @functools.cached_property
    def _movenet(self) -> Path:
        from weights.test_weights import movenet_arrays, write_graph_model

        folder = self.folder / "movenet"
        folder.mkdir()
        arrays = {name: array[..., :2] for name, array in movenet_arrays(np.random.default_rng(0), 8).items()}
        write_graph_model(folder / "model.json", arrays)
        return folder

    @functools.cached_property
    def _bundle(self) -> Path:
        from released import write_bundle

        folder = self.folder / "bundle"
        folder.mkdir()
        write_bundle(folder / "s.ckpt", {f"out/{name}": np.zeros((3, 2), np.float32) for name in ("weights", "biases")})
        return folder

    def _case_imports(self, rng: random.Random, place: Path) -> list[str]:
        out = ["--out", str(place / "out.npz")]
        source = rng.choice(["movenet", "tf-release", "resnet"])
        if source == "resnet":
            path = place / "w.safetensors"
            with contextlib.suppress(Exception):  # what safetensors itself does not write
                self._safetensors(path, damaged_arrays(rng, self._torch[1]))
            if not path.is_file() or rng.random() < 0.5:
                path.write_bytes(damaged_bytes(rng, (path if path.is_file() else self._backbone).read_bytes()))
            return ["import", rng.choice(["resnet", "mobilenet"]), str(path), *out]
        folder = place / "w"
        shutil.copytree(self._movenet if source == "movenet" else self._bundle, folder)
        path = folder / rng.choice(["model.json", "model.json", "a.bin"] if source == "movenet" else ["s.ckpt.index"])
        as_json = path.suffix == ".json"
        path.write_bytes(damaged_text(rng, path.read_text()) if as_json else damaged_bytes(rng, path.read_bytes()))
        if source == "movenet":
            return ["import", "movenet", str(folder / "model.json"), *out]
        return ["import", "tf-release", str(folder / "s.ckpt"), "--backbone", "resnet50", *out]


CONFIG = """from posefix_jax.training.config import Config, DataConfig
from posefix_jax.core.models import ModelConfig


def config():
    model = ModelConfig(backbone="resnet18", width=4, head_channels=4, crop_hw=(64, 64), pose_sigma=2.0)
    return Config(init={init}, model=model, data=DataConfig(batch_size={batch_size}, threads=1), epochs=1)
"""
CONFIG_OF_JSON = """import json
from posefix_jax.training.config import Config, DataConfig
from posefix_jax.core.models import DecodeConfig, ModelConfig

TEXT = r'''{text}'''


def config():
    tuples = lambda of: {{key: tuple(v) if isinstance(v, list) else v for key, v in of.items()}}
    fields = tuples(json.loads(TEXT))
    for name, part in (("data", DataConfig), ("model", ModelConfig), ("decode", DecodeConfig)):
        if name in fields:
            fields[name] = part(**tuples(fields[name]))
    return Config(**fields)
"""


def _narrow(size: int) -> int:
    """A number of channels of a network of width 64 in one of width 4."""
    return size // 16 if size >= 64 else size


class TooSlow(BaseException):
    """A case took longer than `SECONDS`."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_):
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def judge(command: list[str]) -> tuple[str, str, str]:
    """Runs a command; how it ended, the cause if that was wrong, and details."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limited(), warnings.catch_warnings():
            warnings.simplefilter("always")
            code = posefix([*command, "--quiet"])
    except (Exception, SystemExit, TooSlow) as error:
        frame = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frame if "posefix_jax" in f.filename][-2:]
        return OTHER, f"{type(error).__name__} ({' '.join(ours)})", f"{str(error)[:200]}"
    finally:
        for stream in (out, err):
            stream.flush()
    said, told = (stream.buffer.getvalue().decode() for stream in (out, err))
    lines = told.split("\n")[:-1]
    plain = [line for line in lines if not line.startswith("posefix: warning: ")]
    if any(not character.isprintable() and character != "\n" for character in said + told):
        return OTHER, "control characters", f"{said + told!r:.300}"
    if len(lines) > LINES or len(said.split("\n")) > 10 * LINES or any(len(line) > 3000 for line in lines):
        return OTHER, "much text", f"{len(lines)} lines on stderr, {len(said.splitlines())} on stdout, {told!r:.300}"
    if code == 2 and len(plain) == 1 and plain[0].startswith("posefix: "):
        return VALID if READ in told else LINE, "", plain[0]
    if code in (0, 3) or (code == 130 and command[0] == "train"):
        return (OTHER, f"unexpected lines: {plain[0][-160:]}", str(plain[:2])[:300]) if plain else (VALID, "", "")
    return OTHER, f"exit code {code}, {len(plain)} lines", f"{plain[:2]!r:.400}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10000, help="over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each kind")
    parser.add_argument("--what", nargs="+", default=[], help="kinds of file; all by default")
    parser.add_argument("--failures", type=int, default=5, help="how many causes to print in full, per kind")
    parser.add_argument("--lines", action="store_true", help="also print each different line that refuses a file")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    import conftest  # noqa: F401 - sets devices and caches

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        shares = {name: SHARES.get(name, 1.0) for name in bench.kinds if name in (options.what or bench.kinds)}
        figures = {}
        for name, share in shares.items():
            begun, ends, causes = time.perf_counter(), Counter(), Counter()
            for seed in range(options.seed, options.seed + round(options.cases * share / sum(shares.values()))):
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    command = bench.kinds[name](random.Random(f"{name} {seed}"), Path(place))
                    end, cause, details = judge(command)
                ends[end] += 1
                causes[cause] += end is OTHER
                if end is OTHER and causes[cause] == 1 and len(causes) <= options.failures:
                    again = f"--what {name} --seed {seed} --cases 1"
                    print(f"{again}: {' '.join(command[:2])}: {cause}: {details}", file=sys.stderr, flush=True)
                elif options.lines and end is LINE:
                    print(f"{name} {seed}: {details[:300]}", file=sys.stderr)
            figures[name] = dict(ends) | {"seconds": round(time.perf_counter() - begun)}
            print(name, figures[name], file=sys.stderr, flush=True)
    total = Counter()
    for ends in figures.values():
        total.update({end: ends.get(end, 0) for end in (VALID, LINE, OTHER)})
    write_result("hostile", {"cases": options.cases, "seed": options.seed, "ends": dict(total), "by_kind": figures})


SHARES = {"annotations": 4.0, "detections": 1.0, "skeletons": 1.0, "configs": 0.5, "specs": 0.6, "inits": 0.1}
"""Cases per kind, relative to 1."""


if __name__ == "__main__":
    main()
