"""NumPy's archives of plain arrays: keypoints [N, K, 2 or 3], image_id (or file_name, frame, ...) [N], perhaps scores.

Arrays are read in pieces, so that an archive may be larger than memory. Pickled arrays are never loaded.
"""

import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from posefix_jax.data.formats.base import Edit, Element, Format, NotPoses, Photograph, Pose, PoseFile
from posefix_jax.data.formats.csv import IMAGE
from posefix_jax.data.formats.pieces import lasting, packed, unpacked
from posefix_jax.data.image_sources import open_binary
from posefix_jax.types import PosefixError

ROWS = 512
"""People per element."""
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
)
_JOINT_SCORES = ("keypoint_scores", "scores", "confidence")
_SCORES = ("scores", "score")


class _Array(NamedTuple):
    """An array of an archive: its type, its shape, the bytes of its header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    header: bytes


class _Names(NamedTuple):
    """Which arrays hold what; None for what there is not."""

    image: str
    joint_scores: str | None
    scores: str | None

    @property
    def edited(self) -> list[str]:
        return [name for name in ("keypoints", self.joint_scores, self.scores) if name is not None]


class Npz(Format):
    """Arrays with a row per person."""

    name = "npz"
    missing_at = (0.0,)  # as COCO results
    writable = True
    groups_people = False
    is_binary = True
    head = between = tail = ""

    def first_people(self, file: PoseFile, most: int) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for rows in _rows(file.path):
            found += [self.marked(Pose("", joints)).joints for joints in rows.joints[: most - len(found)]]
            if len(found) >= most:
                break
        return found

    def elements(self, file: PoseFile) -> Iterator[Element]:
        count = file.skeleton.num_joints
        for rows in _rows(file.path):
            if rows.images and rows.joints.shape[1] != count:
                raise PosefixError(
                    f"{file.path}: keypoints are of {rows.joints.shape[1]} joints, expected {count}, those of "
                    f"{file.skeleton.name}"
                )
            poses = [
                self.marked(Pose(image, joints, (), score))
                for image, joints, score in zip(rows.images, rows.joints, rows.scores, strict=True)
            ]
            yield Element("", rows, poses, first=rows.first == 0)

    def has_score(self, file: PoseFile) -> bool:
        with _opened(file.path) as archive:
            return _names_of(_arrays(archive, file.path), file.path).scores is not None

    def write_back(self, file: PoseFile, edits: Sequence[Edit]) -> bytes:
        return b"".join(_edited(file, change) for change in edits)

    def write_new(
        self, photographs: Sequence[Photograph], *, single: bool, integer_ids: bool
    ) -> list[tuple[str, bytes]]:
        rows = [(photograph.image, pose) for photograph in photographs for pose in photograph.people]
        if not rows:
            return []
        joints = np.stack([pose.joints for _, pose in rows]).round(4)
        arrays = {
            "keypoints": joints,
            "scores": np.array([1.0 if pose.score is None else pose.score for _, pose in rows], np.float64),
        }
        images = [image if integer_ids else str(image) for image, _ in rows]
        if integer_ids:
            try:
                arrays["image_id"] = np.array(images, np.int64)
            except OverflowError as error:
                raise PosefixError(f"an image_id does not fit an array ({error}); write another format") from error
        return [("", packed(arrays, images=[] if integer_ids else images, source=None))]

    @contextmanager
    def writer(self, file: BinaryIO) -> Iterator[Callable[[bytes], object]]:
        with ExitStack() as stack:
            assembly = _Assembly(stack)
            yield assembly.take
            assembly.write(file)


class _Rows(NamedTuple):
    """Some people of an archive, and what an edit of them needs."""

    first: int
    images: list
    joints: np.ndarray
    scores: list
    arrays: Mapping[str, np.ndarray]
    names: _Names


def _rows(path: str) -> Iterator[_Rows]:
    """The people of an archive. Raises PosefixError."""
    with _opened(path) as archive, ExitStack() as stack:
        arrays = _arrays(archive, path)
        names = _names_of(arrays, path)
        used = [names.image, *names.edited]
        streams = {}
        for name in used:
            streams[name] = stack.enter_context(archive.open(f"{name}.npy"))
            streams[name].read(len(arrays[name].header))
        total, joints = arrays["keypoints"].shape[:2]
        for first in range(0, total or 1, ROWS):  # one piece of an empty archive too, so that it is written
            some = min(ROWS, total - first)
            read = {name: _next(streams[name], arrays[name], some) for name in used}
            values = np.ones((some, joints, 3))
            values[..., : read["keypoints"].shape[2]] = read["keypoints"]
            if names.joint_scores is not None:
                values[..., 2] = read[names.joint_scores]
            scores = [None] * some if names.scores is None else read[names.scores].astype(np.float64).tolist()
            yield _Rows(first, _images(read[names.image], first, path), values, scores, read, names)


def _next(stream: Any, array: _Array, rows: int) -> np.ndarray:
    """The next rows of an array. Raises ValueError where it is cut short."""
    shape = (rows, *array.shape[1:])
    wanted = int(np.prod(shape)) * array.dtype.itemsize
    data = stream.read(wanted)
    if len(data) != wanted:
        raise ValueError("an array is cut short")
    return np.frombuffer(data, array.dtype).reshape(shape)


def _images(values: np.ndarray, first: int, path: str) -> list:
    images = values.tolist()
    try:
        images = [image.decode() if isinstance(image, bytes) else image for image in images]
    except UnicodeDecodeError as error:
        raise PosefixError(f"{path}: a name of a photograph from row {first} on is not text ({error})") from error
    if "" in images:
        raise PosefixError(f"{path}: row {first + images.index('')} names no photograph")
    return images


@contextmanager
def _opened(path: str) -> Iterator[zipfile.ZipFile]:
    """The archive; its own errors become one line."""
    with open_binary(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except _BROKEN as error:
            raise PosefixError(f"{path}: not an archive of plain arrays ({error}) (read as npz)") from error


def _arrays(archive: zipfile.ZipFile, path: str) -> dict[str, _Array]:
    """The arrays of an archive by name. Raises PosefixError: a name is there twice, or no array."""
    arrays: dict[str, _Array] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in arrays:
            raise PosefixError(f"{path}: the array {name!r:.40} is there twice (read as npz)")
        if not info.filename.endswith(".npy"):
            continue
        with archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            length = stream.tell()
            if fortran and len(shape) > 1:
                raise PosefixError(f"{path}: {name} is in Fortran order; save numpy.ascontiguousarray of it")
        with archive.open(info) as stream:
            arrays[name] = _Array(dtype, shape, stream.read(length))
    return arrays


def _names_of(arrays: Mapping[str, _Array], path: str) -> _Names:
    """Which arrays hold what. Raises PosefixError where one is missing or has another form."""
    listed = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    image = next((name for name in IMAGE if name in arrays), None)
    if "keypoints" not in arrays or image is None:
        error = PosefixError if "keypoints" in arrays or image is not None else NotPoses
        raise error(
            f"{path}: has arrays {listed or 'none':.200}; expected keypoints [N, K, 2 or 3] and image_id (or file_name, "
            "frame) [N]"
        )
    dtype, shape, _ = arrays["keypoints"]
    if len(shape) != 3 or shape[1] < 1 or shape[2] not in (2, 3) or dtype.kind != "f":
        raise PosefixError(f"{path}: keypoints are {dtype} {list(shape)}; expected floats [N, K, 2 or 3]")
    if arrays[image].shape != shape[:1] or arrays[image].dtype.kind not in "iuUS":
        found = f"{arrays[image].dtype} {list(arrays[image].shape)}"
        raise PosefixError(
            f"{path}: {image} is {found}; expected integers or text [{shape[0]}], as there are keypoints"
        )

    def of_shape(names: Sequence[str], wanted: tuple[int, ...]) -> str | None:
        fit = (name for name in names if name in arrays and arrays[name].shape == wanted)
        return next((name for name in fit if arrays[name].dtype.kind == "f"), None)

    return _Names(image, of_shape(_JOINT_SCORES, shape[:2]) if shape[2] == 2 else None, of_shape(_SCORES, shape[:1]))


def _edited(file: PoseFile, change: Edit) -> bytes:
    """An element's arrays with other values, packed; the file's first one names the file and its other arrays."""
    rows: _Rows = change.element.text
    names = rows.names
    arrays = {name: np.array(rows.arrays[name]) for name in names.edited}
    for index, joints, changed in change.changes():
        keypoints = arrays["keypoints"]
        keypoints[index, changed] = joints[changed, : keypoints.shape[2]].round(4)
        if names.joint_scores is not None:
            arrays[names.joint_scores][index, changed] = joints[changed, 2].round(4)
    for index, score in change.scores.items():
        assert names.scores is not None  # else nobody may ask for it: `has_score`
        arrays[names.scores][index] = score
    return packed(arrays, images=[], source=lasting(file.path) if rows.first == 0 else None)


class _Assembly:
    """Collects the pieces of an archive in temporary files, an array in each, and writes it."""

    def __init__(self, stack: ExitStack):
        self._stack = stack
        self._spools: dict[str, Any] = {}
        self._forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._source: str | None = None
        self._longest = 0

    def take(self, data: bytes) -> None:
        for piece in unpacked(data):
            self._source = self._source or piece["source"]
            for name, array in piece["arrays"].items():
                self._spool(name).write(array.data)
                self._forms[name] = array.dtype, array.shape[1:]
            for image in piece["images"]:
                self._longest = max(self._longest, len(image))
                self._spool("image_id").write(json.dumps(image).encode() + b"\n")

    def _spool(self, name: str) -> BinaryIO:
        if name not in self._spools:
            self._spools[name] = self._stack.enter_context(tempfile.TemporaryFile())
        return self._spools[name]

    def write(self, file: BinaryIO) -> None:
        """Writes the archive: the source's with other arrays, or a new one. Raises PosefixError: the source is gone."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            if self._source is None:
                for name in self._spools:
                    self._write_new(archive, name)
                return
            with _opened(self._source) as source:
                for info in source.infolist():
                    name = info.filename.removesuffix(".npy")
                    with archive.open(_like(info), "w", force_zip64=True) as out, source.open(info) as old:
                        if name in self._spools:
                            dtype, shape = self._forms[name]
                            spool = self._spools[name]
                            out.write(old.read(info.file_size - spool.tell()))
                            old = spool
                            old.seek(0)
                        while data := old.read(1 << 20):
                            out.write(data)

    def _write_new(self, archive: zipfile.ZipFile, name: str) -> None:
        spool = self._spools[name]
        with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as out:
            if name not in self._forms:  # names of photographs, as wide as the longest
                dtype, shape = np.dtype(f"<U{max(self._longest, 1)}"), ()
                spool.seek(0)
                count = sum(1 for _ in spool)
            else:
                dtype, shape = self._forms[name]
                count = spool.tell() // (dtype.itemsize * int(np.prod(shape, dtype=int)))
            form = {"descr": dtype.str, "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(out, form)
            spool.seek(0)
            if name not in self._forms:
                for line in spool:
                    out.write(np.array(json.loads(line), dtype).tobytes())
            else:
                while data := spool.read(1 << 20):
                    out.write(data)


def _like(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """A new entry of the same name, date and compression."""
    new = zipfile.ZipInfo(info.filename, info.date_time)
    new.compress_type, new.external_attr = info.compress_type, info.external_attr
    return new
