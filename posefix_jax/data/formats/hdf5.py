"""HDF5: DeepLabCut's tables, which pandas stores, and SLEAP's analysis files. Needs h5py.

Both hold the same persons in every frame, so that a frame is read as one row of numbers. The output is a copy of the input
with other numbers in it.
"""

import pickle
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.formats.base import Edit, Element, Format, ImageId, Pose, PoseFile
from posefix_jax.data.formats.pieces import lasting, packed, unpacked
from posefix_jax.data.formats.table import named_skeleton, order_of
from posefix_jax.data.image_sources import open_binary
from posefix_jax.types import PosefixError

_NUMBERS = 1 << 18
"""Numbers that are read at a time."""
WIDEST = 1 << 20
"""Most numbers in a frame."""
_PACKED = 4096
"""Most bytes that a stored one stands for; gzip's best is about 1,030."""
_BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    pickle.UnpicklingError,
    RuntimeError,
    TypeError,
    ValueError,
    zlib.error,
)


@dataclass(frozen=True)
class Stored:
    """A dataset, or a field of one, whose numbers are part of every frame's row.

    Attributes:
      path: in the file.
      field: of a dataset of records; "" of a plain one.
      order: its axes, that of the frames first.
      shape: of a frame's numbers, with the axes in that order.
    """

    path: str
    field: str
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=int))

    def read(self, archive: Any, frames: slice) -> np.ndarray:
        """[n, size] the numbers of some frames."""
        stored = archive[self.path]
        values = stored[self.field, frames] if self.field else stored[self._place(frames)]
        return np.asarray(values, np.float64).transpose(self.order).reshape(-1, self.size)

    def write(self, archive: Any, frames: slice, values: np.ndarray) -> None:
        stored = archive[self.path]
        values = values.reshape(-1, *self.shape).transpose(np.argsort(self.order).tolist())
        if self.field:
            records = stored[frames]
            records[self.field] = values
            stored[frames] = records
        else:
            stored[self._place(frames)] = values

    def _place(self, frames: slice) -> tuple[slice, ...]:
        return tuple(frames if axis == self.order[0] else slice(None) for axis in range(len(self.order)))


@dataclass(frozen=True, eq=False)
class FrameLayout:
    """What a file holds.

    Attributes:
      frames: how many there are.
      images: the photographs of some frames.
      stored: where the numbers of a frame's row are, in the order of the row.
      joints: the joints' names.
      people: the persons' names; None for the only one.
      places: [P, K, 3] where x, y and score of each person's joints are in the row; -1 for a score that there is not.
      scores: [P] where the persons' scores are; None without.
    """

    frames: int
    images: Callable[[slice], list[ImageId]]
    stored: tuple[Stored, ...]
    joints: tuple[str, ...]
    people: tuple[str | None, ...]
    places: np.ndarray
    scores: np.ndarray | None = None

    def read(self, archive: Any, frames: slice) -> np.ndarray:
        """[n, V] the rows of some frames."""
        return np.concatenate([stored.read(archive, frames) for stored in self.stored], axis=1)

    def write(self, archive: Any, frames: slice, values: np.ndarray) -> None:
        ends = np.cumsum([stored.size for stored in self.stored])[:-1]
        for stored, part in zip(self.stored, np.split(values, ends, axis=1), strict=True):
            stored.write(archive, frames, part)


class _Frame(NamedTuple):
    """A frame of a file: its place, its row, and where the joints of the file's skeleton are in it."""

    number: int
    values: np.ndarray
    places: np.ndarray
    scores: np.ndarray | None


class Hdf5(Format):
    """A file in which each frame has the same persons. Subclasses say where."""

    is_binary = True

    def layout(self, archive: Any, path: str) -> FrameLayout:
        """Where the numbers are. Raises PosefixError, or one of `_BROKEN`, if the file is not one of this format."""
        raise NotImplementedError

    # Reading

    def skeleton_in(self, file: PoseFile) -> Skeleton | None:
        with self._opened(file.path) as (_, layout):
            return named_skeleton(layout.joints, self.name)

    def has_score(self, file: PoseFile) -> bool:
        with self._opened(file.path) as (_, layout):
            return layout.scores is not None

    def first_people(self, file: PoseFile, most: int) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for element in self._elements(file, None):
            found += [pose.joints for pose in element.poses[: most - len(found)]]
            if len(found) >= most:
                break
        return found

    def elements(self, file: PoseFile) -> Iterator[Element]:
        return self._elements(file, file.skeleton)

    def _elements(self, file: PoseFile, skeleton: Skeleton | None) -> Iterator[Element]:
        with self._opened(file.path) as (archive, layout):
            places = layout.places if skeleton is None else layout.places[:, order_of(layout.joints, skeleton)]
            if not layout.frames:
                yield Element("", None, first=True)
            some = max(1, _NUMBERS // sum(stored.size for stored in layout.stored))
            for first in range(0, layout.frames, some):
                frames = slice(first, min(first + some, layout.frames))
                for number, image, values in zip(
                    range(first, frames.stop), layout.images(frames), layout.read(archive, frames), strict=True
                ):
                    frame = _Frame(number, values, places, layout.scores)
                    poses = [self.marked(pose) for pose in _people(frame, image, layout)]
                    yield Element("", frame, poses, first=number == 0, image=None if poses else image)

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[Any, FrameLayout]]:
        with open_hdf5(path, self.name) as archive:
            yield archive, self.layout(archive, path)

    # Writing in place

    def write_back(self, file: PoseFile, edits: Sequence[Edit]) -> bytes:
        """What changes in consecutive frames; their rows from the first to the last that change, and the file's path."""
        source = lasting(file.path) if edits[0].element.first else None
        changed = [place for place, edit in enumerate(edits) if edit.joints or edit.scores]
        if not changed:
            return packed({}, source=source)
        run = edits[changed[0] : changed[-1] + 1]
        rows = np.stack([_edited(edit) for edit in run])
        return packed({"rows": rows}, source=source, first=run[0].element.text.number)

    @contextmanager
    def writer(self, file: BinaryIO) -> Iterator[Callable[[bytes], object]]:
        with ExitStack() as stack:
            copy = stack.enter_context(tempfile.TemporaryFile())
            source = ""
            opened: tuple[Any, FrameLayout] | None = None

            def take(data: bytes) -> None:
                nonlocal source, opened
                for piece in unpacked(data):
                    if not source:
                        source = piece["source"]
                        with open_binary(source) as original:
                            shutil.copyfileobj(original, copy)
                    if "rows" in piece["arrays"]:
                        rows, first = piece["arrays"]["rows"], piece["first"]
                        if opened is None:  # only now: opening a file to write it changes its bytes
                            archive = stack.enter_context(_archive(copy, source, self.name, "r+"))
                            opened = archive, self.layout(archive, source)
                        archive, layout = opened
                        layout.write(archive, slice(first, first + len(rows)), rows)

            yield take
            if opened is not None:
                opened[0].close()
            copy.seek(0)
            shutil.copyfileobj(copy, file)


@contextmanager
def open_hdf5(path: str, read_as: str) -> Iterator[Any]:
    """A file, open to be read; its own errors become one line."""
    with open_binary(path) as file, _archive(file, path, read_as, "r") as archive:
        yield archive


@contextmanager
def _archive(file: Any, path: str, read_as: str, mode: str) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise PosefixError(f"{path}: HDF5 needs the package h5py: pip install 'posefix-jax[hdf5]'") from error
    with _one_line(path, read_as), h5py.File(file, mode) as archive:
        yield archive


@contextmanager
def _one_line(path: str, read_as: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        what = " ".join(str(error).split())
        what = f"{what}; write it again without its compression" if "filter" in what else what
        raise PosefixError(f"{path}: damaged, or of another form ({what:.160}) (read as {read_as})") from error


def dataset(group: Any, name: str) -> Any:
    """A dataset of the file itself that is safe to read, never of another one to which it leads. Raises ValueError."""
    import h5py

    path = [part for part in name.split("/") if part]
    inner = group.file if name.startswith("/") else group
    for part in path:
        if not isinstance(inner.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is not there, or is a link")
        inner = inner[part]
    if not isinstance(inner, h5py.Dataset) or inner.is_virtual or inner.external or inner.shape is None:
        raise ValueError(f"{name} is no array within the file")
    if not is_plain(inner.id.get_type()):
        raise ValueError(f"{name} is of an unusual type")
    if inner.nbytes > _PACKED * (inner.id.get_storage_size() + 1024):
        raise ValueError(f"{name} says that it is {inner.nbytes} bytes, of which hardly any are stored")
    if inner.chunks:
        _check_chunks(inner)
    return inner


def _check_chunks(stored: Any) -> None:
    """Raises ValueError unless each chunk unpacks to its whole length: HDF5's library reads and writes past the end."""
    from h5py import h5z

    creation = stored.id.get_create_plist()
    filters = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
    if not set(filters) <= {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}:
        raise ValueError(f"{stored.name} has another filter than gzip")
    length = int(np.prod(stored.chunks)) * stored.dtype.itemsize
    chunks: list[Any] = []
    stored.id.chunk_iter(chunks.append)
    for chunk in chunks:
        if chunk.size > 2 * length + 1024:
            raise ValueError(f"{stored.name} has a chunk of {chunk.size} bytes for {length}")
        data = stored.id.read_direct_chunk(chunk.chunk_offset)[1][: chunk.size]
        for place, name in reversed([*enumerate(filters)]):
            if chunk.filter_mask >> place & 1:
                continue
            if name == h5z.FILTER_FLETCHER32:
                data = data[:-4]
            elif name == h5z.FILTER_DEFLATE:
                data = zlib.decompressobj().decompress(data, length + 5)
        if len(data) != length:
            raise ValueError(f"{stored.name} has a chunk of {len(data)} bytes for {length}")


def is_plain(kind: Any) -> bool:
    """Whether numbers are stored as numpy's are: HDF5's library crashes on some others, which are from damaged files."""
    from h5py import h5t

    if isinstance(kind, h5t.TypeCompoundID):
        return all(is_plain(kind.get_member_type(i)) for i in range(kind.get_nmembers()))
    if isinstance(kind, h5t.TypeArrayID):
        return is_plain(kind.get_super())
    return isinstance(kind, h5t.TypeStringID) or kind.equal(h5t.py_create(kind.dtype))


def labels(values: np.ndarray) -> list[Any]:
    """Integers, or text from bytes. Raises ValueError."""
    if values.dtype.kind not in "iuSO" or values.ndim != 1:
        raise ValueError(f"labels are {values.dtype}; expected integers or text")
    return [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]


def texts(values: Any) -> list[str]:
    if values.ndim != 1 or len(values) > 1000 or values.dtype.kind not in "SO":
        raise ValueError(f"{values.name} is {values.dtype} {list(values.shape)}; expected up to 1000 names")
    return [str(name) for name in labels(values[()])]


def _people(frame: _Frame, image: ImageId, layout: FrameLayout) -> Iterator[Pose]:
    """The persons of a frame that have any joint."""
    for person, name in enumerate(layout.people):
        places = frame.places[person]
        joints = np.where(places >= 0, frame.values[places], 1.0)
        there = np.isfinite(joints[:, :2]).all(axis=1)
        if there.any():
            joints[there & np.isnan(joints[:, 2]), 2] = 1.0
            score = None if frame.scores is None else float(frame.values[frame.scores[person]])
            score = None if score is None or np.isnan(score) else score
            yield Pose(image, joints, (person,), score, track=name)


def _edited(change: Edit) -> np.ndarray:
    """A frame's row with other numbers."""
    frame: _Frame = change.element.text
    row = np.array(frame.values)
    for index, joints, changed in change.changes():
        pose = change.element.poses[index]
        places = frame.places[pose.path[0]]
        row[places[changed, :2]] = joints[changed, :2].round(3)
        scored = changed & (joints[:, 2] != pose.joints[:, 2]) & (places[:, 2] >= 0)
        row[places[scored, 2]] = joints[scored, 2].round(4)
    for index, score in change.scores.items():
        assert frame.scores is not None  # else nobody may ask for it: `has_score`
        row[frame.scores[change.element.poses[index].path[0]]] = round(score, 6)
    return row
