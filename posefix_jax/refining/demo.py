"""`posefix demo`: the packaged refiner on real people in two photographs that come with the package."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from posefix_jax.core.geometry import PERSON_FILL, joint_extent
from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.synthesis import PAPER, synthesize_pose
from posefix_jax.data.images import read_image
from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate
from posefix_jax.evaluation.oks import keypoint_similarity
from posefix_jax.files import claim, read_json, write_json
from posefix_jax.refining.change_pictures import before_and_after
from posefix_jax.refining.feature_pictures import feature_picture
from posefix_jax.refining.refine_files import RefineOptions, refine_rows, summary_of
from posefix_jax.refining.refiner import Refiner
from posefix_jax.report.pictures import write_picture

PHOTOGRAPHS = Path(__file__).parents[1] / "photographs"
"""Sample photographs, as scikit-image ships them: astronaut (NASA, public domain), camera (Lav Varshney, CC0)."""

# Annotated by hand for this demo: image x, y of joints that are visible or can be told from the clothes.
_PEOPLE = {
    "astronaut": {
        "nose": (223, 124),
        "left_eye": (246, 104),
        "right_eye": (204, 103),
        "left_ear": (275, 130),
        "right_ear": (177, 125),
        "left_shoulder": (330, 268),
        "right_shoulder": (82, 268),
        "right_elbow": (45, 425),
        "right_wrist": (150, 488),
    },
    "camera": {
        "nose": (252, 162),
        "right_eye": (238, 146),
        "right_ear": (190, 140),
        "right_shoulder": (88, 180),
        "left_elbow": (245, 302),
        "right_elbow": (52, 322),
        "left_wrist": (284, 248),
        "right_wrist": (184, 244),
    },
}


@dataclass(frozen=True)
class DemoOptions:
    """Refines synthetic errors of two hand-annotated people, scores them, and draws before and after."""

    out: Path = Path("demo")
    """folder to write"""
    checkpoint: Path | None = None
    """a training run or checkpoint; the packaged refiner by default"""
    draws: int = 32
    """poses with synthetic errors per person"""
    seed: int = 0
    """seed of the errors"""


def demo(options: DemoOptions) -> str:
    """Runs the main job on real input: files in, files out. Returns what to print.

    Raises:
      PosefixError: there is no such checkpoint, or something else lies where the output goes.
    """
    claim(options.out, "posefix demo")
    images: list[dict] = []
    annotations: list[dict] = []
    rows: list[dict] = []
    pictures: dict[str, tuple] = {}
    for name, joints in _PEOPLE.items():
        rgb = read_image(PHOTOGRAPHS / f"{name}.png")
        true_xy = np.array([joints.get(joint, (0, 0)) for joint in COCO.joints], np.float32)
        labelled = np.array([joint in joints for joint in COCO.joints])
        extent = joint_extent(true_xy, labelled)
        area = float(PERSON_FILL * extent[2] * extent[3])
        noisy = _with_errors(true_xy, labelled, area, options)
        for draw in range(options.draws):
            # Each pose is a detection in a photograph of its own, so that each is scored.
            image_id = len(images) + 1
            images.append({"id": image_id, "file_name": f"{name}.png", "height": rgb.shape[0], "width": rgb.shape[1]})
            annotations.append(
                {
                    "id": image_id,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": area,
                    "bbox": [float(v) for v in extent],
                    "num_keypoints": int(labelled.sum()),
                    "keypoints": np.column_stack([true_xy, 2.0 * labelled]).reshape(-1).tolist(),
                }
            )
            pose = np.column_stack([noisy[draw], labelled])
            keypoints = [round(float(v), 3) for v in pose.reshape(-1)]
            rows.append({"image_id": image_id, "category_id": 1, "keypoints": keypoints, "score": 1.0})
        write_picture(options.out / "photographs" / f"{name}.png", rgb)
        pictures[name] = (rgb, true_xy, labelled, area)
    category = {"id": 1, "name": "person", "keypoints": list(COCO.joints), "skeleton": []}
    truth, detections, results = (options.out / f"{name}.json" for name in ("truth", "detections", "refined"))
    write_json(truth, {"images": images, "annotations": annotations, "categories": [category]})
    write_json(detections, rows)

    refiner = Refiner.load(options.checkpoint)
    photographs = options.out / "photographs"
    # Joints that the photograph does not show are not annotated, so none are filled in.
    job = RefineOptions(
        detections=(str(detections),), images=str(photographs), out=results, annotations=truth, missing="keep"
    )
    report = refine_rows(refiner, job)
    scores = evaluate(EvaluateOptions(results=results, annotations=truth, against=detections))
    lines = [
        f"{options.draws} poses with synthetic errors for each of {len(_PEOPLE)} people in photographs "
        "(annotated by hand, errors drawn by the paper's method):",
        summary_of(report, results),
        "",
        f"{'mean KS':18s} {'before':>8s} {'after':>8s}",
    ]
    before, after = (_poses(content) for content in (rows, read_json(results)))
    trained = np.asarray(refiner.spec.trained_joints)
    for index, (name, (rgb, true_xy, labelled, area)) in enumerate(pictures.items()):
        mine = slice(index * options.draws, (index + 1) * options.draws)
        among = labelled & trained
        ks = [keypoint_similarity(p[mine, :, :2], true_xy, np.asarray(area), COCO)[:, among] for p in (before, after)]
        lines.append(f"{name:18s} {ks[0].mean():8.3f} {ks[1].mean():8.3f}")
        # The median case is typical; best and worst show the range.
        gain = ks[1].mean(axis=1) - ks[0].mean(axis=1)
        shown = {"median": np.argsort(gain)[len(gain) // 2], "best": gain.argmax(), "worst": gain.argmin()}
        for which, draw in shown.items():
            row = mine.start + int(draw)
            picture = before_and_after(rgb, before[row], after[row], COCO)
            write_picture(options.out / "pictures" / f"{name}-{which}.png", picture)
            if which == "median":
                features = feature_picture(refiner.engine, rgb, before[row], after[row])
                write_picture(options.out / "pictures" / f"{name}-features.png", features)
    for name in ("AP", "AP50", "AP75"):
        lines.append(f"{name:18s} {scores['before'][name]:8.3f} {scores['after'][name]:8.3f}")
    left_out = [joint for joint, on in zip(COCO.joints, trained, strict=True) if not on]
    lines.append("")
    if left_out:
        lines.append(f"not trained, so left as they were: {', '.join(left_out)}")
    lines.append(
        "pictures, before and after (median, best, worst of each person), and where the network looks: "
        f"{options.out / 'pictures'}"
    )
    return "\n".join(lines)


def _with_errors(true_xy, labelled, area, options: DemoOptions) -> np.ndarray:
    """[draws, K, 2] poses with synthetic errors, image pixels."""
    keys = jax.random.split(jax.random.key(options.seed), options.draws)

    def draw(key):
        return synthesize_pose(
            key,
            jnp.asarray(true_xy),
            jnp.asarray(labelled),
            others_xy=jnp.zeros((0, COCO.num_joints, 2)),
            others_labelled=jnp.zeros((0, COCO.num_joints), bool),
            area=jnp.float32(area),
            skeleton=COCO,
            errors=PAPER,
        ).xy

    return np.asarray(jax.jit(jax.vmap(draw))(keys), np.float64)


def _poses(rows: list[dict]) -> np.ndarray:
    return np.array([row["keypoints"] for row in rows], np.float64).reshape(len(rows), -1, 3)
