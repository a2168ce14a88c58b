"""OpenPose's JSON: a file per photograph, `people` with `pose_keypoints_2d`."""

import json
from collections.abc import Iterator

from posefix_jax.core.joint_sets import OPENPOSE25
from posefix_jax.data.formats.base import ImageId, JsonFormat, Photograph, Pose
from posefix_jax.data.formats.values import flat, triples


class OpenPose(JsonFormat):
    """{people: [{pose_keypoints_2d}]}; the photograph is the one that the file's name tells."""

    name = "openpose"
    members = ("people",)
    triples_in = ("pose_keypoints_2d",)
    file_per_photograph = True
    writable = True
    written_skeleton = OPENPOSE25
    more_joints = ("face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d")
    head, between, tail = "", "\n", "\n"
    suffix = "_keypoints.json"
    writes_score = False

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        if entry["pose_keypoints_2d"]:
            yield Pose(image, triples(entry["pose_keypoints_2d"], "pose_keypoints_2d"))

    def compose(self, photograph: Photograph) -> list[str]:
        people = [{"person_id": [-1], "pose_keypoints_2d": flat(pose)} for pose in photograph.people]
        return [json.dumps({"version": 1.3, "people": people})]
