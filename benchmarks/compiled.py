"""What an accelerator's own compiler makes of the training and the refinement step, for one that is not there.

    pip install 'posefix-jax[tpu]'    # or [cuda13]
    python benchmarks/compiled.py train [--topology v5e:2x2] [--backbone resnet50] [--input 256x192] [--batch 32] [--write]
    python benchmarks/compiled.py refine [--topology h100:1] [--backbone packaged] [--batch 128] [--write]

These are no measurements. Of a TPU's program it prints the compiler's `estimated_cycles`, summed without regard to what
runs at the same time. An instruction without an estimate is counted under `without_estimate`, with its bytes: a gather is
one, and may take longer than everything else. Of an H100's program, which names no times, it prints the kernels and the
bytes that they read and write; `floor_ms` is those bytes at the memory's bandwidth. `--batch` is per chip. The training
step is the one that `posefix train` builds. `--plain` leaves out some of our formulations for TPUs, to see what each is
worth.
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
BANDWIDTH = {"h100": 3.35e12}
"""Bytes per second of its memory. https://www.nvidia.com/en-us/data-center/h100/, SXM."""
CLOCK = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What the compiler for GPUs must know of the device."""
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
    if kind in ACCELERATORS:
        compiler = f"libtpu {version('libtpu')}"
        settings = {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": ACCELERATORS[kind],
            "TPU_WORKER_HOSTNAMES": "localhost",
        }
    else:
        compiler = f"jax-cuda13-pjrt {version('jax-cuda13-pjrt')}"
        # Triton's products are chosen by trying them out, which needs the device.
        settings = {"CUDA_VISIBLE_DEVICES": "-1", "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}
    for name, value in {"JAX_PLATFORMS": "cpu", **settings}.items():
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
    if kind in BANDWIDTH:
        figures["floor_ms"] = round(1e3 * figures["bytes_moved"] / BANDWIDTH[kind], 2)
        figures["people_per_s_and_chip_at_most"] = round(batch / figures["bytes_moved"] * BANDWIDTH[kind])
    else:
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
    device = f"{mesh.size} x {kind} ({options.topology}), by {compiler}"
    write_result("compiled", {"device": device, "what": options.what, "batch_per_chip": batch, **figures})


def leave_out(formulations: list[str]) -> None:
    """Puts in their place what other accelerators run, or the plain operation."""

    from posefix_jax.core import augment
    from posefix_jax.core.models import layers
    from posefix_jax.core.models.convolution import depthwise

    convolved = layers.Conv._convolved

    def by_products(self, x, kernel):
        if self.kernel > 1:
            return convolved(self, x, kernel)
        return layers.pixelwise(x[:, :: self.stride, :: self.stride], kernel[0, 0].astype(self.dtype))

    plain = {
        "crop": (augment, "warp_in_passes", augment.warp_by_pixel),
        "stem": (layers, "conv_in_blocks", layers.conv_of_drawn),
        "1x1": (layers.Conv, "_convolved", by_products),
        "depthwise": (layers, "depthwise_conv_in_full", depthwise),
    }
    for name in formulations:
        setattr(*plain[name])


def mesh_of(topology: str):
    """The mesh of a topology that need not be there."""
    from jax.experimental import topologies

    from posefix_jax.runtime.devices import data_mesh

    kind, shape = topology.split(":")
    if kind in ACCELERATORS:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    else:
        described = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{shape}")
    return data_mesh(described.devices)


def abstract(tree):
    """The shapes of a tree, placed nowhere."""
    import jax

    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def lower_training(options, mesh, batch: int):
    """The step as `posefix train` builds it, for people of COCO with the paper's errors."""
    import jax
    from train_step import batch_shapes, training

    from posefix_jax.runtime.devices import data_mesh

    step, state_on = training(model_of(options, options.backbone or "resnet50"), mesh)
    state = abstract(jax.eval_shape(lambda: state_on(data_mesh())))
    return step.lower(state, batch_shapes(batch * mesh.size, options.patch), abstract(jax.random.key(0)))


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
        abstract(abstract_variables(spec)),
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
    """What the text of a compiled program says: cycles or bytes by part, collectives, what has no estimate."""
    bodies = computations(text)
    frames = Frames(text)
    sizes = sizes_of(bodies)
    cycles: Counter = Counter()
    moved: Counter = Counter()
    collectives: dict = defaultdict(lambda: [0, 0])
    unknown: dict = defaultdict(lambda: [0, 0])
    counts: Counter = Counter()
    for name, times in executed(bodies).items():
        for line in bodies[name]:
            found = INSTRUCTION.match(line)
            if not found:
                continue
            size, opcode = size_of(found[2]), found[3]
            kind = opcode.removesuffix("-start")
            part = frames.part_of(line, kind)
            if kind in COLLECTIVES:
                collectives[kind][0] += times
                collectives[kind][1] += times * size
            counts["copies"] += times * opcode.startswith("copy")
            counts["fusions"] += times * (opcode == "fusion")
            if opcode in ("fusion", "custom-call", "copy", "gather", "scatter", "sort", *COLLECTIVES):
                operands = re.findall(r"%([\w.\-]+)", line[found.end() :].split(")")[0])
                moved[part] += times * (size + sum(sizes.get(operand, 0) for operand in operands))
            if target := re.search(r'custom_call_target="([^"]+)"', line):
                counts[target[1]] += times
            if estimate := re.search(r'"estimated_cycles":"?(\d+)', line):
                cycles[part] += times * int(estimate[1])
            elif kind in ("fusion", "gather", "scatter", "sort", "custom-call", "convolution"):
                what = "gather" if "gather" in line.split(" = ")[0] else kind
                unknown[f"{what} ({part})"][0] += times
                unknown[f"{what} ({part})"][1] += times * size
    if cycles:
        figures = {
            "cycles": cycles.total(),
            "share_of_cycles": shares(cycles),
            "without_estimate": {name: {"count": n, "result_bytes": size} for name, (n, size) in unknown.items()},
        }
    else:
        figures = {"bytes_moved": moved.total(), "share_of_bytes": shares(moved)}
    return {
        **figures,
        "collectives": {name: {"count": n, "bytes": size} for name, (n, size) in collectives.items()},
        **counts,
    }


INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")


def shares(counter: Counter) -> dict[str, float]:
    """Each part's share, the largest first."""
    return {part: round(value / counter.total(), 4) for part, value in counter.most_common()}


def sizes_of(bodies: dict[str, list[str]]) -> dict[str, int]:
    """Bytes of each instruction's result."""
    found = (INSTRUCTION.match(line) for lines in bodies.values() for line in lines)
    return {match[1]: size_of(match[2]) for match in found if match}


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
