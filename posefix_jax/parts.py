"""A job of many rows in parts: each appears whole, a killed job goes on, several processes share one, `merge` checks."""

import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from posefix_jax.data.coco import read_json, whole_file, write_json
from posefix_jax.data.compose import annotations_tail
from posefix_jax.data.tables import TableWriter
from posefix_jax.types import PosefixError

MANIFEST = "manifest.json"


class Parts:
    """The finished parts of the job that writes `out`, in the folder OUT.parts until all are there.

    Args:
      out: the file, or the folder, that the job is to write.
      manifest: `job`, a text that is equal for two jobs whose output is the same; `rows`; `parts`, their number;
        `single`, whether `out` is a file; `apart`, whether each photograph has a file; `parquet`; `head`, `tail` and `between`, what the file has around and
        between the texts of the parts' segments; and what else the caller wants to find again.

    Parts of another job are thrown away.
    """

    def __init__(self, out: Path, manifest: dict):
        self.folder, self.job, self.count = parts_folder(out), manifest["job"], manifest["parts"]
        if (self.folder / MANIFEST).is_file() and _manifest(self.folder).get("job") != self.job:
            shutil.rmtree(self.folder, ignore_errors=True)
        if out.is_dir() and (manifest["single"] or not (self.folder / MANIFEST).is_file()):
            what = (
                "a folder; expected the name of a file to write" if manifest["single"] else "there; name a new folder"
            )
            raise PosefixError(f"--out {out} is {what}")
        if not manifest["single"] and out.is_file():
            raise PosefixError(f"--out {out} is a file; several files are written, name a new folder")
        if not (self.folder / MANIFEST).is_file():
            write_json(self.folder / MANIFEST, manifest)

    def has(self, part: int) -> bool:
        return self._path(part).is_file()

    def header(self, part: int) -> dict:
        with open(self._path(part), "rb") as file:
            return _header(file)

    def write(self, part: int, header: dict, segments: Sequence[tuple[str, bytes]]) -> None:
        """`segments`: names of files of the output ("" for the only one), and what this part adds to each."""
        lengths = [[name, len(data)] for name, data in segments]
        with whole_file(self._path(part)) as file:
            file.write(json.dumps({**header, "segments": lengths}).encode() + b"\n")
            for _, data in segments:
                file.write(data)

    def _path(self, part: int) -> Path:
        return part_path(self.folder, self.job, part)


def parts_folder(out: Path) -> Path:
    if not out.name:
        raise PosefixError(f"{out}: expected the name of a file or folder to write")
    return out.with_name(out.name + ".parts")


def part_path(folder: Path, job: str, part: int) -> Path:
    """A part's file is named by its job, so that a straggler of another is never taken for it."""
    return folder / f"{part:07d}-{job[:12]}.part"


def _manifest(folder: Path) -> dict:
    content = read_json(folder / MANIFEST)
    return content if isinstance(content, dict) else {}


def _header(file: BinaryIO) -> dict:
    """The first line of a part."""
    try:
        return json.loads(file.readline())
    except ValueError as error:
        raise PosefixError(f"{file.name}: not a part, or a damaged one; remove it and run its shard again") from error


def merge(out: Path, job: str | None = None) -> dict:
    """Puts the parts together, writes OUT.report.json, removes OUT.parts; returns the report less its lists.

    Args:
      job: the parts must be this one's.

    Raises:
      PosefixError: no parts, one is missing, or a row is missing or doubled; says which.
    """
    folder = parts_folder(out)
    if not (folder / MANIFEST).is_file():
        raise PosefixError(f"{folder}: no parts of a job; give the --out of posefix refine --shard")
    manifest = _manifest(folder)
    if "parts" not in manifest or job not in (None, manifest["job"]):
        raise PosefixError(f"{folder}: another job has begun to write there; give this one another --out")
    paths = [part_path(folder, manifest["job"], part) for part in range(manifest["parts"])]
    missing = [part for part, path in enumerate(paths) if not path.is_file()]
    if missing:
        named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        shards = manifest["shards"]
        again = ", ".join(f"--shard {i}/{shards}" for i in sorted({part % shards for part in missing}))
        raise PosefixError(
            f"{folder}: {len(missing)} of {len(paths)} parts are missing ({named}); run again {again if shards > 1 else ''}"
        )
    report = {**manifest["report"], "rows": 0, "refined": 0, "joints_moved": 0}
    reasons, images = Counter(), []
    for path in paths:
        with open(path, "rb") as file:
            header = _header(file)
        if header["first_row"] != report["rows"]:
            raise PosefixError(
                f"{path}: begins with row {header['first_row']}, expected {report['rows']}; a row is "
                f"{'missing' if header['first_row'] > report['rows'] else 'doubled'}: remove {folder} and run again"
            )
        for key in ("rows", "refined", "joints_moved"):
            report[key] += header[key]
        reasons.update(entry["reason"] for key in ("passed_through", "left_out") for entry in header[key])
        images += header.get("images", ())
    if report["rows"] != manifest["rows"]:
        raise PosefixError(f"{folder}: {report['rows']} rows in all parts, expected {manifest['rows']}; run again")
    _write_report(out, report, paths)
    if manifest["single"]:
        with whole_file(out, folder) as file:
            _assemble_one(file, manifest, paths, out.name, images)
    else:
        _assemble_folder(out, manifest, paths, folder)
    shutil.rmtree(folder)
    return report | {"reasons": dict(reasons.most_common())}


def _segments(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        with open(path, "rb") as file:
            for name, length in _header(file)["segments"]:
                yield name, file.read(length)


def _assemble_one(file: BinaryIO, manifest: dict, paths: Sequence[Path], name: str, images: list) -> None:
    with _writer(file, name, manifest) as write:
        if not manifest["parquet"]:
            write(manifest["head"].encode())
        skip = len(manifest["between"].encode())
        for _, data in _segments(paths):
            write(data[skip:])
            skip = max(skip - len(data), 0)
        if not manifest["parquet"]:
            tail = manifest["tail"]
            write((annotations_tail(images, manifest["joints"]) if tail is None else tail).encode())


def _assemble_folder(out: Path, manifest: dict, paths: Sequence[Path], folder: Path) -> None:
    writing, done = folder / "assembled", folder / "assembled.done"
    if done.exists() and not writing.exists() and out.is_dir():
        return  # killed after it was put in its place
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir()
        # Where each photograph has a file, each segment is one.
        number = iter(range(1 << 62))
        for (name, _), segments in groupby(
            _segments(paths), key=lambda segment: (segment[0], next(number) if manifest["apart"] else 0)
        ):
            path = writing / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise PosefixError(
                    f"--out {out}: two photographs, or rows of one that do not stand together, would share {name}; "
                    "sort the rows by photograph"
                )
            with open(path, "wb") as file, _writer(file, name, manifest) as write:
                for _, data in segments:
                    write(data)
        done.touch()
        os.replace(writing, out)  # an empty folder may be there
    except OSError as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise PosefixError(f"--out {out}: cannot write ({error.strerror or error})") from error


@contextmanager
def _writer(file: BinaryIO, name: str, manifest: dict):
    """A function that takes bytes, for a plain, a packed or a table file."""
    if manifest["parquet"]:
        table = TableWriter(file)
        yield table.write
        table.close()
    elif name.endswith(".gz"):
        with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
            yield packed.write
    else:
        yield file.write


def _write_report(out: Path, report: dict, paths: Sequence[Path]) -> None:
    """The report, an entry at a time: there may be millions."""
    with whole_file(out.with_name(out.name + ".report.json")) as file:
        file.write(json.dumps(report, indent=1)[:-2].encode())
        for key in ("passed_through", "left_out"):
            file.write(f',\n "{key}": ['.encode())
            between = b"\n  "
            for path in paths:
                with open(path, "rb") as part:
                    for entry in _header(part)[key]:
                        file.write(between + json.dumps(entry).encode())
                        between = b",\n  "
            file.write(b"]")
        file.write(b"}\n")
