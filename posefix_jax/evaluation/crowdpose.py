"""CrowdPose's keypoint figures: COCO's without sizes, and AP by how crowded the photograph is."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from posefix_jax.core.geometry import PERSON_FILL
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.oks import keypoint_scores, truth_of
from posefix_jax.evaluation.scores import Scores, Truth
from posefix_jax.types import PosefixError

LEVELS = {"AP easy": (-np.inf, 0.2), "AP medium": (0.2, 0.8), "AP hard": (0.8, np.inf)}
"""Range of `crowdIndex`, the lower end included, as in the benchmark's tool; its paper has 0.1 instead of 0.2."""


def crowdpose_scores(truth: Truth, poses: Sequence[Pose]) -> Scores:
    """AP, AP50, AP75, AR, AR50, AR75, and AP of the easy, medium and crowded photographs.

    The area of a person is 0.53 of the box, whatever `area` says, as in the benchmark's tool.

    Args:
      truth: people, and images with their `crowdIndex`.
      poses: poses of the truth's photographs and joints, image pixels.

    Returns:
      Scores whose main figure is AP; units are photographs.

    Raises:
      PosefixError: a photograph has no `crowdIndex`.
    """
    people = [replace(person, area=PERSON_FILL * person.box[2] * person.box[3]) for person in truth.people]
    images = sorted(truth.images)  # pycocotools' order
    crowding = []
    for image in images:
        index = truth.images[image].get("crowdIndex")
        if isinstance(index, bool) or not isinstance(index, int | float):
            raise PosefixError(
                f"image {image!r} has no crowdIndex (a number from 0 to 1), which divides AP into easy, medium and hard; "
                "expected CrowdPose's annotation file; otherwise use --metric oks"
            )
        crowding.append(index)
    scores = keypoint_scores(truth_of(truth.images, people, truth.skeleton), poses, truth.skeleton)
    figures = {name: scores.figures[name] for name in ("AP", "AP50", "AP75", "AR", "AR50", "AR75")}
    counted = {person.image_id for person in people if not person.ignored}
    for name, (low, high) in LEVELS.items():
        level = [low <= index < high for index in crowding]
        some = any(inside and image in counted for inside, image in zip(level, images, strict=True))
        figures[name] = scores.resampled(np.array(level, int)) if some else -1.0
    return Scores(figures, scores.main, scores.units, scores.unit, scores.resampled)
