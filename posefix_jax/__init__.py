"""PoseFix in JAX: improves the 2D human poses of any estimator.

    from posefix_jax import Refiner

    refined = Refiner.load().refine("photograph.jpg", poses)

The names below are the public API. Each loads what it needs when it is first used.
"""

import sys
from importlib import import_module

from posefix_jax.moved import MovedModules

TYPE_CHECKING = False  # as in typing, whose import would slow down every start of the command
if TYPE_CHECKING:
    from posefix_jax.core.joint_sets import COCO, SKELETONS, load_skeleton
    from posefix_jax.core.models import DecodeConfig, ModelConfig, RefinerSpec
    from posefix_jax.core.refine_step import make_refine_step
    from posefix_jax.core.skeleton import Skeleton
    from posefix_jax.core.synthesis import ErrorModel, Person, SyntheticPose, make_synthesizer, synthesize_pose
    from posefix_jax.core.taxonomy import classify_joints, similarity
    from posefix_jax.core.train_step import Batch, TrainState, make_train_step
    from posefix_jax.data.formats import FORMATS, Pose
    from posefix_jax.data.pose_files import PoseFiles, open_pose_file
    from posefix_jax.data.pose_writer import PoseWriter
    from posefix_jax.evaluation.errors import match_people
    from posefix_jax.evaluation.evaluate import METRICS
    from posefix_jax.evaluation.oks import keypoint_similarity, oks_nms
    from posefix_jax.refining.engine import Refined, Skipped
    from posefix_jax.refining.ray_engine import RayRefiner
    from posefix_jax.refining.refiner import Refiner
    from posefix_jax.runtime.checkpoints import load_refiner
    from posefix_jax.training.config import Config
    from posefix_jax.types import ErrorKind, PosefixError

_HOMES = {
    "core.models": ("DecodeConfig", "ModelConfig", "RefinerSpec"),
    "core.joint_sets": ("COCO", "SKELETONS", "load_skeleton"),
    "core.refine_step": ("make_refine_step",),
    "core.skeleton": ("Skeleton",),
    "core.train_step": ("Batch", "TrainState", "make_train_step"),
    "core.synthesis": ("ErrorModel", "Person", "SyntheticPose", "make_synthesizer", "synthesize_pose"),
    "core.taxonomy": ("classify_joints", "similarity"),
    "data.formats": ("FORMATS", "Pose"),
    "data.pose_files": ("PoseFiles", "open_pose_file"),
    "data.pose_writer": ("PoseWriter",),
    "evaluation.errors": ("match_people",),
    "evaluation.evaluate": ("METRICS",),
    "evaluation.oks": ("keypoint_similarity", "oks_nms"),
    "refining.engine": ("Refined", "Skipped"),
    "refining.ray_engine": ("RayRefiner",),
    "refining.refiner": ("Refiner",),
    "runtime.checkpoints": ("load_refiner",),
    "training.config": ("Config",),
    "types": ("ErrorKind", "PosefixError"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: F822 (loaded by __getattr__)
    "COCO",
    "FORMATS",
    "METRICS",
    "SKELETONS",
    "Batch",
    "Config",
    "DecodeConfig",
    "ErrorKind",
    "ErrorModel",
    "ModelConfig",
    "Person",
    "Pose",
    "PoseFiles",
    "PoseWriter",
    "PosefixError",
    "RayRefiner",
    "Refined",
    "Refiner",
    "RefinerSpec",
    "Skeleton",
    "Skipped",
    "SyntheticPose",
    "TrainState",
    "__version__",
    "classify_joints",
    "keypoint_similarity",
    "load_refiner",
    "load_skeleton",
    "make_refine_step",
    "make_synthesizer",
    "make_train_step",
    "match_people",
    "oks_nms",
    "open_pose_file",
    "similarity",
    "synthesize_pose",
]

__version__ = "0.1.0"

sys.meta_path.insert(0, MovedModules())


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
