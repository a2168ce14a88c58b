"""The output of a job of many rows, in parts that appear whole: a killed job resumes, several processes share one.

`merge` checks that nothing is missing and puts the parts together.
"""

import gzip
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
    write_once,
)
from posefix_jax.types import PosefixError

MADE_BY = "posefix refine or convert"
MANIFEST = "manifest.json"
ASSEMBLED, ASSEMBLED_DONE = "assembled", "assembled.done"
"""The folder in which the output is assembled, and the file that marks it as complete."""
REPORT_MARK = {"made_by": "posefix"}
"""The start of every report. A file beside OUT that does not start so is not replaced."""


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
    """Checks that whatever exists where a job writes was written by an earlier job.

    Raises:
      PosefixError: something else exists there; says what.
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
        raise PosefixError(f"--out {out} exists and is not empty; name a new folder")
    elif out.exists() and not out.is_dir():
        raise PosefixError(f"--out {out} is a file; several files are written, name a new folder")


def _is_report(path: Path) -> bool:
    start = json.dumps(REPORT_MARK, indent=1)[:-2].encode()
    with open(path, "rb") as file:
        return file.read(len(start)) == start


@dataclass(frozen=True)
class JobManifest:
    """What has to be known of a job to put its parts together, as `manifest.json` beside them.

    Attributes:
      job: a digest that is equal for two jobs with the same output.
      rows, parts, shards: how many there are.
      single: the output is one file.
      apart: each photograph has a file of its own.
      format: name of the format that is written.
      head, between, tail: the text around and between the segments of a file.
      lists_images: the tail lists the images, see `Format.tail_of`.
      joints: names of the joints that are written.
      report: the first entries of the report.
    """

    job: str
    rows: int
    parts: int
    shards: int
    single: bool
    apart: bool
    format: str
    head: str
    between: str
    tail: str
    lists_images: bool
    joints: list[str]
    report: dict

    @classmethod
    def read(cls, folder: Path) -> "JobManifest":
        """Raises PosefixError if the folder's manifest is damaged."""
        try:
            manifest = cls(**read_json(folder / MANIFEST))
            if manifest.format not in FORMATS:
                raise TypeError
        except TypeError as error:
            raise PosefixError(f"{folder / MANIFEST}: damaged; remove {folder} and run the job again") from error
        return manifest


class Parts:
    """The finished parts of the job that writes `out`, in the folder OUT.parts until all are done.

    Parts of another job are removed. A folder that no job made is refused.
    """

    def __init__(self, out: Path, manifest: JobManifest):
        self.folder, self.job, self.count = outputs_of(out)["parts"], manifest.job, manifest.parts
        mark = mark_of(self.folder)
        if mark is None or mark["digest"] != self.job or not _in_place(out, self.folder):
            check_output(out, single=manifest.single)
        claim(self.folder, MADE_BY, self.job, replace=True)
        write_once(self.folder / MANIFEST, asdict(manifest))
        self.report = JobManifest.read(self.folder).report
        """the first entries of the report, as the first process of the job wrote them"""

    @staticmethod
    def report_of(out: Path, job: str) -> dict | None:
        """The first entries of the report of a job that has begun; None if it has not."""
        folder = outputs_of(out)["parts"]
        mark = mark_of(folder)
        if mark is None or mark["digest"] != job or not (folder / MANIFEST).is_file():
            return None
        return JobManifest.read(folder).report

    def has(self, part: int) -> bool:
        """Whether a part is done."""
        return self._path(part).is_file()

    def header(self, part: int) -> dict:
        """What `write` was given for a part, less its segments' content."""
        with open(self._path(part), "rb") as file:
            return _header(file)

    def write(self, part: int, header: dict, segments: Sequence[tuple[str, bytes]]) -> None:
        """Writes a part. `segments`: names of output files ("" for the only one), and what the part adds to each."""
        lengths = [[name, len(data)] for name, data in segments]
        with whole_file(self._path(part)) as file:
            file.write(json.dumps({**header, "segments": lengths}).encode() + b"\n")
            for _, data in segments:
                file.write(data)

    def _path(self, part: int) -> Path:
        return part_path(self.folder, self.job, part)


def part_path(folder: Path, job: str, part: int) -> Path:
    """The file of a part. Its name has the job's digest, so a process of another job cannot write it."""
    return folder / f"{part:07d}-{job[:12]}.part"


def _header(file: BinaryIO) -> dict:
    """The first line of a part, which describes the rest. Raises PosefixError if the part is not complete."""
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
    """Puts the parts together, writes OUT.report.json, and removes OUT.parts. Returns the report without its lists.

    Args:
      job: the digest of the job that the parts must belong to; None for any.

    Raises:
      PosefixError: no parts, one is missing or damaged, a row is missing or doubled, or something else exists where the
        output goes; says which.
    """
    folder = outputs_of(out)["parts"]
    mark = mark_of(folder)
    if mark is None or mark["made_by"] != MADE_BY or not (folder / MANIFEST).is_file():
        raise PosefixError(f"{folder}: no parts of a job; give the --out of posefix refine --shard")
    manifest = JobManifest.read(folder)
    if job not in (None, manifest.job) or manifest.job != mark["digest"]:
        raise PosefixError(f"{folder}: another job has started to write there; give this one another --out")
    paths = [part_path(folder, manifest.job, part) for part in range(manifest.parts)]
    missing = [part for part, path in enumerate(paths) if not path.is_file()]
    if missing:
        named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        shards = manifest.shards
        again = ", ".join(f"--shard {i}/{shards}" for i in sorted({part % shards for part in missing}))
        raise PosefixError(
            f"{folder}: {len(missing)} of {len(paths)} parts are missing ({named}); run again {again if shards > 1 else ''}"
        )
    report = {**REPORT_MARK, **manifest.report, "rows": 0, "refined": 0, "joints_moved": 0}
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
    if report["rows"] != manifest.rows:
        raise PosefixError(f"{folder}: {report['rows']} rows in all parts, expected {manifest.rows}; run again")
    if not _in_place(out, folder):
        check_output(out, single=manifest.single)
        _write_report(out, report, paths)
        if manifest.single:
            with whole_file(out, folder) as file:
                _assemble_one(file, manifest, paths, out.name, images)
        else:
            _assemble_folder(out, manifest, paths, folder)
    discard(folder, MADE_BY)
    return report | {"reasons": dict(reasons.most_common())}


def _in_place(out: Path, folder: Path) -> bool:
    """Whether the job was killed after its output folder was moved into place."""
    return (folder / ASSEMBLED_DONE).exists() and not (folder / ASSEMBLED).exists() and out.is_dir()


def _segments(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        with open(path, "rb") as file:
            for name, length in _header(file)["segments"]:
                yield name, file.read(length)


def _assemble_one(file: BinaryIO, manifest: JobManifest, paths: Sequence[Path], name: str, images: list) -> None:
    head, between, tail = manifest.head, manifest.between, manifest.tail
    if manifest.lists_images:
        tail = FORMATS[manifest.format].tail_of(images, manifest.joints)
    with _writer(file, name, manifest) as write:
        write(head.encode())
        skip = len(between.encode())
        for _, data in _segments(paths):
            write(data[skip:])
            skip = max(skip - len(data), 0)
        write(tail.encode())


def _assemble_folder(out: Path, manifest: JobManifest, paths: Sequence[Path], folder: Path) -> None:
    writing = folder / ASSEMBLED
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir()
        # If each photograph has its own file, each segment is one.
        number = iter(range(1 << 62))
        for (name, _), segments in groupby(
            _segments(paths), key=lambda segment: (segment[0], next(number) if manifest.apart else 0)
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
        os.replace(writing, out)  # replaces an empty folder
    except OSError as error:
        (folder / ASSEMBLED_DONE).unlink(missing_ok=True)
        shutil.rmtree(writing, ignore_errors=True)
        raise PosefixError(f"--out {out}: cannot write ({error.strerror or error})") from error


@contextmanager
def _writer(file: BinaryIO, name: str, manifest: JobManifest):
    """Gives a function that takes a file's pieces; a name in .gz is compressed."""
    form = FORMATS[manifest.format]
    if not name.endswith(".gz"):
        with form.writer(file) as write:
            yield write
        return
    with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
        if not form.is_binary:
            yield packed.write
            return
        with tempfile.TemporaryFile() as plain:  # the writer of a binary format may go back in what it wrote
            with form.writer(plain) as write:
                yield write
            plain.seek(0)
            shutil.copyfileobj(plain, packed)


def _write_report(out: Path, report: dict, paths: Sequence[Path]) -> None:
    """Writes the report entry by entry: there may be millions."""
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
