"""The built-in joint sets, and skeletons read from files.

Re-exports `core.skeleton`, so that one import gives everything about joints to code from outside the package.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from posefix_jax.core.skeleton import (
    Skeleton,
    canonical,
    comparable_names,
    group_of,
    joints_in,
    kind_of,
    tell_joints,
)
from posefix_jax.types import PosefixError, is_name, listed, nearest_names, short, warn_once

__all__ = [
    "AIC",
    "AP10K",
    "BLAZEPOSE",
    "COCO",
    "CROWDPOSE",
    "H36M",
    "HALPE26",
    "HALPE136",
    "HUMANART21",
    "JHMDB",
    "MHP",
    "MPII",
    "OPENPOSE18",
    "OPENPOSE25",
    "OPENPOSE25B",
    "POSETRACK",
    "POSETRACK17",
    "SKELETONS",
    "WHOLEBODY",
    "WHOLEBODY_KEYS",
    "Skeleton",
    "canonical",
    "comparable_names",
    "group_of",
    "joints_in",
    "kind_of",
    "load_skeleton",
    "skeleton_from_category",
    "tell_joints",
]


def _skeleton(
    name: str,
    joints: str,
    sigmas: Sequence[float],
    limbs: str,
    never: tuple[int, ...] = (),
    pairs: tuple[tuple[int, int], ...] = (),
) -> Skeleton:
    """A skeleton from words: `left_x` and `right_x` are twins, as are `pairs`; a limb is `a-b`."""
    names = tuple(joints.split())
    pairs += tuple((i, names.index("right_" + joint[5:])) for i, joint in enumerate(names) if joint.startswith("left_"))
    bones = tuple(tuple(names.index(end) for end in limb.split("-")) for limb in limbs.split())
    return Skeleton(name, names, pairs, tuple(sigmas), bones, tuple(group_of(joint) for joint in names), never)


_ARMS = (
    "left_shoulder-left_elbow left_elbow-left_wrist right_shoulder-right_elbow right_elbow-right_wrist "
    "left_hip-left_knee left_knee-left_ankle right_hip-right_knee right_knee-right_ankle left_hip-right_hip "
    "left_shoulder-right_shoulder left_shoulder-left_hip right_shoulder-right_hip "
)

# Joint order and sigmas: cocodataset.org (keypoint evaluation).
COCO = _skeleton(
    "coco",
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle",
    (
        0.026,
        0.025,
        0.025,
        0.035,
        0.035,
        0.079,
        0.079,
        0.072,
        0.072,
        0.062,
        0.062,
        0.107,
        0.107,
        0.087,
        0.087,
        0.089,
        0.089,
    ),
    _ARMS
    + "nose-left_eye nose-right_eye left_eye-left_ear right_eye-right_ear left_ear-left_shoulder right_ear-right_shoulder",
)

# The 17 slots of PoseTrack 2018 files; the ears are never annotated. COCO's sigmas; neck and head top have COCO's
# largest face sigma (the benchmark itself scores by head size, not by OKS).
POSETRACK = _skeleton(
    "posetrack",
    "nose head_bottom head_top left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle",
    (0.026, 0.035, 0.035, *COCO.sigmas[3:]),
    _ARMS + "nose-head_top nose-head_bottom head_bottom-left_shoulder head_bottom-right_shoulder",
    never=(3, 4),
)

# The ids of PoseTrack 2017 files, in order; the same sigmas.
POSETRACK17 = _skeleton(
    "posetrack17",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist head_bottom nose head_top",
    (0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.062, 0.072, 0.079, 0.079, 0.072, 0.062, 0.035, 0.026, 0.035),
    _ARMS + "nose-head_top nose-head_bottom head_bottom-left_shoulder head_bottom-right_shoulder",
)

# Sigmas: crowdposetools' CrowdPose evaluation.
CROWDPOSE = _skeleton(
    "crowdpose",
    "left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_hip right_hip left_knee "
    "right_knee left_ankle right_ankle top_head neck",
    (0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079),
    _ARMS + "top_head-neck neck-left_shoulder neck-right_shoulder",
)

# Order: AI Challenger 2017; sigmas: its evaluation script (delta is twice the sigma).
AIC = _skeleton(
    "aic",
    "right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee right_ankle "
    "left_hip left_knee left_ankle head_top neck",
    (
        *(0.01388152, 0.01515228, 0.01057665, 0.01417709, 0.01497891, 0.01402144, 0.03909642),
        *(0.03686941, 0.01981803, 0.03843971, 0.03412318, 0.02415081, 0.01291456, 0.01236173),
    ),
    _ARMS + "head_top-neck neck-left_shoulder neck-right_shoulder",
)

# COCO's sigmas by kind of joint; feet from COCO-WholeBody, necks and heads from CrowdPose. Joints without a measured
# sigma have that of the nearest joint.
_SIGMAS = {
    **{"nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062, "hip": 0.107},
    **{"knee": 0.087, "ankle": 0.089, "neck": 0.079, "head": 0.079, "head_top": 0.079, "thorax": 0.079},
    **{"mid_hip": 0.107, "pelvis": 0.107, "big_toe": 0.068, "small_toe": 0.066, "heel": 0.066, "foot_index": 0.068},
    **{"eye_inner": 0.025, "eye_outer": 0.025, "mouth": 0.035, "pinky": 0.062, "index": 0.062, "thumb": 0.062},
    **{"foot": 0.089, "finger": 0.089, "toe": 0.089, "spine": 0.107, "belly": 0.107, "neck_base": 0.079, "root": 0.107},
    **{"upper_neck": 0.079},
}


def _body(name: str, joints: str, limbs: str = "") -> Skeleton:
    """As `_skeleton`, with sigmas by the kind of joint."""
    sigmas = [_SIGMAS[joint.removeprefix("left_").removeprefix("right_")] for joint in joints.split()]
    return _skeleton(name, joints, sigmas, _ARMS + limbs)


_OPENPOSE_ARMS = "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist "
_OPENPOSE_REST = "right_hip right_knee right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear "
# OpenPose's three bodies, MediaPipe's BlazePose, AlphaPose's Halpe-26, MPII: joint order as documented by each.
OPENPOSE18 = _body("openpose18", _OPENPOSE_ARMS + _OPENPOSE_REST, "nose-neck")
OPENPOSE25 = _body(
    "openpose25",
    _OPENPOSE_ARMS + "mid_hip " + _OPENPOSE_REST + "left_big_toe left_small_toe left_heel right_big_toe "
    "right_small_toe right_heel",
    "nose-neck neck-mid_hip left_ankle-left_heel right_ankle-right_heel left_ankle-left_big_toe "
    "right_ankle-right_big_toe",
)
_FEET = "left_big_toe left_small_toe left_heel right_big_toe right_small_toe right_heel"
OPENPOSE25B = _body(
    "openpose25b",
    " ".join(COCO.joints) + f" neck head_top {_FEET}",
    "head_top-neck neck-left_shoulder neck-right_shoulder left_ankle-left_heel right_ankle-right_heel "
    "left_ankle-left_big_toe right_ankle-right_big_toe",
)
BLAZEPOSE = _body(
    "blazepose",
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "left_mouth right_mouth left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_foot_index right_foot_index",
    "left_ankle-left_heel right_ankle-right_heel left_heel-left_foot_index right_heel-right_foot_index",
)
HALPE26 = _body(
    "halpe26",
    " ".join(COCO.joints) + " head neck mid_hip left_big_toe right_big_toe left_small_toe right_small_toe left_heel "
    "right_heel",
    "head-neck neck-mid_hip left_ankle-left_heel right_ankle-right_heel",
)
MPII = _body(
    "mpii",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis thorax neck head_top right_wrist "
    "right_elbow right_shoulder left_shoulder left_elbow left_wrist",
    "pelvis-thorax thorax-neck neck-head_top",
)
# MPII's order with another name for the neck; Human3.6M as VideoPose3D and most of 3D pose estimation order it; JHMDB;
# Human-Art's 21. Their sigmas are COCO's by kind of joint, as in MMPose's descriptions of JHMDB and Human-Art.
MHP = _body(
    "mhp", " ".join(MPII.joints).replace("thorax neck", "thorax upper_neck"), "pelvis-thorax upper_neck-head_top"
)
H36M = _skeleton(
    "h36m",
    "root right_hip right_knee right_foot left_hip left_knee left_foot spine thorax neck_base head left_shoulder "
    "left_elbow left_wrist right_shoulder right_elbow right_wrist",
    [_SIGMAS[joint] for joint in "root hip knee foot hip knee foot spine thorax neck_base head".split()]
    + 2 * [_SIGMAS[joint] for joint in "shoulder elbow wrist".split()],
    _ARMS.replace("_ankle", "_foot") + "root-spine spine-thorax thorax-neck_base neck_base-head",
)
JHMDB = _body(
    "jhmdb",
    "neck belly head right_shoulder left_shoulder right_hip left_hip right_elbow left_elbow right_knee left_knee "
    "right_wrist left_wrist right_ankle left_ankle",
    "belly-neck neck-head",
)
HUMANART21 = _body(
    "humanart21",
    " ".join(COCO.joints) + " left_finger right_finger left_toe right_toe",
    "left_ankle-left_toe right_ankle-right_toe left_wrist-left_finger right_wrist-right_finger",
)


def _face(first: int) -> tuple[tuple[int, int], ...]:
    """Flip pairs of 68 face landmarks that begin at joint `first`, from runs of (first, last, sum of a pair)."""
    runs = ((0, 7, 16), (17, 21, 43), (31, 32, 66), (36, 39, 81), (40, 41, 87))
    runs += ((48, 50, 102), (55, 56, 114), (60, 61, 124), (65, 65, 132))
    return tuple((first + i, first + total - i) for start, last, total in runs for i in range(start, last + 1))


_FINGERS = "thumb forefinger middle_finger ring_finger pinky_finger".split()
_HAND = " ".join(["{0}_hand_root"] + [f"{{0}}_{finger}{i}" for finger in _FINGERS for i in range(1, 5)])
_FACE_AND_HANDS = " ".join(f"face-{i}" for i in range(68)) + f" {_HAND.format('left')} {_HAND.format('right')}"
_HAND_SIGMAS = "29 22 35 37 47 26 25 24 35 18 24 22 26 17 21 21 32 20 19 22 31 "
_FACE_AND_HANDS_SIGMAS = tuple(
    int(thousandths) / 1000
    for thousandths in (
        "42 43 44 43 40 35 31 25 20 23 29 32 37 38 43 41 45 13 12 11 11 12 12 11 11 13 15 9 7 7 7 12 9 8 16 10 17 "
        "11 9 11 9 7 13 8 11 12 10 34 8 8 9 8 8 7 10 8 9 9 9 7 7 8 11 8 8 8 10 8 " + 2 * _HAND_SIGMAS
    ).split()
)
_FEET_LIMBS = (
    "left_ankle-left_big_toe left_ankle-left_small_toe left_ankle-left_heel right_ankle-right_big_toe "
    "right_ankle-right_small_toe right_ankle-right_heel "
)
_HAND_LIMBS = "left_wrist-left_hand_root right_wrist-right_hand_root " + " ".join(
    f"{side}_{'hand_root' if i == 1 else f'{finger}{i - 1}'}-{side}_{finger}{i}"
    for side in ("left", "right")
    for finger in _FINGERS
    for i in range(1, 5)
)
# Names, order, flip pairs and sigmas (in thousandths) of the COCO-WholeBody evaluation: body, feet, 68 face landmarks,
# left hand, right hand.
WHOLEBODY = _skeleton(
    "coco-wholebody",
    f"{' '.join(COCO.joints)} {_FEET} {_FACE_AND_HANDS}",
    (*COCO.sigmas, 0.068, 0.066, 0.066, 0.092, 0.094, 0.094, *_FACE_AND_HANDS_SIGMAS),
    _ARMS + _FEET_LIMBS + _HAND_LIMBS,
    pairs=_face(23),
)
# Halpe's order, of AlphaPose's full body: the 26 joints of the body, then face and hands as in COCO-WholeBody.
HALPE136 = _skeleton(
    "halpe136",
    f"{' '.join(HALPE26.joints)} {_FACE_AND_HANDS}",
    (*HALPE26.sigmas, *_FACE_AND_HANDS_SIGMAS),
    _ARMS + _FEET_LIMBS + _HAND_LIMBS,
    pairs=_face(26),
)
WHOLEBODY_KEYS = {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
"""The keypoint lists of a COCO-WholeBody entry, in joint order, and the number of joints in each."""

# Names as in AP-10K's annotation files. The sigmas are those behind its published scores: COCO's by index, not by kind
# of joint, so left and right differ.
AP10K = _skeleton(
    "ap10k",
    "left_eye right_eye nose neck root_of_tail left_shoulder left_elbow left_front_paw right_shoulder right_elbow "
    "right_front_paw left_hip left_knee left_back_paw right_hip right_knee right_back_paw",
    (0.025, 0.025, 0.026, *COCO.sigmas[3:]),
    "left_eye-right_eye left_eye-nose right_eye-nose nose-neck neck-root_of_tail neck-left_shoulder "
    "left_shoulder-left_elbow left_elbow-left_front_paw neck-right_shoulder right_shoulder-right_elbow "
    "right_elbow-right_front_paw root_of_tail-left_hip left_hip-left_knee left_knee-left_back_paw "
    "root_of_tail-right_hip right_hip-right_knee right_knee-right_back_paw",
)

SKELETONS = {
    skeleton.name: skeleton
    for skeleton in (
        *(COCO, POSETRACK, POSETRACK17, CROWDPOSE, OPENPOSE18, OPENPOSE25, OPENPOSE25B, BLAZEPOSE, HALPE26, MPII),
        *(WHOLEBODY, AP10K, AIC, HUMANART21, JHMDB, H36M, MHP, HALPE136),
    )
}


def skeleton_of_count(count: int, given: Skeleton | None, preferred: Skeleton) -> Skeleton | None:
    """The joint set of poses that say only how many joints they have; None if none has as many.

    Args:
      count: how many.
      given: what the user says they are; no other set is tried.
      preferred: tried before the built-in ones.
    """
    known = [given] if given is not None else [preferred, *SKELETONS.values()]
    return next((skeleton for skeleton in known if skeleton.num_joints == count), None)


def load_skeleton(name_or_file: str) -> Skeleton:
    """A built-in skeleton by name, or one from a JSON file (`Skeleton.to_dict`'s form).

    Raises:
      PosefixError: an unknown name, a missing file, or a file that is not a skeleton.
    """
    if name_or_file in SKELETONS:
        return SKELETONS[name_or_file]
    path = Path(name_or_file)
    if path.suffix != ".json":
        raise PosefixError(f"unknown skeleton {name_or_file!r}: {nearest_names(name_or_file, SKELETONS)}")
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise PosefixError(
                f"expected an object with name, joints, flip_pairs, sigmas, limbs, found {short(fields)}"
            )
        return Skeleton.from_dict(fields)
    except OSError as error:
        raise PosefixError(f"skeleton file {path}: {error.strerror}") from error
    except PosefixError as error:
        raise PosefixError(f"skeleton file {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise PosefixError(f"skeleton file {path}: not JSON ({error})") from error


def skeleton_from_category(category: Mapping) -> Skeleton:
    """The skeleton of a COCO `categories` entry.

    A built-in one if its joints have the same names in the same order. Otherwise the sigmas are the entry's `sigmas`,
    or a guess marked as such: COCO's for joints of the same kind, 0.08 (the mean of COCO's body) for the rest. Limbs
    are only drawn: those that do not fit are dropped with a warning.

    Raises:
      PosefixError: the entry has no list of joint names, or other fields that are not a skeleton.
    """
    joints = category.get("keypoints", ())
    if not isinstance(joints, list | tuple) or not all(is_name(joint) for joint in joints):
        raise PosefixError(f"the keypoints of a category must be joint names, found {short(joints)}")
    names, plain = comparable_names(joints), [canonical(joint) for joint in joints]
    known = [skeleton for skeleton in SKELETONS.values() if comparable_names(skeleton.joints) == names]
    if known:  # MPII and MHP differ in spelling alone
        return next((s for s in known if [canonical(joint) for joint in s.joints] == plain), known[0])
    pairs = [
        (i, names.index("right_" + name[5:]))
        for i, name in enumerate(names)
        if name.startswith("left_") and "right_" + name[5:] in names
    ]
    name = category.get("name")
    name = name if is_name(name) else "custom"
    return Skeleton.from_dict(
        {
            "name": name,
            "joints": joints,
            "flip_pairs": pairs,
            "sigmas": category.get("sigmas") or [_SIGMAS.get(kind_of(joint), 0.08) for joint in joints],
            "limbs": _limbs(category.get("skeleton") or (), len(joints), name),
            "sigmas_guessed": not category.get("sigmas"),
        }
    )


def _limbs(pairs, count: int, name: str) -> list[tuple[int, int]]:
    """Index pairs of a category's limbs, which number joints from 1; or from 0, if one is 0 and none is beyond."""
    limbs, left_out = [], []
    pairs = pairs if isinstance(pairs, list | tuple) else [pairs]
    ends = [end for pair in pairs if isinstance(pair, list | tuple) for end in pair if type(end) is int]
    first = 0 if ends and min(ends) == 0 and max(ends) < count else 1
    for pair in pairs:
        fits = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(end) is int for end in pair)
        if fits and all(first <= end < first + count for end in pair):
            limbs.append((pair[0] - first, pair[1] - first))
        else:
            left_out.append(pair)
    if left_out:
        warn_once(
            f"the skeleton of category {name!r} has limbs that are not pairs of its {count} joints: "
            f"{listed(map(short, left_out))}; they are not drawn"
        )
    return limbs
