"""`posefix train`: the loop, read from top to bottom in `train`."""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from posefix_jax.core.models import RefinerSpec, compute_dtype
from posefix_jax.core.models.movenet import POSE_LAYERS
from posefix_jax.core.skeleton import joints_in
from posefix_jax.core.step import TrainState, make_train_step
from posefix_jax.core.synthesis import Synthesizer, make_synthesizer
from posefix_jax.data.pipeline import People
from posefix_jax.files import claim, read_json, write_json
from posefix_jax.runtime.checkpoints import Checkpointer, has_checkpoint, load_refiner, set_damaged_aside
from posefix_jax.runtime.devices import compiler_options, data_mesh, join_processes, replicated, split
from posefix_jax.training.config import Config
from posefix_jax.training.feed import Feed
from posefix_jax.training.monitor import Monitor, NotFinite
from posefix_jax.training.optimizer import learning_rate, make_optimizer
from posefix_jax.training.validation import Validator
from posefix_jax.types import PosefixError
from posefix_jax.weights import with_backbone

_MAY_CHANGE = {
    "out", "save_every", "validate_every", "log_every", "keep", "stop_after", "skip_nonfinite", "profile",
    "data.threads", "data.workers", "data.cache", "data.validation",
    "processes.coordinator", "processes.count", "processes.index", "processes.timeout",
}  # fmt: skip
"""Fields of a run's config that a resumed run may set anew without changing its outcome."""


def train(config: Config) -> tuple[TrainState, bool]:
    """Trains a refiner; goes on from the latest checkpoint in `config.out` if there is one.

    The same call on every process of a run (`config.processes`) trains one model on all their devices; `config.out`
    is a folder that all of them see. SIGINT and SIGTERM finish the step and save; before the first step of a process
    alone is done there is nothing to save, and they end it at once. Writes checkpoints, `config.json`, TensorBoard event files
    and pictures below `config.out`. Returns the state, and whether the run is complete.

    Raises:
      PosefixError: data or config do not fit, another process trains into the folder, or the loss stops being finite.
    """
    out = Path(config.out)
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(_Interrupt(config))
        if not ((out / "lock").is_file() and (out / "config.json").is_file()):  # a run from before folders were marked
            claim(out, "posefix train")
        join_processes(config.processes, out)
        people, spec, synthesize = made_of(config)
        validator = Validator(config.data.validation, spec) if config.data.validation else None
        stack.enter_context(_alone(out))
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
        train_step = jax.jit(
            make_train_step(
                spec=spec,
                synthesize=synthesize,
                augment=config.augment,
                inputs=config.inputs,
                optimizer=optimizer,
                loss=config.loss,
                average_decay=config.optimizer.averages,
                skip_nonfinite=config.skip_nonfinite,
            ),
            in_shardings=(replicated(mesh), split(mesh), replicated(mesh)),
            out_shardings=(replicated(mesh), replicated(mesh)),
            donate_argnums=0,
            compiler_options=compiler_options(),
        )

        state = initial_state(config, spec, optimizer, mesh)
        checkpointer = Checkpointer(out, keep=config.keep)
        stack.callback(checkpointer.close)
        if checkpointer.latest_step is not None:
            state, position = checkpointer.restore(state)
            # Batches that were passed over stay so, also where fewer may be from now on.
            state = jax.jit(lambda s: s._replace(skipped=jnp.minimum(s.skipped, config.skip_nonfinite)))(state)
            _say(f"goes on from step {checkpointer.latest_step} of {steps} in {out}")
        else:
            position = {"batch": 0}
            _say(_describe(config, spec, people, state, steps, mesh.size))

        step = int(state.step)
        feed = Feed(mesh, people, config.data, seed=config.seed, start=position["batch"])
        monitor = Monitor(
            config, spec, synthesize, feed, steps=steps, step=step, rate_at=learning_rate(config.optimizer, steps)
        )
        stack.callback(monitor.close)

        def save():
            with monitor.aside_for("saving"):  # which reads what is pending first: a state that is bad is never saved
                checkpointer.save(state, {"batch": int(state.step)}, spec)

        scored = validator is None
        try:
            while step < steps and not interrupt.at(step):
                batch = next(feed)
                if step == 0:
                    monitor.picture(step, state.variables, batch, root)
                state, metrics = train_step(state, batch, root)
                step += 1
                interrupt.unsaved = True
                monitor.after_step(step, metrics)
                last = step == steps
                if last or step % config.save_every == 0:
                    save()
                if validator is not None and (last or step % config.validate_every == 0):
                    with monitor.aside_for("validation"):
                        scores = validator.run(state.variables, stop=interrupt.noted)
                    if scores is not None:
                        monitor.validation(step, scores)
                        monitor.picture(step, state.variables, batch, root)
                        scored = last
            save()
            if step >= steps and not scored and not interrupt.noted():  # the last validation was broken off before
                scores = validator.run(state.variables, stop=interrupt.noted)
                if scores is not None:
                    monitor.validation(step, scores)
                    scored = True
        except NotFinite:
            raise PosefixError(_save_not_finite(config, feed, checkpointer, state, spec)) from None
    complete = step >= steps and scored
    if not complete:
        _say(f"interrupted and saved at step {step} of {steps}; the same command goes on from there")
    else:
        _say(f"done: {steps} steps; refine with --checkpoint {out}")
    return state, complete


def _say(line: str) -> None:
    if not jax.process_index():
        print(line, file=sys.stderr, flush=True)


def _save_not_finite(config: Config, feed: Feed, checkpointer: Checkpointer, state: TrainState, spec) -> str:
    """Saves the state from before the batch at fault, and who was in it; returns what to tell the user."""
    step, allowed = int(state.step), config.skip_nonfinite
    people = feed.people_at(config.seed, step)
    path = Path(config.out) / f"not-finite-{step:07d}.json"
    if not jax.process_index():
        write_json(path, {"step": step, "people": people})
    # The count is what it was before: the same command meets the same batch in the same state.
    state = jax.jit(lambda s: s._replace(skipped=jnp.int32(allowed)), donate_argnums=0)(state)
    checkpointer.save(state, {"batch": step}, spec)
    return (
        f"the loss or its gradient is not finite at step {step}; the {len(people)} people of that batch are listed in "
        f"{path}, the state before it is saved: the same command meets it again at once, --skip-nonfinite {allowed + 1} "
        "goes past it; or lower optimizer.learning_rate in a new run"
    )


def made_of(config: Config) -> tuple[People, RefinerSpec, Synthesizer]:
    """The people that a run learns from, its refiner, and what spoils the poses. Raises PosefixError where they do not fit."""
    people = People(config.data.train, config.data.repeats)
    spec = spec_of(config, people)
    people.check_detections(config.errors)
    return people, spec, make_synthesizer(config.errors, config.error_weights, spec.skeleton)


def spec_of(config: Config, people: People) -> RefinerSpec:
    """The spec of the refiner that this config trains on these people."""
    trained = tuple(bool(enough) for enough in people.share_labelled >= config.data.labelled_share)
    if not any(trained):
        raise PosefixError(f"no joint is labelled on {config.data.labelled_share:.0%} of the people; check data.train")
    return RefinerSpec(people.skeleton, config.model, trained, config.decode)


def initial_state(config: Config, spec: RefinerSpec, optimizer, mesh) -> TrainState:
    """Fresh weights by the seed, or those of `config.init`, a copy on every device."""
    h, w = spec.model.crop_hw
    joints = spec.skeleton.num_joints

    def make(key):
        variables = spec.network().init(
            key, jnp.zeros((1, h, w, 3)), jnp.zeros((1, joints, 2)), jnp.zeros((1, joints), bool)
        )
        # The average starts as a copy of its own: donated buffers may not be shared.
        average = jax.tree.map(jnp.copy, variables) if config.optimizer.averages else None
        return TrainState(
            jnp.zeros((), jnp.int32),
            variables["params"],
            variables["batch_stats"],
            optimizer.init(variables["params"]),
            average,
            jnp.zeros((), jnp.int32),
        )

    # This kind of key compiles in a third of the time, and these draws need not be the same on every backend.
    state = jax.jit(make, out_shardings=replicated(mesh))(jax.random.key(config.seed, impl="rbg"))
    if not config.init:
        return state
    wanted = {"params": state.params, "batch_stats": state.batch_stats}
    variables = _initial_variables(config, spec, wanted)
    # Through jit, so that no two leaves share a buffer.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=replicated(mesh))
    average = copy(variables) if state.average is not None else None
    variables = copy(variables)
    return state._replace(params=variables["params"], batch_stats=variables["batch_stats"], average=average)


def _initial_variables(config: Config, spec: RefinerSpec, wanted: dict) -> dict:
    """What `config.init` names: a refiner, or the imported weights of a backbone amid fresh ones."""
    path = Path(config.init)
    if path.suffix == ".npz":
        if spec.model.end_to_end:
            raise PosefixError(
                f"{config.init}: weights of a backbone; model.end_to_end starts from a refiner, or from none"
            )
        return with_backbone(jax.device_get(wanted), path, spec.model.backbone)
    variables, of = load_refiner(path)
    variables = jax.device_get(variables)  # committed to one device, they could not be laid over all
    if spec.model.end_to_end and not of.model.end_to_end:  # both stages start from it
        variables = {name: {"estimator": tree, "refiner": tree} for name, tree in variables.items()}
    elif of.skeleton.joints != spec.skeleton.joints:
        variables = _rejoin(variables, of.skeleton.joints, jax.device_get(wanted), spec.skeleton.joints)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (wanted, variables)]
    if shapes[0] != shapes[1]:
        raise PosefixError(
            f"{config.init}: a {of.model.backbone} of width {of.model.width}; this config trains a "
            f"{spec.model.backbone} of width {spec.model.width}, head_channels {spec.model.head_channels}"
        )
    return variables


def _rejoin(variables: dict, joints: tuple[str, ...], fresh: dict, wanted: tuple[str, ...]) -> dict:
    """Weights for another skeleton: joints of the same name take theirs along, the others start fresh."""
    places = joints_in(wanted, joints)
    ours, theirs = np.flatnonzero(places >= 0), places[places >= 0]

    def exchange(new: np.ndarray, old: np.ndarray, axis: int, before: int) -> np.ndarray:
        new, old = np.moveaxis(np.array(new), axis, -1), np.moveaxis(np.asarray(old), axis, -1)
        if new.shape[:-1] == old.shape[:-1]:  # else the caller's check says what differs
            new[..., :before] = old[..., :before]
            new[..., before + ours] = old[..., before + theirs]
        return np.moveaxis(new, -1, axis)

    params, start = dict(variables["params"]), fresh["params"]
    # Where the pose goes in, after how many channels of the image: movenet's stem sees none of it.
    entries = dict.fromkeys(POSE_LAYERS, 0) if POSE_LAYERS[0] in params["backbone"] else {"stem": 3}
    params["backbone"] = params["backbone"] | {
        name: {"kernel": exchange(start["backbone"][name]["kernel"], params["backbone"][name]["kernel"], 2, before)}
        for name, before in entries.items()
    }
    params["head"] = {name: exchange(start["head"][name], params["head"][name], -1, 0) for name in ("kernel", "bias")}
    return variables | {"params": params}


def _settle_config(config: Config, out: Path, people: int, started: bool) -> None:
    """Writes `config.json`; refuses to go on with a run that has started under another, or on other people."""
    path = out / "config.json"
    fields = json.loads(config.to_json()) | {"people": people, "errors_read": errors_read(config)}
    if started:
        before, now = _flat(read_json(path)), _flat(fields)
        changed = [
            f"{key} ({before.get(key)} there, {value} now)"
            for key, value in now.items()
            if before.get(key) != value and key not in _MAY_CHANGE
        ]
        if changed:
            raise PosefixError(f"{out}: holds a run of another config: {'; '.join(changed)}; train into another --out")
    if not jax.process_index():
        write_json(path, fields)


def errors_read(config: Config) -> list[str]:
    """Digests of the files among `config.errors`: a run does not go on when what it draws from was written anew."""
    files = [path for path in map(Path, config.errors) if path.is_file()]
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files]


def _flat(fields: dict, prefix: str = "") -> dict:
    """`{"data": {"seed": 1}}` to `{"data.seed": 1}`."""
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
        f"{jnp.dtype(compute_dtype()).name}, {devices} device(s) of {jax.process_count()} process(es)\n"
        f"{people.places} people an epoch, {steps} steps of {config.data.batch_size}"
        + (f"; hardly ever labelled, so not trained: {', '.join(left_out)}" if left_out else "")
    )


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Refuses to train into a folder that another run is training into."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "lock", "a") as lock:
        free = True
        if not jax.process_index():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
        if not multihost_utils.broadcast_one_to_all(np.array(free)):
            raise PosefixError(f"{out}: another process is training into it; stop it, or take another --out")
        yield


class _Interrupt:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one kills as usual.

    As long as nothing is `unsaved` the first one ends the process at once, also from within a compilation: a thread
    looks, for Python's own handlers wait until the compiler returns. Several processes all stop at the same step
    instead, the first at the earliest: SIGTERM to any one of them is left to jax's preemption service, which agrees on
    it, and SIGINT becomes SIGTERM.
    """

    def __init__(self, config: Config):
        self.signal = 0
        self.unsaved = False
        self._many = bool(config.processes.coordinator)
        self._numbers = (signal.SIGINT,) if self._many else (signal.SIGINT, signal.SIGTERM)
        self._before = {}
        self._timer = None
        if config.stop_after:
            self._timer = threading.Timer(60 * config.stop_after, os.kill, (os.getpid(), signal.SIGTERM))
            self._timer.daemon = True

    def __enter__(self) -> "_Interrupt":
        if threading.current_thread() is threading.main_thread():  # else signals are whoever's who has them
            for number in self._numbers:
                self._before[number] = signal.signal(number, self._note)
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, daemon=True).start()
        if self._timer is not None:
            self._timer.start()
        return self

    def _watch(self) -> None:
        while data := self._reader.recv(1):
            if data[0] in self._numbers and not self.unsaved and not self._many:
                print("interrupted before the first step; nothing to save", file=sys.stderr, flush=True)
                os._exit(130)
        self._reader.close()

    def _note(self, number, _frame) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)

    def noted(self) -> bool:
        """Whether this process alone was asked to stop."""
        return bool(self.signal) and not self._many

    def at(self, step: int) -> bool:
        """Whether to stop before this step; the same answer on every process, each of which must ask."""
        if self._many:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(self.signal)

    def __exit__(self, *_) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            self._writer.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)
