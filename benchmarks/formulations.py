"""Each formulation of `models/on_cpu.py`, and the undrawn pose, against XLA's own, at the shapes of ResNet and MobileNet.

    python benchmarks/formulations.py [--write]

Seconds of XLA's own over ours (above 1 ours is faster; turn about, the median of five and the spread): of the outcome
alone, and of it with the gradients to input and weights. Run it when jax changes: what no longer gains can go.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from measure import seconds, write_result

from posefix_jax.cli import use_huge_pages
from posefix_jax.core import heatmaps
from posefix_jax.core.models.cpu_kernels import (
    depthwise_conv_by_shift,
    pixelwise,
    transposed_conv_by_phase,
    winograd_conv,
)
from posefix_jax.core.models.layers import conv_of_separable
from posefix_jax.runtime.devices import compiler_options

NHWC = ("NHWC", "HWIO", "NHWC")
BATCH = 8


def undrawn(xy, kernel):
    return conv_of_separable(_pose(xy), kernel, 2)


def drawn(xy, kernel):
    pads = [(3, 3), (3, 3)]
    return jax.lax.conv_general_dilated(_pose(xy).drawn(), kernel, (2, 2), pads, dimension_numbers=NHWC)


def _pose(xy):
    return jax.vmap(lambda one: heatmaps.gaussians(one, jnp.ones(17, bool), crop_hw=(256, 192), sigma=7.0))(xy)


def conv(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(kernel.shape[0] // 2,) * 2] * 2, dimension_numbers=NHWC, feature_group_count=groups
    )


def depthwise(x, kernel):
    return conv(x, kernel[:, :, None], groups=x.shape[-1])


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


if __name__ == "__main__":
    use_huge_pages()
    write_result("formulations", {name: compare(*case) for name, case in CASES.items()})
