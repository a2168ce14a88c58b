"""Validation within training: refined against input poses, by KS and by AP."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from posefix_jax.core.geometry import joint_extent
from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.synthesis import make_synthesizer
from posefix_jax.core.train_step import Batch, make_eval_step
from posefix_jax.data.coco import Person
from posefix_jax.data.formats import Pose
from posefix_jax.data.pipeline import People, evaluation_batches
from posefix_jax.evaluation.oks import FIGURES, keypoint_scores, keypoint_similarity, truth_of
from posefix_jax.runtime.devices import compiler_options, data_mesh, place_batch, replicated, split
from posefix_jax.types import PosefixError


class Poses(NamedTuple):
    """Input and refined poses of all validation people, [N, K, ...], image pixels; see `train_step.Evaluated`."""

    input_xy: np.ndarray
    present: np.ndarray
    refined_xy: np.ndarray


class Validator:
    """Refines and scores the synthetic poses of prepared people, and their stored detections if there are any.

    The synthetic poses have the paper's errors, drawn with a fixed key: they are the same in every validation of every
    run, whatever errors it trains with.

    Attributes:
      kinds: the kinds of input: `synthetic`, and `detected` if any detection is stored.

    Raises:
      PosefixError: the people have other joints than the refiner.
    """

    def __init__(self, folders: Sequence[str], spec: RefinerSpec, *, batch_size: int = 32):
        self.people = People(folders)
        if self.people.skeleton.joints != spec.skeleton.joints:
            raise PosefixError(
                f"{', '.join(map(str, folders))}: people of skeleton {self.people.skeleton.name}, but the refiner's "
                f"is {spec.skeleton.name}; expected the same joints"
            )
        self.spec = spec
        self.mesh = data_mesh()
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        detected = any(manifest.detections for manifest in self.people.manifests)
        self.kinds = ("synthetic", "detected") if detected else ("synthetic",)
        paper = make_synthesizer(("posefix",), (), spec.skeleton)
        self._steps = {
            kind: jax.jit(
                make_eval_step(spec=spec, synthesize=paper if kind == "synthetic" else None),
                in_shardings=(replicated(self.mesh), split(self.mesh), replicated(self.mesh)),
                out_shardings=replicated(self.mesh),
                compiler_options=compiler_options(),
            )
            for kind in self.kinds
        }
        records = [self.people[i] for i in range(len(self.people))]
        self.scale = np.array([record.patch_to_image[0] for record in records])
        self.corner = np.array([record.patch_to_image[1:] for record in records])
        self.area = np.array([record.area for record in records]) * self.scale**2
        self.zoom = np.array([self.people.patch / record.side for record in records])
        joints = np.stack([record.joints for record in records]).astype(np.float64)
        self.labelled = (joints[..., 2] > 0) & np.asarray(spec.trained_joints)
        self.true_xy = self._to_image(joints[..., :2], np.ones(len(joints)))
        ends = np.cumsum([manifest.people for manifest in self.people.manifests])
        self.folder_of = np.searchsorted(ends, np.arange(len(self.people)), side="right")

    def _to_image(self, patch_xy, zoom):
        xy = (patch_xy + 0.5) / zoom[:, None, None] - 0.5
        return xy * self.scale[:, None, None] + self.corner[:, None, :]

    def _truth(self, among: np.ndarray):
        """The people in `among` [N], each in an image of their own, because each input's person is known."""
        people = []
        for i in np.flatnonzero(among):
            xy, labelled = self.true_xy[i], self.labelled[i]
            joints = np.concatenate([np.where(labelled[:, None], xy, 0), 2.0 * labelled[:, None]], axis=1)
            x, y, width, height = map(float, joint_extent(xy, labelled))
            people.append(Person(int(i), int(i), joints, (x, y, width, height), float(self.area[i])))
        return truth_of([person.image_id for person in people], people, self.spec.skeleton)

    def poses(self, kind: str, variables: dict, stop: Callable[[], bool] = lambda: False) -> Poses | None:
        """Refines the poses of all people, on all devices of all processes. None if `stop()` is true after a batch."""
        variables = jax.device_put(variables, replicated(self.mesh))
        batches = evaluation_batches(
            self.people, batch_size=self.batch_size, process=jax.process_index(), processes=jax.process_count()
        )
        parts = []
        for arrays in batches:
            batch = place_batch(self.mesh, Batch(**arrays))
            parts.append(jax.device_get(self._steps[kind](variables, batch, jax.random.key(0))))
            if stop():
                return None
        poses = Poses(*(np.concatenate(field)[: len(self.people)] for field in zip(*parts, strict=True)))
        to_image = functools.partial(self._to_image, zoom=self.zoom)
        return poses._replace(input_xy=to_image(poses.input_xy), refined_xy=to_image(poses.refined_xy))

    def score(self, poses: Poses, folder: int | None = None) -> dict[str, int | float]:
        """Mean KS of the labelled joints and AP, before and after refinement.

        The mean KS is over people with an input pose; an absent input joint has KS 0. People without input pose lower
        the AP.

        Args:
          poses: of all people.
          folder: index of the folder whose people to score; None for all.
        """
        among = self.labelled.any(axis=1)
        if folder is not None:
            among &= self.folder_of == folder
        given = (poses.present & np.asarray(self.spec.trained_joints)).any(axis=1)
        given &= among | (folder is None)
        truth = self._truth(among)
        scored = self.labelled & given[:, None]
        ks = [
            keypoint_similarity(xy, self.true_xy, self.area, self.spec.skeleton)
            for xy in (poses.input_xy, poses.refined_xy)
        ]
        return {
            "people": int(given.sum()),
            "ks_input": float(np.where(poses.present, ks[0], 0)[scored].sum() / max(scored.sum(), 1)),
            "ks_refined": float(ks[1][scored].sum() / max(scored.sum(), 1)),
            "ap_input": self._ap(truth, poses.input_xy, given & among),
            "ap_refined": self._ap(truth, poses.refined_xy, given & among),
        }

    def run(
        self, variables: dict, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, dict[str, int | float]] | None:
        """The scores of each kind of input. None if `stop()` is true after a batch."""
        scores = {}
        for kind in self.kinds:
            poses = self.poses(kind, variables, stop)
            if poses is None:
                return None
            scores[kind] = self.score(poses)
        return scores

    def _ap(self, truth, image_xy, given) -> float:
        poses = [
            Pose(int(i), np.concatenate([image_xy[i], np.ones((len(image_xy[i]), 1))], axis=1), score=1.0)
            for i in np.flatnonzero(given)
        ]
        if not poses:
            return 0.0
        return keypoint_scores(truth, poses, self.spec.skeleton).figures[FIGURES[0]]


def line_of(kind: str, scores: dict[str, int | float]) -> str:
    """The scores as a line for the terminal."""
    return (
        f"{kind} poses of {scores['people']} people: KS {scores['ks_input']:.4f} -> {scores['ks_refined']:.4f}, "
        f"AP {scores['ap_input']:.4f} -> {scores['ap_refined']:.4f}"
    )
