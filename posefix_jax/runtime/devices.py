"""Devices and processes. The only builder of a Mesh: the batch is split over all devices, the state is on each."""

import functools
import os
import platform
import socket
import sys
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from posefix_jax.types import PosefixError


@dataclass(frozen=True)
class ProcessConfig:
    """How the processes of a run find each other."""

    coordinator: str = ""
    """HOST:PORT of process 0; auto: ask the cluster (Slurm, TPU pods, Kubernetes jobs, Open MPI); empty: this process
    is alone"""
    count: int = 0
    """number of processes; 0: ask the cluster"""
    index: int = -1
    """index of this process, from 0; -1: ask the cluster"""
    timeout: int = 300
    """seconds to wait for the other processes at the start"""
    lost_after: int = 60
    """seconds without a sign of life after which a process counts as lost, and the others end"""

    def __post_init__(self):
        host, colon, port = self.coordinator.rpartition(":")
        if self.coordinator not in ("", "auto") and not (host and colon and port.isdecimal()):
            raise PosefixError(f"processes.coordinator must be HOST:PORT or auto, found {self.coordinator!r}")
        if self.count < 0 or min(self.timeout, self.lost_after) < 1 or not -1 <= self.index < max(self.count, 1):
            raise PosefixError(
                "processes.count must not be negative, index must be below it, timeout and lost_after positive, found "
                f"{self.count}, {self.index}, {self.timeout}, {self.lost_after}"
            )
        if self.coordinator not in ("", "auto") and (self.count < 1 or self.index < 0):
            raise PosefixError(
                "with a processes.coordinator of HOST:PORT, give processes.count and processes.index too"
            )


def join_processes(config: ProcessConfig, folder: Path) -> None:
    """Joins the other processes of the run. Call it before any other use of jax; a process alone has nothing to join.

    If the others do not come in time, the process prints which are missing and exits with 2 (jax's own time-out would
    abort it). If the cluster assigns the indices, it prints which have come instead.

    If one is lost later, jax aborts the others, at the latest when it has not been heard of for `lost_after` seconds. The
    last checkpoint is whole; the same command goes on from it.

    Args:
      config: of this process.
      folder: the run's folder, shared by all processes. Each leaves a mark in it until all have come.

    Raises:
      PosefixError: jax knows no such cluster, or cannot connect.
    """
    if not config.coordinator or jax.distributed.is_initialized():
        return
    given: dict[str, Any] = {} if config.coordinator == "auto" else {"coordinator_address": config.coordinator}
    if config.count:
        given["num_processes"] = config.count
    if config.index >= 0:
        given["process_id"] = config.index
    if len(given) == 3:
        given["cluster_detection_method"] = "deactivate"
    marks = folder / "joining"
    marks.mkdir(parents=True, exist_ok=True)
    mark = marks / (str(config.index) if config.index >= 0 else f"{socket.gethostname()}-{os.getpid()}")
    mark.write_text(socket.gethostname())

    def give_up():
        recent = mark.stat().st_mtime - config.timeout  # older marks are from an earlier attempt
        here = {path.name: path.read_text() for path in sorted(marks.iterdir()) if path.stat().st_mtime >= recent}
        missing = [str(i) for i in range(config.count) if str(i) not in here] if config.index >= 0 else []
        there = ", ".join(f"{index} on {host}" for index, host in here.items())
        who = f"processes {', '.join(missing)} of {config.count}" if missing else "some processes"
        print(
            f"posefix: {who} did not start within {config.timeout} s; started: {there}; coordinator {config.coordinator}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    watchdog = threading.Timer(config.timeout, give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            initialization_timeout=config.timeout + 60,  # the watchdog's limit comes first
            heartbeat_timeout_seconds=config.lost_after,
            shutdown_timeout_seconds=60,
            **given,
        )
    except (ValueError, RuntimeError) as error:
        raise PosefixError(f"processes.coordinator {config.coordinator}: {error}") from error
    finally:
        watchdog.cancel()
        mark.unlink(missing_ok=True)


def keep_compiled() -> None:
    """Caches programs that take long to compile in the user's cache folder, one folder per kind of CPU.

    A cache folder set by JAX_COMPILATION_CACHE_DIR or jax's own option stays.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    try:
        kind = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        kind = platform.processor()
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "posefix_jax" / f"compiled-{zlib.crc32(kind.encode()):08x}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home folder, or one that is not writable: compile at every start
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Options for `jax.jit` of programs with a network. On a CPU: XLA's own kernels for matrix products.

    XLA's default on x86 is a library with faster reductions but, at a network's shapes, slower products (figures in
    docs/scaling.md). Empty on other devices, and if XLA does not know the option. `platform`: that of the devices that the
    program is for; by default jax's own.
    """
    return _own_products() if (platform or jax.default_backend()) == "cpu" else {}


@functools.cache
def _own_products() -> dict[str, str]:
    """The options for a CPU, if its XLA knows them: a program is compiled to tell."""
    own_products = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(lambda x: x, compiler_options=own_products).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return own_products


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices along one axis, `data`: by default all of all processes."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",), axis_types=(AxisType.Auto,))


def split(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices: for batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device: for the state."""
    return NamedSharding(mesh, PartitionSpec())


def place_batch(mesh: Mesh, local: Any) -> Any:
    """A global batch on the devices, from this process's rows of it: a pytree of NumPy arrays."""
    sharding = split(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), local)


def local_copy(tree: Any) -> Any:
    """A replicated pytree as arrays on this process's first device."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)
