"""AlphaPose's forms beside COCO's: `--format cmu` and `open`, and PoseFlow's tracks; objects keyed by photograph.

https://github.com/MVIG-SJTU/AlphaPose/blob/master/docs/output.md; PoseFlow/tracker-general.py writes the tracks.
"""

from collections.abc import Iterator
from typing import Any

from posefix_jax.data.formats.base import ImageId, JsonFormat, Pose, PoseFile
from posefix_jax.data.formats.values import score_of, triples

_LISTS = {"bodies": "joints", "people": "pose_keypoints_2d"}


class AlphaPoseBodies(JsonFormat):
    """{NAME: {version, bodies: [{joints}]}} or {NAME: {version, people: [{pose_keypoints_2d}]}}."""

    name = "alphapose-bodies"
    keyed = True

    def matches(self, entry: Any) -> bool:
        return isinstance(entry, dict) and any(isinstance(entry.get(key), list) for key in _LISTS)

    def people(self, value: object, text: str, file: PoseFile) -> Iterator[Pose]:
        assert isinstance(value, tuple)
        name, entry = value
        for key, joints in _LISTS.items():
            for i, body in enumerate(entry.get(key, ())):
                yield Pose(name, triples(body[joints], joints), (key, i, joints))

    def photograph_of(self, value: Any, file: PoseFile) -> ImageId | None:
        return value[0]


class AlphaPoseBody(JsonFormat):
    """{version, bodies: [{joints}]}: the bodies of one photograph, which the file's name tells (`sep-json`)."""

    name = "alphapose-body"
    members = ("bodies",)
    triples_in = ("joints",)
    file_per_photograph = True

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        yield Pose(image, triples(entry["joints"], "joints"))


class PoseFlow(JsonFormat):
    """{NAME: [{keypoints, scores, idx, box}]}: people with their tracks."""

    name = "poseflow"
    keyed = True
    score_path = ("scores",)
    triples_in = ("keypoints",)

    def matches(self, entry: Any) -> bool:
        first = entry[0] if isinstance(entry, list) and entry else None
        return isinstance(first, dict) and {"keypoints", "scores"} <= first.keys()

    def people(self, value: object, text: str, file: PoseFile) -> Iterator[Pose]:
        assert isinstance(value, tuple)
        name, people = value
        if not isinstance(people, list):
            raise ValueError(f"{name!r:.40} is {type(people).__name__}, expected a list of people")
        for i, person in enumerate(people):
            yield Pose(name, triples(person["keypoints"]), (i,), score_of(person, "scores"), track=person.get("idx"))

    def photograph_of(self, value: Any, file: PoseFile) -> ImageId | None:
        return value[0]
