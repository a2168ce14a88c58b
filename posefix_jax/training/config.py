"""A training run as data: composes the parameter dataclasses, loads a preset, writes JSON."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from posefix_jax.core.augment import AugmentConfig
from posefix_jax.core.losses import LossConfig
from posefix_jax.core.models import DecodeConfig, ModelConfig
from posefix_jax.core.train_step import InputConfig
from posefix_jax.runtime.devices import ProcessConfig
from posefix_jax.training.optimizer import OptimizerConfig
from posefix_jax.types import PosefixError, function_in_file


@dataclass(frozen=True)
class DataConfig:
    """What is read."""

    train: tuple[str, ...] = ()
    """folders that `posefix prepare` wrote, read as one; joints are the first one's, the others' go by name"""
    repeats: tuple[float, ...] = ()
    """how often each folder's people come in an epoch; once if empty, 0.5 is every other one, in turn"""
    validation: tuple[str, ...] = ()
    """prepared folders to evaluate on; none for no validation"""
    batch_size: int = 128
    """samples a step, over all devices and hosts"""
    threads: int = 8
    """reading and decoding threads a process, or a worker"""
    workers: int = 0
    """worker processes that read and decode; 0 for threads alone"""
    cache: Literal["none", "device"] = "none"
    """device: hold all people in the devices' memory, divided among them, and read nothing while training"""
    labelled_share: float = 0.1
    """a joint counts as trained if at least this share of the people has it labelled"""

    def __post_init__(self):
        if self.batch_size < 1 or self.threads < 1 or self.workers < 0:
            raise PosefixError(
                "data.batch_size and data.threads must be positive and data.workers not negative, found "
                f"{self.batch_size}, {self.threads}, {self.workers}"
            )
        if self.cache not in ("none", "device"):
            raise PosefixError(f"data.cache must be none or device, found {self.cache!r}")


@dataclass(frozen=True)
class Config:
    """One training run."""

    out: str = "runs/posefix"
    """folder of the run: checkpoints, metrics, pictures; the same command goes on where it stopped"""
    seed: int = 0
    """of weights, data order, augmentation and errors"""
    epochs: int = 140
    """passes over the training people (140: paper, section 6)"""
    errors: tuple[str, ...] = ("posefix",)
    """what spoils the poses: posefix (the paper's), scalar, gaussian, dropout, limb, poserefiner, empirical, none, an error model
    that `posefix analyse fit` wrote (.json), or a file of your own (.py); of several one is drawn for each person"""
    error_weights: tuple[float, ...] = ()
    """how often each of them, in proportion; all alike if empty"""
    init: str = ""
    """weights to start from: a refiner (crop size and skeleton may differ), or a backbone that `posefix import` wrote"""
    save_every: int = 1000
    """steps between checkpoints; one more at the end"""
    validate_every: int = 1000
    """steps between validations; one more at the end"""
    log_every: int = 50
    """steps between lines of metrics"""
    keep: int = 2
    """checkpoints kept"""
    stop_after: float = 0.0
    """minutes after which to stop as if interrupted, saved and with exit code 130; 0 for never"""
    skip_nonfinite: int = 0
    """batches of a run that may give no finite loss or gradient and are passed over; the next one stops the run"""
    profile: int = 0
    """trace this many steps, from the tenth on, into OUT/profile for TensorBoard, XProf or Perfetto"""
    processes: ProcessConfig = field(default_factory=ProcessConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def __post_init__(self):
        for name in ("save_every", "validate_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise PosefixError(f"{name} must be positive, found {getattr(self, name)}")
        if min(self.stop_after, self.skip_nonfinite, self.profile) < 0:
            raise PosefixError(
                "stop_after, skip_nonfinite and profile must not be negative, found "
                f"{self.stop_after}, {self.skip_nonfinite}, {self.profile}"
            )
        if self.loss.heatmap == "gaussian" and (self.inputs.self_share or self.model.end_to_end):
            raise PosefixError(
                "maps trained by loss.heatmap gaussian have no soft-argmax, which inputs.self_share and model.end_to_end need"
            )
        if self.model.frozen_stages and self.optimizer.weight_decay:
            raise PosefixError(
                "model.frozen_stages keeps weights and optimizer.weight_decay shrinks them: set that to 0"
            )
        if self.epochs < 1:
            raise PosefixError(f"epochs must be positive, found {self.epochs}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def load_preset(path: str | Path) -> Config:
    """The `Config` that a preset file's `config()` returns.

    Raises:
      PosefixError: no such file, or it does not define `config() -> Config`.
    """
    path = Path(path)
    if not path.is_file():
        raise PosefixError(f"{path}: no such config file; the presets are in configs/")
    config = function_in_file(path, "config")()
    if not isinstance(config, Config):
        raise PosefixError(f"{path}: expected it to define config() returning a posefix_jax.Config")
    return config
