"""`posefix train`: the training loop, to be read from top to bottom in `train`."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.synthesis import Synthesizer, make_synthesizer
from posefix_jax.core.train_step import TrainState, make_train_step
from posefix_jax.data.pipeline import People
from posefix_jax.files import claim, read_json, write_json
from posefix_jax.runtime.checkpoints import Checkpointer, has_checkpoint, set_damaged_aside
from posefix_jax.runtime.devices import compiler_options, data_mesh, join_processes, replicated, split
from posefix_jax.training.config import Config
from posefix_jax.training.feed import Feed
from posefix_jax.training.initial_weights import initial_state
from posefix_jax.training.interruption import Interruption, alone_in
from posefix_jax.training.monitor import Monitor, NotFinite
from posefix_jax.training.optimizer import learning_rate, make_optimizer
from posefix_jax.training.validation import Validator
from posefix_jax.types import PosefixError, tell

_MAY_CHANGE = {
    "out", "save_every", "validate_every", "log_every", "keep", "stop_after", "skip_nonfinite", "profile",
    "data.threads", "data.workers", "data.cache", "data.validation",
    "processes.coordinator", "processes.count", "processes.index", "processes.timeout", "processes.lost_after",
}  # fmt: skip
"""Fields of a config that do not change the outcome of a run: a resumed run may set them anew."""


def train(config: Config) -> tuple[TrainState, bool]:
    """Trains a refiner. Resumes from the latest checkpoint in `config.out` if there is one.

    The same call on every process of a run (`config.processes`) trains one model on all their devices; `config.out`
    is then a folder that all of them share. SIGINT and SIGTERM finish the step and save; a process alone that has not
    finished a step has nothing to save and ends at once. Writes checkpoints, `config.json`, TensorBoard event files and
    pictures into `config.out`.

    Returns:
      The state, and whether the run is complete.

    Raises:
      PosefixError: data and config do not fit, another process trains into the folder, or the loss is no longer finite.
    """
    out = Path(config.out)
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption(config))
        if not ((out / "lock").is_file() and (out / "config.json").is_file()):  # a run without the mark of `claim`
            claim(out, "posefix train")
        join_processes(config.processes, out)
        people, spec, synthesize = build_run(config)
        validator = Validator(config.data.validation, spec) if config.data.validation else None
        stack.enter_context(alone_in(out))
        set_damaged_aside(out)
        _settle_config(config, out, people.places, started=has_checkpoint(out))

        mesh = data_mesh()
        if config.data.batch_size % mesh.size:
            raise PosefixError(
                f"data.batch_size {config.data.batch_size} must be a multiple of the {mesh.size} devices"
            )
        steps = max(int(np.ceil(config.epochs * people.places / config.data.batch_size)), 1)
        root = jax.random.key(config.seed)
        optimizer = make_optimizer(config.optimizer, steps)
        train_step = jitted_step(config, spec, synthesize, optimizer, mesh)

        state = initial_state(config, spec, optimizer, mesh)
        checkpointer = Checkpointer(out, keep=config.keep)
        stack.callback(checkpointer.close)
        if checkpointer.latest_step is not None:
            state, position = checkpointer.restore(state)
            # If fewer skipped batches are allowed now, those already skipped still do not halt the run.
            state = jax.jit(lambda s: s._replace(skipped=jnp.minimum(s.skipped, config.skip_nonfinite)))(state)
            _say(f"resumes from step {checkpointer.latest_step} of {steps} in {out}")
        else:
            position = {"batch": 0}
            _say(_describe(config, spec, people, state, steps, mesh.size))

        step = int(state.step)
        feed = Feed(mesh, people, config.data, seed=config.seed, start=position["batch"])
        monitor = Monitor(
            config, spec, synthesize, feed, steps=steps, step=step, rate_at=learning_rate(config.optimizer, steps)
        )
        stack.callback(monitor.close)

        def save() -> None:
            # `aside_for` reads the pending metrics first, so a state after a bad batch is never saved.
            with monitor.aside_for("saving"):
                checkpointer.save(state, {"batch": int(state.step)}, spec)

        def validate() -> bool:
            """False if it was interrupted."""
            with monitor.aside_for("validation"):
                scores = validator.run(state.variables, stop=interruption.asked)
            if scores is not None:
                monitor.validation(step, scores)
            return scores is not None

        scored = validator is None
        try:
            while step < steps and not interruption.stops_before(step):
                batch = next(feed)
                if step == 0:
                    monitor.picture(step, state.variables, batch, root)
                state, metrics = train_step(state, batch, root)
                step += 1
                interruption.step_done()
                monitor.after_step(step, metrics)
                last = step == steps
                if last or step % config.save_every == 0:
                    save()
                if validator is not None and (last or step % config.validate_every == 0) and validate():
                    monitor.picture(step, state.variables, batch, root)
                    scored = last
            save()
            if (
                step >= steps and not scored and not interruption.asked()
            ):  # an earlier start stopped in its last validation
                scored = validate()
        except NotFinite:
            raise PosefixError(_save_not_finite(config, feed, checkpointer, state, spec)) from None
    complete = step >= steps and scored
    if complete:
        _say(f"done: {steps} steps; refine with --checkpoint {out}")
    else:
        _say(f"interrupted and saved at step {step} of {steps}; the same command resumes there")
    return state, complete


def jitted_step(
    config: Config, spec: RefinerSpec, synthesize: Synthesizer, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable:
    """The training step over the mesh: the batch split over its devices, the state on each of them."""
    step = make_train_step(
        spec=spec,
        synthesize=synthesize,
        augment=config.augment,
        inputs=config.inputs,
        optimizer=optimizer,
        loss=config.loss,
        average_decay=config.optimizer.averages,
        skip_nonfinite=config.skip_nonfinite,
    )
    return jax.jit(
        step,
        in_shardings=(replicated(mesh), split(mesh), replicated(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )


def _say(line: str) -> None:
    if not jax.process_index():
        tell(line)


def _save_not_finite(config: Config, feed: Feed, checkpointer: Checkpointer, state: TrainState, spec) -> str:
    """Saves the state before the bad batch and the names of its people. Returns the message for the user."""
    step, allowed = int(state.step), config.skip_nonfinite
    people = feed.people_at(config.seed, step)
    path = Path(config.out) / f"not-finite-{step:07d}.json"
    if not jax.process_index():
        write_json(path, {"step": step, "people": people})
    # With the old count the same command reaches the same batch in the same state.
    state = jax.jit(lambda s: s._replace(skipped=jnp.int32(allowed)), donate_argnums=0)(state)
    checkpointer.save(state, {"batch": step}, spec)
    return (
        f"the loss or its gradient is not finite at step {step}. The state before that step is saved; the {len(people)} "
        f"people of its batch are listed in {path}. Add --skip-nonfinite {allowed + 1} to skip the batch, or start a new "
        "run with a lower optimizer.learning_rate"
    )


def build_run(config: Config) -> tuple[People, RefinerSpec, Synthesizer]:
    """The people to learn from, the spec of the refiner, and the synthesizer of a run.

    Raises:
      PosefixError: they do not fit each other.
    """
    people = People(config.data.train, config.data.repeats)
    spec = spec_of(config, people)
    people.check_detections(config.errors)
    return people, spec, make_synthesizer(config.errors, config.error_weights, spec.skeleton)


def spec_of(config: Config, people: People) -> RefinerSpec:
    """The spec of the refiner that this config trains on these people.

    Raises:
      PosefixError: no joint is labelled often enough.
    """
    trained = tuple(bool(enough) for enough in people.share_labelled >= config.data.labelled_share)
    if not any(trained):
        raise PosefixError(f"no joint is labelled on {config.data.labelled_share:.0%} of the people; check data.train")
    return RefinerSpec(people.skeleton, config.model, trained, config.decode)


def _settle_config(config: Config, out: Path, people: int, started: bool) -> None:
    """Writes `config.json`.

    Raises:
      PosefixError: the run was started with another config, or on other people.
    """
    path = out / "config.json"
    fields = json.loads(config.to_json()) | {"people": people, "errors_read": errors_read(config)}
    if started:
        # A field that the config did not have when the run was started had the effect of its default.
        before, now = _flat(json.loads(Config().to_json())) | _flat(read_json(path)), _flat(fields)
        changed = [
            f"{key} ({before.get(key)} there, {value} now)"
            for key, value in now.items()
            if before.get(key) != value and key not in _MAY_CHANGE
        ]
        if changed:
            raise PosefixError(f"{out}: holds a run of another config: {'; '.join(changed)}; use another --out")
    if not jax.process_index():
        write_json(path, fields)


def errors_read(config: Config) -> list[str]:
    """Digests of the files among `config.errors`. A run does not resume if one of them changed."""
    files = [path for path in map(Path, config.errors) if path.is_file()]
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files]


def _flat(fields: dict, prefix: str = "") -> dict:
    """`{"data": {"threads": 1}}` as `{"data.threads": 1}`."""
    flat = {}
    for key, value in fields.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _describe(config, spec, people, state, steps, devices) -> str:
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    left_out = [j for j, on in zip(spec.skeleton.joints, spec.trained_joints, strict=True) if not on]
    height, width = spec.model.crop_hw
    return (
        f"{spec.model.backbone} of width {spec.model.width}, {weights / 1e6:.1f} M weights, crops {height}x{width}, "
        f"{jnp.dtype(spec.model.dtype).name}, {devices} device(s) of {jax.process_count()} process(es)\n"
        f"{people.places} people per epoch, {steps} steps of {config.data.batch_size}"
        + (f"; rarely labelled, so not trained: {', '.join(left_out)}" if left_out else "")
    )
