"""`posefix train`: the loop, read from top to bottom in `train`."""

import contextlib
import json
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter

from posefix_jax import geometry, heatmaps
from posefix_jax.checkpoints import Checkpointer, has_checkpoint, load_refiner
from posefix_jax.config import Config
from posefix_jax.data.coco import read_json, write_json
from posefix_jax.data.pipeline import People, training_batches
from posefix_jax.models import STRIDE, RefinerSpec, compute_dtype
from posefix_jax.optimizer import learning_rate, make_optimizer
from posefix_jax.report.pictures import GREEN, WHITE, draw_pose, kind_legend, sheet, side_by_side, write_picture
from posefix_jax.report.progress import format_seconds
from posefix_jax.sharding import data_mesh, place_batch, replicated, split
from posefix_jax.step import Batch, TrainState, make_train_step, make_training_pose, sample_keys
from posefix_jax.synthesis import load_error_model
from posefix_jax.types import PosefixError
from posefix_jax.validate import Validator, line_of
from posefix_jax.weights import with_backbone

_MAY_CHANGE = {"out", "save_every", "validate_every", "log_every", "keep", "data.threads", "data.validation"}
"""Fields of a run's config that a resumed run may set anew without changing its outcome."""


def train(config: Config) -> tuple[TrainState, bool]:
    """Trains a refiner; goes on from the latest checkpoint in `config.out` if there is one.

    SIGINT and SIGTERM finish the step and save. Writes checkpoints, `config.json`, TensorBoard event files and pictures
    below `config.out`. Returns the state, and whether the run is complete.

    Raises:
      PosefixError: data or config do not fit, or the loss stops being finite.
    """
    out = Path(config.out)
    people = People(config.data.train)
    spec = spec_of(config, people)
    errors = load_error_model(config.errors)
    errors.table(spec.skeleton)
    validator = Validator(config.data.validation, spec, errors) if config.data.validation else None
    _settle_config(config, out, len(people), started=has_checkpoint(out))

    mesh = data_mesh()
    if config.data.batch_size % mesh.size:
        raise PosefixError(f"data.batch_size {config.data.batch_size} must be a multiple of the {mesh.size} devices")
    steps = max(int(np.ceil(config.epochs * len(people) / config.data.batch_size)), 1)
    batches = training_batches(
        people,
        batch_size=config.data.batch_size,
        seed=config.seed,
        threads=config.data.threads,
        process=jax.process_index(),
        processes=jax.process_count(),
    )

    root = jax.random.key(config.seed)
    optimizer = make_optimizer(config.optimizer, steps)
    rate_at = learning_rate(config.optimizer, steps)
    train_step = jax.jit(
        make_train_step(
            spec=spec,
            errors=errors,
            augment=config.augment,
            inputs=config.inputs,
            optimizer=optimizer,
            average_decay=config.optimizer.averages,
        ),
        in_shardings=(replicated(mesh), split(mesh), replicated(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )

    state = initial_state(config, spec, optimizer, mesh)
    checkpointer = Checkpointer(out, keep=config.keep)
    if checkpointer.latest_step is not None:
        state, position = checkpointer.restore(state)
        batches.set_state(position)
        print(f"goes on from step {checkpointer.latest_step} of {steps} in {out}", file=sys.stderr)
    else:
        print(_describe(config, spec, people, state, steps, mesh.size), file=sys.stderr)

    writer = SummaryWriter(str(out / "metrics"), purge_step=int(state.step))
    picture = _make_picture(config, spec, errors)
    log = _Log(config, steps, int(state.step), rate_at, writer)
    step = int(state.step)
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(_Interrupt())
        stack.callback(writer.close)
        stack.callback(checkpointer.close)
        while step < steps and not interrupt.signal:
            waiting = time.monotonic()
            batch = place_batch(mesh, Batch(**next(batches)))
            log.waited(time.monotonic() - waiting)
            if step == 0:
                picture(out / "pictures" / "step-0000000.png", state, batch, root)
            state, metrics = train_step(state, batch, root)
            step += 1
            log.after_step(step, metrics)
            last = step == steps
            if last or step % config.save_every == 0:
                log.flush()  # a state whose loss is not finite is never saved
                checkpointer.save(state, batches.get_state(), spec)
            if validator is not None and (last or step % config.validate_every == 0):
                with log.paused():
                    log.validation(step, validator.run(state.variables))
                    picture(out / "pictures" / f"step-{step:07d}.png", state, batch, root)
        log.flush()
        checkpointer.save(state, batches.get_state(), spec)
    complete = step >= steps
    if not complete:
        print(f"interrupted and saved at step {step} of {steps}; the same command goes on from there", file=sys.stderr)
    else:
        print(f"done: {steps} steps; refine with --checkpoint {out}", file=sys.stderr)
    return state, complete


def spec_of(config: Config, people: People) -> RefinerSpec:
    """The spec of the refiner that this config trains on these people."""
    share = people.num_labelled / len(people)
    trained = tuple(bool(enough) for enough in share >= config.data.labelled_share)
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
        )

    state = jax.jit(make, out_shardings=replicated(mesh))(jax.random.key(config.seed))
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
        return with_backbone(jax.device_get(wanted), path, spec.model.backbone)
    variables, of = load_refiner(path)
    if of.skeleton.joints != spec.skeleton.joints:
        variables = _rejoin(jax.device_get(variables), of.skeleton.joints, jax.device_get(wanted), spec.skeleton.joints)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (wanted, variables)]
    if shapes[0] != shapes[1]:
        raise PosefixError(
            f"{config.init}: a {of.model.backbone} of width {of.model.width}; this config trains a "
            f"{spec.model.backbone} of width {spec.model.width}, head_channels {spec.model.head_channels}"
        )
    return variables


def _rejoin(variables: dict, joints: tuple[str, ...], fresh: dict, wanted: tuple[str, ...]) -> dict:
    """Weights for another skeleton: joints of the same name take theirs along, the others start fresh."""
    pairs = [(wanted.index(joint), j) for j, joint in enumerate(joints) if joint in wanted]
    ours, theirs = (np.array(side, int) for side in zip(*pairs, strict=True)) if pairs else ([], [])

    def exchange(new: np.ndarray, old: np.ndarray, axis: int, before: int) -> np.ndarray:
        new, old = np.moveaxis(np.array(new), axis, -1), np.moveaxis(np.asarray(old), axis, -1)
        if new.shape[:-1] == old.shape[:-1]:  # else the caller's check says what differs
            new[..., :before] = old[..., :before]
            new[..., before + np.asarray(ours, int)] = old[..., before + np.asarray(theirs, int)]
        return np.moveaxis(new, -1, axis)

    params, start = dict(variables["params"]), fresh["params"]
    stem = exchange(start["backbone"]["stem"]["kernel"], params["backbone"]["stem"]["kernel"], 2, 3)
    params["backbone"] = params["backbone"] | {"stem": {"kernel": stem}}
    params["head"] = {name: exchange(start["head"][name], params["head"][name], -1, 0) for name in ("kernel", "bias")}
    return variables | {"params": params}


def _settle_config(config: Config, out: Path, people: int, started: bool) -> None:
    """Writes `config.json`; refuses to go on with a run that has started under another, or on other people."""
    path = out / "config.json"
    fields = json.loads(config.to_json()) | {"people": people}
    if started:
        before, now = _flat(read_json(path)), _flat(fields)
        changed = [
            f"{key} ({before.get(key)} there, {value} now)"
            for key, value in now.items()
            if before.get(key) != value and key not in _MAY_CHANGE
        ]
        if changed:
            raise PosefixError(f"{out}: holds a run of another config: {'; '.join(changed)}; train into another --out")
    write_json(path, fields)


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
        f"{jnp.dtype(compute_dtype()).name}, {devices} device(s)\n"
        f"{len(people)} people, {steps} steps of {config.data.batch_size}"
        + (f"; hardly ever labelled, so not trained: {', '.join(left_out)}" if left_out else "")
    )


def _make_picture(config: Config, spec: RefinerSpec, errors):
    """A function that draws the first people of a batch: truth, input coloured by error kind, prediction."""
    network = spec.network()

    @jax.jit
    def look(variables, batch, root):
        poses = jax.vmap(
            lambda key, record: make_training_pose(
                key, record, spec=spec, errors=errors, augment=config.augment, inputs=config.inputs
            )
        )(sample_keys(root, batch.epoch, batch.sample), batch)
        logits = network.apply(variables, poses.crop, poses.input.crop_xy, poses.input.present)
        heat_xy = jax.vmap(lambda one: heatmaps.soft_argmax(heatmaps.probabilities(one)))(logits)
        return poses, geometry.heat_to_crop(heat_xy, STRIDE, spec.model.frame)

    def picture(path: Path, state: TrainState, batch: Batch, root) -> None:
        if jax.process_index():
            return
        few = jax.tree.map(lambda array: np.asarray(array.addressable_shards[0].data)[:6], batch)
        poses, predicted = jax.device_get(look(state.variables, few, root))
        zoom = max(1, 256 // spec.model.crop_hw[0])
        crops = np.clip(poses.crop, 0, 255).astype(np.uint8).repeat(zoom, axis=1).repeat(zoom, axis=2)
        true_xy, given_xy, found_xy = (
            (xy + 0.5) * zoom - 0.5 for xy in (poses.crop_xy, poses.input.crop_xy, predicted)
        )
        captions = ("crop", "truth", "input, by error", "prediction")
        rows = []
        for i, crop in enumerate(crops):
            truth = draw_pose(crop, true_xy[i], poses.valid[i], spec.skeleton, GREEN)
            kinds = poses.input.kind[i]
            given = draw_pose(crop, given_xy[i], poses.input.present[i], spec.skeleton, WHITE, kinds=kinds)
            found = draw_pose(crop, found_xy[i], poses.valid[i], spec.skeleton, GREEN)
            rows.append(side_by_side([crop, truth, given, found], captions))
        write_picture(path, sheet([kind_legend(), *rows]))

    return picture


class _Interrupt:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one kills as usual."""

    def __enter__(self) -> "_Interrupt":
        self.signal = 0
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: leave signals to whoever has them
                break
        return self

    def _note(self, number, _frame) -> None:
        self.signal = number
        signal.signal(number, self._before[number])

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Log:
    """Metrics to the terminal and to TensorBoard, read one step late so that the device never waits for it."""

    def __init__(self, config: Config, steps: int, step: int, rate_at, writer: SummaryWriter):
        self.config, self.steps, self.rate_at, self.writer = config, steps, rate_at, writer
        self.pending: list = []
        self.step = step
        self.wait = 0.0
        self.started = time.monotonic()

    def waited(self, seconds: float) -> None:
        self.wait += seconds

    @contextlib.contextmanager
    def paused(self):
        """While this lasts (a validation) no time counts towards the rate."""
        self.flush()
        since = time.monotonic()
        yield
        self.started += time.monotonic() - since

    def validation(self, step: int, scores: dict) -> None:
        if jax.process_index():
            return
        for kind, of_kind in scores.items():
            print(f"validation at step {step}, {line_of(kind, of_kind)}", file=sys.stderr, flush=True)
            for key, value in of_kind.items():
                self.writer.add_scalar(f"validation/{kind}_{key}", value, step)

    def after_step(self, step: int, metrics: dict) -> None:
        self.step = step
        self.pending.append(metrics)
        if len(self.pending) > self.config.log_every:
            self._print(step - 1, self.pending[:-1])
            self.pending = self.pending[-1:]

    def flush(self) -> None:
        if self.pending:
            self._print(self.step, self.pending)
            self.pending = []

    def _print(self, step: int, window: list) -> None:
        values = jax.device_get(window)
        mean = {key: float(np.mean([v[key] for v in values])) for key in values[0]}
        if not np.isfinite(mean["loss"]):
            raise PosefixError(
                f"the loss is not finite within steps {step - len(window) + 1} to {step}; "
                "lower optimizer.learning_rate, or look at the data"
            )
        now = time.monotonic()
        seconds = max(now - self.started, 1e-6)
        rate = len(window) * self.config.data.batch_size / seconds
        left = (self.steps - step) * self.config.data.batch_size / rate
        wait = self.wait / seconds
        learning = float(self.rate_at(step))
        self.started, self.wait = now, 0.0
        if jax.process_index():
            return
        print(
            f"step {step}/{self.steps}  loss {mean['loss']:.3f} (heatmap {mean['heatmap']:.3f}, coordinate "
            f"{mean['coordinate']:.3f})  KS {mean['ks_input']:.3f} -> {mean['ks_output']:.3f}  {rate:.1f} samples/s, "
            f"input wait {wait:.0%}  lr {learning:.2e}  {format_seconds(left)} left",
            file=sys.stderr,
            flush=True,
        )
        for key, value in {**mean, "samples_per_second": rate, "input_wait": wait, "learning_rate": learning}.items():
            self.writer.add_scalar(f"train/{key}", value, step)
