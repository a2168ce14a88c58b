"""Arrays as the parts of a job keep them until the output is written: a line of JSON that describes them, then their bytes."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def packed(arrays: Mapping[str, np.ndarray], **more: Any) -> bytes:
    """Some arrays, and what else `unpacked` shall give."""
    data = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    described = {name: [array.dtype.str, list(array.shape)] for name, array in data.items()}
    line = json.dumps({**more, "arrays": described}).encode() + b"\n"
    return line + b"".join(array.tobytes() for array in data.values())


def unpacked(data: bytes) -> Iterator[dict[str, Any]]:
    """What was packed, one after the other; `arrays` by name are read-only views."""
    at = 0
    while at < len(data):
        end = data.index(b"\n", at)
        piece, at = json.loads(data[at:end]), end + 1
        arrays = {}
        for name, (kind, shape) in piece["arrays"].items():
            count = int(np.prod(shape, dtype=int))
            arrays[name] = np.frombuffer(data, np.dtype(kind), count, at).reshape(shape)
            at += arrays[name].nbytes
        yield {**piece, "arrays": arrays}


def lasting(path: str) -> str:
    """A path or URL that still holds in another working folder."""
    return path if "://" in path else os.path.abspath(path)
