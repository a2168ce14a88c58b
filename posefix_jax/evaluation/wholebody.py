"""COCO-WholeBody's keypoint figures: of all 133 joints, and of body, feet, face and hands separately."""

from collections.abc import Sequence
from dataclasses import replace

from posefix_jax.core.joint_sets import WHOLEBODY_KEYS
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.oks import keypoint_scores, truth_of
from posefix_jax.evaluation.scores import Scores, Truth

PARTS = dict(zip(WHOLEBODY_KEYS, ("body", "feet", "face", "left hand", "right hand"), strict=True))
"""Name in the table of each list of an annotation."""


def whole_body_scores(truth: Truth, poses: Sequence[Pose]) -> Scores:
    """The ten COCO keypoint figures of all joints, and AP and AR of each part, as in the data set's own evaluation.

    A person without a labelled joint of the part (of all joints) is ignored, whatever `num_keypoints` says, and a row
    without a third value above 0 is left out. The area of a row is that of its body joints, as in xtcocotools. A row's
    score is its `foot_score`, `face_score`, `lefthand_score` or `righthand_score` for a part, its `wholebody_score` for all
    joints, and its `score` if it has no such field.

    Args:
      truth: people with 133 joints, image pixels.
      poses: poses of the truth's photographs and joints, image pixels.

    Returns:
      Scores whose main figure is AP of all joints; units are photographs.
    """
    everybody = [replace(person, num_keypoints=None) for person in truth.people]
    whole = [
        pose._replace(score=pose.extras.get("wholebody_score", pose.score))
        for pose in poses
        if (pose.joints[:, 2] > 0).any()
    ]
    body = slice(0, WHOLEBODY_KEYS["keypoints"])
    scores = keypoint_scores(truth_of(truth.images, everybody, truth.skeleton), whole, truth.skeleton, area_joints=body)
    figures = dict(scores.figures)
    start = 0
    for key, count in WHOLEBODY_KEYS.items():
        joints, start = slice(start, start + count), start + count
        part = Skeleton(
            name=PARTS[key],
            joints=truth.skeleton.joints[joints],
            flip_pairs=(),
            sigmas=truth.skeleton.sigmas[joints],
            limbs=(),
            groups=truth.skeleton.groups[joints],
        )
        people = [replace(person, joints=person.joints[joints]) for person in everybody]
        score = "score" if key == "keypoints" else key.removesuffix("_kpts") + "_score"
        some = [
            pose._replace(joints=pose.joints[joints], score=pose.extras.get(score, pose.score))
            for pose in poses
            if (pose.joints[joints, 2] > 0).any()
        ]
        of_part = keypoint_scores(truth_of(truth.images, people, part), some, part).figures
        figures |= {f"AP {part.name}": of_part["AP"], f"AR {part.name}": of_part["AR"]}
    return Scores(figures, scores.main, scores.units, scores.unit, scores.resampled)
