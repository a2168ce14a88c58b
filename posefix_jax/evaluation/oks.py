"""Keypoint similarity, and the ten COCO keypoint figures by pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.taxonomy import similarity
from posefix_jax.data.coco import Person
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.scores import Scores, Truth

FIGURES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def keypoint_similarity(
    xy: np.ndarray, true_xy: np.ndarray, area: np.ndarray | float, skeleton: Skeleton
) -> np.ndarray:
    """Keypoint similarity of each joint: exp(-d² / (2 area (2 sigma)²)).

    Args:
      xy: [..., K, 2] joints; any frame.
      true_xy: [..., K, 2] the true joints, same frame.
      area: [...] the true person's area, in the square of the same unit.
      skeleton: whose sigmas count.

    Returns:
      [..., K] float64 in 0..1.
    """
    return similarity(((np.asarray(xy, np.float64) - true_xy) ** 2).sum(axis=-1), np.asarray(area), skeleton)


def truth_of(image_ids: Iterable, people: Iterable[Person], skeleton: Skeleton) -> COCO:
    """pycocotools' index of true poses, in the order given.

    Of those ignored, a crowd absorbs any number of detections, any other person one.
    """
    annotations = [
        {
            "id": number,  # from 1: pycocotools treats a match with annotation 0 as no match
            "image_id": person.image_id,
            "category_id": person.category,
            "iscrowd": int(person.crowd),
            "area": float(person.area),
            "bbox": [float(value) for value in person.box],
            "num_keypoints": person.count,
            "keypoints": np.asarray(person.joints, float).reshape(-1).tolist(),
        }
        for number, person in enumerate(people, start=1)
    ]
    categories = dict.fromkeys(entry["category_id"] for entry in annotations) or {1: None}
    return _index(
        {
            "images": [{"id": i} for i in image_ids],
            "annotations": annotations,
            "categories": [{"id": i, "name": str(i), "keypoints": list(skeleton.joints)} for i in categories],
        }
    )


def _index(dataset: dict) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def keypoint_scores(
    truth: COCO, poses: Sequence[Pose], skeleton: Skeleton, *, area_joints: slice = slice(None)
) -> Scores:
    """pycocotools' keypoint evaluation of poses (image pixels) against `truth_of`.

    Categories are evaluated apart, and each figure is their mean. A pose without a category is of the truth's first.

    Args:
      truth: the true poses.
      poses: of the truth's photographs and joints.
      skeleton: whose sigmas count.
      area_joints: those whose extent, (0, 0) of missing joints included, is a pose's area in APm, APl, ARm and ARl.
        If the first pose has a box, the boxes are the areas instead.
    """
    evaluator = run_cocoeval(truth, poses, skeleton, areas_of(poses, area_joints))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.summarize()
    figures = dict(zip(FIGURES, map(float, evaluator.stats), strict=True))
    images = len(evaluator.params.imgIds)
    # `evalImgs` goes by category, then area, then photograph; the first area is all.
    step = images * len(evaluator.params.areaRng)
    parts = [
        _Matches(evaluator.evalImgs[start : start + images], evaluator.params)
        for start in range(0, len(evaluator.evalImgs), step or 1)
    ]

    def average_precision(counts: np.ndarray) -> float:
        known = [ap for ap in (part.average_precision(counts) for part in parts) if ap is not None]
        return float(np.mean(known)) if known else 0.0

    return Scores(figures, "AP", images, "photographs", average_precision)


def run_cocoeval(
    truth: COCO,
    poses: Sequence[Pose],
    skeleton: Skeleton,
    areas: Sequence[float],
    *,
    thresholds: Sequence[float] | None = None,
    area_range: tuple[float, float] | None = None,
) -> COCOeval:
    """pycocotools' evaluation, accumulated; row i has the id i + 1.

    Args:
      truth, poses, skeleton: those of `keypoint_scores`.
      areas: of the poses.
      thresholds: of OKS, instead of COCO's ten.
      area_range: the only one, instead of all, medium and large.
    """
    first = truth.dataset["categories"][0]["id"]
    rows = [
        {
            "id": number,
            "image_id": pose.image,
            "category_id": first if pose.category is None else pose.category,
            "keypoints": pose.joints.ravel().tolist(),
            "score": pose.score,
            "area": area,
        }
        for number, (pose, area) in enumerate(zip(poses, areas, strict=True), start=1)
    ]
    found = _index({**truth.dataset, "annotations": rows})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(truth, found, "keypoints")
        evaluator.params.kpt_oks_sigmas = np.asarray(skeleton.sigmas)
        if thresholds is not None:
            evaluator.params.iouThrs = np.asarray(thresholds)
        if area_range is not None:
            evaluator.params.areaRng, evaluator.params.areaRngLbl = [list(area_range)], ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def areas_of(poses: Sequence[Pose], joints: slice = slice(None)) -> list[float]:
    """The areas of poses as in pycocotools' `loadRes`: of the boxes, if the first pose has one, else of the joints."""
    boxes = bool(poses) and poses[0].box is not None
    return [
        pose.box[2] * pose.box[3]
        if boxes and pose.box is not None
        else float(np.prod(np.ptp(pose.joints[joints, :2], axis=0)))
        for pose in poses
    ]


def oks_scores(truth: Truth, poses: Sequence[Pose]) -> Scores:
    """The ten COCO keypoint figures, with the skeleton's own sigmas, of each category, and their means.

    Args:
      truth: people, image pixels.
      poses: poses of the truth's photographs and joints, image pixels.

    Returns:
      Scores whose main figure is AP; units are photographs.
    """
    return keypoint_scores(truth_of(truth.images, truth.people, truth.skeleton), poses, truth.skeleton)


class _Matches:
    """pycocotools' matches in one category, flattened, to compute AP of a weighted set of photographs quickly."""

    def __init__(self, images: Sequence[dict | None], params: Any):
        self.recalls = params.recThrs
        empty = np.zeros((len(params.iouThrs), 0))
        limit = params.maxDets[-1]
        scores, matched, ignored, image_of, truths = [], [], [], [], []
        for i, image in enumerate(images):
            if image is None:
                truths.append(0)
                continue
            count = len(image["dtScores"][:limit])
            scores += image["dtScores"][:limit]
            image_of += [i] * count
            matched.append(np.asarray(image["dtMatches"]).reshape(len(empty), -1)[:, :limit] > 0)
            ignored.append(np.asarray(image["dtIgnore"]).reshape(len(empty), -1)[:, :limit].astype(bool))
            truths.append(int((np.asarray(image["gtIgnore"]) == 0).sum()))
        order = np.argsort(-np.asarray(scores, float), kind="mergesort")
        self.image_of = np.asarray(image_of, int)[order]
        self.matched = np.concatenate([*matched, empty.astype(bool)], axis=1)[:, order]
        self.counted = ~np.concatenate([*ignored, empty.astype(bool)], axis=1)[:, order]
        self.truths = np.asarray(truths)

    def average_precision(self, counts: np.ndarray) -> float | None:
        """AP if photograph i occurs `counts[i]` times; None if nobody counts."""
        total = (self.truths * counts).sum()
        if not total:
            return None
        weight = counts[self.image_of] * self.counted
        hits = np.cumsum(weight * self.matched, axis=1)
        misses = np.cumsum(weight * ~self.matched, axis=1)
        precision = hits / np.maximum(hits + misses, np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = hits / total
        areas = []
        for row, curve in zip(recall, precision, strict=True):
            at = np.searchsorted(row, self.recalls, side="left")
            areas.append(
                np.where(at < len(curve), curve[np.minimum(at, len(curve) - 1)], 0).mean() if len(curve) else 0
            )
        return float(np.mean(areas))


def oks_nms(
    xy: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    threshold: float,
    skeleton: Skeleton,
    present: np.ndarray | None = None,
) -> np.ndarray:
    """Non-maximum suppression: each pose, best score first, drops those whose OKS with it is above `threshold`.

    The OKS of two poses is the mean KS of the joints present in both, with the mean of their areas (released code,
    lib/nms).

    Args:
      xy: [N, K, 2] poses, any frame.
      scores: [N].
      areas: [N] in the square of the same unit.
      threshold: the highest OKS at which both poses remain.
      skeleton: whose sigmas count.
      present: [N, K] which joints count; all by default.

    Returns:
      Indices of the poses that remain, best score first.
    """
    present = np.ones(np.shape(xy)[:2], bool) if present is None else present
    order = np.argsort(-np.asarray(scores), kind="stable")
    areas = np.asarray(areas, np.float64)
    kept = []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(best)
        area = (areas[best] + areas[order]) / 2
        both = present[order] & present[best]
        similarity = keypoint_similarity(xy[order], xy[best], area, skeleton)
        similarity = np.where(both, similarity, 0).sum(axis=-1) / np.maximum(both.sum(axis=-1), 1)
        order = order[similarity <= threshold]
    return np.asarray(kept, int)
