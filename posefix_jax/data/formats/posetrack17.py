"""PoseTrack 2017's JSON: `annolist` of frames, whose people list only the joints they have."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from posefix_jax.core.joint_sets import POSETRACK17
from posefix_jax.data.formats.base import ImageId, JsonFormat, Photograph, Pose, PoseFile
from posefix_jax.data.formats.values import image_id, numbers, score_of


class PoseTrack17(JsonFormat):
    """{annolist: [{image: [{name}], annorect: [{annopoints: [{point: [{id, x, y, score}]}]}]}]}."""

    name = "posetrack17"
    members = ("annolist",)
    skeleton = POSETRACK17
    writable = True
    written_skeleton = POSETRACK17
    head, tail = '{"annolist": [', "]}\n"

    def people_of(self, entry: dict, _image: ImageId) -> Iterator[Pose]:
        image = image_id(entry["image"][0]["name"])
        rectangles = entry.get("annorect") or []
        alone = isinstance(rectangles, dict)
        for i, rectangle in enumerate([rectangles] if alone else rectangles):
            groups = rectangle.get("annopoints") or []
            place = next((k for k, group in enumerate(groups) if group.get("point")), None)
            joints, slots = np.zeros((POSETRACK17.num_joints, 3)), {}
            points = [] if place is None else groups[place]["point"]
            for slot, point in enumerate(points):
                joint = int(point["id"][0])
                if not 0 <= joint < len(joints):
                    raise ValueError(f"point id {joint}, expected 0..{len(joints) - 1}")
                if joint in slots:
                    raise ValueError(f"a person has point id {joint} twice")
                values = [point["x"][0], point["y"][0], score_of(point) if "score" in point else 1.0]
                joints[joint] = numbers(values, "point", axes=1)
                slots[joint] = slot, "score" in point
            if slots:
                track = (rectangle.get("track_id") or [None])[0]
                path = ("annorect", *(() if alone else (i,)), "annopoints", place, "point")
                yield Pose(image, joints, path, score_of(rectangle), track=track, slots=slots, slot=len(points))

    def paths(self, pose: Pose, joint: int) -> tuple:
        slot, scored = (pose.slots or {})[joint]
        point = (*pose.path, slot)
        return (*point, "x", 0), (*point, "y", 0), (*point, "score", 0) if scored else None

    def photograph_of(self, value: Any, file: PoseFile) -> ImageId | None:
        return image_id(value["image"][0]["name"])

    def added(self, pose: Pose, joint: int, values: list[float], slot: int) -> dict[tuple, object]:
        x, y, score = values
        return {(*pose.path, slot): {"id": [joint], "x": [x], "y": [y], "score": [score]}}

    def compose(self, photograph: Photograph) -> list[str]:
        rectangles = []
        for pose in photograph.people:
            points = [
                {"id": [joint], "x": [round(x, 3)], "y": [round(y, 3)], "score": [round(score, 4)]}
                for joint, (x, y, score) in enumerate(pose.joints.tolist())
                if score > 0
            ]
            more = {} if pose.track is None else {"track_id": [pose.track]}
            more |= {} if pose.score is None else {"score": [pose.score]}
            rectangles.append({**more, "annopoints": [{"point": points}]})
        name = photograph.name or str(photograph.image)
        return [json.dumps({"image": [{"name": name}], "annorect": rectangles})]
