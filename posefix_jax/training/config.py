"""The config of a training run, and presets that define one."""

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
from posefix_jax.types import PosefixError, check_fields, function_in_file, short

LONGEST_RUN = 1e7
"""Minutes; a timer can wait for as long."""
MOST_REPEATS = 1e6
"""Of a folder in an epoch."""


@dataclass(frozen=True)
class DataConfig:
    """The data of a training run."""

    train: tuple[str, ...] = ()
    """folders from `posefix prepare`, read as one; the first one's joints, those of the others matched by name"""
    repeats: tuple[float, ...] = ()
    """how often an epoch has each folder's people: 1 if empty; 0.5 is every second person, alternating by epoch"""
    validation: tuple[str, ...] = ()
    """prepared folders to validate on; empty for no validation"""
    batch_size: int = 128
    """samples per step, over all devices and hosts"""
    threads: int = 8
    """threads that read and decode, per process or worker"""
    workers: int = 0
    """worker processes that read and decode; 0: threads only"""
    cache: Literal["none", "device"] = "none"
    """device: keep all people in device memory, split over the devices, and read no files while training"""
    labelled_share: float = 0.1
    """a joint is trained if at least this share of people has it labelled"""

    def __post_init__(self):
        if self.batch_size < 1 or self.threads < 1 or self.workers < 0:
            raise PosefixError(
                "data.batch_size and data.threads must be positive and data.workers not negative, found "
                f"{self.batch_size}, {self.threads}, {self.workers}"
            )
        check_fields(self, "data.")
        if max(self.repeats, default=0) > MOST_REPEATS:
            raise PosefixError(f"data.repeats must be at most {MOST_REPEATS:g}, found {max(self.repeats)}")
        if self.cache not in ("none", "device"):
            raise PosefixError(f"data.cache must be none or device, found {self.cache!r}")


@dataclass(frozen=True)
class Config:
    """One training run."""

    out: str = "runs/posefix"
    """folder of the run: checkpoints, metrics, pictures. The same command resumes a run that stopped"""
    seed: int = 0
    """seed of weights, data order, augmentation and errors"""
    epochs: int = 140
    """passes over the training people (140: paper, section 6)"""
    errors: tuple[str, ...] = ("posefix",)
    """synthetic errors: posefix (the paper's), scalar, gaussian, dropout, limb, poserefiner, empirical, none, an error
    model from `posefix analyze fit` (.json), or your own Python file (.py); of several, one is drawn per person"""
    error_weights: tuple[float, ...] = ()
    """relative weight of each entry of errors; equal if empty"""
    init: str = ""
    """weights to start from: a refiner (crop size and skeleton may differ), or a backbone from `posefix import`"""
    save_every: int = 1000
    """steps between checkpoints; the last step is saved too"""
    validate_every: int = 1000
    """steps between validations; the last step is validated too"""
    log_every: int = 50
    """steps between lines of metrics"""
    keep: int = 2
    """number of checkpoints to keep"""
    stop_after: float = 0.0
    """minutes after which the run saves and stops with exit code 130; 0: never"""
    skip_nonfinite: int = 0
    """number of batches to skip if their loss or gradient is not finite; one more stops the run"""
    profile: int = 0
    """number of steps to trace, from the tenth on, into OUT/profile for TensorBoard, XProf or Perfetto"""
    processes: ProcessConfig = field(default_factory=ProcessConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def __post_init__(self):
        check_fields(self)
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if dataclasses.is_dataclass(part.type):
                if not isinstance(value, part.type):
                    raise PosefixError(f"{part.name} must be a {part.type.__name__}, found {short(value)}")
                check_fields(value, f"{part.name}.")
        for name in ("save_every", "validate_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise PosefixError(f"{name} must be positive, found {getattr(self, name)}")
        if min(self.stop_after, self.skip_nonfinite, self.profile) < 0:
            raise PosefixError(
                "stop_after, skip_nonfinite and profile must not be negative, found "
                f"{self.stop_after}, {self.skip_nonfinite}, {self.profile}"
            )
        if self.stop_after > LONGEST_RUN:
            raise PosefixError(f"stop_after must be at most {LONGEST_RUN:g} minutes, found {self.stop_after}")
        if self.loss.heatmap == "gaussian" and (self.inputs.self_share or self.model.end_to_end):
            raise PosefixError(
                "inputs.self_share and model.end_to_end need a soft-argmax; loss.heatmap gaussian does not train one"
            )
        if self.model.frozen_stages and self.optimizer.weight_decay:
            raise PosefixError(
                "optimizer.weight_decay would shrink the weights that model.frozen_stages keeps: set it to 0"
            )
        if self.epochs < 1:
            raise PosefixError(f"epochs must be positive, found {self.epochs}")

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)


def load_preset(path: str | Path) -> Config:
    """The `Config` that a preset file's `config()` returns.

    Raises:
      PosefixError: the file does not exist or does not define `config() -> Config`.
    """
    path = Path(path)
    if not path.is_file():
        raise PosefixError(f"{path}: no such config file; the presets are in configs/")
    try:
        config = function_in_file(path, "config")()
    except PosefixError as error:  # of a field that does not fit
        raise PosefixError(str(error) if str(error).startswith(f"{path}:") else f"{path}: {error}") from error
    if not isinstance(config, Config):
        raise PosefixError(f"{path}: expected a function config() that returns a posefix_jax.Config")
    return config
