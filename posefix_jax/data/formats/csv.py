"""Tables of poses as text (CSV, TSV): a record per person, or one per joint. Columns are known by their names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter

import numpy as np

from posefix_jax.core.skeleton import Skeleton, canonical
from posefix_jax.data.formats.base import Edit, NotPoses, Photograph, Pose, PoseFile
from posefix_jax.data.formats.cells import DELIMITERS, cells_of, delimiter_of, numbers_of, plain, quoted
from posefix_jax.data.formats.table import (
    Cells,
    Layout,
    Record,
    Table,
    named_skeleton,
    new_cells,
    own_values,
    with_cells,
)
from posefix_jax.data.formats.values import flat
from posefix_jax.data.image_sources import open_binary
from posefix_jax.data.text_lines import split_lines
from posefix_jax.types import PosefixError

# Names of columns as `canonical` spells them, the preferred one first.
IMAGE = (
    "image_id file_name filename image_name image image_path image_file img img_id img_name imgname img_path path file "
    "frame frame_id frame_index frame_idx frame_number frame_no frame_num"
).split()
TRACK = (
    "track_id track person_id person person_index person_idx instance_id instance instance_index individual "
    "individual_id subject subject_id annotation_id object_id id idx"
).split()
SCORE = "instance_score person_score pose_score bbox_score box_score detection_score".split()
SCORE_ALONE = "score confidence conf".split()
"""Also a person's score, where a record is a person; where it is a joint, the joint's."""
CATEGORY = ("category_id",)
JOINT = (
    "joint joint_name keypoint keypoint_name bodypart bodyparts body_part landmark landmark_name part part_name node "
    "node_name name label"
).split()
_SCORES = "score confidence conf likelihood visibility visible vis v s c p prob probability".split()
_AXES = {"x": "x", "y": "y", **dict.fromkeys(_SCORES, "score")}
_FLAGS = {"v": 2, "vis": 1, "visible": 1}
"""Scores that are visibilities, and what a joint that is there has."""
_NUMBERED = r"((kp|kpt|keypoint|keypoints|joint|point|landmark|node)_?)?\d+"
_NO_JOINTS = {"bbox", "box", "center", "centre", "scale", "image", "img", "crop", "bbox_center", "offset"}


class Csv(Table):
    """A record per person: the photograph, perhaps a track and a score, and columns `nose_x`, `nose_y`, `nose_score`, ..."""

    name = "csv"
    escapes = False
    row_per_person = True
    score_path = ("score",)
    missing_at = (0.0, -1.0)
    writable = True
    groups_people = False
    between, tail = "\n", "\n"

    def layout(self, header: Sequence[str], path: str) -> Layout:
        delimiter, names, columns = _columns(header[0], path, self.name)
        found: dict[str, dict[str, int]] = {}
        flags = set()
        for place, name in enumerate(names):
            joint, axis = _joint_and_axis(name)
            if joint is None or joint in _NO_JOINTS or canonical(name) in (*SCORE, *IMAGE, *TRACK):
                continue
            if axis in found.setdefault(joint, {}):
                raise _unfit(path, f"two columns for {axis} of {joint}", self.name)
            found[joint][axis] = place
            flags.add(_FLAGS.get(re.split(r"[\W_\d]+", name.lower().strip("_"))[-1]) if axis == "score" else None)
        joints = {joint: axes for joint, axes in found.items() if axes.keys() & {"x", "y"}}
        for joint, axes in joints.items():
            for axis in ("x", "y"):
                if axis not in axes:
                    raise _unfit(path, f"a column for {joint}, but none for its {axis}", self.name)
        if not joints:
            listed = ", ".join(names[:6])
            alike = found or set(columns) & {*IMAGE, *JOINT, "x", "y", "keypoints"}
            raise _unfit(
                path,
                f"columns {listed:.120}, none of which are joints; expected pairs like nose_x, nose_y (a record per person), or "
                "joint, x, y (a record per joint)",
                self.name,
                PosefixError if alike else NotPoses,
            )
        named = {joint: axes for joint, axes in joints.items() if not re.fullmatch(_NUMBERED, joint)}
        numbered = not named
        # Numbers beside names are corners of a box; without names, keypoints in the order of their numbers.
        joints = named or dict(sorted(joints.items(), key=lambda pair: int(re.findall(r"\d+", pair[0])[-1])))
        cells = tuple(Cells(axes["x"], axes["y"], axes.get("score")) for axes in joints.values())
        return Layout(
            delimiter,
            tuple(names),
            () if numbered else tuple(joints),
            ((None, cells),),
            (_required(columns, IMAGE, names, path, self.name),),
            track=_first(columns, TRACK),
            score=_first(columns, SCORE + SCORE_ALONE),
            category=_first(columns, CATEGORY),
            flag=max((flag for flag in flags if flag), default=None),
        )

    def head_of(self, joints: Sequence[str]) -> str:
        names = [quoted(f"{joint}_{axis}") for joint in joints for axis in ("x", "y", "score")]
        return ",".join(["image_id", "track_id", "score", *names]) + "\n"

    def compose(self, photograph: Photograph) -> list[str]:
        return [
            ",".join(
                [_written(photograph.image), _written(pose.track), repr(1.0 if pose.score is None else pose.score)]
                + [repr(value) for value in flat(pose)]
            )
            for pose in photograph.people
        ]


class CsvJoints(Table):
    """A record per joint: the photograph, perhaps a track, the joint's name, x, y, perhaps its score."""

    name = "csv-joints"
    row_per_person = True
    missing_at = Csv.missing_at

    def layout(self, header: Sequence[str], path: str) -> Layout:
        delimiter, names, columns = _columns(header[0], path, self.name)
        scores = [name for name in _SCORES if name in columns]
        x, y = (_required(columns, [axis], names, path, self.name) for axis in ("x", "y"))
        cells = Cells(x, y, columns[scores[0]] if scores else None)
        return Layout(
            delimiter,
            tuple(names),
            (),
            ((None, (cells,)),),
            (_required(columns, IMAGE, names, path, self.name),),
            track=_first(columns, TRACK),
            score=_first(columns, SCORE),
            category=_first(columns, CATEGORY),
            joint=_required(columns, JOINT, names, path, self.name),
            flag=_FLAGS.get(scores[0]) if scores else None,
        )

    def skeleton_in(self, file: PoseFile) -> Skeleton | None:
        """As `Format.skeleton_in`. Reads the file once; an integer per person is remembered.

        Raises:
          PosefixError: joints without names, or records of one person that stand apart.
        """
        joints: dict[str, None] = {}
        spelled: set[str] = set()
        seen: set[int] = set()
        with open_binary(file.path) as opened:
            for _, text, value in self.items(opened, file):
                if not text:
                    continue
                assert isinstance(value, tuple)
                layout, group = value
                cells = dict.fromkeys(record.cells[layout.joint] for record in group)
                if not cells.keys() <= spelled:
                    spelled |= cells.keys()
                    joints |= dict.fromkeys(canonical(plain(cell)) for cell in cells)
                key = hash(tuple(group[0].cells[column] for column in (*layout.image, layout.track or 0)))
                if layout.track is not None and key in seen:
                    raise PosefixError(
                        f"{file.path}: line {group[0].line}: more of a person after another one; sort the records by "
                        "photograph and person"
                    )
                seen.add(key)
                if len(joints) > 1000 or "" in joints or any(joint.isdecimal() for joint in joints):
                    odd = next((joint for joint in joints if not joint or joint.isdecimal()), "more than 1000 names")
                    raise PosefixError(f"{file.path}: joints are called {odd!r}; expected names like nose, left_eye")
        return named_skeleton(tuple(joints), self.name)

    def grouped(self, rows: Iterator[Record], layout: Layout) -> Iterator[list[Record]]:
        group: list[Record] = []
        names: set[str] = set()
        own = itemgetter(*layout.image, *([] if layout.track is None else [layout.track]))
        person: object = None
        assert layout.joint is not None
        for record in rows:
            if not record.cells:
                if group:
                    yield group
                group, names = [], set()
                yield [record]
                continue
            joint = record.cells[layout.joint]
            if own(record.cells) != person or (layout.track is None and joint in names):
                if group:
                    yield group
                group, names, person = [], set(), own(record.cells)
            group.append(record)
            names.add(joint)
        if group:
            yield group

    def people(self, value: object, text: str, file: PoseFile) -> Iterator[Pose]:
        assert isinstance(value, tuple)
        layout, group = value
        places = _places(file.skeleton)
        joints, slots = np.zeros((file.skeleton.num_joints, 3)), {}
        columns = [column for column in layout.people[0][1][0] if column is not None]
        values: list[list[float]] = []
        for slot, record in enumerate(group):
            name = record.cells[layout.joint]
            joint = places.get(name)
            if joint is None:
                joint = places[name] = places.get(canonical(plain(name)), -1)
            if joint < 0 or joint in slots:
                what = "twice in one person" if joint in slots else f"which {file.skeleton.name} lacks"
                raise ValueError(f"line {record.line}: joint {plain(name)!r:.40}, {what}")
            values.append(numbers_of(record.cells, columns, layout.header))
            slots[joint] = slot, len(columns) > 2
        joints[list(slots), 2] = 1.0
        joints[list(slots), : len(columns)] = values
        yield own_values(group[0], layout, joints)._replace(path=(layout,), slots=slots, slot=len(group))

    def edited(self, file: PoseFile, change: Edit) -> str:
        text = change.element.text
        if not change.joints and not change.scores:
            return text
        (pose,) = change.element.poses
        layout: Layout = pose.path[0]
        texts = split_lines(text) if '"' not in text else _split(text, pose.slot)
        columns = layout.people[0][1][0]
        added: list[str] = []
        for _, joints, changed in change.changes():
            for joint in np.flatnonzero(changed).tolist():
                slot = (pose.slots or {}).get(joint)
                if slot is None:
                    added.append(_added(texts[-1], file.skeleton.joints[joint], joints[joint], layout))
                else:
                    new = new_cells(columns, joints[joint], pose.joints[joint], layout)
                    texts[slot[0]] = with_cells(texts[slot[0]], new, layout)
        if added and not texts[-1].endswith("\n"):
            added[-1] = added[-1].rstrip("\r\n")
            texts[-1] += "\n"
        texts += added
        for score in change.scores.values():
            assert layout.score is not None  # else nobody may ask for it: `has_score`
            texts = [with_cells(one, {layout.score: repr(round(score, 6))}, layout) for one in texts]
        return "".join(texts)


def is_header(line: str) -> bool:
    """Whether a line is the header of such a table: cells, one of which names a column of photographs."""
    cells = re.split(f"[{re.escape(DELIMITERS)}]", line)
    return len(cells) > 2 and any(canonical(plain(cell)) in IMAGE for cell in cells)


def has_joint_column(header: str) -> bool:
    """Whether the records of a table with this header are joints: columns name the joint, x and y."""
    names = {canonical(plain(cell)) for cell in re.split(f"[{re.escape(DELIMITERS)}]", header)}
    return {"x", "y"} <= names and not names.isdisjoint(JOINT)


def _columns(header: str, path: str, kind: str) -> tuple[str, list[str], dict[str, int]]:
    """The delimiter, the columns' names, and the place of each by its canonical name. Raises PosefixError."""
    delimiter = delimiter_of(header)
    try:
        names = [plain(cell) for cell in cells_of(header, delimiter)]
    except ValueError as error:
        raise _unfit(path, f"a broken header ({error})", kind) from error
    columns: dict[str, int] = {}
    for place, name in enumerate(names):
        key = canonical(name)
        if key in columns and key in (*IMAGE, *TRACK, *SCORE, *SCORE_ALONE, *CATEGORY, *JOINT, *_AXES):
            raise _unfit(path, f"two columns called {name!r:.40}", kind)
        columns.setdefault(key, place)
    return delimiter, names, columns


def _unfit(path: str, what: str, kind: str, error: type[PosefixError] = PosefixError) -> PosefixError:
    return error(f"{path}: the header has {what} (read as {kind})")


def _first(columns: Mapping[str, int], names: Sequence[str]) -> int | None:
    return next((columns[name] for name in names if name in columns), None)


def _required(columns: Mapping[str, int], wanted: Sequence[str], names: Sequence[str], path: str, kind: str) -> int:
    place = _first(columns, wanted)
    if place is None:
        some = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        more = ", ..." if len(wanted) > 3 else ""
        say = f"say which it is with --columns {wanted[0]}=NAME"
        raise _unfit(path, f"columns {some:.120}, but none called {' or '.join(wanted[:3])}{more}; {say}", kind)
    return place


def _joint_and_axis(name: str) -> tuple[str | None, str]:
    """Which joint a column is of, and whether it is its x, y or score; None for another column."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.strip())
    words = [word for word in re.split(r"[\W_]+", apart) if word]
    if len(words) > 1 and words[-1].lower() in _AXES:
        return canonical("_".join(words[:-1])), _AXES[words[-1].lower()]
    if len(words) > 1 and words[0].lower() in _AXES:
        return canonical("_".join(words[1:])), _AXES[words[0].lower()]
    glued = re.fullmatch(r"([a-z]+)(\d+)", words[0].lower()) if len(words) == 1 else None
    return (glued[2], _AXES[glued[1]]) if glued and glued[1] in _AXES else (None, "")


@lru_cache(maxsize=64)  # asked once per person
def _places(skeleton: Skeleton) -> dict[str, int]:
    """The place of each joint by its canonical name; what the cells call them is added."""
    return {canonical(joint): place for place, joint in enumerate(skeleton.joints)}


def _split(text: str, count: int) -> list[str]:
    """The records in the text of a person."""
    texts = [""]
    for line in split_lines(text):
        texts[-1] += line
        if texts[-1].count('"') % 2 == 0:
            texts.append("")
    assert len(texts) == count + 1 and not texts[-1], "as many records as were read"
    return texts[:-1]


def _added(like: str, name: str, joint: np.ndarray, layout: Layout) -> str:
    """A record for a joint that had none: the photograph and the person of another, and nothing else of it."""
    columns = layout.people[0][1][0]
    kept = {*layout.image, layout.track, layout.score, layout.category}
    new = {column: "" for column in range(len(layout.header)) if column not in kept}
    assert layout.joint is not None
    new |= {layout.joint: name} | new_cells(columns, joint, np.full(3, np.nan), layout)
    return with_cells(like if like.endswith("\n") else like + "\n", new, layout)


def _written(value: object) -> str:
    """The cell of an id or a name."""
    return "" if value is None else str(value) if isinstance(value, int) else quoted(str(value))
