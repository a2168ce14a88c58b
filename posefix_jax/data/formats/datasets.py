"""The JSON that code of single datasets reads: HRNet's MPII, ST-GCN's Kinetics-skeleton."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from posefix_jax.core.joint_sets import MPII, OPENPOSE18
from posefix_jax.data.formats.base import ImageId, JsonFormat, Pose, PoseFile
from posefix_jax.data.formats.values import image_of, numbers


class MpiiJson(JsonFormat):
    """A list of {joints [16][2], joints_vis [16], image, center, scale}; the first pixel is (1, 1).

    https://github.com/leoxiaobin/deep-high-resolution-net.pytorch, lib/dataset/mpii.py, which subtracts the 1.
    """

    name = "mpii"
    skeleton = MPII
    row_per_person = True
    visible = 1
    first_pixel = 1
    missing_at = (-2.0,)  # -1 in the file

    def matches(self, entry: Any) -> bool:
        return isinstance(entry, dict) and {"joints", "joints_vis", "image"} <= entry.keys()

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        xy, seen = numbers(entry["joints"], "joints", axes=2), numbers(entry["joints_vis"], "joints_vis", axes=1)
        if xy.shape[1:] != (2,) or seen.shape != xy.shape[:1]:
            raise ValueError(f"joints are {xy.shape} and joints_vis {seen.shape}, expected [16, 2] and [16]")
        yield Pose(image_of({"image": entry["image"]}, image), np.column_stack([xy - self.first_pixel, seen]))

    def paths(self, pose: Pose, joint: int) -> tuple:
        return ("joints", joint, 0), ("joints", joint, 1), ("joints_vis", joint)


class KineticsSkeleton(JsonFormat):
    """{data: [{frame_index, skeleton: [{pose [2 K], score [K]}]}], label, label_index}, in fractions of width and height.

    https://github.com/yysijie/st-gcn, feeder/feeder_kinetics.py, which takes a joint of score 0 for missing.
    """

    name = "kinetics-skeleton"
    members = ("data", "label_index")
    skeleton = OPENPOSE18
    fraction = True
    missing_at = (0.0,)

    def matches(self, entry: Any) -> bool:
        return isinstance(entry, dict) and {"frame_index", "skeleton"} <= entry.keys()

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        for i, person in enumerate(entry["skeleton"]):
            xy, scores = (numbers(person[key], key, axes=1) for key in ("pose", "score"))
            if len(xy) != 2 * len(scores):
                raise ValueError(f"pose has {len(xy)} values and score {len(scores)}, expected twice as many")
            yield Pose(image_of(entry, image), np.column_stack([xy.reshape(-1, 2), scores]), ("skeleton", i))

    def photograph_of(self, value: Any, file: PoseFile) -> ImageId | None:
        return image_of(value, file.image)

    def paths(self, pose: Pose, joint: int) -> tuple:
        pair = (*pose.path, "pose")
        return (*pair, 2 * joint), (*pair, 2 * joint + 1), (*pose.path, "score", joint)
