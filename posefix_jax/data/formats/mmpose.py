"""MMPose's predictions: of a video or folder (`instance_info`), of one image, and lines of them."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from posefix_jax.data.formats.base import ImageId, JsonFormat, Photograph, Pose, PoseFile
from posefix_jax.data.formats.values import image_of, numbers, score_of


class MMPoseImage(JsonFormat):
    """A list of {keypoints [K][2], keypoint_scores [K]}: the people of one image, which the file's name tells."""

    name = "mmpose-image"
    members = ("instance_info",)
    file_per_photograph = True

    def matches(self, entry: dict) -> bool:
        return {"keypoints", "keypoint_scores"} <= entry.keys()

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        xy = numbers(entry["keypoints"], axes=2)
        scores = numbers(entry["keypoint_scores"], "keypoint_scores", axes=1)
        if xy.shape[1] < 2 or scores.shape != xy.shape[:1]:
            raise ValueError(f"keypoints are {xy.shape} and keypoint_scores {scores.shape}, expected [K, 2] and [K]")
        yield Pose(image, np.column_stack([xy[:, :2], scores]), (), score_of(entry, "bbox_score"))

    def paths(self, pose: Pose, joint: int) -> tuple:
        xy = (*pose.path, "keypoints", joint)
        return (*xy, 0), (*xy, 1), (*pose.path, "keypoint_scores", joint)


class MMPose(MMPoseImage):
    """A list of frames {frame_id, instances: [people]}, alone or in an object's `instance_info`."""

    name = "mmpose"
    element_keys = ("instances",)
    file_per_photograph = False
    writable = True

    def matches(self, entry: dict) -> bool:
        return "instances" in entry

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        image = image_of(entry, image)
        for i, instance in enumerate(entry["instances"]):
            for pose in super().people_of(instance, image):
                yield pose._replace(path=("instances", i))

    def photograph_of(self, value: Any, file: PoseFile) -> ImageId | None:
        return image_of(value, file.image)

    def compose(self, photograph: Photograph) -> list[str]:
        instances = [
            {
                "keypoints": [[round(x, 3), round(y, 3)] for x, y in pose.joints[:, :2].tolist()],
                "keypoint_scores": [round(v, 4) for v in pose.joints[:, 2].tolist()],
                **({} if pose.score is None else {"bbox_score": pose.score}),
            }
            for pose in photograph.people
        ]
        key = "frame_id" if isinstance(photograph.image, int) else "image_id"
        name = {"file_name": photograph.name} if photograph.name else {}
        return [json.dumps({key: photograph.image, **name, "instances": instances})]
