"""SLEAP's analysis files as HDF5; its analysis CSV is a table like any other."""

import json
from typing import Any

import numpy as np

from posefix_jax.data.formats.hdf5 import WIDEST, FrameLayout, Hdf5, Stored, dataset, texts
from posefix_jax.types import PosefixError


class SleapHdf5(Hdf5):
    """SLEAP's analysis file: `tracks`, `node_names`, perhaps `point_scores`, `instance_scores`, `track_names`.

    https://docs.sleap.ai/latest/learnings/export-analysis/; axes are MATLAB's (track, xy, node, frame), or as `dims` of
    each array says (sleap-io). A point of somebody's own labels has no score: it counts as 1.
    """

    name = "sleap-h5"

    def layout(self, archive: Any, path: str) -> FrameLayout:
        joints = texts(dataset(archive, "node_names"))
        axes = {name: _axes(archive, name) for name in ("tracks", "point_scores", "instance_scores") if name in archive}
        sizes: dict[str, int] = {"node": len(joints), "xy": 2}
        stored = []
        for name, dims in axes.items():
            array = dataset(archive, name)
            wanted = {"tracks": "track node xy", "point_scores": "track node", "instance_scores": "track"}[name].split()
            found = dict(zip(dims, array.shape, strict=False))
            if {*dims} != {"frame", *wanted} or len(dims) != array.ndim or array.dtype.kind != "f":
                raise self._unfit(path, f"{name} is {array.dtype} {list(array.shape)} with axes {', '.join(dims)}")
            if any(sizes.setdefault(axis, size) != size for axis, size in found.items()):
                raise self._unfit(path, f"{name} {list(array.shape)} has other sizes than {sizes}")
            order = tuple(dims.index(axis) for axis in ("frame", *wanted))
            stored.append(Stored(name, "", order, tuple(found[axis] for axis in wanted)))
        people, nodes = sizes["track"], sizes["node"]
        if not 0 < sum(one.size for one in stored) <= WIDEST:
            raise self._unfit(path, f"{people} tracks of {nodes} nodes")
        names = texts(dataset(archive, "track_names")) if "track_names" in archive else []
        tracks = tuple(names) if len(names) == people else (None,) * people
        starts = dict(zip(axes, np.cumsum([0, *(one.size for one in stored)]).tolist(), strict=False))
        point = np.arange(people * nodes).reshape(people, nodes)
        score = point + starts["point_scores"] if "point_scores" in starts else np.full_like(point, -1)
        scores = np.arange(people) + starts["instance_scores"] if "instance_scores" in starts else None
        return FrameLayout(
            sizes["frame"],
            lambda frames: list(range(frames.start, frames.stop)),
            tuple(stored),
            tuple(joints),
            tracks,
            np.stack([2 * point, 2 * point + 1, score], axis=-1),
            scores,
        )

    def _unfit(self, path: str, found: str) -> PosefixError:
        return PosefixError(f"{path}: {found}; expected SLEAP's analysis file (read as {self.name})")


def _axes(archive: Any, name: str) -> tuple[str, ...]:
    """What the axes of an array of SLEAP's are."""
    said = dataset(archive, name).attrs.get("dims")
    if said is not None:
        return tuple(map(str, json.loads(said)))
    matlab = archive.attrs.get("transpose", True)
    axes = ("track", "xy", "node", "frame") if matlab else ("frame", "node", "xy", "track")
    left_out = {"tracks": (), "point_scores": ("xy",), "instance_scores": ("xy", "node")}[name]
    return tuple(axis for axis in axes if axis not in left_out)
