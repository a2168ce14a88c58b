import dataclasses
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from posefix_jax.core.augment import AugmentConfig
from posefix_jax.core.synthesis import ERROR_MODELS, VARIANTS, make_synthesizer
from posefix_jax.core.train_step import (
    Batch,
    InputConfig,
    TrainState,
    make_eval_step,
    make_train_step,
    make_training_pose,
    sample_keys,
)
from posefix_jax.data.pipeline import People, training_batches
from posefix_jax.runtime.checkpoints import (
    ITEMS,
    Checkpointer,
    abstract_variables,
    load_refiner,
    newest_whole,
    save_refiner,
)
from posefix_jax.runtime.devices import data_mesh, replicated, split
from posefix_jax.training.config import Config, DataConfig
from posefix_jax.training.feed import Feed
from posefix_jax.training.initial_weights import initial_state
from posefix_jax.training.interruption import Interruption
from posefix_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from posefix_jax.training.train import spec_of, train
from posefix_jax.training.validation import Validator
from posefix_jax.types import PosefixError, warn_once

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(prepared, tiny_spec, tmp_path_factory) -> Config:
    """Six steps of eight samples on six people."""
    return Config(
        out=str(tmp_path_factory.mktemp("runs") / "whole"),
        epochs=8,
        save_every=2,
        validate_every=4,
        log_every=2,
        data=DataConfig(train=(str(prepared),), validation=(str(prepared),), batch_size=8, threads=1),
        model=tiny_spec.model,
        augment=AugmentConfig(shift=0.05, colour=0.2),
        errors=("posefix", "empirical"),
        error_weights=(0.7, 0.3),
        inputs=InputConfig(withhold_pose=0.1, withhold_joint=0.05),
        optimizer=OptimizerConfig(learning_rate=1e-3, average_decay=0.9),
    )


@pytest.fixture(scope="module")
def whole(config):
    state, complete = train(config)
    assert complete
    return jax.device_get(state)


def assert_equal(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def test_leaves_what_a_user_looks_at(config, whole):
    out = Path(config.out)
    assert int(whole.step) == 6
    assert sorted(p.name for p in (out / "pictures").iterdir()) == [f"step-{step:07d}.png" for step in (0, 4, 6)]
    assert list((out / "metrics").glob("events.*")) and (out / "config.json").is_file()
    variables, spec = load_refiner(out)
    assert_equal(variables, whole.variables)
    assert spec.model == config.model


def cut_short(step: Path, item: str) -> None:
    for file in (step / item).rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(step: Path, item: str) -> None:
    """A bit in the middle of the item's largest file."""
    file = max((step / item).rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "an empty step": lambda folder: (folder / "99").mkdir(),
    "a state cut short": lambda folder: cut_short(folder / "6", "state"),
    "a model cut short": lambda folder: cut_short(folder / "6", "model"),
    "a bit of the state": lambda folder: flip(folder / "6", "state"),
    "a bit of the model": lambda folder: flip(folder / "6", "model"),
    "no index": lambda folder: (folder / "6" / "state" / "manifest.ocdbt").unlink(),
    "an empty file": lambda folder: (folder / "6" / "input" / "metadata").write_text(""),
    "no input": lambda folder: shutil.rmtree(folder / "6" / "input"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen(name, config, whole, tmp_path):
    """By reading the files, before Orbax restores any. Finds the newest readable step."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(Path(config.out) / "checkpoints", folder)
    assert newest_whole(folder, tuple(ITEMS)) == (folder / "6", {})
    DAMAGE[name](folder)
    step, good = ("99", "6") if name == "an empty step" else ("6", "4")
    found, damaged = newest_whole(folder, tuple(ITEMS))
    assert found == folder / good and list(damaged) == [folder / step] and damaged[folder / step]


@pytest.mark.parametrize("name", ["an empty step", "a bit of the model"])
def test_a_damaged_checkpoint_is_passed_over(name, config, whole, tmp_path, capsys):
    """Loads the newest readable one, with one line of warning; the run ends with the same weights, damaged files are kept."""
    run = tmp_path / "run"
    shutil.copytree(config.out, run)
    DAMAGE[name](run / "checkpoints")
    step, good = ("99", "6") if name == "an empty step" else ("6", "4")
    warn_once.cache_clear()
    capsys.readouterr()
    load_refiner(run)
    (said,) = capsys.readouterr().err.splitlines()
    assert f"checkpoints/{step} is damaged (" in said and said.endswith(f"checkpoints/{good} instead")
    warn_once.cache_clear()
    state, complete = train(dataclasses.replace(config, out=str(run)))
    said = [line for line in capsys.readouterr().err.splitlines() if "is damaged (" in line]
    assert len(said) == 1 and said[0].endswith(f"resuming from {run / 'checkpoints' / good}")
    assert complete and (run / "damaged" / step).is_dir()
    assert_equal(jax.device_get(state), whole)
    assert_equal(load_refiner(run)[0], whole.variables)


def test_no_checkpoint_that_reads(config, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(config.out, run)
    for step in (run / "checkpoints").iterdir():
        cut_short(step, "model")
    before = sorted(run.rglob("*"))
    for attempt in (lambda: train(dataclasses.replace(config, out=str(run))), lambda: load_refiner(run)):
        with pytest.raises(
            PosefixError, match=r"no checkpoint can be read \(6: model/d/\w+: its checksum .*; 4: model/d/"
        ):
            attempt()
    with pytest.raises(PosefixError, match=r"checkpoints/6: damaged \(model/d/"):
        load_refiner(run / "checkpoints" / "6")
    assert sorted(run.rglob("*")) == before


def test_refuses_a_folder_that_it_did_not_make(config, tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(PosefixError, match="exists and was not made by posefix train"):
        train(dataclasses.replace(config, out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_interrupted_and_resumed_is_as_uninterrupted(config, whole, monkeypatch):
    """Stopped within step 3, between checkpoints: same parameters, averages, optimizer state, bit for bit.

    It follows that two runs with one seed are the same.
    """
    broken = dataclasses.replace(config, out=config.out + "-broken")
    asked, next_batch = [], Feed.__next__

    def interrupting(feed):
        asked.append(1)
        if len(asked) == 3:
            signal.raise_signal(signal.SIGTERM)
        return next_batch(feed)

    monkeypatch.setattr(Feed, "__next__", interrupting)
    stopped, complete = train(broken)
    assert int(stopped.step) == 3 and not complete
    monkeypatch.undo()
    resumed, complete = train(broken)
    assert complete
    assert_equal(jax.device_get(resumed), whole)


def test_refuses_a_run_of_another_config(config, whole):
    with pytest.raises(PosefixError, match=r"another config: .*seed \(0 there, 1 now\)"):
        train(dataclasses.replace(config, seed=1))


def test_stops_exactly_where_the_loss_is_not_finite(config, monkeypatch):
    """The state before the batch is saved, its people are listed, and the same command reaches it again."""
    broken = dataclasses.replace(config, out=config.out + "-not-finite", log_every=50, save_every=50, validate_every=50)
    asked, next_batch = [], Feed.__next__

    def poisoning(feed):
        asked.append(1)
        if len(asked) in stop_at:
            signal.raise_signal(signal.SIGTERM)
            stop_at.clear()
        batch = next_batch(feed)
        return batch if len(asked) not in poisoned else batch._replace(patch_xy=batch.patch_xy * np.float32("nan"))

    monkeypatch.setattr(Feed, "__next__", poisoning)
    poisoned, stop_at = {3}, []
    with pytest.raises(PosefixError, match=r"not finite at step 2\..*the 8 people .*--skip-nonfinite 1") as error:
        train(broken)
    listed = json.loads(Path(broken.out, "not-finite-0000002.json").read_text())
    assert listed["step"] == 2 and len(listed["people"]) == 8 and "record" in listed["people"][0]
    assert listed["people"][0].split(":")[0] in str(list(Path(config.data.train[0]).iterdir())), error
    asked.clear()
    poisoned = {1}
    with pytest.raises(PosefixError, match="not finite at step 2"):
        train(broken)
    asked.clear()
    stop_at.append(3)
    state, complete = train(dataclasses.replace(broken, skip_nonfinite=1))
    assert not complete and int(state.skipped) == 1 and int(state.step) == 5
    asked.clear()
    poisoned = set()
    state, complete = train(broken)  # fewer may be skipped now, and none is
    assert complete and int(state.step) == 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


@pytest.mark.parametrize("devices", [4, 2, 1])
def test_a_state_saved_on_eight_devices_is_restored_on_fewer(config, whole, devices):
    mesh = data_mesh()
    few = jax.sharding.Mesh(mesh.devices[:devices], mesh.axis_names, axis_types=mesh.axis_types)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(few)), whole)
    checkpointer = Checkpointer(Path(config.out), keep=2)
    state, position = checkpointer.restore(like)
    checkpointer.close()
    assert position == {"batch": 6}
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {devices}
    assert_equal(jax.device_get(state), whole)


def test_stops_within_a_validation(config, whole):
    people = People(config.data.train)
    validator = Validator(config.data.validation, spec_of(config, people))
    assert validator.run(whole.variables, stop=lambda: True) is None


def test_stops_after_a_time(config):
    """A real timer; the loop asks before each step."""
    with Interruption(dataclasses.replace(config, stop_after=0.005)) as interruption:
        assert not interruption.stops_before(0)
        until = time.monotonic() + 30
        while not interruption.stops_before(1) and time.monotonic() < until:
            time.sleep(0.02)
        assert interruption.stops_before(2) and interruption.asked()


def test_signals_are_handled_from_the_first_finished_step_on(config):
    """Only the first one: a second signal acts as usual, as do all signals after the run."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interruption(config) as interruption:
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        interruption.step_done()
        assert not interruption.stops_before(1)
        signal.raise_signal(signal.SIGINT)
        interruption.step_done()
        assert interruption.stops_before(2) and interruption.asked()
        assert signal.getsignal(signal.SIGINT) is before[1]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("cache,workers", [("device", 0), ("none", 2)])
def test_batches_are_the_same_however_they_come(config, cache, workers):
    """From device memory, from worker processes, from threads; from the start and from the middle."""
    people = People(config.data.train * 2, (1.0, 0.5))
    mesh = data_mesh()
    plain = Feed(mesh, people, config.data, seed=1, start=0)
    expected = [jax.device_get(next(plain)) for _ in range(5)]
    other = dataclasses.replace(config.data, cache=cache, workers=workers)
    feed = Feed(mesh, people, other, seed=1, start=2)
    for batch in expected[2:]:
        ours = next(feed)
        assert len(ours.patch.sharding.device_set) == 8
        assert_equal(jax.device_get(ours), batch)
    assert (feed.waited > 0) == (cache == "none")  # cached people are not waited for


def test_eight_devices_equal_one(config):
    """One step, batch statistics included, to 1e-5; poses and augmentation bit for bit."""
    people = People(config.data.train)
    spec = spec_of(config, people)
    local = Batch(**next(training_batches(people, batch_size=8, seed=0, threads=1)))
    optimizer = make_optimizer(config.optimizer, 10)
    root = jax.random.key(0)
    options = dict(
        spec=spec,
        synthesize=make_synthesizer(config.errors, config.error_weights, spec.skeleton),
        augment=config.augment,
        inputs=config.inputs,
    )
    step = make_train_step(**options, optimizer=optimizer, average_decay=0.9)

    def poses(key, batch):
        return jax.vmap(lambda k, record: make_training_pose(k, record, **options))(
            sample_keys(key, batch.epoch, batch.sample), batch
        )

    mesh = data_mesh()
    assert mesh.size == 8
    state = jax.device_get(initial_state(config, spec, optimizer, mesh))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    everywhere, parts = replicated(mesh), split(mesh)
    outcomes = []
    for whole_sharding, part_sharding in ((one, one), (everywhere, parts)):
        batch = jax.device_put(local, part_sharding)
        drawn = jax.jit(poses, in_shardings=(whole_sharding, part_sharding))(root, batch)
        run = jax.jit(step, in_shardings=(whole_sharding, part_sharding, whole_sharding), out_shardings=whole_sharding)
        outcomes.append((drawn, run(jax.device_put(state, whole_sharding), batch, root)))
    (drawn_1, (state_1, metrics_1)), (drawn_8, (state_8, metrics_8)) = outcomes
    assert len(drawn_8.crop.sharding.device_set) == 8
    assert_equal(jax.device_get(drawn_1), jax.device_get(drawn_8))
    for key in metrics_1:
        np.testing.assert_allclose(metrics_1[key], metrics_8[key], rtol=1e-5, err_msg=key)
    for a, b in zip(jax.tree.leaves(state_1.batch_stats), jax.tree.leaves(state_8.batch_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # The gradient of the head's bias is only rounding: the softmax over a map does not depend on it.
    params = [jax.device_get(s.params) for s in (state_1, state_8)]
    weights = [jax.tree.leaves(p["backbone"]) + [p["head"]["kernel"]] for p in params]
    sizes = [[float(np.linalg.norm(leaf)) for leaf in leaves] for leaves in weights]
    np.testing.assert_allclose(*sizes, rtol=1e-5)
    for a, b in zip(*weights, strict=True):
        assert float(np.linalg.norm(a - b)) <= 1e-5 * max(float(np.linalg.norm(a)), 1e-2)


def test_unlabelled_joints_reach_neither_input_nor_target(config):
    """A sample does not depend on the coordinates of unlabelled joints."""
    people = People(config.data.train)
    spec = spec_of(config, people)
    batch = Batch(**next(training_batches(people, batch_size=8, seed=0, threads=1)))
    assert not batch.labelled.all()
    rubbish = batch._replace(patch_xy=np.where(batch.labelled[..., None], batch.patch_xy, np.float32(1e6)))
    options = dict(
        spec=spec,
        synthesize=make_synthesizer(config.errors, config.error_weights, spec.skeleton),
        augment=config.augment,
        inputs=InputConfig(),
    )
    make = jax.jit(
        lambda b: jax.vmap(lambda k, r: make_training_pose(k, r, **options))(
            sample_keys(jax.random.key(0), b.epoch, b.sample), b
        )
    )
    first, second = make(batch), make(rubbish)
    assert_equal(jax.device_get(first.input), jax.device_get(second.input))
    np.testing.assert_array_equal(first.crop, second.crop)
    np.testing.assert_array_equal(first.valid, second.valid)


def test_pseudo_joints_are_input_and_no_target(config):
    """They get errors of their own and take part in the crop, but do not count in the loss, nor in the choice of rates."""
    people = People(config.data.train)
    spec = spec_of(config, people)
    batch = Batch(**next(training_batches(people, batch_size=8, seed=0, threads=1)))
    pseudo = batch._replace(
        pseudo_xy=batch.patch_xy.mean(axis=1, keepdims=True) + 0 * batch.patch_xy, pseudo=~batch.labelled
    )
    options = dict(
        spec=spec,
        synthesize=make_synthesizer(("posefix",), (), spec.skeleton),
        augment=config.augment,
        inputs=InputConfig(),
    )
    make = jax.jit(
        lambda b: jax.vmap(lambda k, r: make_training_pose(k, r, **options))(
            sample_keys(jax.random.key(0), b.epoch, b.sample), b
        )
    )
    plain, found = jax.device_get(make(batch)), jax.device_get(make(pseudo))
    trained = np.asarray(spec.trained_joints)
    assert (found.input.present.sum(axis=1) == trained.sum()).all()
    assert (found.valid.sum(axis=1) <= (batch.labelled & trained).sum(axis=1)).all()
    assert plain.input.present.sum() < found.input.present.sum() and np.isfinite(found.input.xy).all()


def test_device_code_promotes_no_dtype(config):
    """The whole training and evaluation step, but for the update rule: optax promotes dtypes."""
    people = People(config.data.train)
    spec = spec_of(config, people)
    batch = Batch(**next(training_batches(people, batch_size=8, seed=0, threads=1)))
    synthesize = make_synthesizer((*ERROR_MODELS, *VARIANTS), (), spec.skeleton)
    augment = AugmentConfig(shift=0.05, colour=0.2, erase=0.3, half_body=0.3, full_epochs=2)
    variables = abstract_variables(spec)
    state = TrainState(
        jnp.int32(0), variables["params"], variables["batch_stats"], optax.EmptyState(), None, jnp.int32(0)
    )
    train_step = make_train_step(
        spec=spec,
        synthesize=synthesize,
        augment=augment,
        inputs=InputConfig(withhold_pose=0.1, withhold_joint=0.1, self_share=0.5),
        optimizer=optax.identity(),
    )
    with jax.numpy_dtype_promotion("strict"):
        after, _ = jax.eval_shape(train_step, state, batch, jax.random.key(0))
        refined = jax.eval_shape(make_eval_step(spec=spec, synthesize=synthesize), variables, batch, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, state.params)
    assert refined.refined_xy.shape == (8, 17, 2)


def test_learning_rates():
    reference = learning_rate(OptimizerConfig(recipe="reference", learning_rate=5e-4), 140)
    np.testing.assert_allclose([reference(i) for i in (0, 89, 91, 119, 121)], [5e-4, 5e-4, 5e-5, 5e-5, 5e-6], rtol=1e-5)
    modern = learning_rate(OptimizerConfig(learning_rate=1e-3, warmup_steps=10), 1000)
    assert float(modern(0)) == 0 and float(modern(1000)) < 1e-8
    np.testing.assert_allclose(modern(10), 1e-3, rtol=1e-5)


def test_accumulated_steps_are_one_update_of_their_mean():
    config = OptimizerConfig(accumulate=2, warmup_steps=0)
    params = {"kernel": jnp.array([1.0, -2.0])}
    gradients = [{"kernel": jnp.array([0.3, 0.1])}, {"kernel": jnp.array([-0.1, 0.3])}]
    optimizer = make_optimizer(config, 20)
    state = optimizer.init(params)
    first, state = optimizer.update(gradients[0], state, params)
    second, _ = optimizer.update(gradients[1], state, params)
    assert (first["kernel"] == 0).all()
    alone = make_optimizer(dataclasses.replace(config, accumulate=1), 10)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    expected, _ = alone.update(mean, alone.init(params), params)
    np.testing.assert_allclose(second["kernel"], expected["kernel"], rtol=1e-5)


def test_starts_from_a_run_on_all_devices(config, whole):
    config = dataclasses.replace(config, init=config.out)
    state = initial_state(
        config, spec_of(config, People(config.data.train)), make_optimizer(config.optimizer, 6), data_mesh()
    )
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {8}
    assert_equal(jax.device_get(state.params), whole.average["params"])


@pytest.mark.parametrize("backbone", ["resnet18", "movenet"])
def test_starts_from_a_refiner_of_another_skeleton(config, tiny_spec, tmp_path, backbone):
    """Joints of the same name keep their weights, at any index; the others start fresh."""
    tiny_spec = dataclasses.replace(tiny_spec, model=dataclasses.replace(tiny_spec.model, backbone=backbone))
    few = dataclasses.replace(
        tiny_spec.skeleton, name="few", joints=("left_hip", "nose", "tail"), flip_pairs=(), limbs=(),
        sigmas=(0.1, 0.1, 0.1), groups=("hip", "nose", "other"),
    )  # fmt: skip
    other = dataclasses.replace(tiny_spec, skeleton=few, trained_joints=(True,) * 3)
    filled = jax.tree.map(lambda s: np.full(s.shape, 9.0, np.float32), abstract_variables(other))
    filled["params"]["head"]["bias"] = np.array([1.0, 2.0, 3.0], np.float32)
    save_refiner(tmp_path / "other", filled, other)
    config = dataclasses.replace(config, init=str(tmp_path / "other"))
    state = initial_state(config, tiny_spec, make_optimizer(config.optimizer, 6), data_mesh())
    bias = np.asarray(state.params["head"]["bias"])
    joints = tiny_spec.skeleton.joints
    assert bias[joints.index("left_hip")] == 1 and bias[joints.index("nose")] == 2
    assert (bias[[i for i, joint in enumerate(joints) if joint not in few.joints]] == 0).all()
    entries = {"stem": 3} if backbone == "resnet18" else {"pose_in": 0, "pose_mix": 0}
    for name, before in entries.items():
        kernel = np.asarray(state.params["backbone"][name]["kernel"])
        assert (kernel[:, :, :before] == 9).all() and (kernel[:, :, before + joints.index("nose")] == 9).all()
        assert not (kernel[:, :, before + joints.index("left_eye")] == 9).any()


def test_a_full_disk_stops_a_run_that_goes_on_after_room_is_made(config, whole, tmp_path):
    """Before anything of the checkpoint is written; a file system in memory is the disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        run = dataclasses.replace(config, out=str(disk / "run"))
        with pytest.raises(PosefixError, match=r"step 2 needs up to \d MiB, \d MiB are free; make room"):
            train(run)
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        state, complete = train(run)
        assert complete
        assert_equal(jax.device_get(state), whole)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
