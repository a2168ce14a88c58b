"""Poses written in another format than they came in: a photograph's people at a time."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from posefix_jax.core.geometry import joint_extent
from posefix_jax.core.joint_sets import BLAZEPOSE, OPENPOSE25, POSETRACK17
from posefix_jax.core.skeleton import Skeleton, joints_in
from posefix_jax.data.layouts import ImageId, Pose

# Joints that are the middle of two others, where a file that has the two is written as one that has the middle.
MIDDLES = {"neck": ("left_shoulder", "right_shoulder"), "mid_hip": ("left_hip", "right_hip")}


@dataclass(frozen=True)
class Target:
    """A format to write.

    Attributes:
      elements: (image, its file name, people, index of the first) -> the texts of its elements.
      head, between, tail: what a file has around and between its elements; a tail of None is `annotations_tail`.
      suffix: of the one file a photograph, where there is one a photograph; else "".
      skeleton: the joints of every such file; None: the input's.
      fraction: coordinates are parts of the image's width and height.
      scored: a person has a score.
      together: people of a photograph stand in one element.
    """

    elements: Callable[[ImageId, str | None, Sequence[Pose], int], list[str]]
    head: str = "["
    between: str = ",\n"
    tail: str | None = "]\n"
    suffix: str = ""
    skeleton: Skeleton | None = None
    fraction: bool = False
    scored: bool = True
    together: bool = True


def _flat(pose: Pose, digits: int = 3) -> list[float]:
    return [round(v, digits if i % 3 < 2 else 4) for i, v in enumerate(pose.joints.reshape(-1).tolist())]


def _box(joints: np.ndarray) -> list[float]:
    """x, y, w, h of the joints that are there."""
    present = joints[:, 2] > 0
    return [round(v, 3) for v in joint_extent(joints[:, :2], present).tolist()] if present.any() else [0.0] * 4


def _row(image: ImageId, pose: Pose) -> dict:
    row = {"image_id": image, "category_id": 1, "keypoints": _flat(pose)}
    return row | ({} if pose.track is None else {"track_id": pose.track})


def _coco(image, _name, people, _first) -> list[str]:
    return [json.dumps({**_row(image, pose), "score": 1.0 if pose.score is None else pose.score}) for pose in people]


def _annotations(image, _name, people, first) -> list[str]:
    texts = []
    for i, pose in enumerate(people):
        visible = np.column_stack([pose.joints[:, :2], 2.0 * (pose.joints[:, 2] > 0)])
        box = _box(visible)
        more = {"id": first + i + 1, "bbox": box, "area": round(box[2] * box[3], 3), "iscrowd": 0}
        more |= {"num_keypoints": int((visible[:, 2] > 0).sum())} | (
            {} if pose.score is None else {"score": pose.score}
        )
        keypoints = [int(v) if i % 3 == 2 else v for i, v in enumerate(_flat(pose._replace(joints=visible)))]
        texts.append(json.dumps({**_row(image, pose), **more, "keypoints": keypoints}))
    return texts


def _mmpose(image, name, people, _first) -> list[str]:
    instances = [
        {
            "keypoints": [[round(x, 3), round(y, 3)] for x, y in pose.joints[:, :2].tolist()],
            "keypoint_scores": [round(v, 4) for v in pose.joints[:, 2].tolist()],
            **({} if pose.score is None else {"bbox_score": pose.score}),
        }
        for pose in people
    ]
    key = "frame_id" if isinstance(image, int) else "image_id"
    return [json.dumps({key: image, **({"file_name": name} if name else {}), "instances": instances})]


def _openpose(_image, _name, people, _first) -> list[str]:
    return [
        json.dumps(
            {"version": 1.3, "people": [{"person_id": [-1], "pose_keypoints_2d": _flat(pose)} for pose in people]}
        )
    ]


def _posetrack17(image, name, people, _first) -> list[str]:
    rectangles = []
    for pose in people:
        points = [
            {"id": [joint], "x": [round(x, 3)], "y": [round(y, 3)], "score": [round(score, 4)]}
            for joint, (x, y, score) in enumerate(pose.joints.tolist())
            if score > 0
        ]
        more = {} if pose.track is None else {"track_id": [pose.track]}
        more |= {} if pose.score is None else {"score": [pose.score]}
        rectangles.append({**more, "annopoints": [{"point": points}]})
    return [json.dumps({"image": [{"name": name or str(image)}], "annorect": rectangles})]


def _mediapipe(image, _name, people, _first) -> list[str]:
    marks = [
        [{"x": round(x, 7), "y": round(y, 7), "visibility": round(v, 4)} for x, y, v in pose.joints.tolist()]
        for pose in people
    ]
    return [json.dumps({"image_id": image, "landmarks": marks})]


def _yolo(_image, _name, people, _first) -> list[str]:
    lines = []
    for pose in people:
        x, y, w, h = _box(pose.joints)
        numbers = [x + w / 2, y + h / 2, w, h, *pose.joints.reshape(-1).tolist()]
        tail = [] if pose.score is None else [pose.score]
        lines.append(" ".join(["0", *(f"{v:.6g}" for v in (*numbers, *tail))]))
    return lines


_LINES = {"head": "", "between": "\n", "tail": "\n"}

TARGETS = {
    "coco": Target(_coco, together=False),
    "coco-annotations": Target(_annotations, together=False, head='{"annotations": [', tail=None),
    "mmpose": Target(_mmpose),
    "openpose": Target(_openpose, **_LINES, suffix="_keypoints.json", skeleton=OPENPOSE25, scored=False),
    "posetrack17": Target(_posetrack17, head='{"annolist": [', tail="]}\n", skeleton=POSETRACK17),
    "mediapipe": Target(_mediapipe, **_LINES, skeleton=BLAZEPOSE, fraction=True, scored=False),
    "yolo": Target(_yolo, **_LINES, suffix=".txt", fraction=True),
    "parquet": Target(_coco, head="", between="", tail="", together=False),
}


def as_lines(target: Target) -> Target:
    """The same elements, one a line (`.jsonl`)."""
    return replace(target, **_LINES)


def annotations_tail(images: Sequence[Sequence], joints: Sequence[str]) -> str:
    """What follows the annotations: the images (id, name), and the category with its joints."""
    entries = [{"id": image, **({"file_name": name} if name else {})} for image, name in dict(images).items()]
    category = {"id": 1, "name": "person", "keypoints": list(joints)}
    return f'],\n"images": {json.dumps(entries)},\n"categories": {json.dumps([category])}}}\n'


def converted(joints: np.ndarray, given: Skeleton, wanted: Skeleton) -> np.ndarray:
    """[K, 3] in other joints, matched by name; a neck or mid-hip that is lacking is made of its two; others are 0."""
    if given.joints == wanted.joints:
        return joints
    index = joints_in(wanted.joints, given.joints)
    out = np.where(index[:, None] >= 0, joints[index], 0.0)
    for name, ends in MIDDLES.items():
        place = joints_in([name], wanted.joints)[0]
        sides = joints_in(ends, given.joints)
        if place >= 0 and index[place] < 0 and (sides >= 0).all() and (joints[sides, 2] > 0).all():
            out[place] = joints[sides].mean(axis=0)
    return out


def file_of(image: ImageId, name: str | None, target: Target) -> str:
    """The name of a photograph's own file; without folders, whatever the row says."""
    stem = PurePosixPath(name or str(image)).name
    stem = stem if "." not in stem else stem.rsplit(".", 1)[0]
    stem = re.sub(r"[\\/\x00-\x1f]", "_", stem).strip(". ").encode("utf-8", "replace").decode()
    return (stem[:150] or "image") + target.suffix
