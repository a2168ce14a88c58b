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

from posefix_jax.data.formats import FORMATS
from posefix_jax.files import (
    check_replaceable,
    claim,
    discard,
    inside,
    mark_of,
    read_json,
    whole_file,
    write_json,
)
from posefix_jax.types import PosefixError

MADE_BY = "posefix refine or convert"
MANIFEST = "manifest.json"
ASSEMBLED, ASSEMBLED_DONE = "assembled", "assembled.done"
"""Folder in which the output is put together; file that says that it is whole."""
REPORT_MARK = {"made_by": "posefix"}
"""What a report begins with: a file beside OUT that does not is not replaced."""


def outputs_of(out: Path) -> dict[str, Path]:
    """Every file and folder that a job with this `--out` may write: out, parts, report, pictures.

    Raises:
      PosefixError: `out` has no name.
    """
    if not out.name:
        raise PosefixError(f"--out {out} is a folder; expected the name of a file or folder to write")
    endings = {"out": "", "parts": ".parts", "report": ".report.json", "pictures": ".pictures"}
    return {name: out.with_name(out.name + ending) for name, ending in endings.items()}


def check_output(out: Path, *, single: bool) -> None:
    """What stands where a job is to write must be what an earlier job wrote there.

    Raises:
      PosefixError: something else is there; says what.
    """
    report = outputs_of(out)["report"]
    check_replaceable(report)
    if report.exists() and not _is_report(report):
        raise PosefixError(f"{report} exists and is not a report of posefix; move it away or choose another --out")
    if single:
        check_replaceable(out)
        if out.exists() and not report.exists():
            raise PosefixError(
                f"--out {out} exists and posefix did not write it (there is no {report.name}); move it away or choose "
                "another name"
            )
    elif out.is_symlink():
        raise PosefixError(f"--out {out} is a symbolic link; name the folder itself")
    elif out.is_dir() and any(out.iterdir()):
        raise PosefixError(f"--out {out} is there and not empty; name a new folder")
    elif out.exists() and not out.is_dir():
        raise PosefixError(f"--out {out} is a file; several files are written, name a new folder")


def _is_report(path: Path) -> bool:
    start = json.dumps(REPORT_MARK, indent=1)[:-2].encode()
    with open(path, "rb") as file:
        return file.read(len(start)) == start


class Parts:
    """The finished parts of the job that writes `out`, in the folder OUT.parts until all are there.

    Args:
      out: the file, or the folder, that the job is to write.
      manifest: `job`, a text that is equal for two jobs whose output is the same; `rows`; `parts`, their number;
        `single`, whether `out` is a file; `apart`, whether each photograph has a file; `format`, the name of the one
        that is written; `head`, `between` and `tail`, the text around and between the segments of a file;
        `lists_images`, whether the tail lists the images; `joints`, the names written; and `report`, what the report
        begins with.

    Parts that another job left there are thrown away; a folder that no job made is refused.
    """

    def __init__(self, out: Path, manifest: dict):
        self.folder, self.job, self.count = outputs_of(out)["parts"], manifest["job"], manifest["parts"]
        mark = mark_of(self.folder)
        if mark is None or mark["digest"] != self.job or not _in_place(out, self.folder):
            check_output(out, single=manifest["single"])
        claim(self.folder, MADE_BY, self.job, replace=True)
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


def part_path(folder: Path, job: str, part: int) -> Path:
    """A part's file is named by its job, so that a straggler of another is never taken for it."""
    return folder / f"{part:07d}-{job[:12]}.part"


def _manifest(folder: Path) -> dict:
    """Raises PosefixError where the folder's manifest is not one."""
    content = read_json(folder / MANIFEST)
    keys = {"job", "rows", "parts", "shards", "single", "apart", "format", "head", "between", "tail"}
    keys |= {"lists_images", "joints", "report"}
    if not isinstance(content, dict) or not keys <= set(content):
        raise PosefixError(f"{folder / MANIFEST}: damaged; remove {folder} and run the job again")
    return content


def _header(file: BinaryIO) -> dict:
    """The first line of a part, which says what follows it. Raises PosefixError where the part is not whole."""
    try:
        header = json.loads(file.readline())
        numbers = [header[key] for key in ("first_row", "rows", "refined", "joints_moved")]
        lengths = [length for name, length in header["segments"] if isinstance(name, str)]
        whole = all(type(value) is int and value >= 0 for value in numbers + lengths)
        whole &= len(lengths) == len(header["segments"])
        whole &= os.fstat(file.fileno()).st_size == file.tell() + sum(lengths)
    except (ValueError, KeyError, TypeError, IndexError):
        whole = False
    if not whole:
        raise PosefixError(f"{file.name}: not a part, or a damaged one; remove it and run its shard again")
    return header


def merge(out: Path, job: str | None = None) -> dict:
    """Puts the parts together, writes OUT.report.json, removes OUT.parts; returns the report less its lists.

    Args:
      job: the parts must be this one's.

    Raises:
      PosefixError: no parts, one is missing or damaged, a row is missing or doubled, or something else stands where
        the output goes; says which.
    """
    folder = outputs_of(out)["parts"]
    mark = mark_of(folder)
    if mark is None or mark["made_by"] != MADE_BY or not (folder / MANIFEST).is_file():
        raise PosefixError(f"{folder}: no parts of a job; give the --out of posefix refine --shard")
    manifest = _manifest(folder)
    if job not in (None, manifest["job"]) or manifest["job"] != mark["digest"]:
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
    report = {**REPORT_MARK, **manifest["report"], "rows": 0, "refined": 0, "joints_moved": 0}
    reasons: Counter[str] = Counter()
    images: list = []
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
    if not _in_place(out, folder):
        check_output(out, single=manifest["single"])
        _write_report(out, report, paths)
        if manifest["single"]:
            with whole_file(out, folder) as file:
                _assemble_one(file, manifest, paths, out.name, images)
        else:
            _assemble_folder(out, manifest, paths, folder)
    discard(folder, MADE_BY)
    return report | {"reasons": dict(reasons.most_common())}


def _in_place(out: Path, folder: Path) -> bool:
    """Whether the job was killed after its folder was put in its place."""
    return (folder / ASSEMBLED_DONE).exists() and not (folder / ASSEMBLED).exists() and out.is_dir()


def _segments(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        with open(path, "rb") as file:
            for name, length in _header(file)["segments"]:
                yield name, file.read(length)


def _assemble_one(file: BinaryIO, manifest: dict, paths: Sequence[Path], name: str, images: list) -> None:
    head, between, tail = (manifest[key] for key in ("head", "between", "tail"))
    if manifest["lists_images"]:
        tail = FORMATS[manifest["format"]].tail_of(images, manifest["joints"])
    with _writer(file, name, manifest) as write:
        write(head.encode())
        skip = len(between.encode())
        for _, data in _segments(paths):
            write(data[skip:])
            skip = max(skip - len(data), 0)
        write(tail.encode())


def _assemble_folder(out: Path, manifest: dict, paths: Sequence[Path], folder: Path) -> None:
    writing = folder / ASSEMBLED
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir()
        # Where each photograph has a file, each segment is one.
        number = iter(range(1 << 62))
        for (name, _), segments in groupby(
            _segments(paths), key=lambda segment: (segment[0], next(number) if manifest["apart"] else 0)
        ):
            path = inside(writing, name, f"{folder}: a part")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise PosefixError(
                    f"--out {out}: two photographs, or rows of one that do not stand together, would share {name}; "
                    "sort the rows by photograph"
                )
            with open(path, "wb") as file, _writer(file, name, manifest) as write:
                for _, data in segments:
                    write(data)
        (folder / ASSEMBLED_DONE).touch()
        os.replace(writing, out)  # an empty folder may be there
    except OSError as error:
        (folder / ASSEMBLED_DONE).unlink(missing_ok=True)
        shutil.rmtree(writing, ignore_errors=True)
        raise PosefixError(f"--out {out}: cannot write ({error.strerror or error})") from error


@contextmanager
def _writer(file: BinaryIO, name: str, manifest: dict):
    """A function that takes the bytes of a plain or gzipped file, or of a table."""
    form = FORMATS[manifest["format"]]
    if name.endswith(".gz") and not form.is_table:
        with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
            yield packed.write
    else:
        with form.writer(file) as write:
            yield write


def _write_report(out: Path, report: dict, paths: Sequence[Path]) -> None:
    """The report, an entry at a time: there may be millions."""
    with whole_file(outputs_of(out)["report"]) as file:
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
