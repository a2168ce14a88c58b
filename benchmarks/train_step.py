"""The share of augmentation, synthesis and rendering in the training step of ResNet-50 at 256x192.

    python benchmarks/train_step.py [--write] [--batch 8]

The limit is 5%. The step without them is the same step on samples prepared in advance.
"""

import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from measure import seconds, write_result

from posefix_jax.cli import use_huge_pages
from posefix_jax.core.augment import AugmentConfig
from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.models import ModelConfig, RefinerSpec
from posefix_jax.core.synthesis import PAPER, from_model, make_synthesizer
from posefix_jax.core.train_step import (
    Batch,
    InputConfig,
    TrainState,
    make_train_step,
    make_training_pose,
    make_update_step,
    sample_keys,
)
from posefix_jax.runtime.devices import compiler_options, data_mesh
from posefix_jax.training.config import Config
from posefix_jax.training.initial_weights import initial_state
from posefix_jax.training.optimizer import make_optimizer
from posefix_jax.training.train import jitted_step


def random_batch(size: int, patch: int = 384, joints: int = 17, others: int = 4) -> Batch:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0.3 * patch, 0.7 * patch, (size, joints, 2)).astype(np.float32)
    return Batch(
        patch=rng.integers(0, 255, (size, patch, patch, 3), dtype=np.uint8),
        patch_xy=xy,
        labelled=np.ones((size, joints), bool),
        others_xy=rng.uniform(0, patch, (size, others, joints, 2)).astype(np.float32),
        others_labelled=np.ones((size, others, joints), bool),
        others_area=np.full((size, others), 16000, np.float32),
        overlap=np.full(size, others, np.int32),
        detected_xy=np.zeros((size, 8, joints, 2), np.float32),
        detected=np.zeros((size, 8, joints), bool),
        pseudo_xy=np.zeros((size, joints, 2), np.float32),
        pseudo=np.zeros((size, joints), bool),
        box=np.tile(np.float32([100, 80, 150, 200]), (size, 1)),
        area=np.full(size, 16000, np.float32),
        weight=np.ones(size, np.float32),
        sample=np.arange(size, dtype=np.int32),
        epoch=np.zeros(size, np.int32),
    )


def batch_shapes(size: int, patch: int = 384) -> Batch:
    """The shapes and dtypes of a batch."""
    one = jax.eval_shape(lambda: random_batch(1, patch))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), one)


def training(model: ModelConfig, mesh: Mesh) -> tuple[Callable, Callable[[Mesh], TrainState]]:
    """The step that `posefix train` builds for people of COCO with the paper's errors, and its first state on a mesh."""
    config = Config(model=model)
    spec = RefinerSpec(COCO, model, (True,) * 17)
    optimizer = make_optimizer(config.optimizer, 1000)
    synthesize = make_synthesizer(config.errors, config.error_weights, COCO)
    step = jitted_step(config, spec, synthesize, optimizer, mesh)
    return step, lambda mesh: initial_state(config, spec, optimizer, mesh)


def main() -> None:
    size = int(sys.argv[sys.argv.index("--batch") + 1]) if "--batch" in sys.argv else 8
    config = Config(model=ModelConfig("resnet50"))
    spec = RefinerSpec(COCO, config.model, (True,) * 17)
    optimizer = make_optimizer(config.optimizer, 1000)
    options = dict(spec=spec, synthesize=from_model(PAPER, COCO), augment=AugmentConfig(), inputs=InputConfig())
    batch = jax.device_put(random_batch(size))
    root = jax.random.key(0)

    @jax.jit
    def samples(batch, root):
        keys = sample_keys(root, batch.epoch, batch.sample)
        return jax.vmap(lambda key, record: make_training_pose(key, record, **options))(keys, batch)

    full = jax.jit(
        make_train_step(**options, optimizer=optimizer), donate_argnums=0, compiler_options=compiler_options()
    )
    bare = jax.jit(
        make_update_step(spec=spec, optimizer=optimizer), donate_argnums=0, compiler_options=compiler_options()
    )
    made = samples(batch, root)

    def repeated(step, *arguments):
        state = initial_state(config, spec, optimizer, data_mesh())._replace(average=None)

        def run():
            nonlocal state
            state, outcome = step(state, *arguments)
            return outcome

        return run

    full_run, bare_run = repeated(full, batch, root), repeated(bare, made)
    full_seconds, bare_seconds = seconds(full_run), seconds(bare_run)
    making = seconds(lambda: samples(batch, root))
    step = float(np.median(full_seconds))
    write_result(
        "train_step",
        {
            "network": "resnet50 256x192",
            "batch": size,
            "samples_per_second": round(size / step, 2),
            "samples_per_second_without": round(size / float(np.median(bare_seconds)), 2),
            "spread_seconds": [round(min(full_seconds), 3), round(max(full_seconds), 3)],
            "share_of_making_samples": round(float(np.median(making)) / step, 4),
        },
    )


if __name__ == "__main__":
    use_huge_pages()
    main()
