"""COCO-WholeBody's keypoint figures: of all 133 joints, and of body, feet, face and hands apart."""

from collections.abc import Mapping, Sequence

from posefix_jax.core.joint_sets import WHOLEBODY_KEYS
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.evaluation.oks import FIGURES, keypoint_scores, truth_of
from posefix_jax.evaluation.scores import Scores, Truth

PARTS = dict(zip(WHOLEBODY_KEYS, ("body", "feet", "face", "left hand", "right hand"), strict=True))
"""What a list of an entry is called in the table."""


def whole_body_scores(truth: Truth, rows: Sequence[Mapping]) -> Scores:
    """The ten COCO keypoint figures of the whole, and AP and AR of each part, as the data set's own evaluation has them.

    Of a part, a person without a labelled joint is ignored, and a row whose third values are all 0 is left out. A row's
    score is its `foot_score`, `face_score`, `lefthand_score`, `righthand_score`, of the whole `wholebody_score`, where it
    has them, else its `score`.
    """
    whole = [{**row, "score": row.get("wholebody_score", row["score"])} for row in rows]
    scores = keypoint_scores(truth_of(truth.images, truth.people, truth.skeleton), whole, truth.skeleton)
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
        people = [{**person, "joints": person["joints"][joints]} for person in truth.people]
        score = key.removesuffix("_kpts") + "_score"
        some = []
        for row in rows:
            keypoints = row["keypoints"][3 * joints.start : 3 * joints.stop]
            if any(keypoints[2::3]):
                some.append({**row, "keypoints": keypoints, "score": row.get(score, row["score"])})
        seen = any((person["joints"][:, 2] > 0).any() for person in people if not person["ignored"])
        of_part = dict.fromkeys(FIGURES, 0.0 if seen else -1.0)
        if some:
            of_part = keypoint_scores(truth_of(truth.images, people, part), some, part).figures
        figures |= {f"AP {part.name}": of_part["AP"], f"AR {part.name}": of_part["AR"]}
    return Scores(figures, scores.main, scores.units, scores.unit, scores.resampled)
