"""Files of poses, whatever estimator wrote them: found, recognized by content, read one element at a time.

An element keeps its own text and says which people are in it. Written back, only the numbers that changed are other
characters.
"""

import glob
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import numpy as np

from posefix_jax.core.joint_sets import POSETRACK, SKELETONS, WHOLEBODY_KEYS, skeleton_from_category, skeleton_of_count
from posefix_jax.core.skeleton import Skeleton, limb_length
from posefix_jax.data.formats import FORMATS, Element, PoseFile
from posefix_jax.data.formats.base import ImageId, NotPoses
from posefix_jax.data.formats.csv import Csv, CsvJoints
from posefix_jax.data.formats.values import image_id
from posefix_jax.data.image_sources import open_binary
from posefix_jax.data.json_stream import JsonStream
from posefix_jax.data.limits import stamp_of_file
from posefix_jax.data.recognition import TABLES, recognize
from posefix_jax.files import inside
from posefix_jax.types import PosefixError, warn_once

SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt", ".parquet", ".npz", ".h5", ".hdf5", *TABLES)
"""Names that a folder's pose files end with, perhaps followed by .gz."""
_PEOPLE, _FEW, _LONGER = 64, 3, 1.12
"""Joint sets of as many joints are told apart by the limbs of the first people, not of fewer than `_FEW`. OpenPose's
BODY_25B read as BODY_25 makes limbs 1.19 to 1.27 times as long, AI Challenger read as CrowdPose 1.3 to 1.46 times
(real people of COCO and LSPET); COCO read as itself is never the longer one."""


def find_files(patterns: Sequence[str], out: Path, outputs: Sequence[Path] = ()) -> list[tuple[str, str]]:
    """The files that paths, URLs, folders and patterns name, each with the name it gets in an output folder.

    That name is "" for a single file that was named itself.

    Args:
      out: the output folder.
      outputs: files and folders of the job itself, which are no input.

    Raises:
      PosefixError: one of them names no file.
    """
    found: list[tuple[str, str]] = []
    several = len(patterns) > 1
    for pattern in patterns:
        remote = "://" in pattern
        files: Any = None
        root = pattern
        try:
            if remote:
                files, root = fsspec.url_to_fs(pattern)
            folder = files.isdir(root) if remote else Path(root).is_dir()
            if folder:
                several = True
                start = f"{root.rstrip('/')}/"
                if remote:
                    listed = [(path, path.removeprefix(start)) for path in files.find(root)]
                else:
                    listed = _listed(Path(root), outputs)
                named = sorted((p, name) for p, name in listed if name.removesuffix(".gz").endswith(SUFFIXES))
            elif glob.has_magic(pattern) and (remote or not Path(root).exists()):
                several = True
                some = sorted(files.glob(root) if remote else glob.glob(pattern, recursive=True))
                named = [(p, PurePosixPath(p).name) for p in some]
            else:
                named = [(root, PurePosixPath(root).name)]
        except (ImportError, ValueError) as error:
            raise PosefixError(f"{pattern}: {error}") from error
        if not named:
            raise PosefixError(f"{pattern}: no file of poses there ({', '.join(SUFFIXES)}, or these with .gz)")
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


def _listed(folder: Path, outputs: Sequence[Path]) -> list[tuple[str, str]]:
    """All files of a folder but those of the job itself, with their names in it."""
    ours = [path.resolve() for path in outputs]
    files = (path for path in folder.rglob("*") if path.is_file())
    return [
        (str(path), path.relative_to(folder).as_posix())
        for path in files
        if not any(path.resolve().is_relative_to(our) for our in ours)
    ]


class PoseFiles:
    """Files of poses of one format and one joint set, read as one stream of rows.

    `PoseFiles.open` also opens them.

    Args:
      files: the opened files.
      annotations: a COCO file whose `images` give the file names of the photographs.

    Attributes:
      format, skeleton: what they have in common.
      names: file names by image id, of `annotations` or else of the files themselves; None where nobody gives any.

    Raises:
      PosefixError: the files differ in format or joints, or call one image id by two names.
    """

    @classmethod
    def open(
        cls,
        files: Sequence[tuple[str, str]],
        *,
        skeleton: Skeleton | None,
        preferred: Skeleton,
        annotations: Path | None = None,
        certain: bool = False,
        columns: Mapping[str, str] | None = None,
    ) -> "PoseFiles":
        """Opens files that `find_files` found, each a path or URL and its name in the output.

        `skeleton` and `preferred` are those of `open_pose_file`. `certain`: files with as many joints as `preferred` have
        its joints, however another set would fit. `columns`: as `PoseFile.columns`. Of several files, those in which nothing looks like poses (a
        README, a file of settings) are left out with a warning.

        Raises:
          PosefixError: as the class; also a file of poses that is damaged, or none at all.
        """
        opened: list[PoseFile] = []
        left_out: list[NotPoses] = []
        people: list[np.ndarray] = []
        for path, name in files:
            most = max(1, _PEOPLE - len(people))
            try:
                file, some = _opened(
                    path, skeleton=skeleton, preferred=preferred, name=name, most=most, columns=columns
                )
            except NotPoses as error:
                if not name:
                    raise
                left_out.append(error)
                continue
            opened.append(file)
            # Files of other numbers of joints are refused below.
            people += [joints for joints in some if len(people) < _PEOPLE and len(joints) == len((people or some)[0])]
        if left_out and not opened:
            raise left_out[0]
        if left_out:
            more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
            warn_once(f"left out, since nothing in it looks like poses: {left_out[0]}{more}")
        if people and not (certain and len(people[0]) == preferred.num_joints):
            likely = _likely_skeleton(opened[0].path, preferred, people)
            opened = [f if f.skeleton.num_joints != likely.num_joints else replace(f, skeleton=likely) for f in opened]
        return cls(opened, annotations)

    def __init__(self, files: Sequence[PoseFile], annotations: Path | None = None):
        model = next((file for file in files if not file.empty), files[0])
        self.skeleton, self.format, self._annotations = model.skeleton, model.format, annotations
        self.files: list[PoseFile] = []
        self._stamps: list[list | None] = []
        for file in files:
            if file.empty:
                file = replace(file, skeleton=self.skeleton)
                if file.list_in == "" and model.list_in == "":  # an empty list: whose, only the other files tell
                    file = replace(file, format=self.format)
            elif file.skeleton.joints != self.skeleton.joints or file.format is not self.format:
                raise PosefixError(
                    f"{file.path} is a {file.format.name} file with the joints of {file.skeleton.name}, {model.path} a "
                    f"{self.format.name} file with those of {self.skeleton.name}; refine them separately"
                )
            self.files.append(file)
        self.names = self._own_names() if annotations is None else read_file_names(annotations)

    def _own_names(self) -> Mapping | None:
        names: dict = {}
        for file in self.files:
            for image, name in (file.names or {}).items():
                if names.setdefault(image, name) != name:
                    raise PosefixError(
                        f"{file.path}: image id {image} is {name}, in a file before it {names[image]}; refine them "
                        "separately, or give --annotations for all"
                    )
        return names or None

    @property
    def path(self) -> str:
        """The first file's, for messages."""
        return self.files[0].path

    def name_of(self, image: ImageId) -> str | None:
        """The photograph's file name, if an annotation file or the row itself gives it."""
        name = (self.names or {}).get(image)
        return name if name is not None or not isinstance(image, str) or "." not in image else image

    def elements(self) -> Iterator[tuple[int, Element]]:
        """The pieces of all files in order, each with the index of its file."""
        for index, file in enumerate(self.files):
            try:
                for element in file.elements():
                    yield index, element
            except PosefixError:
                self.check_unchanged([index])  # what was found may be broken because it is two files
                raise

    def digest(self) -> str:
        """A digest of the bytes of all files, and of the annotations that name the photographs; see `check_unchanged`."""
        digest = hashlib.sha256()
        self._stamps = [stamp_of_file(file.path) for file in self.files]
        for path in [file.path for file in self.files] + (
            [] if self._annotations is None else [str(self._annotations)]
        ):
            with open_binary(path) as opened:
                while data := opened.read(1 << 20):
                    digest.update(data)
        return digest.hexdigest()

    def check_unchanged(self, indices: Iterable[int]) -> None:
        """Raises PosefixError if one of these files is not the one that `digest` read, by its size and time."""
        for index in indices if self._stamps else ():
            path = self.files[index].path
            if stamp_of_file(path) != self._stamps[index]:
                raise PosefixError(f"{path}: changed while the job ran; run the same command again, which begins anew")


def open_pose_file(path: str, *, skeleton: Skeleton | None, preferred: Skeleton, name: str = "") -> PoseFile:
    """Recognizes a file of poses by its beginning (and, for annotations, its images and categories).

    Args:
      path: a local path or URL; gzip is unpacked.
      skeleton: the file's joints, where the user says them.
      preferred: the joints of a file that says only their number, if it has that many.
      name: the file's path within the folder that was named.

    Raises:
      PosefixError: not a file of poses.
    """
    file, people = _opened(path, skeleton=skeleton, preferred=preferred, name=name, most=_PEOPLE)
    return replace(file, skeleton=_likely_skeleton(path, preferred, people)) if people else file


def _opened(
    path: str,
    *,
    skeleton: Skeleton | None,
    preferred: Skeleton,
    name: str,
    most: int,
    columns: Mapping[str, str] | None = None,
) -> tuple[PoseFile, list[np.ndarray]]:
    """As `open_pose_file`; also the joints of up to `most` people if only their number says what joints they are."""
    file = PoseFile(path, *recognize(path, columns), skeleton or preferred, name=name, columns=columns)
    if columns and not isinstance(file.format, Csv | CsvJoints):
        raise PosefixError(
            f"--columns: {path} is a {file.format.name} file; only CSV and TSV tables have columns to name"
        )
    own: Skeleton | None = None
    if file.list_in == "annotations":
        with open_binary(path) as opened:
            listed = _listed_in(JsonStream(opened, path), path)
        own = listed.skeleton
        file = replace(file, names=listed.names or {}, images=listed.images)
        if listed.whole_body:
            file = replace(file, format=FORMATS["coco-wholebody-annotations"])
    elif skeleton is None and file.format.skeleton is None:
        own = file.format.skeleton_in(file)
    file = replace(file, joints_named=own is not None)
    skeleton = file.format.skeleton or skeleton or own
    if file.format.name == "yolo" or (skeleton is not None and not file.format.is_binary):
        return replace(file, skeleton=skeleton or preferred), []
    people = file.format.first_people(file, most)
    if not people:
        return replace(file, empty=True), []
    file = replace(file, skeleton=_skeleton_of(path, skeleton, preferred, len(people[0])))
    return file, people if skeleton is None else []


def _skeleton_of(path: str, given: Skeleton | None, preferred: Skeleton, count: int) -> Skeleton:
    found = skeleton_of_count(count, given, preferred)
    if found is None:
        wanted = given or preferred
        raise PosefixError(
            f"{path}: row 0 has {3 * count} keypoint values, expected {3 * wanted.num_joints} (x, y, score of the "
            f"{wanted.num_joints} joints of {wanted.name}); say what its {count} joints are with --skeleton FILE"
        )
    return found


def _likely_skeleton(path: str, preferred: Skeleton, people: list[np.ndarray]) -> Skeleton:
    """The built-in joint set that people's joints are, told by their number and by how long limbs would be.

    `preferred` is taken unless its limbs would be longer than another set's by `_LONGER`.
    """
    poses = np.stack(people)
    known = [skeleton for skeleton in (preferred, *SKELETONS.values()) if skeleton.num_joints == poses.shape[1]]
    first = known[0]
    if len(poses) < _FEW:
        return first
    lengths = {skeleton.name: limb_length(poses, skeleton) for skeleton in known}
    best = min(known, key=lambda skeleton: np.nan_to_num(lengths[skeleton.name], nan=np.inf))
    if not lengths[first.name] > _LONGER * lengths[best.name]:
        return first
    warn_once(
        f"{path}: read with the joints of {best.name}, not of {first.name}, since the limbs of its people fit; "
        f"--skeleton {first.name} says otherwise"
    )
    return best


def read_file_names(path: Path) -> dict[ImageId, str]:
    """File names by image id, of any COCO file with `images`.

    Raises:
      PosefixError: no such file, or no images in it.
    """
    with open_binary(str(path)) as opened:
        names = _listed_in(JsonStream(opened, str(path)), str(path)).names
    if names is None:
        raise PosefixError(f"{path}: no list of images in it; expected a COCO annotation file")
    return names


class _Listed(NamedTuple):
    """What a COCO or PoseTrack 2018 annotation file says beside its annotations.

    Attributes:
      names: file names by image id; None without `images`.
      images: their ids.
      skeleton: None if nothing says what the joints are.
      whole_body: people have COCO-WholeBody's lists.
    """

    names: dict | None
    images: list[ImageId]
    skeleton: Skeleton | None
    whole_body: bool


def _listed_in(stream: JsonStream, path: str) -> _Listed:
    names: dict | None = None
    skeleton, posetrack, whole = None, False, set()
    images: list[ImageId] = []
    stream.space()
    for name, _ in stream.members():
        if name == "images" and stream.peek() == "[":
            names = {}
            for _, text, image in stream.items():
                if not text:
                    continue
                if not isinstance(image, dict) or "id" not in image:
                    raise PosefixError(f"{path}: an entry of images has no id")
                posetrack |= "vid_id" in image or "is_labeled" in image
                try:
                    images.append(image_id(image["id"]))
                except ValueError as error:
                    raise PosefixError(
                        f"{path}: the id of an image is {image['id']!r:.40}; expected an integer or a name"
                    ) from error
                if names is not None and "file_name" in image:
                    names[images[-1]] = str(image["file_name"])
        elif name == "categories":
            categories, _ = stream.value()
            for category in categories if isinstance(categories, list) else ():
                if isinstance(category, dict) and category.get("keypoints") and skeleton is None:
                    skeleton = skeleton_from_category(category)
        elif name == "annotations" and stream.peek() == "[":
            for _, _, entry in stream.items():
                if isinstance(entry, dict) and entry.get("keypoints"):
                    whole.add(entry.keys() >= WHOLEBODY_KEYS.keys())
        elif name:
            stream.beginning()
    return _Listed(names, images, skeleton or (POSETRACK if posetrack else None), whole == {True})
