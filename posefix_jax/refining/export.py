"""`posefix export`: a refiner as one serialized program that runs without this package."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.refine_step import Network, make_refine_step
from posefix_jax.files import check_replaceable, whole_file
from posefix_jax.runtime.checkpoints import load_refiner
from posefix_jax.types import PosefixError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@dataclass(frozen=True)
class ExportOptions:
    """Writes the step from crops and poses to refined poses as a StableHLO program for any batch size. jax alone runs it."""

    out: Path
    """file to write"""
    checkpoint: Path | None = None
    """a training run or checkpoint; by default the packaged refiner"""
    flip: bool = True
    """also run the mirrored crop and average, inside the program"""
    trust: float | None = None
    """trust in the input poses, 0..1, fixed in the program; the checkpoint's default otherwise"""

    def __post_init__(self):
        if self.trust is not None and not 0 <= self.trust <= 1:
            raise PosefixError(f"--trust must lie in 0..1, found {self.trust}")


def export(options: ExportOptions) -> str:
    """Writes the program. Returns lines for the terminal, with the largest difference from the original on noise.

    Expected KS is compared: positions jump when two places of a map are equally good.

    Raises:
      PosefixError: no refiner there, or the written program differs from the original.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise PosefixError("export needs the package flatbuffers: pip install flatbuffers")
    check_replaceable(options.out)
    variables, spec = load_refiner(options.checkpoint)
    spec = replace(spec, decode=spec.decode.given(trust=options.trust))
    program = export_program(spec.network().apply, variables, spec, flip=options.flip)
    difference = max(_difference(program, variables, spec, options.flip, size) for size in (1, 7))
    if not difference < 1e-3:
        raise PosefixError(f"the exported program's expected KS differs from the original's by {difference:.3g}")
    with whole_file(options.out) as file:
        file.write(program)
    h, w = spec.model.crop_hw
    joints = spec.skeleton.num_joints
    return (
        f"{options.out}: {len(program) / 1e6:.1f} MB for {', '.join(PLATFORMS)}; expected KS within {difference:.1e} of "
        f"the original's on noise\ninputs: crops [b, {h}, {w}, 3] uint8 RGB, crop_xy [b, {joints}, 2] float32, present "
        f"[b, {joints}] bool\noutputs: crop_xy, input_ks, output_ks, moved, agreement; trust {spec.decode.trust} in the poses\n"
        f'run: import jax.export; jax.export.deserialize(open("{options.out}", "rb").read()).call(crops, crop_xy, present)'
    )


def export_program(network: Network, variables: dict, spec: RefinerSpec, *, flip: bool = True) -> bytes:
    """The refinement step with its weights inside, serialized, for any batch size.

    The program takes (crops [b, H, W, 3] uint8 RGB, crop_xy [b, K, 2], present [b, K]) and returns the tuple of
    `refine_step.Refined`, for poses of the spec's trust.
    """
    refine = make_refine_step(network, spec, flip=flip)
    h, w = spec.model.crop_hw
    joints = spec.skeleton.num_joints
    (batch,) = jax.export.symbolic_shape("b")
    shapes = (
        jax.ShapeDtypeStruct((batch, h, w, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch, joints, 2), jnp.float32),
        jax.ShapeDtypeStruct((batch, joints), jnp.bool_),
    )
    program = jax.jit(lambda *inputs: tuple(refine(variables, *inputs)))
    return bytes(jax.export.export(program, platforms=PLATFORMS)(*shapes).serialize())


def _difference(program: bytes, variables: dict, spec: RefinerSpec, flip: bool, size: int) -> float:
    """The largest difference in expected KS, input or output, between the program and the original, on noise."""
    rng = np.random.default_rng(size)
    h, w = spec.model.crop_hw
    joints = spec.skeleton.num_joints
    crops = rng.integers(0, 256, (size, h, w, 3), dtype=np.uint8)
    crop_xy = rng.uniform(0, (w, h), (size, joints, 2)).astype(np.float32)
    present = rng.random((size, joints)) < 0.9
    refine = jax.jit(make_refine_step(spec.network().apply, spec, flip=flip))
    ours = refine(variables, crops, crop_xy, present)
    theirs = type(ours)(*jax.export.deserialize(bytearray(program)).call(crops, crop_xy, present))
    pairs = ((ours.input_ks, theirs.input_ks), (ours.output_ks, theirs.output_ks))
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
