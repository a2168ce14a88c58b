"""The joints of a pose, and how joints of two sets are matched by name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from posefix_jax.types import PosefixError, is_integer, is_name, is_number, listed, short, tell, warn_once

LEAST_SIGMA = 1e-6
"""Of an OKS sigma: its square and that of its inverse are numbers in float32."""


@dataclass(frozen=True)
class Skeleton:
    """The joints of a pose. Frozen, hashed by value: static under `jit`.

    Attributes:
      name: a key of `joint_sets.SKELETONS`, or the name in the file.
      joints: joint names in array order.
      flip_pairs: index pairs that a mirror exchanges.
      sigmas: OKS falloff per joint: KS = exp(-d^2 / (2 area (2 sigma)^2)).
      limbs: index pairs to draw.
      groups: per joint, its row in an error model (`wrist`, `hip`, ...).
      never_annotated: indices of joints that the files have a slot for but never annotate.
      sigmas_guessed: nobody measured the sigmas of these joints; commands that use them warn.

    Raises:
      PosefixError: lengths or indices do not fit.
    """

    name: str
    joints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    limbs: tuple[tuple[int, int], ...]
    groups: tuple[str, ...]
    never_annotated: tuple[int, ...] = ()
    sigmas_guessed: bool = False

    def __post_init__(self):
        count = len(self.joints)
        for names in ((self.name,), self.joints, self.groups):
            if wrong := [name for name in names if not is_name(name)]:
                raise PosefixError(
                    f"skeleton {short(self.name)}: names must be text without control characters, got {short(wrong[0])}"
                )
        if len(set(self.joints)) != count or not count:
            raise PosefixError(
                f"skeleton {self.name}: joint names must be unique, and there must be some, got {count}: "
                f"{listed(self.joints)}"
            )
        for field in ("sigmas", "groups"):
            if len(getattr(self, field)) != count:
                raise PosefixError(
                    f"skeleton {self.name}: {count} joints need {count} {field}, got {len(getattr(self, field))}"
                )
        if wrong := [sigma for sigma in self.sigmas if not LEAST_SIGMA <= sigma <= 1 / LEAST_SIGMA]:
            raise PosefixError(
                f"skeleton {self.name}: sigmas must be positive, from {LEAST_SIGMA:g} to {1 / LEAST_SIGMA:g}, got {wrong[0]}"
            )
        for field in ("flip_pairs", "limbs"):
            for pair in getattr(self, field):
                if len(pair) != 2 or not all(0 <= i < count for i in pair):
                    raise PosefixError(f"skeleton {self.name}: {field} has {pair}, outside 0..{count - 1}")
        if not all(0 <= i < count for i in self.never_annotated):
            raise PosefixError(f"skeleton {self.name}: never_annotated has an index outside 0..{count - 1}")
        paired = [i for pair in self.flip_pairs for i in pair]
        if len(set(paired)) != len(paired):
            raise PosefixError(f"skeleton {self.name}: a joint is in two flip_pairs")

    @property
    def num_joints(self) -> int:
        return len(self.joints)

    @cached_property
    def flip_index(self) -> np.ndarray:
        """[K] the joint that each joint becomes in a mirror: its twin, or itself."""
        index = np.arange(self.num_joints)
        for a, b in self.flip_pairs:
            index[a], index[b] = b, a
        return index

    @cached_property
    def has_twin(self) -> np.ndarray:
        """[K] whether the joint has a left/right twin."""
        return self.flip_index != np.arange(self.num_joints)

    @cached_property
    def lower_body(self) -> np.ndarray:
        """[K] whether the joint is a hip or below; all False for a skeleton without such groups."""
        return np.isin(self.groups, ("hip", "knee", "ankle"))

    def to_dict(self) -> dict:
        """Fields for JSON; `from_dict` is the inverse."""
        return {
            "name": self.name,
            "joints": list(self.joints),
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "sigmas": list(self.sigmas),
            "limbs": [list(pair) for pair in self.limbs],
            "groups": list(self.groups),
            "never_annotated": list(self.never_annotated),
            **({"sigmas_guessed": True} if self.sigmas_guessed else {}),
        }

    @classmethod
    def from_dict(cls, fields: Mapping) -> "Skeleton":
        """The inverse of `to_dict`. Flip pairs and limbs may also name joints; groups are optional.

        Raises:
          PosefixError: a field is missing or of the wrong type.
        """
        try:
            joints = tuple(_each(fields["joints"], is_name, "a name of one line"))

            def index(of: object) -> int:
                return joints.index(of) if isinstance(of, str) else _each([of], is_integer, "an index")[0]

            def pairs(key: str) -> tuple[tuple[int, int], ...]:
                return tuple(tuple(index(of) for of in pair) for pair in fields[key])

            groups = fields.get("groups") or [group_of(joint) for joint in joints]
            return cls(
                name=_each([fields["name"]], is_name, "a name of one line")[0],
                joints=joints,
                flip_pairs=pairs("flip_pairs"),
                sigmas=tuple(float(s) for s in _each(fields["sigmas"], is_number, "a finite number")),
                limbs=pairs("limbs"),
                groups=tuple(_each(groups, is_name, "a name of one line")),
                never_annotated=tuple(_each(fields.get("never_annotated", []), is_integer, "an index")),
                sigmas_guessed=bool(fields.get("sigmas_guessed", False)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PosefixError(
                f"a skeleton needs name, joints, flip_pairs, sigmas and limbs (groups are optional); at fault: {error}"
            ) from error


def _each(values: Any, fits: Callable[[object], bool], what: str) -> Any:
    """The values, if they are a list of such values. Raises ValueError."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"expected a list, found {short(values)}")
    for value in values:
        if not fits(value):
            raise ValueError(f"expected {what}, found {short(value)}")
    return values


_GLUED = re.compile(
    "([lr])(eye|ear|shoulder|elbow|wrist|hip|knee|ankle|heel|hand|foot|toe|bigtoe|smalltoe|thumb|index|pinky)"
)


def canonical(joint: str) -> str:
    """A joint's name in the form that names are compared in: lower case, words joined by `_`, the side first.

    `Left Eye`, `left-eye`, `LEFT_EYE`, `leftEye`, `LEye`, `Leye` and `eye_l` are all `left_eye`.
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", joint)
    words = re.split(r"[\W_]+", apart.lower())
    sides = {"l": "left", "left": "left", "r": "right", "right": "right"}
    side = [sides[word] for word in words if word in sides][:1]
    words = [word for word in words if word and word not in sides]
    if not side and words and (glued := re.fullmatch(r"(left|right)(\D+)", words[0]) or _GLUED.fullmatch(words[0])):
        side, words[0] = [sides[glued[1]]], glued[2]
    return "_".join(side + words)


_SAME = {
    **{"top_head": "head_top", "head": "head_top", "top_of_head": "head_top", "upper_neck": "neck"},
    **dict.fromkeys(("pelvis", "pelvic", "root", "hips", "hip_center", "center_hip", "middle_hip"), "mid_hip"),
    **{f"{side}_{a}": f"{side}_{b}" for side in ("left", "right") for a, b in (("foot", "ankle"), ("toe", "big_toe"))},
    **{f"{side}_{size}toe": f"{side}_{size}_toe" for side in ("left", "right") for size in ("big", "small")},
}
"""Synonyms, where a set does not have both. The `head` of CrowdPose and Halpe is the top of the head, the `foot` of
Human3.6M the ankle, the `upper_neck` of MHP the neck of MPII."""


def comparable_names(joints: Sequence[str]) -> tuple[str, ...]:
    """The names by which joints of two sets are matched.

    Synonyms, spelling and trailing numbers are ignored as far as the joints of this set stay distinct.
    """
    return _comparable_names(tuple(joints))


@lru_cache(maxsize=256)  # conversions ask once per person
def _comparable_names(joints: tuple[str, ...]) -> tuple[str, ...]:
    plain = tuple(canonical(joint) for joint in joints)
    stems = tuple(re.sub(r"_?\d+$", "", name) for name in plain)
    for names in (tuple(_SAME.get(n, n) for n in stems), tuple(_SAME.get(n, n) for n in plain), plain):
        if len(set(names)) == len(names) and all(names):
            return names
    return joints


def group_of(joint: str) -> str:
    """The error-model group of a joint, by its name: `left_wrist` -> `wrist`; an unknown name -> `other`."""
    stem = re.sub(r"_\d+$", "", kind_of(joint))  # face-0 .. face-67 of COCO-WholeBody
    known = {"eye": "face", "ear": "face", "head_top": "head", "head_bottom": "head", "top_head": "head"}
    known |= {"front_paw": "wrist", "back_paw": "ankle"}
    groups = {"nose", "face", "head", "neck", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"}
    stem = known.get(stem, stem)
    return stem if stem in groups else "other"


def kind_of(joint: str) -> str:
    """A joint's canonical name without its side."""
    return canonical(joint).removeprefix("left_").removeprefix("right_")


def joints_in(wanted: Sequence[str], given: Sequence[str]) -> np.ndarray:
    """[len(wanted)] the index of each joint in `given`, by name; -1 if it is not there."""
    place = {name: index for index, name in enumerate(comparable_names(given))}
    return np.array([place.get(name, -1) for name in comparable_names(wanted)])


MIDDLES = {"neck": ("left_shoulder", "right_shoulder"), "mid_hip": ("left_hip", "right_hip")}
"""Joints that are the middle of two others: where they are missing, they are computed."""


def to_skeleton(joints: np.ndarray, given: Skeleton, wanted: Skeleton) -> np.ndarray:
    """[K, 3] joints of `given` as those of `wanted`, matched by name.

    A missing neck or mid-hip is the middle of its two joints; what else is missing is 0.
    """
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


_LIMBS = [
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("shoulder", "hip"), ("hip", "knee"), ("knee", "ankle"))
] + [("left_shoulder", "right_shoulder"), ("left_hip", "right_hip")]


def limb_length(poses: np.ndarray, skeleton: Skeleton) -> float:
    """How long the limbs of people are, if their joints are those of a skeleton: it tells orders of joints apart.

    Args:
      poses: [n, K, 3] x, y, score, in any frame.
      skeleton: what the joints may be.

    Returns:
      The median over the people of the mean length of arms, legs and trunk, relative to the diagonal around the pose.
      People in the right order have 0.15 to 0.2; NaN if nobody has six of the twelve limbs.
    """
    ends = np.array([joints_in(limb, skeleton.joints) for limb in _LIMBS])
    ends = ends[(ends >= 0).all(axis=1)]
    present = (poses[..., 2] > 0) & (np.abs(poses) < 1e12).all(axis=-1)  # what is beyond has no length in float64
    xy = np.where(present[..., None], poses[..., :2], np.nan)
    both = present[:, ends].all(axis=-1)
    people = (both.sum(axis=1) >= 6) & (present.sum(axis=1) > 2)
    if not people.any():
        return float("nan")
    xy, both = xy[people], both[people]
    extent = np.linalg.norm(np.nanmax(xy, axis=1) - np.nanmin(xy, axis=1), axis=-1)
    length = np.linalg.norm(xy[:, ends[:, 0]] - xy[:, ends[:, 1]], axis=-1)
    mean = np.where(both, length, 0).sum(axis=1) / both.sum(axis=1)
    return float(np.median(mean / np.maximum(extent, 1e-9)))


class JointMap:
    """The way between the joints of a file and those of a refiner, matched by name."""

    def __init__(self, file: Skeleton, refiner: Skeleton):
        self._to_refiner = joints_in(refiner.joints, file.joints)
        to_file = joints_in(file.joints, refiner.joints)
        self._in_file = np.flatnonzero(to_file >= 0)
        self._in_refiner = to_file[self._in_file]

    @property
    def shared(self) -> np.ndarray:
        """[K] which of the refiner's joints the file has."""
        return self._to_refiner >= 0

    def to_refiner(self, joints: np.ndarray) -> np.ndarray:
        """[K, 3] joints of a file in the refiner's order; those that the file lacks are missing."""
        return np.where(self.shared[:, None], joints[self._to_refiner], 0.0)

    def to_file(self, joints: np.ndarray, new: np.ndarray, old: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The file's joints with those replaced that differ between `old` and `new`; a joint that stayed keeps its values.

        Args:
          joints: [J, 3] of the file.
          new, old: [K, 3] of the refiner, image pixels.
          scale: [3] what the file's unit is in pixels.
        """
        joints = np.array(joints)
        new, old = new[self._in_refiner], old[self._in_refiner]
        changed = (new != old).any(axis=1)
        joints[self._in_file[changed]] = (new / scale)[changed]
        return joints


def describe_joints(skeleton: Skeleton) -> str:
    """Which joints these are, and whose OKS sigmas, for a line of the terminal."""
    sigmas = "guessed" if skeleton.sigmas_guessed else f"those of {skeleton.name}"
    return f"the {skeleton.num_joints} joints of {skeleton.name} (OKS sigmas: {sigmas})"


def tell_joints(skeleton: Skeleton, source: object) -> None:
    """Says which joints and sigmas a command uses, and warns if scores depend on guessed sigmas.

    Args:
      skeleton: of the poses.
      source: the file to name.
    """
    tell(f"{source}: {describe_joints(skeleton)}")
    if skeleton.sigmas_guessed:
        by_sigma: dict[float, list[str]] = {}
        for joint, sigma in zip(skeleton.joints, skeleton.sigmas, strict=True):
            by_sigma.setdefault(sigma, []).append(joint)
        values = "; ".join(f"{sigma:g} for {listed(joints)}" for sigma, joints in by_sigma.items())
        warn_once(
            f"{source}: the joints of {skeleton.name!r} are not a known set, so their OKS sigmas are a guess ({values}); "
            "give measured sigmas with --skeleton FILE"
        )
