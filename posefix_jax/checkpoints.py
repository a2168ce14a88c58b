"""Checkpoints: the only importer of Orbax.

A run's folder holds `checkpoints/STEP/`, each with `model` (the variables a refiner runs with), `spec`, and for
training `state` and `input` (the position in the data). A refiner that is shipped is one such folder with `model`
and `spec` alone. Saving is asynchronous and atomic.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from posefix_jax.models import RefinerSpec
from posefix_jax.step import TrainState
from posefix_jax.types import PosefixError

logging.getLogger("absl").setLevel(logging.ERROR)

FOLDER = "checkpoints"


def has_checkpoint(run: Path) -> bool:
    """Whether any step of the run was saved."""
    folder = run / FOLDER
    return folder.is_dir() and any(child.name.isdecimal() for child in folder.iterdir())


class Checkpointer:
    """Saves and restores the training of one run."""

    def __init__(self, run: Path, *, keep: int):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager((run / FOLDER).absolute(), options=options)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, position: dict, spec: RefinerSpec) -> None:
        """Returns as soon as the arrays are copied; a step already saved is left as it is."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
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
        """The latest state, laid out on the devices as `like` (arrays or `ShapeDtypeStruct`s), and the position."""
        target = ocp.args.StandardRestore(like._asdict())
        try:
            restored = self._manager.restore(
                self.latest_step, args=ocp.args.Composite(state=target, input=ocp.args.JsonRestore())
            )
        except (ValueError, KeyError) as error:
            raise PosefixError(
                f"{self._manager.directory}: the checkpoint there does not fit this config "
                f"({str(error).splitlines()[0]}); train into another --out"
            ) from error
        return TrainState(**restored["state"]), restored["input"]

    def close(self) -> None:
        """Waits for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()


def save_refiner(folder: Path, variables: dict, spec: RefinerSpec, *, dtype=np.float32) -> None:
    """Writes `model` and `spec` alone, the parameters as `dtype` (float16 halves the size), statistics as they are.

    Raises:
      PosefixError: the folder exists.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise PosefixError(f"{folder}: exists; remove it or write elsewhere")
    params = jax.tree.map(lambda array: np.asarray(array).astype(dtype), variables["params"])
    variables = {"params": params, "batch_stats": jax.tree.map(np.asarray, variables["batch_stats"])}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            folder,
            args=ocp.args.Composite(model=ocp.args.StandardSave(variables), spec=ocp.args.JsonSave(spec.to_dict())),
        )
    for mark in folder.rglob("commit_success.txt"):  # Orbax's text in it names a folder of this machine
        mark.write_text("committed\n")


def load_refiner(path: Path) -> tuple[dict, RefinerSpec]:
    """Float32 variables and spec of a shipped refiner, a checkpoint's folder, or a run's (its latest step).

    Raises:
      PosefixError: no checkpoint there, or not one of a refiner.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise PosefixError(f"{path}: no such checkpoint folder")
    steps = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    numbers = [int(child.name) for child in steps.iterdir() if child.name.isdecimal() and (child / "model").is_dir()]
    if numbers:
        folder = steps / str(max(numbers))
    if not (folder / "model").is_dir() or not (folder / "spec").is_dir():
        raise PosefixError(f"{path}: no refiner checkpoint there; expected folders model and spec, or a run's folder")
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        spec = RefinerSpec.from_dict(
            checkpointer.restore(folder, args=ocp.args.Composite(spec=ocp.args.JsonRestore()))["spec"]
        )
        like = abstract_variables(spec)
        model = ocp.args.StandardRestore(like)
        try:
            variables = checkpointer.restore(folder, args=ocp.args.Composite(model=model))["model"]
        except (ValueError, KeyError) as error:
            raise PosefixError(f"{path}: its weights do not fit its spec ({str(error).splitlines()[0]})") from error
    return variables, spec


def abstract_variables(spec: RefinerSpec) -> Any:
    """Shapes of a refiner's variables, float32, on one device of this process; nothing is computed."""
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
