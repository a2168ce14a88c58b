"""What a training run reports: metrics in the terminal and TensorBoard, pictures, time spent, a trace."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from jaxtyping import Array, Key
from tensorboardX import SummaryWriter

from posefix_jax.core import geometry, heatmaps
from posefix_jax.core.models import STRIDE, RefinerSpec
from posefix_jax.core.synthesis import Synthesizer
from posefix_jax.core.train_step import Batch, make_training_pose, sample_keys
from posefix_jax.report.pictures import GREEN, WHITE, draw_pose, kind_legend, sheet, side_by_side, write_picture
from posefix_jax.report.progress import format_seconds
from posefix_jax.runtime.devices import local_copy
from posefix_jax.training.config import Config
from posefix_jax.training.feed import Feed
from posefix_jax.training.validation import line_of
from posefix_jax.types import tell

PROFILE_FROM = 10
"""Steps before a trace begins, so that it does not include compilation."""


class NotFinite(Exception):
    """More batches than allowed had a loss or gradient that is not finite."""


class Monitor:
    """Reports a run. Reads metrics one step late, so the device never waits for the host.

    Only process 0 prints and writes.
    """

    def __init__(
        self,
        config: Config,
        spec: RefinerSpec,
        synthesize: Synthesizer,
        feed: Feed,
        *,
        steps: int,
        step: int,
        rate_at: optax.Schedule,
    ):
        self.config, self.steps, self.step, self.rate_at, self.feed = config, steps, step, rate_at, feed
        self.first = step
        self.chief = jax.process_index() == 0
        self.out = Path(config.out)
        self.writer = SummaryWriter(str(self.out / "metrics"), purge_step=step) if self.chief else None
        self.look = _make_look(config, spec, synthesize)
        self.pending: list = []
        self.skipped = 0
        self.aside = dict.fromkeys(("validation", "pictures", "saving"), 0.0)
        self.tracing = False
        self.began = self.started = time.monotonic()
        self.waited_before = 0.0

    def after_step(self, step: int, metrics: dict) -> None:
        """To be called after every step.

        Raises:
          NotFinite: late; see `make_train_step`.
        """
        self.step = step
        self.pending.append(metrics)
        if len(self.pending) > self.config.log_every:
            self._take(step - 1, self.pending[:-1])
            self.pending = self.pending[-1:]
        if self.config.profile and self.chief:
            self._trace(step - self.first)

    def flush(self) -> None:
        """Reads the pending metrics.

        Raises:
          NotFinite: as `after_step`.
        """
        if self.pending:
            self._take(self.step, self.pending)
            self.pending = []

    @contextlib.contextmanager
    def aside_for(self, what: str) -> Iterator[None]:
        """Keeps the time of a block out of the training rate."""
        self.flush()
        since = time.monotonic()
        yield
        self.aside[what] += time.monotonic() - since
        self.started += time.monotonic() - since

    def validation(self, step: int, scores: dict) -> None:
        """Reports the scores of a validation."""
        if not self.chief:
            return
        for kind, of_kind in scores.items():
            tell(f"validation at step {step}, {line_of(kind, of_kind)}")
            for key, value in of_kind.items():
                self.writer.add_scalar(f"validation/{kind}_{key}", value, step)

    def picture(self, step: int, variables: dict, batch: Batch, root: Key[Array, ""]) -> None:
        """Draws some people of the batch, as the network sees them, into `pictures/`."""
        if self.chief:
            few = jax.tree.map(lambda array: np.asarray(array.addressable_data(0))[:6], batch)
            with self.aside_for("pictures"):
                self.look(self.out / "pictures" / f"step-{step:07d}.png", local_copy(variables), few, root)

    def close(self) -> None:
        """Reports where the time went."""
        if self.tracing:
            jax.profiler.stop_trace()
        if not self.chief:
            return
        self.writer.close()
        if self.step == self.first:
            return
        whole = time.monotonic() - self.began
        parts = {"input wait": self.feed.waited, "to the devices": self.feed.sent, **self.aside}
        parts = {"steps": whole - sum(parts.values()), **parts}
        tell(f"{self.step - self.first} steps in {format_seconds(whole)}, compilation included:")
        for name, seconds in parts.items():
            tell(f"  {name:15s} {seconds:8.1f} s  {seconds / whole:4.0%}")

    def _trace(self, done: int) -> None:
        if done == PROFILE_FROM:
            jax.profiler.start_trace(str(self.out / "profile"))
            self.tracing = True
        elif self.tracing and done == PROFILE_FROM + self.config.profile:
            jax.block_until_ready(self.pending[-1])
            jax.profiler.stop_trace()
            self.tracing = False
            tell(f"trace of {self.config.profile} steps: {self.out / 'profile'}")

    def _take(self, step: int, window: list) -> None:
        values = jax.device_get(window)
        for value in values:
            if value["skipped"] > self.config.skip_nonfinite:
                raise NotFinite
        if values[-1]["skipped"] > self.skipped and self.chief:
            self.skipped = int(values[-1]["skipped"])
            tell(f"{self.skipped} batches skipped so far: loss or gradient not finite")
        # NaN only if every batch of the window was skipped.
        finite = [value for value in values if np.isfinite(value["loss"])] or values
        mean = {key: float(np.mean([v[key] for v in finite])) for key in values[0]}
        now = time.monotonic()
        seconds = max(now - self.started, 1e-6)
        rate = len(window) * self.config.data.batch_size / seconds
        left = (self.steps - step) * self.config.data.batch_size / rate
        wait = (self.feed.waited - self.waited_before) / seconds
        learning = float(self.rate_at(step // self.config.optimizer.accumulate))
        self.started, self.waited_before = now, self.feed.waited
        if not self.chief:
            return
        tell(
            f"step {step}/{self.steps}  loss {mean['loss']:.3f} (heatmap {mean['heatmap']:.3f}, coordinate "
            f"{mean['coordinate']:.3f})  KS {mean['ks_input']:.3f} -> {mean['ks_output']:.3f}  {rate:.1f} samples/s, "
            f"input wait {wait:.0%}  lr {learning:.2e}  {format_seconds(left)} left"
        )
        for key, value in {**mean, "samples_per_second": rate, "input_wait": wait, "learning_rate": learning}.items():
            self.writer.add_scalar(f"train/{key}", value, step)


def _make_look(config: Config, spec: RefinerSpec, synthesize: Synthesizer):
    """A function that draws people of a batch: truth, input colored by kind of error, prediction."""
    network = spec.network()

    @jax.jit
    def look(variables, batch, root):
        poses = jax.vmap(
            lambda key, record: make_training_pose(
                key, record, spec=spec, synthesize=synthesize, augment=config.augment, inputs=config.inputs
            )
        )(sample_keys(root, batch.epoch, batch.sample), batch)
        logits = network.apply(variables, poses.crop, poses.input.xy, poses.input.present)
        heat_xy = jax.vmap(heatmaps.mean_position)(logits)
        return poses, geometry.heat_to_crop(heat_xy, STRIDE, spec.model.frame)

    def write(path: Path, variables: dict, few: Batch, root) -> None:
        poses, predicted = jax.device_get(look(variables, few, root))
        zoom = max(1, 256 // spec.model.crop_hw[0])
        crops = np.clip(poses.crop, 0, 255).astype(np.uint8).repeat(zoom, axis=1).repeat(zoom, axis=2)
        true_xy, given_xy, found_xy = ((xy + 0.5) * zoom - 0.5 for xy in (poses.crop_xy, poses.input.xy, predicted))
        captions = ("crop", "truth", "input, by error", "prediction")
        rows = []
        for i, crop in enumerate(crops):
            truth = draw_pose(crop, true_xy[i], poses.valid[i], spec.skeleton, GREEN)
            kinds = poses.input.kind[i]
            given = draw_pose(crop, given_xy[i], poses.input.present[i], spec.skeleton, WHITE, kinds=kinds)
            found = draw_pose(crop, found_xy[i], poses.valid[i], spec.skeleton, GREEN)
            rows.append(side_by_side([crop, truth, given, found], captions))
        write_picture(path, sheet([kind_legend(), *rows]))

    return write
