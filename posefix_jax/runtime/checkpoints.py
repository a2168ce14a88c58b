"""Checkpoints: the only importer of Orbax.

A run's folder has `checkpoints/STEP/`, each with `model` (the variables to refine with), `spec`, and for training
`state` and `input` (the position in the data), and the checksums of all their files. A packaged refiner is one such
folder with only `model` and `spec`. Saving is asynchronous and atomic.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax.experimental import multihost_utils
from jax.typing import DTypeLike

from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.train_step import TrainState
from posefix_jax.files import read_json, write_json
from posefix_jax.types import PosefixError, listed, warn_once

FOLDER = "checkpoints"
ITEMS = {"model": "arrays", "spec": "json", "state": "arrays", "input": "json"}
"""The parts of a step; a refiner needs the first two."""
REFINER = ("model", "spec")
SEAL = "sha256.json"
"""The file of a step that has the checksum of each file in its items."""


def steps_of(folder: Path) -> list[Path]:
    """The step folders in a folder of checkpoints, newest first."""
    steps = (
        [child for child in folder.iterdir() if child.name.isdecimal() and child.is_dir()] if folder.is_dir() else []
    )
    return sorted(steps, key=lambda step: int(step.name), reverse=True)


def has_checkpoint(run: Path) -> bool:
    """Whether the run has any checkpoint."""
    return bool(steps_of(run / FOLDER))


def seal(step: Path) -> None:
    """Writes the checksums of a step's files."""
    files = sorted(path for path in step.rglob("*") if path.is_file() and path.parent != step)
    write_json(step / SEAL, {path.relative_to(step).as_posix(): _sha256(path) for path in files})


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage_of(step: Path, items: Sequence[str]) -> str | None:
    """Why a checkpoint cannot be restored; None if its files are as they were written.

    Reads every byte, because a failed restore leaves Orbax's other reads running. In a checkpoint of a version without
    checksums, damage within an array is not found.
    """
    if (step / SEAL).is_file():
        return _broken_seal(step, items)
    for item in items:
        folder = step / item
        if not folder.is_dir():
            return f"{item} is missing"
        try:
            if ITEMS[item] == "json":
                read_json(folder / "metadata")
                continue
            read_json(folder / "_METADATA")
            store = tensorstore.KvStore.open({"driver": "ocdbt", "base": folder.absolute().as_uri() + "/"}).result()
            keys = store.list().result()
            if not keys:
                return f"{item} is empty"
            for key in keys:
                store.read(key).result()
        except PosefixError as error:
            return str(error)
        except (ValueError, OSError) as error:
            return f"{item}: {_first_line(error):.160}"
    return None


def _broken_seal(step: Path, items: Sequence[str]) -> str | None:
    try:
        sealed = read_json(step / SEAL)
        for item in items:
            names = [name for name in sealed if name.split("/")[0] == item]
            if not names:
                return f"{item} is missing"
            for name in names:
                if _sha256(step / name) != sealed[name]:
                    return f"{name}: its checksum does not fit"
    except (PosefixError, OSError, TypeError, ValueError, AttributeError) as error:
        return str(getattr(error, "strerror", None) or error)
    return None


def _first_line(error: Exception) -> str:
    """Of what Orbax or TensorStore says, in many lines or in none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def newest_whole(folder: Path, items: Sequence[str]) -> tuple[Path | None, dict[Path, str]]:
    """The newest step whose files are all readable, and the reason why newer ones are not."""
    damaged: dict[Path, str] = {}
    for step in steps_of(folder):
        reason = damage_of(step, items)
        if reason is None:
            return step, damaged
        damaged[step] = reason
    return None, damaged


def set_damaged_aside(run: Path) -> None:
    """Moves the damaged steps after the newest good one to `RUN/damaged`, so that the run resumes from the good one.

    All processes of a run call this; the first does the work. Nothing is deleted.

    Raises:
      PosefixError: the run has checkpoints, and all are damaged.
    """
    message = ""
    if not jax.process_index() and has_checkpoint(run):
        whole, damaged = newest_whole(run / FOLDER, tuple(ITEMS))
        if whole is None:
            message = f"{_none_whole(run / FOLDER, damaged)}; use another --out"
        for step, reason in damaged.items() if whole is not None else ():
            aside = run / "damaged" / step.name
            while aside.exists():
                aside = aside.with_name(aside.name + "-again")
            aside.parent.mkdir(exist_ok=True)
            step.rename(aside)
            warn_once(f"{step} is damaged ({reason}): moved to {aside}, resuming from {whole}")
    if multihost_utils.broadcast_one_to_all(np.array(bool(message))):
        raise PosefixError(message or f"{run / FOLDER}: all checkpoints are damaged")


def _none_whole(folder: Path, damaged: dict[Path, str]) -> str:
    reasons = "; ".join(f"{step.name}: {reason}" for step, reason in damaged.items())
    return f"{folder}: no checkpoint can be read ({reasons})"


class Checkpointer:
    """Saves and restores the training state of one run."""

    def __init__(self, run: Path, *, keep: int):
        def seal_unfinished() -> None:
            for step in (run / FOLDER).glob("*.orbax-checkpoint-tmp*") if not jax.process_index() else ():
                seal(step)

        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=seal_unfinished),  # before it gets its name
        )
        self._manager = ocp.CheckpointManager((run / FOLDER).absolute(), options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, position: dict, spec: RefinerSpec) -> None:
        """Saves a step, unless it is saved already. Returns as soon as the arrays are copied.

        Raises:
          PosefixError: the disk has no room for it, or an earlier step could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._check_room(step, sum(leaf.nbytes for leaf in jax.tree.leaves((state._asdict(), state.variables))))
        with self._errors():
            self._save(step, state, position, spec)

    def _check_room(self, step: int, needed: int) -> None:
        """Before anything is written, because a save that fails leaves Orbax's threads failing one after the other."""
        free = shutil.disk_usage(self._manager.directory).free
        if multihost_utils.broadcast_one_to_all(np.array(free < needed + (1 << 20))):
            raise PosefixError(
                f"{self._manager.directory}: step {step} needs up to {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are "
                f"free; make room, and the same command goes on from step {self.latest_step or 0}"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise PosefixError(
                f"{self._manager.directory}: a checkpoint could not be written ({_first_line(error):.200}); the "
                "same command goes on from the last whole one"
            ) from error

    def _save(self, step: int, state: TrainState, position: dict, spec: RefinerSpec) -> None:
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(state.variables),
                state=ocp.args.StandardSave(state._asdict()),
                input=ocp.args.JsonSave(position),
                spec=ocp.args.JsonSave(spec.to_dict()),
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict]:
        """The newest state and its position in the data.

        Args:
          like: arrays or `ShapeDtypeStruct`s with the shapes and the placement on devices to restore to.

        Raises:
          PosefixError: the state has other shapes.
        """
        target = ocp.args.StandardRestore(like._asdict())
        try:
            restored = self._manager.restore(
                self.latest_step, args=ocp.args.Composite(state=target, input=ocp.args.JsonRestore())
            )
        except (ValueError, KeyError) as error:
            raise PosefixError(
                f"{self._manager.directory}: its checkpoint does not fit this config "
                f"({_first_line(error)}); use another --out"
            ) from error
        return TrainState(**restored["state"]), restored["input"]

    def close(self) -> None:
        """Waits until the last save is complete. Raises PosefixError if it could not be written."""
        with self._errors():
            self._manager.wait_until_finished()
            self._manager.close()


def save_refiner(folder: Path, variables: dict, spec: RefinerSpec, *, dtype: DTypeLike = np.float32) -> None:
    """Writes a packaged refiner: `model` and `spec`, the parameters as `dtype` (float16 halves the size).

    Raises:
      PosefixError: the folder exists.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise PosefixError(f"{folder}: exists; remove it or choose another folder")
    params = jax.tree.map(lambda array: np.asarray(array).astype(dtype), variables["params"])
    variables = {"params": params, "batch_stats": jax.tree.map(np.asarray, variables["batch_stats"])}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            folder,
            args=ocp.args.Composite(model=ocp.args.StandardSave(variables), spec=ocp.args.JsonSave(spec.to_dict())),
        )
    for mark in folder.rglob("commit_success.txt"):  # Orbax writes an absolute path into it
        mark.write_text("committed\n")
    seal(folder)


def packaged_path() -> Path:
    """The folder of the refiner that comes with the package."""
    return Path(str(resources.files("posefix_jax") / "packaged"))


def load_refiner(path: str | Path | None = None) -> tuple[dict, RefinerSpec]:
    """A refiner as arrays: its variables (parameters and batch statistics, float32) and its spec.

    `spec.network().apply` takes the variables; `make_refine_step` has the signature. A damaged step of a run is skipped
    with a warning.

    Args:
      path: a training run's folder (its latest step), one step's folder, or one that `posefix package` wrote; None for
        the refiner that comes with the package.

    Raises:
      PosefixError: no checkpoint there, none that can be read, or not one of a refiner.
    """
    path = packaged_path() if path is None else path
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise PosefixError(f"{path}: no such checkpoint folder")
    steps = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    if steps_of(steps):
        whole, damaged = newest_whole(steps, REFINER)
        if whole is None:
            raise PosefixError(_none_whole(steps, damaged))
        for step, reason in damaged.items():
            warn_once(f"{step} is damaged ({reason}): loading {whole} instead")
        folder = whole
    elif not all((folder / item).is_dir() for item in REFINER):
        raise PosefixError(
            f"{path}: not a refiner checkpoint; expected folders model and spec in it, or a run's folder"
        )
    elif reason := damage_of(folder, REFINER):
        raise PosefixError(f"{path}: damaged ({reason})")
    try:
        spec = RefinerSpec.from_dict(read_json(folder / "spec" / "metadata"))
        like = abstract_variables(spec)
        _check_shapes(folder, like)
    except PosefixError as error:
        raise PosefixError(f"{path}: {error}") from error
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        model = ocp.args.StandardRestore(like)
        try:
            variables = checkpointer.restore(folder, args=ocp.args.Composite(model=model))["model"]
        except Exception as error:  # whatever Orbax stumbles over in damaged files
            raise PosefixError(
                f"{path}: its weights do not fit its spec, or are damaged ({_first_line(error)})"
            ) from error
    return variables, spec


def _check_shapes(folder: Path, like: Any) -> None:
    """Compares the arrays that a checkpoint lists with the wanted ones.

    Before they are read, because a failed restore leaves Orbax's other reads running.

    Raises:
      PosefixError: they differ, or there is no such list; says which.
    """
    wanted = {".".join(key.key for key in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(like)}
    try:
        about = read_json(folder / "model" / "_METADATA")
        names = [".".join(part["key"] for part in entry["key_metadata"]) for entry in about["tree_metadata"].values()]
        kinds = {entry["value_metadata"]["value_type"] for entry in about["tree_metadata"].values()}
        if about["use_ocdbt"] is not True or about["use_zarr3"] is not False or kinds - {"np.ndarray", "jax.Array"}:
            raise ValueError("they are stored in another way than posefix stores them")
        base = (folder / "model").as_uri() + "/"
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        arrays = {name: json.loads(store.read(f"{name}/.zarray").result().value) for name in names}
        found = {name: tuple(array["shape"]) for name, array in arrays.items()}
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise PosefixError(f"damaged (its list of arrays: {error})") from error
    differ = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if differ:
        raise PosefixError(f"its weights do not fit its spec ({len(differ)} arrays are others: {listed(differ)})")


def abstract_variables(spec: RefinerSpec) -> Any:
    """The shapes of a refiner's variables, float32, on one device of this process. Computes nothing."""
    h, w = spec.model.crop_hw
    joints = spec.skeleton.num_joints
    inputs = (
        jax.ShapeDtypeStruct((1, h, w, 3), np.float32),
        jax.ShapeDtypeStruct((1, joints, 2), np.float32),
        jax.ShapeDtypeStruct((1, joints), bool),
    )
    shapes = jax.eval_shape(spec.network().init, jax.random.key(0), *inputs)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, np.float32, sharding=device), shapes)
