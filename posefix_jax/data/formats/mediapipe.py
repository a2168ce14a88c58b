"""MediaPipe's landmarks (BlazePose) as JSON, in fractions of the image's width and height."""

import json
from collections.abc import Iterator

from posefix_jax.core.joint_sets import BLAZEPOSE
from posefix_jax.data.formats.base import ImageId, JsonFormat, Photograph, Pose
from posefix_jax.data.formats.values import image_id, numbers

MARKS = ("landmarks", "pose_landmarks", "poseLandmarks")


class MediaPipe(JsonFormat):
    """{image_id, landmarks: [{x, y, visibility}]}, or a list of such lists; in a list, alone, or one per line."""

    name = "mediapipe"
    element_keys = MARKS
    skeleton = BLAZEPOSE
    fraction = True
    writable = True
    written_skeleton = BLAZEPOSE
    head, between, tail = "", "\n", "\n"
    writes_score = False

    def matches(self, entry: dict) -> bool:
        return bool(entry.keys() & set(MARKS))

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        known = [entry[key] for key in ("image_id", "file_name", "image", "frame") if key in entry]
        image = image_id(known[0]) if known else image
        keys = [key for key in MARKS if key in entry]
        if not keys:
            raise KeyError(MARKS[0])
        if len(keys) > 1:
            raise ValueError(f"has {' and '.join(keys)}, expected one of them")
        (key,) = keys
        several = bool(entry[key]) and isinstance(entry[key][0], list)
        for i, marks in enumerate(entry[key] if several else [entry[key]] if entry[key] else []):
            joints = numbers([[mark["x"], mark["y"], mark.get("visibility", 1.0)] for mark in marks], key, axes=2)
            yield Pose(image, joints, (key, i) if several else (key,))

    def paths(self, pose: Pose, joint: int) -> tuple:
        return tuple((*pose.path, joint, key) for key in ("x", "y", "visibility"))

    def compose(self, photograph: Photograph) -> list[str]:
        marks = [
            [{"x": round(x, 7), "y": round(y, 7), "visibility": round(v, 4)} for x, y, v in pose.joints.tolist()]
            for pose in photograph.people
        ]
        return [json.dumps({"image_id": photograph.image, "landmarks": marks})]
