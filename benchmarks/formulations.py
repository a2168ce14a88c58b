"""Each formulation for XLA:CPU against XLA's own: alone at a network's shapes, and in whole networks.

    python benchmarks/formulations.py [--write] [--networks | --warps IMAGES]

Seconds with XLA's own formulation over seconds with ours: above 1, ours is faster. Both run alternately; the result is
the median of the rounds, with the spread. Alone: the outcome, and the outcome with gradients to input and weights.
`--networks`: refinement by the packaged refiner, and forward pass and gradients of the paper's ResNet-50 at 256x192,
batch 8, with one formulation at a time replaced by XLA's own; `of_processor_time` is the ratio of the processor's
seconds, which other programs on the machine disturb less. A formulation stays if it gains 5% alone and in a network:
run both when jax changes.

`--warps IMAGES`: how far the crop of a TPU lies from that of other devices, in grey levels, on up to 100 photographs of a
folder, each cut to a patch of 384 px, under random augmentation. In float32: a TPU's bfloat16 weights come on top.
"""

import contextlib
import functools
import sys
import time
from pathlib import Path
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from measure import seconds, write_result

from posefix_jax.cli import use_huge_pages
from posefix_jax.core import heatmaps
from posefix_jax.core.augment import AugmentConfig, random_crop_affine, warp_by_pixel, warp_in_passes
from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.models import ModelConfig, RefinerSpec, cpu_kernels, layers
from posefix_jax.core.models.convolution import conv, depthwise
from posefix_jax.core.models.cpu_kernels import (
    depthwise_conv_by_shift,
    pixelwise,
    transposed_conv_by_phase,
    winograd_conv,
)
from posefix_jax.core.models.layers import conv_of_separable
from posefix_jax.core.refine_step import make_refine_step
from posefix_jax.refining.refiner import Refiner
from posefix_jax.runtime.checkpoints import abstract_variables
from posefix_jax.runtime.devices import compiler_options

NHWC = ("NHWC", "HWIO", "NHWC")
BATCH = 8


def undrawn(xy, kernel):
    return conv_of_separable(_pose(xy), kernel, 2)


def drawn(xy, kernel):
    return conv(_pose(xy).drawn(), kernel, 2)


def _pose(xy):
    return jax.vmap(lambda one: heatmaps.gaussians(one, jnp.ones(17, bool), crop_hw=(256, 192), sigma=7.0))(xy)


CASES = {
    "7x7 stem over 17 maps": (undrawn, drawn, (17, 2), (7, 7, 17, 64)),
    "1x1, 256 to 64": (pixelwise, jnp.matmul, (64, 48, 256), (256, 64)),
    "1x1, 64 to 256": (pixelwise, jnp.matmul, (64, 48, 64), (64, 256)),
    "3x3, 64": (winograd_conv, conv, (64, 48, 64), (3, 3, 64, 64)),
    "3x3, 128": (winograd_conv, conv, (32, 24, 128), (3, 3, 128, 128)),
    "3x3, 256": (winograd_conv, conv, (16, 12, 256), (3, 3, 256, 256)),
    "4x4 transposed, 256": (
        transposed_conv_by_phase,
        functools.partial(jax.lax.conv_transpose, strides=(2, 2), padding="SAME", dimension_numbers=NHWC),
        (32, 24, 256),
        (4, 4, 256, 256),
    ),
    "3x3 depthwise, 192": (
        functools.partial(depthwise_conv_by_shift, stride=1),
        depthwise,
        (32, 24, 192),
        (3, 3, 192),
    ),
}
"""name: ours, XLA's own, shape of a sample, shape of the kernel"""


def compare(ours, own, sample: tuple, kernel: tuple) -> dict:
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.uniform(0, 1, shape), jnp.float32) for shape in ((BATCH, *sample), kernel)]
    if sample == (17, 2):
        inputs[0] = inputs[0] * jnp.asarray([192.0, 256.0])

    def programs(function):
        def both(x, kernel, like):
            # A pose is given: nothing goes back to it.
            out, back = jax.vjp(*(((lambda k: function(x, k)), kernel) if sample == (17, 2) else (function, x, kernel)))
            return out, back(like)

        like = jnp.ones(jax.eval_shape(function, *inputs).shape)
        compiled = [jax.jit(one, compiler_options=compiler_options()) for one in (function, both)]
        return lambda: compiled[0](*inputs), lambda: compiled[1](*inputs, like)

    found = {}
    for what, mine, theirs in zip(("forward", "with gradients"), programs(ours), programs(own), strict=True):
        ratios = sorted(min(seconds(theirs, repeats=3)) / min(seconds(mine, repeats=3)) for _ in range(5))
        found[what] = {"ratio": round(ratios[2], 2), "spread": [round(ratios[0], 2), round(ratios[-1], 2)]}
    return found


def conv_of_drawn(maps, kernel, stride, offset=0, dtype=jnp.float32):
    return conv(maps.drawn(), kernel, stride, offset)


OWN = {
    "undrawn pose": (layers, "conv_of_separable", conv_of_drawn),
    "1x1": (layers, "pixelwise", jnp.matmul),
    "1x1, gradient only": (cpu_kernels, "_pixels_times", jnp.matmul),
    "Winograd": (layers, "winograd_suits", lambda hw, channels: False),
    "transposed": (
        layers,
        "transposed_conv",
        functools.partial(jax.lax.conv_transpose, strides=(2, 2), padding="SAME", dimension_numbers=NHWC),
    ),
    "depthwise": (layers, "depthwise_conv", depthwise),
}
"""formulation: what to replace, and XLA's own"""


def refinement():
    """The packaged refiner on a batch of 8."""
    spec = Refiner.load().spec
    return make_refine_step(spec.network().apply, spec), (random_variables(spec), *inputs_of(spec))


def resnet50(*, gradients: bool):
    """Logits of the paper's ResNet-50, or a loss and its gradients to the weights."""
    spec = RefinerSpec(COCO, ModelConfig("resnet50"), (True,) * 17)
    variables = random_variables(spec)
    network, statistics = spec.network(), variables["batch_stats"]

    def loss(params, *inputs):
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = network.apply(variables, *inputs, train=True, mutable=["batch_stats", "intermediates"])
        return (logits**2).mean()

    if gradients:
        return jax.value_and_grad(loss), (variables["params"], *inputs_of(spec))
    return network.apply, (variables, *inputs_of(spec))


def random_variables(spec: RefinerSpec) -> dict:
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), abstract_variables(spec))
    return variables | {"batch_stats": jax.tree.map(lambda leaf: np.abs(leaf) + 1, variables["batch_stats"])}


def inputs_of(spec: RefinerSpec) -> tuple:
    rng = np.random.default_rng(0)
    h, w = spec.model.crop_hw
    crops = rng.uniform(0, 255, (BATCH, h, w, 3)).astype(np.float32)
    return crops, rng.uniform(0, (w, h), (BATCH, 17, 2)).astype(np.float32), np.ones((BATCH, 17), bool)


NETWORKS = {
    "packaged refiner": (refinement, ("1x1", "depthwise")),
    "ResNet-50 forward": (functools.partial(resnet50, gradients=False), tuple(set(OWN) - {"depthwise"})),
    "ResNet-50 with gradients": (functools.partial(resnet50, gradients=True), tuple(set(OWN) - {"depthwise"})),
}
"""name: the program, and the formulations that it has"""


def compare_in(make, names, rounds: int = 9) -> dict:
    """The ratio of each formulation within a network."""

    def compiled(name: str | None):
        jax.clear_caches()  # Winograd's products are traced once per shape
        with mock.patch.object(*OWN[name]) if name else contextlib.nullcontext():
            function, arguments = make()
            program = jax.jit(function, compiler_options=compiler_options()).lower(*arguments).compile()
        arguments = jax.device_put(arguments)
        return lambda: jax.block_until_ready(program(*arguments))

    def once(run) -> np.ndarray:
        start = np.array([time.perf_counter(), time.process_time()])
        run()
        return np.array([time.perf_counter(), time.process_time()]) - start

    found, ours = {}, compiled(None)
    for name in sorted(names):
        own = compiled(name)
        own(), ours()
        ratios, start = [], time.monotonic()
        while len(ratios) < rounds and (not ratios or time.monotonic() - start < 60):
            ratios.append(once(own) / once(ours))
        ratios = np.sort(ratios, axis=0)
        low, middle, high = ratios[[0, len(ratios) // 2, -1]].round(3).tolist()
        found[name] = {"ratio": middle[0], "spread": [low[0], high[0]], "of_processor_time": middle[1]}
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def compare_warps(folder: Path) -> dict:
    """Mean difference, and the share of pixels that differ by more than half a grey level."""
    both = jax.jit(
        lambda patch, affine: (warp_by_pixel(patch, affine, (256, 192)), warp_in_passes(patch, affine, (256, 192)))
    )
    box, found = jnp.asarray([96.0, 64.0, 192.0, 256.0]), []
    for i, path in enumerate(sorted(folder.glob("*.jpg"))[:100]):
        picture = cv2.imread(str(path))
        side = min(picture.shape[:2])
        patch = cv2.resize(picture[:side, :side], (384, 384), interpolation=cv2.INTER_AREA)
        affine, _, _ = random_crop_affine(jax.random.key(i), box, AugmentConfig(), (256, 192))
        pixels, passes = both(patch, affine)
        difference = np.abs(np.asarray(pixels) - passes)
        angle = abs(np.degrees(np.arctan2(affine[1, 0], affine[1, 1])))
        found.append((angle, difference.mean(), (difference > 0.5).mean()))
    angle, mean, share = np.transpose(found)

    def of(chosen):
        figures = {"crops": int(chosen.sum()), "mean": mean[chosen].mean(), "share_above_half": share[chosen].mean()}
        return {name: round(float(value), 4) for name, value in figures.items()}

    return {"not rotated": of(angle < 0.01), "rotated": of(angle >= 0.01), "largest mean": round(float(mean.max()), 2)}


if __name__ == "__main__":
    use_huge_pages()
    if "--warps" in sys.argv:
        write_result("formulations", {"warps": compare_warps(Path(sys.argv[sys.argv.index("--warps") + 1]))})
    elif "--networks" in sys.argv:
        write_result("formulations", {name: compare_in(*case) for name, case in NETWORKS.items()})
    else:
        write_result("formulations", {name: compare(*case) for name, case in CASES.items()})
