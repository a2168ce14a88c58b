"""What format a file of poses is in, told by its beginning."""

import re
from collections.abc import Mapping
from typing import Any

from posefix_jax.data.formats import FORMATS, Format, JsonFormat
from posefix_jax.data.formats.base import NotPoses
from posefix_jax.data.formats.cells import renamed
from posefix_jax.data.formats.csv import has_joint_column, is_header
from posefix_jax.data.formats.deeplabcut import DeepLabCutHdf5, tables_in
from posefix_jax.data.formats.hdf5 import open_hdf5
from posefix_jax.data.formats.mediapipe import MediaPipe
from posefix_jax.data.formats.sleap import SleapHdf5
from posefix_jax.data.image_sources import open_binary
from posefix_jax.data.json_stream import JsonStream
from posefix_jax.data.text_lines import lines
from posefix_jax.types import PosefixError

TABLES = (".csv", ".tsv")
_POSES = (
    "keypoint",
    "kpt",
    "pose",
    "joint",
    "landmark",
    "skeleton",
    "people",
    "person",
    "bod",
    "image_id",
    "instances",
)
"""Parts of the names that a file of poses would have, were it damaged or in a form that is not known."""
_COMMON = {"data"}
"""Members that other documents may have, so that their first element must tell the format."""
_JSON = [form for form in FORMATS.values() if isinstance(form, JsonFormat)]


def recognize(path: str, columns: Mapping[str, str] | None) -> tuple[Format, str | None]:
    """A file's format, and the member of a JSON document that holds its elements, as in `PoseFile.list_in`.

    Args:
      columns: as `PoseFile.columns`.

    Raises:
      PosefixError: not a file of poses.
    """
    if path.endswith((".pth", ".pkl", ".pickle", ".pt")):
        raise PosefixError(
            f"{path}: pickle files are refused, since they can hold programs; Detectron2 writes the same poses to "
            "coco_instances_results.json, MMPose's results can be saved with numpy.savez (keypoints, image_id)"
        )
    with open_binary(path) as opened:
        head = opened.read(4)
    if head == b"PAR1":
        return FORMATS["parquet"], None
    if head == b"PK\x03\x04" or head == b"PK\x05\x06":
        return FORMATS["npz"], None
    if head == b"\x93NUM":
        raise PosefixError(
            f"{path}: an array alone does not name its photographs; save it with them: numpy.savez(FILE, keypoints=..., "
            "image_id=...)"
        )
    if head == b"\x89HDF":
        return FORMATS[_hdf5_format(path)], None
    if head == b"MATL":
        raise PosefixError(
            f"{path}: MATLAB files are not read; load it with scipy.io.loadmat and save the arrays with numpy.savez "
            "(keypoints, image_id)"
        )
    name = path.removesuffix(".gz").lower()
    if name.endswith(".txt"):
        _check_numbers(path)
        return FORMATS["yolo"], None
    if name.endswith(TABLES) or not head.decode("utf-8-sig", "replace").lstrip().startswith(("[", "{")):
        table = _table_format(path, named=name.endswith(TABLES), columns=columns)
        if table is not None:
            return table, None
    with open_binary(path) as opened:
        return _json_format(JsonStream(opened, path), path)


def _hdf5_format(path: str) -> str:
    """The name of the format of an HDF5 file. Raises PosefixError where it is none of these."""
    with open_hdf5(path, "HDF5") as archive:
        names = list(archive)
        if tables_in(archive):
            return DeepLabCutHdf5.name
        if {"tracks", "node_names"} <= set(names):
            return SleapHdf5.name
        listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        if {"frames", "instances"} <= set(names):
            raise PosefixError(
                f"{path}: this is SLEAP's project ({listed:.100}); export it as an analysis file (HDF5 or CSV) and refine that"
            )
        raise NotPoses(
            f"{path}: holds {listed or 'nothing':.100}; expected DeepLabCut's table or SLEAP's analysis file"
        )


def _check_numbers(path: str) -> None:
    """Raises NotPoses where hardly a word of the first line of a `.txt` is a number, as in a README or a list of classes."""
    with open_binary(path) as opened:
        words = next((line.split() for line in lines(opened, path) if line.strip()), [])
    numbers = sum(bool(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|nan|inf", word, re.IGNORECASE)) for word in words)
    if 2 * numbers < len(words):
        raise NotPoses(f"{path}: its first line is {' '.join(words)!r:.40}; expected Ultralytics' labels (numbers)")


def _table_format(path: str, *, named: bool, columns: Mapping[str, str] | None) -> Format | None:
    """The format of a text table; None of a file that is not named like one and whose first line is no header of one."""
    with open_binary(path) as opened:
        try:
            header = next(lines(opened, path), "").removeprefix("\ufeff")
        except PosefixError:
            if named:
                raise
            return None
    if header.startswith(("scorer,", '"scorer",')):
        return FORMATS["deeplabcut"]
    header = renamed(header, columns, path)
    if not named and not is_header(header):
        return None
    return FORMATS["csv-joints" if has_joint_column(header) else "csv"]


def _json_format(stream: JsonStream, path: str) -> tuple[Format, str | None]:
    stream.space()
    if stream.peek() == "[":
        form = FORMATS["coco"]  # of an empty list
        for item in stream.items():
            if item.text:
                if isinstance(marks := FORMATS["mediapipe"], MediaPipe) and marks.matches_marks(item.value):
                    return marks, None  # the whole list is an element
                form = _format_of(item.value, path)
                if not _nobody(item.value):
                    break
        return form, ""
    if stream.peek() != "{":
        stream.take("[{")
    for name, _ in stream.members():
        forms = [form for form in _JSON if name in form.members]
        if len(forms) > 1 or name in _COMMON:
            first = next((item.value for item in stream.items()), None)
            if len(forms) == 1 and first is not None:
                return _format_of(first, path), name
            return next((form for form in forms if isinstance(first, dict) and form.matches(first)), forms[0]), name
        if forms:
            return forms[0], forms[0].members[0]
        if name:
            value = stream.beginning()
            if any(name in form.element_keys for form in _JSON):
                break
            for form in _JSON:
                if form.keyed and form.matches(value):
                    return form, None
    with open_binary(path) as opened:
        again = JsonStream(opened, path)
        again.space()
        while again.peek():
            value = again.value()[0]
            again.space()
            if not _nobody(value):
                break
    return _format_of(value, path), None


def _nobody(value: object) -> bool:
    """Whether an element is a frame without people, which does not tell detectron2 from mmpose."""
    return isinstance(value, dict) and value.get("instances") == []


def _format_of(entry: Any, path: str) -> Format:
    """The format of an element of a list, or of a line."""
    for form in _JSON if isinstance(entry, dict) else ():
        if not form.keyed and form.matches(entry):
            return form
    found = f"an object with {', '.join(sorted(entry)[:5])}" if isinstance(entry, dict) else f"{entry!r:.40}"
    ours = isinstance(entry, dict) and entry.get("made_by") == "posefix"  # the report of a job
    error = PosefixError if not ours and any(word in _keys(entry) for word in _POSES) else NotPoses
    raise error(
        f"{path}: no poses in a known form: its first element is {found}; expected COCO results (image_id, keypoints, "
        "score), or one of the other formats of docs/formats.md"
    )


def _keys(value: Any, deep: int = 4) -> str:
    """The names in the first elements of a value, in lower case."""
    if not deep or not isinstance(value, dict | list):
        return ""
    inner = list(value.values())[:20] if isinstance(value, dict) else value[:3]
    names = " ".join(map(str, value)).lower() if isinstance(value, dict) else ""
    return " ".join([names, *(_keys(one, deep - 1) for one in inner)])
