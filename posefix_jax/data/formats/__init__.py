"""The formats of pose files, one object each. To add one: a module here with a `Format`, and a place in `FORMATS`."""

from posefix_jax.data.formats.alphapose import AlphaPoseBodies, AlphaPoseBody, PoseFlow
from posefix_jax.data.formats.base import Edit, Element, Format, JsonFormat, Photograph, Pose, PoseFile
from posefix_jax.data.formats.coco import (
    CocoAnnotations,
    CocoResults,
    CocoWholeBody,
    CocoWholeBodyAnnotations,
    Detectron2,
)
from posefix_jax.data.formats.csv import Csv, CsvJoints
from posefix_jax.data.formats.datasets import KineticsSkeleton, MpiiJson
from posefix_jax.data.formats.deeplabcut import DeepLabCut, DeepLabCutHdf5
from posefix_jax.data.formats.mediapipe import MediaPipe
from posefix_jax.data.formats.mmpose import MMPose, MMPoseImage
from posefix_jax.data.formats.npz import Npz
from posefix_jax.data.formats.openpose import OpenPose
from posefix_jax.data.formats.parquet import Parquet
from posefix_jax.data.formats.posetrack17 import PoseTrack17
from posefix_jax.data.formats.sleap import SleapHdf5
from posefix_jax.data.formats.ultralytics import UltralyticsResults
from posefix_jax.data.formats.yolo import Yolo

# An element is of the first format that it matches.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Detectron2(),
        UltralyticsResults(),
        MpiiJson(),
        KineticsSkeleton(),
        AlphaPoseBodies(),
        AlphaPoseBody(),
        PoseFlow(),
        MMPose(),
        MMPoseImage(),
        MediaPipe(),
        CocoWholeBody(),
        CocoResults(),
        CocoAnnotations(),
        CocoWholeBodyAnnotations(),
        OpenPose(),
        PoseTrack17(),
        Yolo(),
        Parquet(),
        Npz(),
        DeepLabCut(),
        DeepLabCutHdf5(),
        SleapHdf5(),
        CsvJoints(),
        Csv(),
    )
}
"""Every format by name."""

WRITABLE = {name: form for name, form in FORMATS.items() if form.writable}
"""Those that `--to` writes."""

__all__ = [
    "FORMATS",
    "WRITABLE",
    "Edit",
    "Element",
    "Format",
    "JsonFormat",
    "Photograph",
    "Pose",
    "PoseFile",
]
