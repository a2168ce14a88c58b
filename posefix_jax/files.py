"""Reading and writing files: output appears whole, and nothing that a user owns is replaced."""

import fcntl
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from posefix_jax.types import PosefixError

MARK = ".posefix"
"""File that marks a folder as made by a command of this package: JSON with `made_by` and `digest`."""


def read_json(path: Path) -> Any:
    """Raises PosefixError with the byte at fault when the file is missing or not JSON."""
    try:
        text = Path(path).read_bytes()
        return json.loads(text)
    except OSError as error:
        raise PosefixError(f"{path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        byte = len(error.doc[: error.pos].encode())
        raise PosefixError(f"{path}: broken JSON at byte {byte} ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, an integer of thousands of digits, nested too deep
        raise PosefixError(f"{path}: not JSON text ({error})") from error


def check_replaceable(path: Path) -> None:
    """Raises PosefixError unless `path` is free or a regular file.

    Symbolic links are refused: replacing one would cut the link, and following it could write to a place that nobody
    named. Devices are refused because they cannot appear whole.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise PosefixError(f"{path}: cannot write ({error.strerror})") from error
    if stat.S_ISLNK(mode):
        raise PosefixError(f"{path} is a symbolic link to {os.readlink(path)}; name the file or folder itself")
    if stat.S_ISDIR(mode):
        raise PosefixError(f"{path} is a folder; expected the name of a file to write")
    if not stat.S_ISREG(mode):
        raise PosefixError(f"{path} is a device or a pipe; expected the name of a regular file to write")


@contextmanager
def whole_file(path: Path, folder: Path | None = None) -> Iterator[BinaryIO]:
    """Opens a file for writing. It appears under its name when all is written, or not at all.

    Args:
      path: the file; an existing one is replaced.
      folder: where it is written before it is complete, on the same file system; by default beside `path`.

    Raises:
      PosefixError: it cannot be written (a full disk, ...), or the path is not a regular file.
    """
    check_replaceable(path)
    # The name is unique because several processes may write the same file.
    partial = (folder or path.parent) / f"{path.name}.{uuid.uuid4().hex[:8]}.writing"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise PosefixError(f"{path}: cannot write ({error.strerror or error})") from error


def write_json(path: Path, content: object) -> None:
    """Writes the file whole, or not at all. Raises PosefixError if it cannot be written."""
    with whole_file(Path(path)) as file:
        file.write(json.dumps(content).encode())


def write_once(path: Path, content: object) -> None:
    """As `write_json`, unless the file exists: of several processes the first one's content stays."""
    if path.is_file():
        return
    mine = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    write_json(mine, content)
    try:
        os.link(mine, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(mine, path)
    finally:
        mine.unlink(missing_ok=True)


def inside(folder: Path, name: str, source: str) -> Path:
    """The file `name` below `folder`, for a name from outside: a listing, a row, an archive, a part of a job.

    Args:
      source: where the name came from, for the message.

    Raises:
      PosefixError: the name leads out of the folder (`..`, an absolute path, a symbolic link), or is empty.
    """
    parts = PurePosixPath(name).parts
    if parts and not {"..", "/", "//"} & set(parts) and "\0" not in name:
        path = folder.joinpath(*parts)
        try:
            if path.resolve().is_relative_to(folder.resolve()):
                return path
        except (OSError, RuntimeError):  # a loop of links
            pass
    raise PosefixError(f"{source}: the name {name!r} does not lie inside its folder; nothing is read or written there")


def claim(folder: Path, made_by: str, digest: str = "", *, replace: bool = False) -> None:
    """Makes a folder and marks it as made by a command, so that later runs may replace its content.

    Several processes may claim the same folder at once.

    Args:
      made_by: the command, such as `posefix refine`.
      digest: identifies what the folder is for, where that matters.
      replace: remove a folder that the same command made for something else.

    Raises:
      PosefixError: as `check_claim`; or the folder cannot be written.
    """
    mark = check_claim(folder, made_by, digest, replace=replace)
    if mark is not None and mark["digest"] != digest:
        discard(folder, made_by)
        mark = None
    if mark is None:
        write_json(folder / MARK, {"made_by": made_by, "digest": digest})


def check_claim(folder: Path, made_by: str, digest: str = "", *, replace: bool = False) -> dict | None:
    """The mark of a folder that may be claimed, None if it has none yet. Writes nothing.

    Raises:
      PosefixError: the folder was made by something else, or for something else; says what.
    """
    if folder.is_symlink():
        raise PosefixError(f"{folder} is a symbolic link to {os.readlink(folder)}; name the folder itself")
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise PosefixError(f"{folder} is a file; expected the name of a folder to write")
    # The mark is written first. So list the content before looking for it: a concurrent process may be starting.
    others = [entry.name for entry in folder.iterdir() if not entry.name.startswith(MARK)]
    mark = mark_of(folder)
    if mark is None and others:
        raise PosefixError(
            f"{folder} exists and was not made by {made_by} (it holds {min(others)}); move it away or choose another --out"
        )
    if mark is not None and (mark["made_by"] != made_by or (mark["digest"] != digest and not replace)):
        raise PosefixError(f"{folder} was made by {mark['made_by']} for something else; choose another --out")
    return mark


def mark_done(folder: Path) -> None:
    """Adds to the mark of a claimed folder that what it was for is complete: `mark_of` has `done`."""
    write_json(folder / MARK, {**(mark_of(folder) or {}), "done": True})


def mark_of(folder: Path) -> dict | None:
    """The mark of a folder that `claim` made; None if it has none."""
    path = folder / MARK
    if folder.is_symlink() or not path.is_file():
        return None
    mark = read_json(path)
    return mark if isinstance(mark, dict) and {"made_by", "digest"} <= set(mark) else None


def discard(folder: Path, made_by: str) -> None:
    """Removes a folder that `made_by` claimed, whatever its digest. Leaves every other folder alone.

    The mark goes last, so that a process that is killed on the way leaves a folder that can be claimed again.
    """
    mark = mark_of(folder)
    if mark is None or mark["made_by"] != made_by:
        return
    for entry in folder.iterdir():
        if entry.name.startswith(MARK):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def locked(file: IO, *, shared: bool = False) -> bool:
    """Locks an open file for as long as it is open; False if another process has locked it.

    Args:
      file: on a file system without locks it counts as locked.
      shared: several processes may lock it together.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def held(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Locks a folder against other processes; the lock ends with the process, however that ends.

    Args:
      folder: exists. The lock is a file in it whose name starts with `MARK`.
      shared: several processes may hold it together.

    Raises:
      PosefixError: another process holds it, or has just removed the folder.
    """
    busy = PosefixError(f"{folder}: another process is at work there; wait for it, stop it, or choose another --out")
    path = folder / f"{MARK}.lock"
    try:
        lock = open(path, "a")
    except FileNotFoundError as error:
        raise busy from error
    with lock:
        if not locked(lock, shared=shared):
            raise busy
        try:
            same = os.fstat(lock.fileno()).st_ino == path.stat().st_ino
        except FileNotFoundError:
            same = False
        if not same:
            raise busy
        yield


def check_apart(outputs: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Raises PosefixError if an output would replace an input, however either is spelled.

    Args:
      outputs: files and folders that are written.
      inputs: paths and URLs that are read. An input below an output counts too.
    """
    outputs = [(path, path.resolve(), path.exists()) for path in outputs]
    for given in inputs:
        for local in _local_paths(str(given)):
            source = local.resolve()
            for path, place, there in outputs:
                if source.is_relative_to(place) or (there and source.exists() and path.samefile(source)):
                    raise PosefixError(
                        f"{path} is where output goes, but the input {given} is there; choose another --out"
                    )


def _local_paths(place: str) -> list[Path]:
    """The local files of a path or of a URL, such as `zip://a.json::file:///photographs.zip`."""
    if "://" not in place:
        return [Path(place)]
    parts = (part.partition("://") for part in place.split("::"))
    return [Path(path or scheme) for scheme, _, path in parts if scheme in ("file", "local") or not path]
