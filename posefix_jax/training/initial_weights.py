"""The state that a run starts from: fresh weights, an imported backbone, or another refiner."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.models.movenet import POSE_LAYERS
from posefix_jax.core.skeleton import joints_in
from posefix_jax.core.train_step import TrainState
from posefix_jax.runtime.checkpoints import load_refiner
from posefix_jax.runtime.devices import replicated
from posefix_jax.training.config import Config
from posefix_jax.types import PosefixError
from posefix_jax.weights import with_backbone


def initial_state(config: Config, spec: RefinerSpec, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state at step 0, a copy on every device: weights drawn from the seed, or those of `config.init`.

    Raises:
      PosefixError: the weights at `config.init` do not fit the network.
    """
    h, w = spec.model.crop_hw
    joints = spec.skeleton.num_joints

    def make(key):
        variables = spec.network().init(
            key, jnp.zeros((1, h, w, 3)), jnp.zeros((1, joints, 2)), jnp.zeros((1, joints), bool)
        )
        # A copy, because donated buffers must not be shared.
        average = jax.tree.map(jnp.copy, variables) if config.optimizer.averages else None
        return TrainState(
            jnp.zeros((), jnp.int32),
            variables["params"],
            variables["batch_stats"],
            optimizer.init(variables["params"]),
            average,
            jnp.zeros((), jnp.int32),
        )

    # "rbg" compiles in a third of the time. These draws need not be equal on every backend.
    state = jax.jit(make, out_shardings=replicated(mesh))(jax.random.key(config.seed, impl="rbg"))
    if not config.init:
        return state
    wanted = {"params": state.params, "batch_stats": state.batch_stats}
    variables = _variables_at_init(config, spec, wanted)
    # `jit` gives every leaf a buffer of its own.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=replicated(mesh))
    average = copy(variables) if state.average is not None else None
    variables = copy(variables)
    return state._replace(params=variables["params"], batch_stats=variables["batch_stats"], average=average)


def _variables_at_init(config: Config, spec: RefinerSpec, wanted: dict) -> dict:
    """The weights at `config.init`: a refiner's, or an imported backbone's with the other layers as in `wanted`."""
    path = Path(config.init)
    if path.suffix == ".npz":
        if spec.model.end_to_end:
            raise PosefixError(
                f"{config.init}: weights of a backbone; with model.end_to_end, init must be a refiner or empty"
            )
        return with_backbone(jax.device_get(wanted), path, spec.model.backbone)
    variables, of = load_refiner(path)
    variables = jax.device_get(variables)  # arrays committed to one device cannot be placed on all of them
    if spec.model.end_to_end and not of.model.end_to_end:  # both stages start from the same weights
        variables = {name: {"estimator": tree, "refiner": tree} for name, tree in variables.items()}
    elif of.skeleton.joints != spec.skeleton.joints:
        variables = _rejoin(variables, of.skeleton.joints, jax.device_get(wanted), spec.skeleton.joints)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (wanted, variables)]
    if shapes[0] != shapes[1]:
        raise PosefixError(
            f"{config.init}: weights of a {of.model.backbone} of width {of.model.width} do not fit this config's "
            f"{spec.model.backbone} of width {spec.model.width}, head_channels {spec.model.head_channels}"
        )
    return variables


def _rejoin(variables: dict, joints: tuple[str, ...], fresh: dict, wanted: tuple[str, ...]) -> dict:
    """Weights for another skeleton: joints of the same name keep their weights, the others start fresh."""
    places = joints_in(wanted, joints)
    ours, theirs = np.flatnonzero(places >= 0), places[places >= 0]

    def exchange(new: np.ndarray, old: np.ndarray, axis: int, before: int) -> np.ndarray:
        new, old = np.moveaxis(np.array(new), axis, -1), np.moveaxis(np.asarray(old), axis, -1)
        if new.shape[:-1] == old.shape[:-1]:  # otherwise the caller reports the difference
            new[..., :before] = old[..., :before]
            new[..., before + ours] = old[..., before + theirs]
        return np.moveaxis(new, -1, axis)

    params, start = dict(variables["params"]), fresh["params"]
    # The layers that read the pose, and the number of image channels before it. movenet's stem does not read it.
    entries = dict.fromkeys(POSE_LAYERS, 0) if POSE_LAYERS[0] in params["backbone"] else {"stem": 3}
    params["backbone"] = params["backbone"] | {
        name: {"kernel": exchange(start["backbone"][name]["kernel"], params["backbone"][name]["kernel"], 2, before)}
        for name, before in entries.items()
    }
    params["head"] = {name: exchange(start["head"][name], params["head"][name], -1, 0) for name in ("kernel", "bias")}
    return variables | {"params": params}
