"""Ultralytics' results as JSON: the list that `Results.to_json()` gives, in a file per photograph.

https://docs.ultralytics.com/reference/engine/results/ (`summary`, `to_json`).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from posefix_jax.data.formats.base import ImageId, JsonFormat, Pose
from posefix_jax.data.formats.coco import valid_box
from posefix_jax.data.formats.values import image_of, numbers, score_of


class UltralyticsResults(JsonFormat):
    """A list of {name, class, confidence, box, keypoints: {x, y, visible}}; the photograph is the one of the file's name."""

    name = "ultralytics"
    row_per_person = True
    file_per_photograph = True
    score_path = ("confidence",)
    missing_at = (0.0,)  # a keypoint below Ultralytics' own limit

    def matches(self, entry: Any) -> bool:
        keypoints = entry.get("keypoints") if isinstance(entry, dict) else None
        return isinstance(keypoints, dict) and {"x", "y"} <= keypoints.keys()

    def people_of(self, entry: dict, image: ImageId) -> Iterator[Pose]:
        keypoints = entry["keypoints"]
        x, y = (numbers(keypoints[axis], f"keypoints.{axis}", axes=1) for axis in ("x", "y"))
        visible = keypoints.get("visible")
        scores = np.ones(len(x)) if visible is None else numbers(visible, "keypoints.visible", axes=1)
        if not len(x) or not len(x) == len(y) == len(scores):
            raise ValueError(f"keypoints: expected as many x, y, visible, found {len(x)}, {len(y)}, {len(scores)}")
        yield Pose(
            image_of(entry, image),
            np.column_stack([x, y, scores]),
            ("keypoints",),
            score=score_of(entry, "confidence"),
            track=entry.get("track_id"),
            slots=_slots(len(x), visible is not None),
            box=_box_of(entry.get("box")),
        )

    def paths(self, pose: Pose, joint: int) -> tuple:
        scored = (pose.slots or {})[joint][1]
        return (*pose.path, "x", joint), (*pose.path, "y", joint), (*pose.path, "visible", joint) if scored else None


@lru_cache(maxsize=256)
def _slots(joints: int, scored: bool) -> dict[int, tuple[int, bool]]:
    return {joint: (joint, scored) for joint in range(joints)}


def _box_of(corners: Any) -> tuple[float, ...] | None:
    """x, y, width, height of {x1, y1, x2, y2}; None if it is not one."""
    values: list[Any] = [corners.get(key) for key in ("x1", "y1", "x2", "y2")] if isinstance(corners, dict) else []
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    x1, y1, x2, y2 = values
    return valid_box([x1, y1, x2 - x1, y2 - y1])
