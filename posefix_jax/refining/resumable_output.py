"""The output of a job of many rows, in parts that appear whole: a killed job resumes, several processes share one.

`merge` checks that nothing is missing and puts the parts together.
"""

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO

from posefix_jax.data.formats import FORMATS
from posefix_jax.files import (
    check_replaceable,
    claim,
    discard,
    held,
    inside,
    mark_done,
    mark_of,
    read_json,
    whole_file,
    write_once,
)
from posefix_jax.types import PosefixError, tell, warn

MADE_BY = "posefix refine or convert"
MANIFEST = "manifest.json"
ASSEMBLED, ASSEMBLED_DONE = "assembled", "assembled.done"
"""The folder in which an output folder is assembled, and the file that marks it as complete."""
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
        fields = read_json(folder / MANIFEST)
        try:
            if fields.pop("checksum") != _checksum(fields) or fields["format"] not in FORMATS:
                raise TypeError
            return cls(**fields)
        except (TypeError, AttributeError, KeyError) as error:
            raise PosefixError(f"{folder / MANIFEST}: damaged; remove {folder} and run the job again") from error

    def write(self, folder: Path) -> None:
        """Writes it, unless another process of the job has."""
        fields = asdict(self)
        write_once(folder / MANIFEST, {**fields, "checksum": _checksum(fields)})


def _checksum(fields: dict) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class Parts:
    """The finished parts of the job that writes `out`, in the folder OUT.parts until all are done.

    A context in which no other job can write there, nor another process of this one unless it has shards; `PosefixError`
    if one does. Parts of another job are removed, with a line that says so. A folder that no job made is refused.

    Args:
      out: the file or folder that the job writes.
      manifest: of the job.

    Raises:
      PosefixError: another job is at work there, or something else exists where the job writes.
    """

    def __init__(self, out: Path, manifest: JobManifest):
        self.folder, self.job, self.count = outputs_of(out)["parts"], manifest.job, manifest.parts
        self._held, self._shared = ExitStack(), manifest.shards > 1
        mark = mark_of(self.folder)
        if mark is not None and mark["made_by"] == MADE_BY and mark["digest"] != self.job:
            with held(self.folder):
                if not mark.get("done"):
                    tell(f"{self.folder}: was left by a job with other input or options, and is begun anew")
                check_output(out, single=manifest.single)
                claim(self.folder, MADE_BY, self.job, replace=True)
        elif mark is None or not _complete(out, self.folder):
            check_output(out, single=manifest.single)
        claim(self.folder, MADE_BY, self.job, replace=True)
        manifest.write(self.folder)
        self.report = JobManifest.read(self.folder).report
        """the first entries of the report, as the first process of the job wrote them"""
        self.complete = _complete(out, self.folder)
        """whether the output is in place, because the job was killed after that"""

    def __enter__(self) -> "Parts":
        self._held.enter_context(held(self.folder, shared=self._shared))
        return self

    def __exit__(self, *_) -> None:
        self._held.close()

    @staticmethod
    def report_of(out: Path, job: str) -> dict | None:
        """The first entries of the report of a job that has begun; None if it has not."""
        folder = outputs_of(out)["parts"]
        mark = mark_of(folder)
        if mark is None or mark["digest"] != job or not (folder / MANIFEST).is_file():
            return None
        return JobManifest.read(folder).report

    def has(self, part: int, seen: str = "") -> bool:
        """Whether a part is done, and done from what is there now. One that is damaged is removed, with a warning.

        Args:
          part: its number.
          seen: identifies the photographs that it would be made from; see `write`.
        """
        path = self._path(part)
        if self.complete or not path.is_file():
            return self.complete
        try:
            if _read_header(path).get("seen", "") == seen:
                return True
            reason = f"{path}: its photographs have changed since"
        except PosefixError as error:
            reason = str(error)
        warn(f"{reason}; the part is done again")
        path.unlink(missing_ok=True)
        return False

    def header(self, part: int) -> dict:
        """What `write` was given for a part, less its segments' content."""
        return _read_header(self._path(part))

    def write(self, part: int, header: dict, segments: Sequence[tuple[str, bytes]]) -> None:
        """Writes a part.

        Args:
          part: its number.
          header: what `merge` and `header` need of it; `seen` identifies the photographs that it was made from.
          segments: names of output files ("" for the only one), and what the part adds to each.
        """
        lengths = [[name, len(data)] for name, data in segments]
        described = json.dumps({**header, "segments": lengths}).encode() + b"\n"
        digest = hashlib.sha256(described)
        for _, data in segments:
            digest.update(data)
        with whole_file(self._path(part)) as file:
            file.write(digest.hexdigest().encode() + b"\n" + described)
            for _, data in segments:
                file.write(data)

    def _path(self, part: int) -> Path:
        return part_path(self.folder, self.job, part)


def part_path(folder: Path, job: str, part: int) -> Path:
    """The file of a part: a checksum of the rest, a line that describes it, and the segments.

    Its name has the job's digest, so a process of another job cannot write it.
    """
    return folder / f"{part:07d}-{job[:12]}.part"


def _read_header(path: Path) -> dict:
    """The description of a part. Raises PosefixError if the part is not whole, by its checksum."""
    damaged = PosefixError(f"{path}: damaged, its checksum does not fit")
    with open(path, "rb") as file:
        expected, digest = file.readline().strip(), hashlib.sha256()
        start = file.tell()
        while data := file.read(1 << 20):
            digest.update(data)
        if digest.hexdigest().encode() != expected:
            raise damaged
        file.seek(start)
        return json.loads(file.readline())


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
    if _complete(out, folder):
        report = read_json(outputs_of(out)["report"])
        reasons = Counter(entry["reason"] for key in LISTS for entry in report.pop(key))
    else:
        paths = _all_parts(folder, manifest)
        report, reasons, images = _summed_up(folder, manifest, paths)
        check_output(out, single=manifest.single)
        _write_report(out, report, paths, folder)
        if manifest.single:
            with whole_file(out, folder) as file:
                _assemble_one(file, manifest, paths, out.name, images)
        else:
            _assemble_folder(out, manifest, paths, folder)
        mark_done(folder)
    discard(folder, MADE_BY)
    return report | {"reasons": dict(reasons.most_common())}


LISTS = ("passed_through", "left_out")
"""The lists of rows in a part's description and in the report."""


def _all_parts(folder: Path, manifest: JobManifest) -> list[Path]:
    """The files of all parts. Raises PosefixError if some are missing."""
    there = {path.name for path in folder.iterdir()}
    names = (part_path(folder, manifest.job, part).name for part in range(manifest.parts))
    missing = list(islice((part for part, name in enumerate(names) if name not in there), 10_000))
    if missing:
        shards = manifest.shards
        count = manifest.parts - sum(name.endswith(".part") for name in there)
        named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        again = ", ".join(f"--shard {i}/{shards}" for i in sorted({part % shards for part in missing}))
        raise PosefixError(
            f"{folder}: {count} of {manifest.parts} parts are missing ({named}); run again {again if shards > 1 else ''}"
        )
    return [part_path(folder, manifest.job, part) for part in range(manifest.parts)]


def _summed_up(folder: Path, manifest: JobManifest, paths: Sequence[Path]) -> tuple[dict, Counter[str], list]:
    """The report less its lists, rows by why they were not refined, and the images of a tail that lists them."""
    report = {**REPORT_MARK, **manifest.report, "rows": 0, "refined": 0, "joints_moved": 0}
    reasons: Counter[str] = Counter()
    images: list = []
    for path in paths:
        try:
            header = _read_header(path)
        except PosefixError as error:
            raise PosefixError(f"{error}; run the job again, which does this part again") from error
        if header["first_row"] != report["rows"]:
            raise PosefixError(
                f"{path}: begins with row {header['first_row']}, expected {report['rows']}; a row is "
                f"{'missing' if header['first_row'] > report['rows'] else 'doubled'}: remove {folder} and run again"
            )
        for key in ("rows", "refined", "joints_moved"):
            report[key] += header[key]
        reasons.update(entry["reason"] for key in LISTS for entry in header[key])
        images += header.get("images", ())
    if report["rows"] != manifest.rows:
        raise PosefixError(f"{folder}: {report['rows']} rows in all parts, expected {manifest.rows}; run again")
    return report, reasons, images


def _complete(out: Path, folder: Path) -> bool:
    """Whether the job was killed after its output was in place."""
    moved = (folder / ASSEMBLED_DONE).exists() and not (folder / ASSEMBLED).exists() and out.is_dir()
    return moved or bool((mark_of(folder) or {}).get("done"))


@contextmanager
def _described(path: Path) -> Iterator[tuple[dict, BinaryIO]]:
    """A part's description, and the file at its segments. The part was found to be whole."""
    with open(path, "rb") as file:
        file.readline()
        yield json.loads(file.readline()), file


def _segments(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        with _described(path) as (header, file):
            for name, length in header["segments"]:
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


def _write_report(out: Path, report: dict, paths: Sequence[Path], folder: Path) -> None:
    """Writes the report entry by entry: there may be millions."""
    with whole_file(outputs_of(out)["report"], folder) as file:
        file.write(json.dumps(report, indent=1)[:-2].encode())
        for key in LISTS:
            file.write(f',\n "{key}": ['.encode())
            between = b"\n  "
            for path in paths:
                with _described(path) as (header, _):
                    for entry in header[key]:
                        file.write(between + json.dumps(entry).encode())
                        between = b",\n  "
            file.write(b"]")
        file.write(b"}\n")
