"""Refinement of what other libraries return, in memory: the same kind of object comes back with better joints.

None of those libraries is imported. Their objects are known by the attributes that are read here.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posefix_jax.core.joint_sets import skeleton_of_count
from posefix_jax.core.skeleton import JointMap, Skeleton
from posefix_jax.data.images import UnreadableImage, read_image
from posefix_jax.types import PosefixError


class Kind(NamedTuple):
    """A kind of object with the people of one photograph.

    Attributes:
      name: for messages.
      matches: whether an object is one.
      poses: its joints, [N, K, 3]: image x, y, score; a missing joint has score 0.
      image: its photograph, [H, W, 3] RGB or a path; None if it has none.
      replaced: a copy with other joints, [N, K, 3].
    """

    name: str
    matches: Callable[[Any], bool]
    poses: Callable[[Any], np.ndarray]
    image: Callable[[Any], np.ndarray | str | None]
    replaced: Callable[[Any, np.ndarray], Any]


def refine_results(
    refine: Callable[[list, list], Any], ours: Skeleton, results: Any, images: Any, skeleton: Skeleton | None
) -> Any:
    """As `Refiner.refine_results`.

    Args:
      refine: gives the `Refined` of each of several photographs and its poses.
      ours: the joints of those poses.
      results, images, skeleton: as there.
    """
    if isinstance(results, dict) and "predictions" in results:
        of = results["predictions"]
        return results | {"predictions": refine_results(refine, ours, of, _listed(images, of), skeleton)}
    several = isinstance(results, list) and (not results or _kind_of(results) is None)
    objects = results if several else [results]
    photographs = _listed(images, objects) if several else [images]
    if len(photographs) != len(objects):
        raise PosefixError(f"{len(objects)} results need as many photographs, found {len(photographs)}")
    kinds = [_kind_of(one) for one in objects]
    unknown = next((one for one, kind in zip(objects, kinds, strict=True) if kind is None), None)
    if unknown is not None:
        raise PosefixError(
            f"results of {type(unknown).__module__}.{type(unknown).__name__} are not known; expected one or a list of: "
            f"{', '.join(kind.name for kind in KINDS)}; `refine` takes arrays"
        )
    changed = [copy.copy(one) for one in objects]
    pixels, poses, waiting = [], [], []
    for index, (one, kind, photograph) in enumerate(zip(objects, kinds, photographs, strict=True)):
        assert kind is not None
        joints = kind.poses(one)
        if len(joints):
            joint_map = JointMap(_skeleton(joints.shape[1], skeleton, ours), ours)
            if not joint_map.shared.any():
                raise PosefixError(f"result {index} ({kind.name}) shares no joint with the refiner's {ours.name}")
            pixels.append(_pixels(one, kind, photograph, index))
            poses.append(np.array([joint_map.to_refiner(pose) for pose in joints]))
            waiting.append((index, kind, joint_map, joints))
    refined = refine(pixels, poses) if poses else []
    for (index, kind, joint_map, joints), old, new in zip(waiting, poses, refined, strict=True):
        better = [joint_map.to_file(*each, np.ones(3)) for each in zip(joints, new.poses, old, strict=True)]
        changed[index] = kind.replaced(objects[index], np.array(better))
    return changed if several else changed[0]


def _kind_of(result: Any) -> Kind | None:
    return next((kind for kind in KINDS if kind.matches(result)), None)


def _listed(images: Any, results: Sequence) -> Sequence:
    """A photograph for each result; a single one is that of a single result."""
    if images is None:
        return [None] * len(results)
    return images if isinstance(images, list | tuple) else [images]


def _pixels(result: Any, kind: Kind, photograph: Any, index: int) -> Any:
    photograph = kind.image(result) if photograph is None else photograph
    if photograph is None:
        raise PosefixError(f"result {index} ({kind.name}) has no photograph: give it as images")
    if isinstance(photograph, str | Path):
        try:
            return read_image(Path(photograph), exif=True)
        except UnreadableImage as error:
            raise PosefixError(f"{photograph}: {error}") from error
    return photograph


def _skeleton(count: int, given: Skeleton | None, preferred: Skeleton) -> Skeleton:
    found = skeleton_of_count(count, given, preferred)
    if found is None:
        raise PosefixError(
            f"poses of {count} joints, expected {(given or preferred).num_joints}; say which they are with skeleton="
        )
    return found


def _array(values: Any) -> np.ndarray:
    """A tensor of any device, an array or a list as float64."""
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    return np.array(values, np.float64)


def _like(values: np.ndarray, model: Any) -> Any:
    """Values as the model has them: a tensor of its type and device, an array of its type, or lists."""
    if hasattr(model, "new_tensor"):
        return model.new_tensor(values)
    return values.astype(model.dtype) if isinstance(model, np.ndarray) else values.tolist()


def _joined(xy: Any, scores: Any) -> np.ndarray:
    """[N, K, 3]; a joint at (0, 0) or without a finite value is missing, as all these libraries write them."""
    xy = _array(xy)
    if not xy.size:
        return np.zeros((0, 1, 3))
    xy = xy.reshape(-1, *xy.shape[-2:])
    scores = np.ones(xy.shape[:2]) if scores is None else _array(scores).reshape(xy.shape[:2])
    joints = np.concatenate([xy[..., :2], scores[..., None]], axis=-1)
    there = np.isfinite(joints).all(axis=-1) & (joints[..., :2] != 0).any(axis=-1)
    return np.where(there[..., None], joints, np.where(np.isfinite(joints), joints, 0.0) * [1, 1, 0])


def _ultralytics_poses(result: Any) -> np.ndarray:
    data = np.zeros((0, 1, 3)) if result.keypoints is None else _array(result.keypoints.data)
    return _joined(data[..., :2], data[..., 2] if data.shape[-1] > 2 else None)


def _ultralytics_replaced(result: Any, joints: np.ndarray) -> Any:
    old, new = result.keypoints, copy.copy(result)
    joints = joints[..., : old.data.shape[-1]]
    new.keypoints = type(old)(_like(joints, old.data), old.orig_shape)
    # Earlier versions move joints of low confidence to (0, 0) when they are made.
    new.keypoints.data = _like(joints, old.data)
    return new


def _supervision_scores(result: Any) -> str | None:
    """The field with the score of each joint, if there are any; `confidence` before supervision 0.29."""
    fields = {field.name for field in dataclasses.fields(result)}
    name = "keypoint_confidence" if "keypoint_confidence" in fields else "confidence"
    return None if getattr(result, name) is None else name


def _supervision_replaced(result: Any, joints: np.ndarray) -> Any:
    name = _supervision_scores(result)
    scores = {} if name is None else {name: _like(joints[..., 2], getattr(result, name))}
    return dataclasses.replace(result, xy=_like(joints[..., :2], result.xy), **scores)


def _mmpose_replaced(result: Any, joints: np.ndarray) -> Any:
    new = result.clone()  # a shallow copy
    new.pred_instances = people = result.pred_instances.clone()
    for name, values in (("keypoints", joints[..., :2]), ("keypoint_scores", joints[..., 2])):
        if name in people:
            setattr(people, name, _like(values.reshape(np.shape(people[name])), people[name]))
    return new


def _instances_replaced(people: list, joints: np.ndarray) -> list:
    new = []
    for person, of_person in zip(people, joints, strict=True):
        entry = person | {"keypoints": _like(of_person[:, :2], person["keypoints"])}
        if "keypoint_scores" in person:
            entry["keypoint_scores"] = _like(of_person[:, 2], person["keypoint_scores"])
        new.append(entry)
    return new


def _is_instances(result: Any) -> bool:
    return isinstance(result, list) and all(isinstance(person, dict) and "keypoints" in person for person in result)


KINDS = (
    Kind(
        "ultralytics Results",
        lambda result: hasattr(result, "orig_img") and hasattr(result, "keypoints"),
        _ultralytics_poses,
        lambda result: np.ascontiguousarray(result.orig_img[..., ::-1]),
        _ultralytics_replaced,
    ),
    Kind(
        "supervision KeyPoints",
        lambda result: dataclasses.is_dataclass(result) and hasattr(result, "xy"),
        lambda result: _joined(result.xy, getattr(result, _supervision_scores(result) or "", None)),
        lambda result: None,
        _supervision_replaced,
    ),
    Kind(
        "mmpose PoseDataSample",
        lambda result: hasattr(result, "pred_instances"),
        lambda result: _joined(result.pred_instances.keypoints, result.pred_instances.get("keypoint_scores")),
        lambda result: result.metainfo.get("img_path"),
        _mmpose_replaced,
    ),
    Kind(
        "mmpose instances (keypoints, keypoint_scores)",
        _is_instances,
        lambda people: np.concatenate(
            [np.zeros((0, len(people[0]["keypoints"]) if people else 1, 3))]
            + [_joined(person["keypoints"], person.get("keypoint_scores")) for person in people]
        ),
        lambda people: None,
        _instances_replaced,
    ),
    Kind(
        "rtmlib (keypoints, scores)",
        lambda result: isinstance(result, tuple) and len(result) == 2 and np.ndim(result[0]) == 3,
        lambda result: _joined(*result),
        lambda result: None,
        lambda result, joints: (_like(joints[..., :2], result[0]), _like(joints[..., 2], result[1])),
    ),
)
"""What `refine_results` takes."""
