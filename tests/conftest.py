"""Eight simulated devices, set before jax starts; people and refiners that tests share."""

import os

# Tests spend more time on compiling than on computing: without LLVM's optimizations they take a fifth less time.
FLAGS = " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + FLAGS
os.environ["JAX_PLATFORMS"] = "cpu"

import gc
import json
import tempfile
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from format_samples import HEIGHT, WIDTH

from posefix_jax.core import heatmaps
from posefix_jax.core.geometry import crop_to_heat
from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.models import STRIDE, DecodeConfig, ModelConfig, RefinerSpec
from posefix_jax.refining.refine_files import RefineOptions
from posefix_jax.refining.refiner import Refiner

# Arrays of different rank are combined by mistake more often than on purpose. Dtypes are strict in a test of their own
# (test_train.py), because optax promotes them.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Each program is compiled once per session, however often tests run it.
COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="posefix-test-cache-"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
}
"""Environment of the processes that tests start."""
jax.config.update("jax_compilation_cache_dir", COMPILED["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module", autouse=True)
def keep_out_of_garbage_collection():
    """What jax keeps of every program (millions of objects in the end) is not searched for garbage again and again."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden_path():
    """The path of a file with recorded outputs of the released code; skips if it is not available."""

    def find(name) -> Path:
        path = SHARED / "golden" / name
        if not path.is_file():
            pytest.skip(f"recorded outputs of the released code are not available ({path})")
        return path

    return find


@pytest.fixture(scope="session")
def golden(golden_path):
    """Loads such a file."""
    return lambda name: np.load(golden_path(name))


@pytest.fixture
def shared_data() -> Path:
    """Real photographs and detections; skips if they are not available."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real photographs and detections are not available ({SHARED / 'data'})")
    return SHARED / "data"


@pytest.fixture(scope="session")
def tiny_spec() -> RefinerSpec:
    model = ModelConfig(backbone="resnet18", width=4, head_channels=4, crop_hw=(64, 64), pose_sigma=2.0)
    return RefinerSpec(COCO, model, (True,) * 17)


def identity_network(spec: RefinerSpec):
    """A network that returns the input pose, as exact one-hot maps."""

    def network(variables, image, crop_xy, present):
        heat_xy = crop_to_heat(crop_xy, STRIDE, spec.model.frame)
        target = jax.vmap(lambda xy: heatmaps.one_hot(xy, spec.model.heat_hw).drawn())(heat_xy)
        return jnp.log(jnp.maximum(target, 1e-30))

    return network


def shift_network(spec: RefinerSpec):
    """Says that every joint is two heatmap cells right of and below its input (mirrored: left of)."""
    network = identity_network(spec)

    def shifted(variables, image, crop_xy, present):
        return network(variables, image, crop_xy + np.full((1, 1, 2), 8, np.float32), present)

    return shifted


def make_people(folder: Path, *, images: int = 3, people: int = 2, seed: int = 0) -> tuple[Path, Path]:
    """A COCO annotation file and its photographs: noise, with annotated people of plausible proportions."""
    rng = np.random.default_rng(seed)
    # A standing figure, unit height: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
    figure = np.array(
        [(0, -0.42), (0.02, -0.44), (-0.02, -0.44), (0.05, -0.43), (-0.05, -0.43), (0.12, -0.3), (-0.12, -0.3)]
        + [(0.16, -0.15), (-0.16, -0.15), (0.18, 0.0), (-0.18, 0.0), (0.08, 0.02), (-0.08, 0.02)]
        + [(0.09, 0.25), (-0.09, 0.25), (0.09, 0.48), (-0.09, 0.48)]
    )
    (folder / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": [category()]}
    for i in range(images):
        name = f"{i + 1:012d}.png"
        cv2.imwrite(str(folder / "images" / name), rng.integers(0, 255, (240, 320, 3), dtype=np.uint8))
        content["images"].append({"id": i + 1, "file_name": name, "height": 240, "width": 320})
        for _ in range(people):
            height = rng.uniform(80, 160)
            xy = figure * height + rng.uniform((80, 90), (240, 150)) + rng.normal(0, 2, figure.shape)
            seen = rng.random(17) > 0.15
            low, high = xy.min(axis=0), xy.max(axis=0)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": i + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [*low, *(high - low)],
                    "area": float(0.5 * np.prod(high - low)),
                    "num_keypoints": int(seen.sum()),
                    "keypoints": np.column_stack([np.where(seen[:, None], xy, 0), 2 * seen]).reshape(-1).tolist(),
                }
            )
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path, folder / "images"


def category() -> dict:
    return {
        "id": 1,
        "name": "person",
        "keypoints": list(COCO.joints),
        "skeleton": [[a + 1, b + 1] for a, b in COCO.limbs],
    }


def detections_of(truth: Path, *, noise: float = 4.0, seed: int = 1) -> list[dict]:
    """Rows of a results file: every annotated person, with noise on the joints."""
    rng = np.random.default_rng(seed)
    rows = []
    for entry in json.loads(truth.read_text())["annotations"]:
        joints = np.asarray(entry["keypoints"]).reshape(17, 3)
        joints[:, :2] = np.round(joints[:, :2] + rng.normal(0, noise, (17, 2)), 2)
        joints[:, 2] = np.where(joints[:, 2] > 0, np.round(rng.uniform(0.3, 1, 17), 3), 0)
        rows.append(
            {
                "image_id": entry["image_id"],
                "category_id": 1,
                "keypoints": joints.reshape(-1).tolist(),
                "score": round(float(rng.random()), 4),
                "track": f"kept-{len(rows)}",
            }
        )
    return rows


@pytest.fixture(scope="session")
def people(tmp_path_factory) -> tuple[Path, Path]:
    return make_people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i in (1, 2, 3):
        cv2.imwrite(str(folder / f"{i:012d}.png"), np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8))
    return folder


@pytest.fixture(scope="session")
def prepared(people, tmp_path_factory) -> Path:
    from posefix_jax.data.prepare import PrepareOptions, prepare

    truth, images = people
    out = tmp_path_factory.mktemp("prepared") / "people"
    detections = out.with_name("detections.json")
    detections.write_text(json.dumps(detections_of(truth)))
    prepare(PrepareOptions(annotations=truth, images=images, out=out, detections=(detections,), patch=96, shard_size=4))
    return out


def tree(folder: Path) -> dict:
    """Every file of a folder and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def identity(tiny_spec):
    """A refiner that gives back every pose."""
    spec = RefinerSpec(tiny_spec.skeleton, tiny_spec.model, tiny_spec.trained_joints, DecodeConfig("soft-argmax"))
    return Refiner(identity_network(spec), {}, spec, batch_size=8)


@pytest.fixture
def job(people, tmp_path):
    """A folder with detections of three photographs, in which nothing else may change."""
    truth, images = people
    (tmp_path / "d.json").write_text(json.dumps(detections_of(truth)))
    return RefineOptions((str(tmp_path / "d.json"),), str(images), tmp_path / "r.json", part_rows=2, batch_size=8)


def change(job, **fields) -> RefineOptions:
    """The job with other options."""
    return RefineOptions(**{**vars(job), **fields})
