"""Reads TensorFlow's checkpoint format (a "tensor bundle") without TensorFlow.

`PREFIX.index` is a LevelDB table of names and entries, `PREFIX.data-NNNNN-of-MMMMM` holds the raw arrays; see
tensorflow/core/util/tensor_bundle and protobuf/tensor_bundle.proto. It is written out here because
otherwise only TensorFlow reads the format, which is much to install for one command.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from posefix_jax.types import PosefixError

_MAGIC = 0xDB4775248B80FB57
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 10: "?", 19: "<f2"}
"""DT_FLOAT, DT_DOUBLE, DT_INT32, DT_INT64, DT_BOOL, DT_HALF of types.proto"""


def read_bundle(prefix: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Reads the arrays of a checkpoint. Only the bytes of wanted arrays are read; checksums are not verified.

    Args:
      prefix: the checkpoint's prefix, such as `snapshot_140.ckpt`.
      wanted: whether to read the array of this name; by default all are read.

    Returns:
      Arrays by name.

    Raises:
      PosefixError: a file is missing, truncated, compressed, or not of this format.
    """
    index = Path(f"{prefix}.index")
    if not index.is_file():
        raise PosefixError(
            f"{index}: no such file; expected a TensorFlow checkpoint's prefix, such as snapshot_140.ckpt"
        )
    try:
        entries = dict(_table(index.read_bytes(), index))
        header = _message(entries.pop(b""))
        shards = header.get(1, [1])[0]
        arrays = {}
        for key, value in entries.items():
            name = key.decode()
            if wanted(name):
                arrays[name] = _array(prefix, name, _message(value), shards)
        return arrays
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise PosefixError(f"{index}: not a TensorFlow checkpoint index, or truncated ({error!r})") from error


def _array(prefix: str | Path, name: str, entry: dict, shards: int) -> np.ndarray:
    dtype = _DTYPES.get(entry.get(1, [0])[0])
    if dtype is None or 7 in entry:
        raise PosefixError(f"{prefix}: {name} has a type, or is split in a way, that is not supported")
    dims = [_message(dim).get(1, [0])[0] for dim in _message(entry.get(2, [b""])[0]).get(2, [])]
    shard, offset, size = (entry.get(field, [0])[0] for field in (3, 4, 5))
    path = Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")
    if not path.is_file():
        raise PosefixError(f"{path}: no such file; the checkpoint's index names it")
    with path.open("rb") as file:
        file.seek(min(offset, path.stat().st_size))
        data = file.read(min(size, path.stat().st_size))
    if len(data) != size or size != int(np.prod(dims)) * np.dtype(dtype).itemsize:
        raise PosefixError(f"{path}: {name} of shape {dims} needs {size} bytes from {offset}, found {len(data)}")
    return np.frombuffer(data, dtype).reshape(dims)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer, and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _table(data: bytes, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a LevelDB table."""
    if len(data) < 48 or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise PosefixError(f"{path}: not a TensorFlow checkpoint index")
    at = len(data) - 48
    _, at = _varint(data, at)  # the meta index: offset and size
    _, at = _varint(data, at)
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    for _, handle in _block(data, offset, size, path):
        start, after = _varint(handle, 0)
        length, _ = _varint(handle, after)
        yield from _block(data, start, length, path)


def _block(data: bytes, offset: int, size: int, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The entries of one block. Each key is stored without the prefix that it shares with the key before it."""
    if data[offset + size]:
        raise PosefixError(f"{path}: compressed, which is not supported")
    restarts = struct.unpack("<I", data[offset + size - 4 : offset + size])[0]
    at, end, key = offset, offset + size - 4 * (restarts + 1), b""
    while at < end:
        shared, at = _varint(data, at)
        fresh, at = _varint(data, at)
        length, at = _varint(data, at)
        key = key[:shared] + data[at : at + fresh]
        yield key, data[at + fresh : at + fresh + length]
        at += fresh + length


def _message(data: bytes) -> dict[int, list]:
    """The fields of a protocol buffer by number: integers, or bytes."""
    fields: dict[int, list] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + length], at + length
        fields.setdefault(tag >> 3, []).append(value)
    return fields
