"""Validation within training: refined against input poses, by KS and by AP."""

import functools
import sys

import jax
import numpy as np

from posefix_jax.data.pipeline import People, evaluation_batches
from posefix_jax.evaluation.oks import FIGURES, keypoint_scores, keypoint_similarity, quiet_coco
from posefix_jax.step import Batch, make_eval_step
from posefix_jax.types import PosefixError


class Validator:
    """Refines the validation people's synthetic poses, and their stored detections if there are any.

    The synthetic poses are drawn with a fixed key: the same at every validation of every run.
    """

    def __init__(self, config, spec, errors):
        self.people = People(config.data.validation)
        if self.people.skeleton.joints != spec.skeleton.joints:
            raise PosefixError(
                f"data.validation is of {self.people.skeleton.name}, data.train of {spec.skeleton.name}; "
                "expected the same joints"
            )
        self.spec = spec
        self.batch_size = min(config.data.batch_size, 64)
        detected = any(manifest.detections for manifest in self.people.manifests)
        self._steps = {
            name: jax.jit(make_eval_step(spec=spec, errors=errors, detected=name == "detected"))
            for name in ("synthetic", *(("detected",) if detected else ()))
        }
        records = [self.people[i][1] for i in range(len(self.people))]
        self.scale = np.array([record.patch_to_image[0] for record in records])
        self.corner = np.array([record.patch_to_image[1:] for record in records])
        self.area = np.array([record.area for record in records]) * self.scale**2
        joints = np.stack([record.joints for record in records]).astype(np.float64)
        self.labelled = (joints[..., 2] > 0) & np.asarray(spec.trained_joints)
        self.true_xy = self._to_image(joints[..., :2], np.ones(len(joints)))
        self.zoom = np.array([self.people.patch / record.side for record in records])
        self.truth = quiet_coco(self._annotations())

    def _to_image(self, patch_xy, zoom):
        xy = (patch_xy + 0.5) / zoom[:, None, None] - 0.5
        return xy * self.scale[:, None, None] + self.corner[:, None, :]

    def _annotations(self) -> dict:
        annotations = []
        for i, (xy, labelled) in enumerate(zip(self.true_xy, self.labelled, strict=True)):
            if not labelled.any():
                continue
            joints = np.concatenate([np.where(labelled[:, None], xy, 0), 2.0 * labelled[:, None]], axis=1)
            low, high = xy[labelled].min(axis=0), xy[labelled].max(axis=0)
            annotations.append(
                {
                    "id": i + 1,
                    "image_id": i,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": float(self.area[i]),
                    "bbox": [*map(float, low), *map(float, high - low)],
                    "keypoints": joints.reshape(-1).tolist(),
                    "num_keypoints": int(labelled.sum()),
                }
            )
        # Every person is an image of its own: whose pose an input is was settled when it was drawn or matched.
        images = [{"id": a["image_id"]} for a in annotations]
        category = {"id": 1, "name": "person", "keypoints": list(self.spec.skeleton.joints), "skeleton": []}
        return {"info": {}, "images": images, "annotations": annotations, "categories": [category]}

    def run(self, step: int, variables, writer) -> dict:
        """Prints a line a kind of input, writes the figures to TensorBoard, returns them."""
        root = jax.random.key(0)
        figures = {}
        for name, evaluate in self._steps.items():
            parts = []
            for arrays in evaluation_batches(self.people, batch_size=self.batch_size):
                parts.append(jax.device_get(evaluate(variables, Batch(**arrays), root)))
            stacked = [np.concatenate(field)[: len(self.people)] for field in zip(*parts, strict=True)]
            input_xy, present, refined_xy, _ = stacked
            input_xy, refined_xy = self._to_image(input_xy, self.zoom), self._to_image(refined_xy, self.zoom)
            given = present.any(axis=1)
            scored = self.labelled & given[:, None]
            similarity = functools.partial(
                keypoint_similarity, true_xy=self.true_xy, area=self.area, skeleton=self.spec.skeleton
            )
            ks_input = np.where(present, similarity(input_xy), 0)[scored].mean()
            ks_refined = similarity(refined_xy)[scored].mean()
            ap = [self._ap(xy, given) for xy in (input_xy, refined_xy)]
            figures[name] = {"ks_input": ks_input, "ks_refined": ks_refined, "ap_input": ap[0], "ap_refined": ap[1]}
            print(
                f"validation at step {step}, {name} poses of {given.sum()} people: KS {ks_input:.4f} -> "
                f"{ks_refined:.4f}, AP {ap[0]:.4f} -> {ap[1]:.4f}",
                file=sys.stderr,
                flush=True,
            )
            for key, value in figures[name].items():
                writer.add_scalar(f"validation/{name}_{key}", float(value), step)
        return figures

    def _ap(self, image_xy, given) -> float:
        rows = [
            {
                "image_id": i,
                "category_id": 1,
                "keypoints": np.concatenate([xy, np.ones((len(xy), 1))], axis=1).reshape(-1).tolist(),
                "score": 1.0,
            }
            for i, xy in enumerate(image_xy)
            if given[i] and self.labelled[i].any()
        ]
        if not rows:
            return 0.0
        return keypoint_scores(self.truth, rows, self.spec.skeleton).figures[FIGURES[0]]

