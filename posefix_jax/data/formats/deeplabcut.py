"""DeepLabCut's tables: as CSV, three or four header lines, then a record per frame; as HDF5, what pandas stores of them.

https://deeplabcut.github.io/DeepLabCut/docs/standardDeepLabCut_UserGuide.html: rows `scorer`, `individuals` (of several
animals), `bodyparts`, `coords`; columns x, y, likelihood of every body part, or x and y alone in labelled data.
"""

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from posefix_jax.data.formats.base import ImageId, PoseFile
from posefix_jax.data.formats.cells import cells_of, plain
from posefix_jax.data.formats.hdf5 import WIDEST, FrameLayout, Hdf5, Stored, dataset, labels
from posefix_jax.data.formats.table import Cells, Layout, Table, image_named
from posefix_jax.types import PosefixError, warn_once

_AXES = ("x", "y", "likelihood")


class DeepLabCut(Table):
    """The photograph is the frame's number, or its path in the first columns; a missing body part is empty."""

    name = "deeplabcut"

    def header_ends(self, header: Sequence[str]) -> bool:
        return header[-1].startswith(("coords,", '"coords",')) or len(header) == 4

    def photograph_of(self, value: Any, file: PoseFile) -> ImageId | None:
        layout, (record,) = value
        return image_named(record, layout)

    def layout(self, header: Sequence[str], path: str) -> Layout:
        try:
            rows = [[plain(cell) for cell in cells_of(record, ",")] for record in header]
        except ValueError as error:
            raise _unfit(path, self.name, f"a broken line ({error})") from error
        kinds = [row[0] for row in rows]
        if kinds not in (["scorer", "bodyparts", "coords"], ["scorer", "individuals", "bodyparts", "coords"]):
            raise _unfit(path, self.name, f"lines {', '.join(kinds):.80}")
        if len({len(row) for row in rows}) > 1:
            raise _unfit(path, self.name, f"lines of {', '.join(str(len(row)) for row in rows)} cells")
        parts, axes = rows[-2], rows[-1]
        # In labelled data, the path of the photograph may be in three columns.
        first = next((place for place in range(1, len(axes)) if axes[place]), len(axes))
        individuals = rows[1] if len(rows) == 4 else [""] * len(axes)
        columns = {place: (individuals[place], parts[place], axes[place]) for place in range(first, len(axes))}
        joints, people = people_in(columns, path, self.name)
        return Layout(
            ",",
            tuple("/".join(row[place] for row in rows[1:] if row[place]) for place in range(len(axes))),
            joints,
            tuple(
                (name or None, tuple(Cells(p["x"], p["y"], p.get("likelihood")) for p in of_joints))
                for name, of_joints in people.items()
            ),
            tuple(range(first)),
        )


class DeepLabCutHdf5(Hdf5):
    """The table that pandas stores: of videos as a table, of labelled photographs as fixed arrays.

    https://deeplabcut.github.io/DeepLabCut/docs/standardDeepLabCut_UserGuide.html; the columns are those of the CSV.
    """

    name = "deeplabcut-h5"

    def layout(self, archive: Any, path: str) -> FrameLayout:
        tables = tables_in(archive)
        if len(tables) != 1:
            raise self._unfit(path, f"{len(tables)} tables ({', '.join(tables):.80})")
        group = archive[tables[0]]
        if group.attrs["pandas_type"] == b"frame_table":
            stored, frames, columns, images = self._of_table(group, path)
        else:
            stored, frames, columns, images = self._of_arrays(group, path)
        if {len(column) for column in columns} - {3, 4} or len(set(map(len, columns))) > 1:
            raise self._unfit(path, f"columns such as {columns[0] if columns else ''!r:.60}")
        named = {i: (column[1] if len(column) == 4 else "", *column[-2:]) for i, column in enumerate(columns)}
        joints, people = people_in(named, path, self.name)
        places = [[[joint["x"], joint["y"], joint.get("likelihood", -1)] for joint in one] for one in people.values()]
        return FrameLayout(
            frames, images, (stored,), joints, tuple(name or None for name in people), np.array(places, np.int64)
        )

    def _of_table(self, group: Any, path: str) -> tuple[Stored, int, list, Callable[[slice], list]]:
        table = dataset(group, "table")
        fields = set(table.dtype.names or ())
        if fields != {"index", "values_block_0"} or table.ndim != 1:
            raise self._unfit(path, f"a table of {', '.join(sorted(fields)):.80}")
        kind = table.dtype["values_block_0"]
        stored = self._floats(table, kind.base, kind.shape, path, field="values_block_0")
        columns = _plain(table.attrs["values_block_0_kind"])
        if len(columns) != stored.size or not all(
            isinstance(column, tuple) and all(isinstance(name, str) for name in column) for column in columns
        ):
            raise self._unfit(path, f"{len(columns)} names for {stored.size} columns")
        return stored, len(table), columns, lambda frames: labels(table["index", frames])

    def _of_arrays(self, group: Any, path: str) -> tuple[Stored, int, list, Callable[[slice], list]]:
        if group.attrs["nblocks"] != 1:
            raise self._unfit(path, f"{group.attrs['nblocks']} blocks of columns of different types")
        values = dataset(group, "block0_values")
        columns, index = _levels(group, "block0_items"), _levels(group, "axis1")
        if values.shape != (len(index[0]), len(columns[0])):
            raise self._unfit(path, f"{list(values.shape)} values for {len(index[0])} rows, {len(columns[0])} columns")
        stored = self._floats(values, values.dtype, values.shape[1:], path)

        def images(frames: slice) -> list[ImageId]:
            levels = [labels(level[frames]) for level in index]
            return levels[0] if len(levels) == 1 else ["/".join(map(str, parts)) for parts in zip(*levels, strict=True)]

        names = [labels(level) for level in columns]
        return stored, len(values), [tuple(map(str, column)) for column in zip(*names, strict=True)], images

    def _floats(self, stored: Any, kind: Any, shape: tuple[int, ...], path: str, field: str = "") -> Stored:
        if kind.kind != "f" or len(shape) != 1 or not 0 < shape[0] <= WIDEST:
            raise self._unfit(path, f"values of {kind} {list(shape)}")
        return Stored(stored.name, field, (0, 1), shape)

    def _unfit(self, path: str, found: str) -> PosefixError:
        return PosefixError(
            f"{path}: has {found}; expected one table of floats with columns scorer, perhaps individuals, bodyparts, coords, "
            f"or DeepLabCut's CSV of it (read as {self.name})"
        )


def people_in(
    columns: Mapping[int, tuple[str, str, str]], path: str, read_as: str
) -> tuple[tuple[str, ...], dict[str, list[dict[str, int]]]]:
    """What columns hold, given the individual ("" of the only one), the body part and the coordinate of each by its place.

    Returns:
      The body parts; by individual, for each of them, the places of `x`, `y` and perhaps `likelihood`. Individuals with
      other body parts than most are left out with a warning.

    Raises:
      PosefixError: an axis that is none or is there twice, a body part without x or y, or no body part at all.
    """
    people: dict[str, dict[str, dict[str, int]]] = {}
    for place, (individual, part, axis) in columns.items():
        of_part = people.setdefault(individual, {}).setdefault(part, {})
        if axis not in _AXES or axis in of_part:
            raise _unfit(path, read_as, f"{axis!r:.20} of {part!r:.40}, twice or not one of {', '.join(_AXES)}")
        of_part[axis] = place
    for of_person in people.values():
        for part, places in of_person.items():
            if not {"x", "y"} <= places.keys():
                raise _unfit(path, read_as, f"no x or no y of {part!r:.40}")
    if not people:
        raise _unfit(path, read_as, "no body parts")
    joints = max((tuple(of_person) for of_person in people.values()), key=len)
    others = [name for name, of_person in people.items() if set(of_person) != set(joints)]
    if others:
        warn_once(f"{path}: {', '.join(others[:4])} have other body parts than the rest; they pass through unchanged")
    return joints, {
        name: [of_person[joint] for joint in joints] for name, of_person in people.items() if name not in others
    }


def _unfit(path: str, read_as: str, what: str) -> PosefixError:
    return PosefixError(
        f"{path}: the header has {what}; expected scorer, perhaps individuals, bodyparts, coords, with x and y of every body "
        f"part (read as {read_as})"
    )


def tables_in(archive: Any) -> list[str]:
    """The names of the tables that pandas stored in a file."""
    import h5py

    own = [name for name in archive if isinstance(archive.get(name, getlink=True), h5py.HardLink)]
    kinds = {name: archive[name].attrs.get("pandas_type") for name in own}
    return [name for name, kind in kinds.items() if isinstance(kind, bytes) and kind in (b"frame", b"frame_table")]


def _levels(group: Any, name: str) -> list[np.ndarray]:
    """The labels of an axis, an array for each level."""
    if group.attrs[f"{name}_variety"] != b"multi":
        return [dataset(group, name)[()]]
    count = int(group.attrs[f"{name}_nlevels"])
    if not 0 < count < 10:
        raise ValueError(f"{name} has {count} levels")
    codes = [dataset(group, f"{name}_label{i}")[()] for i in range(count)]
    if any((code < 0).any() for code in codes):
        raise ValueError(f"{name} has an empty label")
    return [dataset(group, f"{name}_level{i}")[()][code] for i, code in enumerate(codes)]


class _Plain(pickle.Unpickler):
    """Reads lists, tuples, text and numbers; anything that names a class or function is refused, so nothing can run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"column names are stored as {module}.{name}; expected text")


def _plain(data: bytes) -> list:
    """The columns' names, which pandas pickles."""
    value = _Plain(io.BytesIO(bytes(data)), encoding="utf-8").load()
    if not isinstance(value, list) or not value:
        raise ValueError("no list of column names")
    return value
