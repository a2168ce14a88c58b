"""The rows of a job, whatever it does to them: from files of poses, in parts, to files of poses."""

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path, PurePosixPath

import fsspec
import numpy as np

from posefix_jax.core.joint_sets import load_skeleton
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.coco import read_file_names
from posefix_jax.data.compose import TARGETS, as_lines, converted, file_of
from posefix_jax.data.formats import Document, open_document
from posefix_jax.data.image_sources import Images, open_binary
from posefix_jax.data.images import UnreadableImage
from posefix_jax.data.layouts import Element, Pose
from posefix_jax.data.tables import packed, rows_table
from posefix_jax.files import check_apart, inside
from posefix_jax.refining.resumable_output import Parts, check_output, outputs_of
from posefix_jax.report.progress import Progress
from posefix_jax.types import PosefixError, nearest_names

POSE_FILES = (".json", ".jsonl", ".ndjson", ".txt", ".parquet")


def find_files(patterns: Sequence[str], out: Path) -> list[tuple[str, str]]:
    """The files that paths, URLs, folders and patterns name, each with the name it will have in an output folder.

    That name is "" for a single file that was named itself. What a job that writes `out` has left there is no input.

    Raises:
      PosefixError: one of them names no file.
    """
    found: list[tuple[str, str]] = []
    several = len(patterns) > 1
    for pattern in patterns:
        remote = "://" in pattern
        try:
            files, root = fsspec.url_to_fs(pattern) if remote else (None, pattern)
            folder = files.isdir(root) if remote else Path(root).is_dir()
            if folder:
                several = True
                start = f"{root.rstrip('/')}/"
                listed = [(p, p.removeprefix(start)) for p in files.find(root)] if remote else _listed(Path(root), out)
                named = sorted((p, name) for p, name in listed if name.removesuffix(".gz").endswith(POSE_FILES))
            elif glob.has_magic(pattern) and (remote or not Path(root).exists()):
                several = True
                some = sorted(files.glob(root) if remote else glob.glob(pattern, recursive=True))
                named = [(p, PurePosixPath(p).name) for p in some]
            else:
                named = [(root, PurePosixPath(root).name)]
        except (ImportError, ValueError) as error:
            raise PosefixError(f"{pattern}: {error}") from error
        if not named:
            raise PosefixError(f"{pattern}: no file of poses there ({', '.join(POSE_FILES)}, or these with .gz)")
        for path, name in named:
            inside(out, name, f"{pattern}: {path}")
            found.append((files.unstrip_protocol(path) if remote else path, name))
    names = [name for _, name in found]
    if not several:
        return [(path, "") for path, _ in found]
    double = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if double is not None:
        raise PosefixError(f"two input files are called {double}; give their folder instead")
    return found


def _listed(folder: Path, out: Path) -> list[tuple[str, str]]:
    """All files of a folder but those of the job itself, with their names in it."""
    ours = tuple(path.resolve() for path in outputs_of(out).values())
    files = (path for path in folder.rglob("*") if path.is_file())
    return [
        (str(path), path.relative_to(folder).as_posix())
        for path in files
        if not any(path.resolve().is_relative_to(our) for our in ours)
    ]


@dataclass
class Part:
    """Some rows of the job and what becomes of them.

    Attributes:
      elements: the pieces of the files, each with the number of its file.
      poses: their people, in order; the job's rows from `first_row` on.
      joints: what each pose is at the end, [K, 3] in its file's joints and unit; where missing, as it was.
      scores: new scores of rows; `reasons`: why a row stayed as it was; `dropped`: rows that are left out.
      sizes: height and width of photographs that were read, for formats that count in parts of them.
      more: what else the part's header is to hold.
    """

    number: int
    first_row: int
    elements: list[tuple[int, Element]]
    poses: list[Pose]
    joints: dict[int, np.ndarray] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    sizes: dict = field(default_factory=dict)
    more: dict = field(default_factory=dict)

    def by_image(self) -> dict:
        """The rows of the part (counted from its first) of each photograph."""
        rows: dict = {}
        for row, pose in enumerate(self.poses):
            rows.setdefault(pose.image, []).append(row)
        return rows


class Job:
    """Reads files of poses in parts, writes them as they came or in another format.

    Args:
      patterns: what `find_files` takes. More than one file, a folder or a pattern is written to a folder.
      out: the file or folder to write.
      to: a format of `TARGETS`; None: each file's own.
      images: the place of the photographs, see `Images`; None where they are not needed.
      annotations: COCO file whose `images` give file names.
      skeleton: the files' joints where they do not say them themselves; what `load_skeleton` takes.
      preferred: taken where a file says only their number.
      rows_a_part: a part ends with the photograph that this row is of.
      source: what the report calls the input; the first file by default.

    Raises:
      PosefixError: no such file, not one of poses, or files of several kinds of joints.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        out: Path,
        *,
        to: str | None,
        images: str | None,
        annotations: Path | None,
        skeleton: str | None,
        preferred: Skeleton,
        rows_a_part: int,
        source: str | None = None,
    ):
        if to is not None and to not in TARGETS:
            raise PosefixError(f"unknown format {to!r} to write: {nearest_names(to, TARGETS)}")
        outputs = outputs_of(out)
        files = find_files(patterns, out)
        more = (images, annotations, skeleton)
        check_apart(outputs.values(), [path for path, _ in files] + [place for place in more if place is not None])
        self.out, self.rows_a_part, self._source = out, rows_a_part, source
        given = None if skeleton is None else load_skeleton(skeleton)
        self.documents = [open_document(path, skeleton=given, preferred=preferred, name=name) for path, name in files]
        model = next((document for document in self.documents if not document.empty), self.documents[0])
        self.skeleton, self.layout = model.skeleton, model.layout
        for i, document in enumerate(self.documents):
            if document.empty:
                self.documents[i] = replace(document, skeleton=self.skeleton)
            elif document.skeleton.joints != self.skeleton.joints or document.layout is not self.layout:
                raise PosefixError(
                    f"{document.path} is a {document.layout.name} file with the joints of {document.skeleton.name}, "
                    f"{model.path} a {self.layout.name} file with those of {self.skeleton.name}; refine them apart"
                )
        self._names = [name for _, name in files]
        self.target = None if to is None else TARGETS[to]
        self.to = to
        packed_name = out.name.removesuffix(".gz")
        if self.target is not None and packed_name.endswith((".jsonl", ".ndjson")) and to in ("coco", "mmpose"):
            self.target = as_lines(self.target)
        self.single = self._names == [""] if self.target is None else not self.target.suffix
        if not outputs["parts"].exists():  # else the job may be going on
            check_output(out, single=self.single)
        self.parquet = to == "parquet" if to is not None else self.layout.name == "parquet"
        self._annotations = None
        self.names = self._file_names(annotations)
        self.images = None if images is None else Images(images, self.names)

    def _file_names(self, annotations: Path | None) -> Mapping | None:
        if annotations is not None:
            names = read_file_names(annotations)[0]
            self._annotations = hashlib.sha256(Path(annotations).read_bytes()).hexdigest()
            return names
        names: dict = {}
        for document in self.documents:
            for image, name in (document.names or {}).items():
                if names.setdefault(image, name) != name:
                    raise PosefixError(
                        f"{document.path}: image id {image} is {name}, in a file before it {names[image]}; refine them "
                        "apart, or give --annotations for all"
                    )
        return names or None

    @property
    def fractions(self) -> bool:
        """Whether coordinates come in parts of the photograph's width and height."""
        return self.layout.fraction

    def name_of(self, image) -> str | None:
        """The photograph's file name, if an annotation file or the row itself gives it."""
        name = (self.names or {}).get(image)
        return name if name is not None or not isinstance(image, str) or "." not in image else image

    def split(self) -> Iterator[Part]:
        """All rows, in order."""
        elements: list[tuple[int, Element]] = []
        poses: list[Pose] = []
        number = first = 0
        for index, document in enumerate(self.documents):
            for element in document.elements():
                # A part ends with a photograph, unless that goes on and on.
                full = len(poses) >= self.rows_a_part and element.poses
                goes_on = full and element.poses[0].image == poses[-1].image
                long = len(poses) >= 2 * self.rows_a_part and not (self.target and self.target.together)
                if (full and (not goes_on or long)) or len(elements) >= 16 * self.rows_a_part:
                    yield Part(number, first, elements, poses)
                    number, first, elements, poses = number + 1, first + len(poses), [], []
                elements.append((index, element))
                poses += element.poses
        yield Part(number, first, elements, poses)

    def start(self, *, settings: dict, check, shards: int) -> Parts:
        """Reads everything once, so that what can be known to be wrong is known before hours are spent.

        Args:
          settings: what else the output depends on.
          check: called with every part.

        Raises:
          PosefixError: a row does not fit, or there is none.
        """
        names = [document.name for document in self.documents]
        fixed = {
            **settings,
            "files": names,
            "to": self.to,
            "names": self._annotations,
            "joints": self.skeleton.to_dict(),
        }
        digest = hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode())
        rows, part, seen = 0, None, set()
        self._numbers = True
        with Progress("check", None, unit="poses") as progress:
            for document in self.documents:
                with open_binary(document.path) as file:
                    while data := file.read(1 << 20):
                        digest.update(data)
            for part in self.split():
                check(part)
                self._check_target(part, seen)
                rows += len(part.poses)
                progress.update(rows)
        if not rows:
            raise PosefixError(f"{self.documents[0].path}: an empty list, no poses to work on")
        more = len(self.documents) - 1
        target = self.target
        manifest = {
            "job": digest.hexdigest(),
            "rows": rows,
            "parts": part.number + 1,
            "shards": shards,
            "single": self.single,
            "apart": bool(target and target.suffix),
            "parquet": self.parquet,
            "head": "" if target is None else target.head,
            "between": "" if target is None else target.between,
            "tail": "" if target is None else target.tail,
            "joints": list((target and target.skeleton or self.skeleton).joints),
            "report": {
                "detections": self._source or self.documents[0].path + (f" and {more} more" if more else ""),
                "format": self.layout.name + (f" to {self.to}" if self.to else ""),
            },
        }
        self.rows = rows
        return Parts(self.out, manifest)

    def _check_target(self, part: Part, seen: set) -> None:
        """Raises PosefixError where the format to write cannot hold a row."""
        if self.target is None:
            return
        for row, pose in enumerate(part.poses):
            place = f"{self.documents[0].path}: row {part.first_row + row}"
            if not np.isfinite(pose.joints).all():
                raise PosefixError(f"{place}: a value is not finite; {self.to} cannot hold it")
            self._numbers &= isinstance(pose.image, int)
            if self.fractions != self.target.fraction and (self.images is None or self.images.find(pose.image) is None):
                raise PosefixError(
                    f"{place}: the photograph {pose.image!r} is not there, and {self.to} or its input counts in parts of "
                    "its width and height; give --images with it, or another format"
                )
        if self.target.suffix:
            # A short text a photograph is all that is remembered.
            now = {file_of(image, self.name_of(image), self.target) for image in part.by_image()}
            runs = sum(1 for _ in groupby(pose.image for pose in part.poses))
            if now & seen or len(now) < runs:
                raise PosefixError(
                    f"{self.documents[0].path}: near row {part.first_row} two photographs, or rows of one that do not "
                    f"stand together, would share one {self.to} file; sort the rows by photograph"
                )
            seen |= now

    def finish(self, part: Part, store: Parts) -> None:
        """Writes the part."""
        refined = moved = 0
        for row, joints in part.joints.items():
            refined += 1
            moved += int((joints != part.poses[row].joints).any(axis=1).sum())
        if self.target is None:
            segments = self._as_it_came(part)
        else:
            segments = self._composed(part)

        def entries(rows) -> list[dict]:
            return [
                {"row": part.first_row + row, "image_id": part.poses[row].image, "reason": part.reasons[row]}
                for row in sorted(rows)
            ]

        header = {"first_row": part.first_row, "rows": len(part.poses), "refined": refined, "joints_moved": moved}
        header |= {"passed_through": entries(set(part.reasons) - part.dropped), "left_out": entries(part.dropped)}
        store.write(part.number, header | part.more, segments)

    def _as_it_came(self, part: Part) -> list[tuple[str, bytes]]:
        segments, row = [], 0
        for index, pieces in groupby(part.elements, key=lambda piece: piece[0]):
            document, data, opening = self.documents[index], [], None
            for _, element in pieces:
                rows = range(row, row + len(element.poses))
                row += len(element.poses)
                if self.parquet:
                    data.append(self._table(document, element, rows, part))
                    continue
                if part.dropped and rows and rows[0] in part.dropped:
                    opening = element.lead if element.first else opening
                    continue
                # What opens the file stood before a row that is left out: the next one takes it. There is one, for
                # a photograph's best row is never left out, and its rows are of one part.
                takes = opening is not None and element.text
                data.append((opening if takes else element.lead).encode())
                opening = None if takes else opening
                data.append(self._text(document, element, rows, part).encode())
            segments.append((self._names[index], b"".join(data)))
        return segments

    def _text(self, document: Document, element: Element, rows: range, part: Part):
        changes = {
            i: (part.joints[row], (part.joints[row] != element.poses[i].joints).any(axis=1))
            for i, row in enumerate(rows)
            if row in part.joints
        }
        scores = {i: part.scores[row] for i, row in enumerate(rows) if row in part.scores}
        return document.render(element, changes, scores)

    def _table(self, document: Document, element: Element, rows: range, part: Part) -> bytes:
        batch = self._text(document, element, rows, part)
        kept = [i for i, row in enumerate(rows) if row not in part.dropped]
        return packed(batch if len(kept) == len(rows) else batch.take(kept))

    def _composed(self, part: Part) -> list[tuple[str, bytes]]:
        target, segments = self.target, []
        skeleton = target.skeleton or self.skeleton
        tables = []
        for image, group in groupby(range(len(part.poses)), key=lambda row: part.poses[row].image):
            people = []
            rows = [row for row in group if row not in part.dropped]
            for row in rows:
                pose = part.poses[row]
                joints = np.array(part.joints.get(row, pose.joints), np.float64)
                if self.fractions != target.fraction:
                    height, width = self.size_of(part, image)
                    joints[:, :2] *= [width, height] if self.fractions else [1 / width, 1 / height]
                score = part.scores.get(row, pose.score)
                people.append(pose._replace(joints=converted(joints, self.skeleton, skeleton), score=score))
            name = self.name_of(image)
            if self.parquet:
                tables += [(image, pose) for pose in people]
                continue
            texts = target.elements(image, name, people, part.first_row + (rows[0] if rows else 0))
            if self.single:
                segments.append(("", "".join(target.between + text for text in texts).encode()))
            else:
                segments.append((file_of(image, name, target), "".join(text + "\n" for text in texts).encode()))
        if self.to == "coco-annotations":
            seen = dict.fromkeys(pose.image for pose in part.poses)
            part.more["images"] = [[image, self.name_of(image)] for image in seen]
        if tables:
            segments.append(("", packed(rows_table(tables, self._numbers))))
        return segments

    def size_of(self, part: Part, image) -> tuple[int, int]:
        """Height and width of a photograph, of which it may be that nobody was refined.

        Raises:
          PosefixError: it does not decode.
        """
        if image not in part.sizes:
            try:
                part.sizes[image] = self.images.read(self.images.find(image)).shape[:2]
            except UnreadableImage as error:
                raise PosefixError(
                    f"{self.documents[0].path}: the photograph {image!r} is unreadable ({error}), and {self.to} or its "
                    "input counts in parts of its width and height; mend it, or write another format"
                ) from error
        return part.sizes[image]
