"""What a TPU's own compiler makes of the training and the refinement step. Needs no TPU: libtpu compiles for one that is not there.

    pip install 'posefix-jax[tpu]'
    python benchmarks/tpu.py train [--topology v5e:2x2] [--backbone resnet50] [--input 256x192] [--batch 32] [--write]
    python benchmarks/tpu.py refine [--topology v5e:2x2] [--backbone packaged] [--batch 128] [--write]

The figures are the compiler's model, not measurements: `estimated_cycles` of each instruction, summed without regard to
what runs at the same time, and its count of operations and bytes. They serve to compare formulations. An instruction to
which the compiler gives no estimate is counted under `without_estimate`, with its bytes: a gather is one, and may take
longer than everything else. `--batch` is per chip. The training step is the one that `posefix train` builds. `--plain`
leaves out some of our formulations for TPUs, to see what each is worth.
"""

import argparse
import math
import os
import re
import time
from collections import Counter, defaultdict
from dataclasses import replace
from importlib.metadata import version

ACCELERATORS = {"v5e": "v5litepod-4", "v5p": "v5p-8", "v6e": "v6e-4", "v4": "v4-8", "tpu7x": "tpu7x-8"}
PEAK = {"v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}
"""Operations per second of a chip in bfloat16, and its clock. https://cloud.google.com/tpu/docs/system-architecture-tpu-vm."""
CLOCK = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FILES = {
    "augment.py": "augmentation",
    "synthesis": "synthesis",
    "taxonomy.py": "synthesis",
    "heatmaps.py": "maps",
    "losses.py": "loss",
    "decode.py": "decoding",
    "trust.py": "decoding",
    "optax": "optimizer and state",
}
"""The part of a step that a source file is, by a part of its path."""
FUNCTIONS = {"warp_by_pixel": "crop", "tap": "crop", "warp_in_passes": "crop", "weights": "crop"}
"""The same for some functions, before their files."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "refine"))
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--backbone", default=None, help="resnet50 to train, the packaged refiner to refine")
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--input", default="256x192")
    parser.add_argument("--batch", type=int, default=None, help="people a chip: 32 to train, 128 to refine")
    parser.add_argument("--patch", type=int, default=384)
    parser.add_argument("--plain", nargs="+", default=[], choices=("crop", "stem", "1x1", "depthwise"))
    parser.add_argument("--hlo", default=None, help="a file for the compiled program's text")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    kind = options.topology.split(":")[0]
    for name, value in {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": ACCELERATORS[kind],
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
    from measure import memory_GiB, write_result

    leave_out(options.plain)
    mesh = mesh_of(options.topology)
    batch = options.batch or {"train": 32, "refine": 128}[options.what]
    lowered = {"train": lower_training, "refine": lower_refinement}[options.what](options, mesh, batch)
    begun = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - begun
    text = program.as_text()
    if options.hlo:
        with open(options.hlo, "w") as file:
            file.write(text)
    figures = read_program(text)
    cost = program.cost_analysis()
    figures["operations"] = cost["flops"]
    figures["bytes_accessed"] = cost["bytes accessed"]
    if kind in CLOCK:
        modelled = figures["cycles"] / CLOCK[kind]
        figures["modelled_ms"] = round(1e3 * modelled, 2)
        figures["share_of_peak"] = round(cost["flops"] / PEAK[kind] / modelled, 3)
        figures["people_per_s_and_chip"] = round(batch / modelled)
    figures["memory_GiB"] = round(memory_GiB(program), 2)
    figures["compile_s"] = round(seconds)
    device = f"{mesh.size} x {kind} ({options.topology}), modelled by libtpu {version('libtpu')}"
    write_result("tpu", {"device": device, "what": options.what, "batch_per_chip": batch, **figures})


def leave_out(formulations: list[str]) -> None:
    """Puts in their place what other accelerators run, or the plain operation."""
    import jax.numpy as jnp

    from posefix_jax.core import augment
    from posefix_jax.core.models import layers
    from posefix_jax.core.models.convolution import conv, depthwise

    convolved = layers.Conv._convolved

    def drawn(x, maps, kernel, offset):
        x = jnp.concatenate([x, maps.drawn().astype(x.dtype)], axis=-1)
        return conv(x, kernel.astype(x.dtype), 2, offset)

    def by_products(self, x, kernel):
        if self.kernel > 1:
            return convolved(self, x, kernel)
        return layers.pixelwise(x[:, :: self.stride, :: self.stride], kernel[0, 0].astype(self.dtype))

    plain = {
        "crop": (augment, "warp_in_passes", augment.warp_by_pixel),
        "stem": (layers, "conv_in_blocks", drawn),
        "1x1": (layers.Conv, "_convolved", by_products),
        "depthwise": (layers, "depthwise_conv_in_full", depthwise),
    }
    for name in formulations:
        setattr(*plain[name])


def mesh_of(topology: str):
    """The mesh of a topology that need not be there."""
    from jax.experimental import topologies

    from posefix_jax.runtime.devices import data_mesh

    return data_mesh(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def lower_training(options, mesh, batch: int):
    """The step as `posefix train` builds it, for people of COCO with the paper's errors."""
    import jax
    from train_step import batch_shapes, training

    from posefix_jax.runtime.devices import data_mesh

    step, state_on = training(model_of(options, options.backbone or "resnet50"), mesh)
    state = jax.eval_shape(lambda: state_on(data_mesh()))
    return step.lower(state, batch_shapes(batch * mesh.size, options.patch), jax.random.key(0))


def lower_refinement(options, mesh, batch: int):
    """The refinement step, flip included, with uint8 crops."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from posefix_jax.core.joint_sets import COCO
    from posefix_jax.core.models import RefinerSpec
    from posefix_jax.core.refine_step import make_refine_step
    from posefix_jax.runtime.checkpoints import abstract_variables, load_refiner

    if options.backbone in (None, "packaged"):
        _, spec = load_refiner()
        spec = replace(spec, model=replace(spec.model, compute_dtype="bfloat16"))  # as auto is on a TPU
    else:
        spec = RefinerSpec(COCO, model_of(options, options.backbone), (True,) * 17)
    (h, w), people, joints = spec.model.crop_hw, batch * mesh.size, spec.skeleton.num_joints
    parts, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    step = jax.jit(make_refine_step(spec.network().apply, spec), in_shardings=(whole, parts, parts, parts))
    return step.lower(
        abstract_variables(spec),
        jax.ShapeDtypeStruct((people, h, w, 3), jnp.uint8),
        jax.ShapeDtypeStruct((people, joints, 2), jnp.float32),
        jax.ShapeDtypeStruct((people, joints), bool),
    )


def model_of(options, backbone: str):
    from posefix_jax.core.models import ModelConfig

    crop = tuple(map(int, options.input.split("x")))
    width = {} if options.width is None else {"width": options.width}
    return ModelConfig(backbone, crop_hw=crop, compute_dtype="bfloat16", **width)


def read_program(text: str) -> dict:
    """What the text of a compiled program says: cycles by part, collectives, what has no estimate."""
    bodies = computations(text)
    frames = Frames(text)
    by_part: Counter = Counter()
    collectives: dict = defaultdict(lambda: [0, 0])
    unknown: dict = defaultdict(lambda: [0, 0])
    counts: Counter = Counter()
    for name, times in executed(bodies).items():
        for line in bodies[name]:
            found = re.match(r"\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][\w\-]*)\(", line)
            if not found:
                continue
            size, opcode = size_of(found[1]), found[2]
            kind = opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                collectives[kind][0] += times
                collectives[kind][1] += times * size
            counts["copies"] += times * opcode.startswith("copy")
            counts["fusions"] += times * (opcode == "fusion")
            cycles = re.search(r'"estimated_cycles":"?(\d+)', line)
            if cycles:
                by_part[frames.part_of(line, kind)] += times * int(cycles[1])
            elif kind in ("fusion", "gather", "scatter", "sort", "custom-call", "convolution"):
                what = "gather" if "gather" in line.split(" = ")[0] else kind
                unknown[f"{what} ({frames.part_of(line, kind)})"][0] += times
                unknown[f"{what} ({frames.part_of(line, kind)})"][1] += times * size
    total = sum(by_part.values())
    return {
        "cycles": total,
        "share_of_cycles": {part: round(cycles / total, 4) for part, cycles in by_part.most_common()},
        "without_estimate": {name: {"count": n, "result_bytes": size} for name, (n, size) in unknown.items()},
        "collectives": {name: {"count": n, "bytes": size} for name, (n, size) in collectives.items()},
        **counts,
    }


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a program; the entry's is called ENTRY."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        begun = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if begun and " = " not in line.split("(")[0]:
            lines = bodies["ENTRY" if begun[1] else begun[2]] = []
        elif line.startswith(" "):
            lines.append(line)
    return bodies


def executed(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs that is not part of a fusion: the entry, loops, branches, asynchronous calls."""
    times: Counter = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in bodies.get(name, ()):
            if " fusion(" in line:
                continue
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            for kind, called in re.findall(r"(body|calls|branch_computations)=(\{[^}]*\}|[^\s,]+)", line):
                for body in re.findall(r"%?([\w.\-]+)", called):
                    visit(body, count * (int(trips[1]) if trips and kind == "body" else 1))

    visit("ENTRY", 1)
    return {name: count for name, count in times.items() if name in bodies}


def size_of(shape: str) -> int:
    """Bytes of a result."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(BYTES.get(kind, 4) * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in found)


class Frames:
    """Where in our source an instruction comes from, by the tables in a program's text."""

    def __init__(self, text: str):
        tables: dict[str, dict[int, str]] = defaultdict(dict)
        table: dict[int, str] = {}
        for line in text.splitlines():
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                table = tables[line]
            elif found := re.match(r"(\d+) (.*)", line):
                table[int(found[1])] = found[2]
            elif line.startswith(("%", "ENTRY")):
                break

        def number(key: str, value: str) -> int:
            found = re.search(rf"{key}=(\d+)", value)
            return int(found[1]) if found else 0

        names = {key: name.strip('"').split(".")[-1] for key, name in tables["FunctionNames"].items()}
        self._places = {
            key: (
                tables["FileNames"].get(number("file_name_id", value), ""),
                names.get(number("function_name_id", value)),
            )
            for key, value in tables["FileLocations"].items()
        }
        self._frames = {
            key: (number("file_location_id", value), number("parent_frame_id", value))
            for key, value in tables["StackFrames"].items()
        }

    def part_of(self, line: str, kind: str) -> str:
        """The part of the step that an instruction belongs to: that of the innermost function or file of the tables."""
        if kind.removesuffix("-done") in COLLECTIVES:
            return "collectives"
        if kind.startswith("copy"):
            return "copies"
        name = re.search(r'op_name="([^"]*)"', line)
        path = name[1] if name else ""
        if "Network" in path:
            module = re.search(r"/((?:stem|stage|block|up|head|pose|layer)[a-z]*)[\w]*/", path)
            return f"network: {module[1]}" if module else "network: rest"
        frame = re.search(r"stack_frame_id=(\d+)", line)
        place, parent = self._frames.get(int(frame[1]) if frame else 0, (0, 0))
        for _ in range(100):  # a frame may be its own parent
            if not place:
                break
            file, function = self._places.get(place, ("", None))
            if function in FUNCTIONS:
                return FUNCTIONS[function]
            for key, part in FILES.items():
                if key in file:
                    return part
            place, parent = self._frames.get(parent, (0, 0))
        if not path or path.endswith("copy"):
            return "no source named"
        if not path.startswith("jit(train_step)"):
            return "rest"
        return "rest of the sample" if "vmap" in path else "optimizer and state"


if __name__ == "__main__":
    main()
