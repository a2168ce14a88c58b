"""Ultralytics' labels: a text file per photograph, a line per person, in fractions of the image's width and height."""

import re
from collections.abc import Iterator

import numpy as np

from posefix_jax.data.formats.base import Edit, Format, Photograph, Pose, PoseFile
from posefix_jax.data.formats.values import box_of
from posefix_jax.data.json_stream import Item
from posefix_jax.data.text_lines import Readable, lines, replaced

_WORD = re.compile(r"\S+")


class Yolo(Format):
    """Lines of: class, box (center x, y, width, height), joints (x, y, perhaps confidence), perhaps score and track."""

    name = "yolo"
    fraction = True
    file_per_photograph = True
    missing_at = (0.0,)  # written for a joint below Ultralytics' own limit, with its confidence beside it
    writable = True
    head, between, tail = "", "\n", "\n"
    suffix = ".txt"

    def items(self, opened: Readable, file: PoseFile) -> Iterator[Item]:
        for line in lines(opened, file.path):
            yield Item("", line, None) if line.strip() else Item(line, "", None)
        yield Item("", "", None)

    def people(self, _value: object, text: str, file: PoseFile) -> Iterator[Pose]:
        joints = file.skeleton.num_joints
        values = np.array([float(word) for word in text.split()])
        each = _values_per_joint(len(values), joints)
        pose = values[5 : 5 + each * joints].reshape(joints, each)
        scores = pose[:, 2] if each == 3 else np.ones(joints)
        rest = text.split()[5 + each * joints :]
        # A lone whole number beyond 1 is a track without a confidence.
        lone = len(rest) == 1 and rest[0].isdecimal() and int(rest[0]) > 1
        score, track = (None, rest[0]) if lone else (*rest, None, None)[:2]
        score = None if score is None else float(score)
        joints = np.column_stack([pose[:, :2], scores])
        yield Pose(file.image, joints, (), score, track=track and int(float(track)))

    def edited(self, file: PoseFile, change: Edit) -> str:
        line = change.element.text
        if not change.joints:
            return line
        words = list(_WORD.finditer(line))
        each = _values_per_joint(len(words), file.skeleton.num_joints)
        spans: list[tuple[int, int, str]] = []
        for _, joints, changed in change.changes():
            for joint in np.flatnonzero(changed).tolist():
                for word, value in zip(words[5 + each * joint :], joints[joint, :each].tolist(), strict=False):
                    spans.append((*word.span(), f"{value:.6g}"))
        return replaced(line, spans)

    def compose(self, photograph: Photograph) -> list[str]:
        texts = []
        for pose in photograph.people:
            x, y, w, h = box_of(pose.joints)
            values = [x + w / 2, y + h / 2, w, h, *pose.joints.reshape(-1).tolist()]
            values += [] if pose.score is None else [pose.score]
            texts.append(" ".join(["0", *(f"{v:.6g}" for v in values)]))
        return texts


def _values_per_joint(words: int, joints: int) -> int:
    """2 or 3, from how many numbers a line has."""
    for values in (3, 2):
        if 0 <= words - 5 - values * joints <= 2:
            return values
    raise ValueError(
        f"{words} numbers in a line, expected 5 (class and box) + {3 * joints} or {2 * joints} ({joints} joints) + up "
        "to 2; for other joints give --skeleton"
    )
