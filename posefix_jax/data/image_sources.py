"""Sources of photographs: a folder, a zip, tar shards, a video, or a URL of any of these. Opens any file or URL."""

import gzip
import lzma
import re
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from posefix_jax.data.images import UnreadableImage, decode_image, is_rotated
from posefix_jax.data.limits import BYTES, PIXELS, check_size, pixels_of, size_of_file, stamp_of_file
from posefix_jax.types import PosefixError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


class Stored(NamedTuple):
    """Where the bytes of a photograph are.

    Attributes:
      files: the fsspec file system.
      path: the file in it.
      span: first byte and end, where the photograph is a part of the file.
      member: the open zip and the member of it that the photograph is.
    """

    files: AbstractFileSystem
    path: str
    span: tuple[int, int] | None = None
    member: tuple[zipfile.ZipFile, zipfile.ZipInfo] | None = None

    @property
    def _is_local(self) -> bool:
        return isinstance(self.files, LocalFileSystem)

    def _size(self) -> int:
        """Bytes; 0 if that is not known before they are read. Raises OSError: a device, a pipe, or more than `LARGEST`."""
        if self.member is not None:
            return check_size(self.member[1].file_size)
        if self.span is not None:
            return check_size(self.span[1] - self.span[0])
        return size_of_file(self.path) if self._is_local else 0

    def read(self) -> bytes:
        """All bytes. Waits until there is room for them, `limits.LARGEST` in all threads.

        Raises:
          OSError: it cannot be read, is a device or a pipe, or has more than `LARGEST` bytes. A damaged zip raises others.
        """
        with BYTES.of(self._size()):
            return self._read()

    def _read(self) -> bytes:
        if self.member is not None:
            packed, info = self.member
            return packed.read(info)
        if self._is_local and self.span is None:
            return Path(self.path).read_bytes()
        try:
            return self.files.cat_file(self.path, *self.span or (None, None))
        except OSError:
            raise
        except Exception as error:  # a server's library raises errors of its own
            raise OSError(f"{type(error).__name__}: {error}") from error

    def stamp(self) -> list | None:
        """What changes when the photograph does: its checksum in a zip, else size and time of the file. None for a URL."""
        if self.member is not None:
            return [self.member[1].CRC, self.member[1].file_size]
        return stamp_of_file(self.path) if self._is_local else None


SECONDS = {"connect": 30, "sock_read": 60, "total": 600}
"""Longest time of a request to a server: to be connected, without a byte, and in all."""


def file_system_of(place: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in it. A server that does not answer is given up, see `SECONDS`.

    Raises:
      PosefixError: a URL scheme that fsspec does not know, or whose package is missing.
    """
    try:
        if re.search(r"https?://", place) is None:
            return fsspec.url_to_fs(place)
        from aiohttp import ClientTimeout

        web = {"client_kwargs": {"timeout": ClientTimeout(**SECONDS)}}
        return fsspec.url_to_fs(place, **({"http": web, "https": web} if "::" in place else web))
    except (ImportError, ValueError) as error:
        raise PosefixError(f"{place}: {error}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def open_binary(path: str) -> Iterator[Any]:
    """Opens a local file or URL for reading; gzip is unpacked. Raises PosefixError if it cannot be read."""
    remote = "://" in path
    try:
        files, place = file_system_of(path) if remote else (None, path)
        with open(path, "rb") if files is None else files.open(place, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked
            else:
                yield file
    except (OSError, EOFError, zlib.error, ImportError, ValueError) as error:
        raise PosefixError(f"{path}: {_reason(error)}") from error
    except Exception as error:  # a server's library raises errors of its own
        if isinstance(error, PosefixError) or not remote:
            raise
        raise PosefixError(f"{path}: {type(error).__name__}: {error}") from error


class PhotographNames:
    """Finds photographs among the paths of a place by what rows call them.

    Args:
      paths: the photographs' paths, with `/` between folders.
      place: where they are, for messages.
      first: the number by which rows call the photograph with the lowest number; None: numbers are as they are.
    """

    def __init__(self, paths: Iterable[str], place: str = "photographs", first: int | None = None):
        self._paths, self._place = set(paths), place
        self._by_name, self._by_stem = defaultdict(list), defaultdict(list)
        by_number, by_last_number = defaultdict(list), defaultdict(list)
        for path in sorted(self._paths, key=lambda path: (path.count("/"), path)):
            name = PurePosixPath(path)
            self._by_name[name.name].append(path)
            self._by_stem[name.stem].append(path)
            digits = re.findall(r"\d+", name.stem)
            if name.stem.isdecimal():
                by_number[int(name.stem)].append(path)
            elif digits:
                by_last_number[int(digits[-1])].append(path)
        self._by_number = by_number or by_last_number
        self._offset = 0 if first is None or not self._by_number else min(self._by_number) - first

    @property
    def numbers(self) -> tuple[int, int] | None:
        """The lowest and the highest number among the photographs; None if none has any."""
        return (min(self._by_number), max(self._by_number)) if self._by_number else None

    def find(self, image: int | str, shift: int = 0) -> str | None:
        """The path of the photograph that a row names so; None if there is none.

        By the path or the file's name; else by a stem equal to the id. A stem that is a number equals the id whatever its
        leading zeros (COCO's `000000000139.jpg` is 139); the last number of a stem counts if no stem is a bare number
        (`im00012.jpg` is 12).

        Args:
          image: what the row calls it.
          shift: find the photograph whose number is larger by so much; None for a photograph that is found by its name.

        Raises:
          PosefixError: it could be two files.
        """
        number = number_of(image)
        if number is not None and (shift or self._offset):
            return self._one(image, self._by_number.get(number + self._offset + shift, []))
        if shift:
            return None
        named = self._path(str(image))
        stem = PurePosixPath(str(image)).name
        alike = named or _ending_alike(str(image), self._by_stem.get(stem, ()), stems=True)
        return self._one(image, alike or ([] if number is None else self._by_number.get(number, [])))

    def find_name(self, image: int | str, name: str) -> str | None:
        """The path of a file name that annotations give for an id. Raises PosefixError: it could be two files."""
        return self._one(image, self._path(name))

    def _path(self, name: str) -> list[str]:
        """COCO's names are bare; where a name has folders, the file may be there or right here."""
        name = name.removeprefix("./")
        if name in self._paths:
            return [name]
        return _ending_alike(name, self._by_name.get(PurePosixPath(name).name, ()))

    def _one(self, image: int | str, paths: list[str]) -> str | None:
        shallow = [path for path in paths if path.count("/") == paths[0].count("/")]
        if len(shallow) > 1:
            raise PosefixError(
                f"{self._place}: image id {image} may be {shallow[0]} or {shallow[1]}; give --annotations for the names"
            )
        return shallow[0] if shallow else None


def number_of(image: int | str) -> int | None:
    """The number that a photograph is called by; None if it is called by a name."""
    text = str(image)
    return int(text) if text.isdecimal() and len(text) < 20 else None


class Images:
    """The photographs of a place, found by what rows call them, read from several threads.

    Nothing outside the place is ever opened: names are looked up among those that it lists.

    Args:
      place: a folder (searched with its subfolders), `.zip`, `.tar`, a pattern of them (`shards/*.tar`), a video (frame
        index as image id), a local path or any URL that fsspec opens.
      names: file names by image id, as an annotation file gives them; ids that it lacks are matched as
        `PhotographNames.find` does.
      first_frame: the number by which rows call the photograph with the lowest number, or the first frame of the video;
        None: the numbers of photographs are as they are, and frames are counted from 0.

    Raises:
      PosefixError: there is no such place.
    """

    def __init__(self, place: str | Path, names: Mapping | None = None, *, first_frame: int | None = None):
        self.place, self._names, self._first = str(place), names, first_frame or 0
        self._video = _Video(self.place) if self.place.lower().endswith(VIDEOS) else None
        self._stored: dict[str, Stored] = {} if self._video else dict(_listed(self.place))
        self._paths = PhotographNames(self._stored, self.place, first_frame)

    @property
    def numbers(self) -> tuple[int, int] | None:
        """The lowest and the highest number among the photographs; None if none has any."""
        return (0, self._video.frames - 1) if self._video is not None else self._paths.numbers

    def by_number(self, image: int | str) -> bool:
        """Whether a photograph is looked for by a number, not by a file name."""
        if self._video is not None:
            return bool(re.search(r"\d", str(image)))
        return not (self._names is not None and image in self._names) and number_of(image) is not None

    def find(self, image: int | str, shift: int = 0) -> str | int | None:
        """What `read` takes for the photograph that a row names so; None if it is not here.

        By the name that `names` gives, else as `PhotographNames.find`; in a video, by the last number.

        Args:
          image: what the row calls it.
          shift: find the photograph so many after it, where it is found `by_number`; else None.

        Raises:
          PosefixError: it could be two files.
        """
        if self._video is not None:
            digits = re.findall(r"\d+", str(image))
            frame = int(digits[-1]) - self._first + shift if digits and len(digits[-1]) < 20 else -1
            return frame if 0 <= frame < self._video.frames else None
        if self._names is not None and image in self._names:
            return None if shift else self._paths.find_name(image, self._names[image])
        return self._paths.find(image, shift)

    def is_rotated(self, path: str | int) -> bool:
        """Whether EXIF says that the photograph which `find` gave is to be turned or mirrored. False if it cannot be read."""
        try:
            return self._video is None and is_rotated(self._bytes(str(path)))
        except UnreadableImage:
            return False

    def find_all(self, ids: Iterable[int | str]) -> dict:
        """`find` of each, for those that are here.

        Raises:
          PosefixError: not one of them is.
        """
        wanted = list(dict.fromkeys(ids))
        found = {image: path for image in wanted if (path := self.find(image)) is not None}
        if wanted and not found:
            raise self.none_of(wanted[0])
        return found

    def none_of(self, example: int | str) -> PosefixError:
        """The error that not one photograph is here."""
        names = self._names or {}
        named = example in names
        example = names.get(example, example)
        return PosefixError(
            f"{self.place}: none of the photographs was found (looked for {example!r} and others by "
            f"{'file name' if named else 'image id'}); check --images"
            + ("" if named else ", or give --annotations for the file names")
        )

    def read(self, path: str | int, *, exif: bool = False, in_turn: bool = False) -> np.ndarray:
        """[H, W, 3] uint8 RGB of what `find` gave.

        Args:
          path: from `find`.
          exif: turn the photograph as its EXIF orientation says.
          in_turn: for threads that each hold one photograph at a time: wait until there is room for this one,
            `limits.MOST_PIXELS` in all.

        Raises:
          UnreadableImage: it cannot be read or decoded.
        """
        if self._video is not None:
            return self._video.read(int(path))
        data = self._bytes(str(path))
        if not in_turn:
            return decode_image(data, exif=exif)
        with PIXELS.of(pixels_of(data)) as share:
            return share.until_gone(decode_image(data, exif=exif))

    def _bytes(self, path: str) -> bytes:
        try:
            return self._stored[path].read()
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UnreadableImage(_reason(error)) from error

    def stamp(self, image: int | str) -> list | None:
        """Of the photograph that a row names so: see `Stored.stamp`. None if it is not here."""
        path = self.find(image)
        if path is None:
            return None
        return stamp_of_file(self.place) if self._video is not None else self._stored[str(path)].stamp()

    def read_named(self, image: int | str, *, exif: bool = False, shift: int = 0, in_turn: bool = False) -> np.ndarray:
        """`read` of what `find` finds. Raises UnreadableImage where it finds nothing, too."""
        path = self.find(image, shift)
        if path is None:
            raise UnreadableImage("no such photograph")
        return self.read(path, exif=exif, in_turn=in_turn)


def _ending_alike(name: str, paths: Iterable[str], *, stems: bool = False) -> list[str]:
    """The paths that agree with the name in the most trailing parts, all of the shorter one's; `stems`: without suffixes."""
    found: dict[int, list[str]] = {}
    wanted = name.split("/")
    for path in paths:
        parts = (str(PurePosixPath(path).with_suffix("")) if stems else path).split("/")
        common = min(len(parts), len(wanted))
        if parts[-common:] == wanted[-common:]:
            found.setdefault(common, []).append(path)
    return found[max(found)] if found else []


def _listed(place: str) -> Iterable[tuple[str, Stored]]:
    """The photographs of a place, by their paths in it."""
    files, root = file_system_of(place)
    try:
        if place.lower().endswith((".zip", ".tar")):
            archives = sorted(files.glob(root)) if any(c in root for c in "*?[") else [root]
            if not archives or not files.isfile(archives[0]):
                raise PosefixError(f"{place}: no such archive")
            for archive in archives:
                # With several archives, a name in two of them means two photographs.
                folder = f"{PurePosixPath(archive).name}/" if len(archives) > 1 else ""
                for path, stored in (_zipped if archive.lower().endswith(".zip") else _tarred)(files, archive):
                    if path.lower().endswith(SUFFIXES):
                        yield folder + path, stored
        elif place.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
            raise PosefixError(
                f"{place}: a compressed tar has no random access; unpack it, or convert it to .tar or .zip"
            )
        elif not files.isdir(root):
            raise PosefixError(f"{place}: no such image folder (nor .zip, .tar or video)")
        else:
            for path in files.find(root):
                if path.lower().endswith(SUFFIXES):
                    yield path[len(root.rstrip("/")) + 1 :], Stored(files, path)
    except PosefixError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise PosefixError(f"{place}: not an archive that can be read ({error})") from error
    except OSError as error:
        raise PosefixError(f"{place}: {_reason(error)}") from error
    except Exception as error:  # a server's library raises errors of its own
        raise PosefixError(f"{place}: {type(error).__name__}: {error}") from error


class _Member(tarfile.TarInfo):
    """A member of a tar. A negative size would send the reader back, for ever (CVE-2025-8194)."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError("a member has a negative size")
        return super()._block(count)  # type: ignore[misc]


def _tarred(files: AbstractFileSystem, archive: str) -> Iterator[tuple[str, Stored]]:
    with files.open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar:
        for member in tar:
            if member.isreg():
                span = member.offset_data, member.offset_data + member.size
                yield member.name.removeprefix("./"), Stored(files, archive, span)


def _zipped(files: AbstractFileSystem, archive: str) -> Iterator[tuple[str, Stored]]:
    packed = zipfile.ZipFile(files.open(archive, "rb"))  # reads are locked; it stays open for the life of the process
    for member in packed.infolist():
        if not member.is_dir():
            yield member.filename, Stored(files, archive, member=(packed, member))


class _Video:
    """Frames by index. Decoding runs forward; a few frames are kept for threads that ask out of order."""

    KEPT = 32

    def __init__(self, path: str):
        self._path, self._lock = path, threading.Lock()
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._open()
        self.frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) or 1 << 62

    def _open(self) -> None:
        self._capture, self._next = cv2.VideoCapture(self._path), 0
        if not self._capture.isOpened():
            raise PosefixError(f"{self._path}: no such video, or OpenCV cannot decode it")

    def read(self, frame: int) -> np.ndarray:
        with self._lock:
            if frame in self._kept:
                return self._kept[frame]
            if frame < self._next:
                self._open()
            while self._next <= frame:
                near = frame - self._next < self.KEPT
                ok, image = self._capture.read() if near else (self._capture.grab(), None)
                if not ok:
                    raise UnreadableImage(f"frame {self._next} of the video cannot be decoded")
                if image is not None:
                    self._kept[self._next] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                    if len(self._kept) > self.KEPT:
                        self._kept.popitem(last=False)
                self._next += 1
            return self._kept[frame]
