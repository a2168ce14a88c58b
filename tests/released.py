"""Recordings of the released code: its variables, rebuilt, and the inputs of its sampler in our form."""

import functools
import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.synthesis import PAPER, SyntheticPose, synthesize_pose

FIXTURES = Path(__file__).parent / "fixtures"


def kernel(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The kernel that variable `name` had in the recording: noise with a seed derived from the name."""
    seed = sum(i * ord(letter) for i, letter in enumerate(name, start=1)) % 2**31
    fan = 4 * shape[3] if name.startswith("up") else int(np.prod(shape[:3]))
    scale = 2.0 if name == "out/weights" else 0.5 if shape[2] == 20 and name.endswith("/conv1/weights") else 1.0
    return (np.random.RandomState(seed).randn(*shape) * np.sqrt(2.0 / fan) * scale).astype(np.float32)


def released_variables() -> dict[str, np.ndarray]:
    """All variables of the recorded ResNet-50, by their names in the released code."""
    recorded = np.load(FIXTURES / "network_resnet50.npz")
    arrays = {
        name.removeprefix("variables/"): recorded[name] for name in recorded.files if name.startswith("variables/")
    }
    for name, shape in json.loads((FIXTURES / "network_resnet50_kernels.json").read_text()).items():
        arrays[name] = kernel(name, tuple(shape))
    return arrays


@functools.cache
def sampler(skeleton: Skeleton):
    """(keys, case) -> one `SyntheticPose` per key; compiled once per number of neighbors."""

    @jax.jit
    def draw(keys, case) -> SyntheticPose:
        return jax.vmap(lambda key: synthesize_pose(key, **case, skeleton=skeleton, errors=PAPER))(keys)

    return draw


def sampler_case(recorded, name: str) -> dict:
    """The arguments of `synthesize_pose` in one recorded case."""
    joints, near = recorded[f"{name}/in_joints"], recorded[f"{name}/in_near"]
    return {
        "xy": jnp.asarray(joints[:, :2], jnp.float32),
        "labelled": jnp.asarray(joints[:, 2] > 0),
        "others_xy": jnp.asarray(near[..., :2], jnp.float32),
        "others_labelled": jnp.asarray(near[..., 2] > 0),
        "area": jnp.float32(recorded[f"{name}/in_area"]),
        "overlap": jnp.int32(recorded[f"{name}/in_num_overlap"]),
    }


def write_bundle(prefix: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a TensorFlow checkpoint of float32 arrays: one shard, one block of entries without shared prefixes."""

    def varint(value: int) -> bytes:
        low = bytes([value & 0x7F])
        return low if value < 0x80 else bytes([low[0] | 0x80]) + varint(value >> 7)

    def field(number: int, value: int | bytes) -> bytes:
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        return varint(number << 3 | 2) + varint(len(value)) + value

    def block(rows: list[tuple[bytes, bytes]]) -> bytes:
        body = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in rows)
        return body + struct.pack("<II", 0, 1)

    rows, offset = [(b"", field(1, 1))], 0
    with open(f"{prefix}.data-00000-of-00001", "wb") as file:
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name], np.float32)
            shape = b"".join(field(2, field(1, size)) for size in array.shape)
            rows.append((name.encode(), field(1, 1) + field(2, shape) + field(4, offset) + field(5, array.nbytes)))
            offset += file.write(array.tobytes())
    entries = block(rows)
    index = block([(rows[-1][0], varint(0) + varint(len(entries)))])
    start = len(entries) + 5
    footer = varint(0) + varint(0) + varint(start) + varint(len(index))
    magic = struct.pack("<Q", 0xDB4775248B80FB57)
    Path(f"{prefix}.index").write_bytes(entries + bytes(5) + index + bytes(5) + footer.ljust(40, b"\0") + magic)
