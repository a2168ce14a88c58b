"""The released code as it was recorded: its variables, rebuilt, and its sampler's inputs, put to ours."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from posefix_jax.skeleton import Skeleton
from posefix_jax.synthesis import PAPER, SyntheticPose, synthesize_pose

FIXTURES = Path(__file__).parent / "fixtures"


def kernel(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The kernel that variable `name` was filled with before the recording: noise by a seed made of its name."""
    seed = sum(i * ord(letter) for i, letter in enumerate(name, start=1)) % 2**31
    fan = 4 * shape[3] if name.startswith("up") else int(np.prod(shape[:3]))
    scale = 2.0 if name == "out/weights" else 0.5 if shape[2] == 20 and name.endswith("/conv1/weights") else 1.0
    return (np.random.RandomState(seed).randn(*shape) * np.sqrt(2.0 / fan) * scale).astype(np.float32)


def released_variables() -> dict[str, np.ndarray]:
    """All variables of the recorded ResNet-50, by the released code's names."""
    recorded = np.load(FIXTURES / "network_resnet50.npz")
    arrays = {
        name.removeprefix("variables/"): recorded[name] for name in recorded.files if name.startswith("variables/")
    }
    for name, shape in json.loads((FIXTURES / "network_resnet50_kernels.json").read_text()).items():
        arrays[name] = kernel(name, tuple(shape))
    return arrays


@functools.cache
def sampler(skeleton: Skeleton):
    """(keys, case) -> `SyntheticPose`s of one person, one a key; compiled once a number of neighbours."""

    @jax.jit
    def draw(keys, case) -> SyntheticPose:
        return jax.vmap(lambda key: synthesize_pose(key, **case, skeleton=skeleton, errors=PAPER))(keys)

    return draw


def sampler_case(recorded, name: str) -> dict:
    """The arguments of `synthesize_pose` of one recorded case."""
    joints, near = recorded[f"{name}/in_joints"], recorded[f"{name}/in_near"]
    return {
        "crop_xy": jnp.asarray(joints[:, :2], jnp.float32),
        "labelled": jnp.asarray(joints[:, 2] > 0),
        "others_xy": jnp.asarray(near[..., :2], jnp.float32),
        "others_labelled": jnp.asarray(near[..., 2] > 0),
        "area": jnp.float32(recorded[f"{name}/in_area"]),
        "overlap": jnp.int32(recorded[f"{name}/in_num_overlap"]),
    }
