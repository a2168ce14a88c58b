"""Batches on the devices, ahead of the step that needs them."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh

from posefix_jax.core.train_step import Batch
from posefix_jax.data.pipeline import People, to_arrays, training_batches, training_order
from posefix_jax.runtime.devices import place_batch, replicated, split
from posefix_jax.training.config import DataConfig
from posefix_jax.types import PosefixError

AHEAD = 2
"""Batches in transit to the devices while a step runs."""
CACHE_SHARE = 0.7
"""Share of a device's memory that `data.cache device` may use."""


class Feed:
    """The global batches of a run from step `start` on, as arrays over the mesh; an endless iterator.

    The people of a batch depend on `seed` and the batch's number only. Grain reads them; with `cache` "device" they are
    gathered from a copy of all people that is split over the devices, and the host sends a few integers per step.

    Attributes:
      waited, sent: seconds spent so far waiting for Grain, and sending batches to the devices.

    Raises:
      PosefixError: a record cannot be read, a worker process died, or the people do not fit in device memory.
    """

    def __init__(self, mesh: Mesh, people: People, config: DataConfig, *, seed: int, start: int):
        self.waited = self.sent = 0.0
        self._mesh, self._people, self._config = mesh, people, config
        self._batches = self._cached(seed, start) if config.cache == "device" else self._streamed(seed, start)
        self._ahead = deque()

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> Batch:
        while len(self._ahead) <= AHEAD:
            self._ahead.append(next(self._batches))
        return self._ahead.popleft()

    def people_at(self, seed: int, step: int) -> list[str]:
        """Shard and record of each person in a step's global batch, for messages."""
        return [self._people.name(int(index)) for index in self._indices(training_order(self._people, seed), step)[2]]

    def _indices(self, order, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places in the epoch, epochs, and record indices of a step's global batch."""
        size = self._config.batch_size
        positions = np.arange(step * size, (step + 1) * size)
        places = np.array([order[int(position)] for position in positions])
        epochs = positions // self._people.places
        return places, epochs, self._people.index_at(places, epochs)

    def _streamed(self, seed: int, start: int) -> Iterator[Batch]:
        batches = training_batches(
            self._people,
            batch_size=self._config.batch_size,
            seed=seed,
            threads=self._config.threads,
            workers=self._config.workers,
            process=jax.process_index(),
            processes=jax.process_count(),
            start=start,
        )
        while True:
            asked = time.monotonic()
            try:
                local = next(batches)
            except RuntimeError as error:
                raise PosefixError(f"reading {', '.join(map(str, self._people.folders))} failed: {error}") from error
            got = time.monotonic()
            batch = place_batch(self._mesh, Batch(**local))
            self.waited += got - asked
            self.sent += time.monotonic() - got
            yield batch

    def _cached(self, seed: int, start: int) -> Iterator[Batch]:
        people = _on_devices(self._mesh, self._people, self._config.threads)
        parts, everywhere = split(self._mesh), replicated(self._mesh)

        def gather(people: Batch, index, place, epoch) -> Batch:
            return jax.tree.map(lambda field: field[index], people)._replace(sample=place, epoch=epoch)

        gather = jax.jit(gather, in_shardings=(parts, *(everywhere,) * 3), out_shardings=parts)
        order = training_order(self._people, seed)
        step = start
        while True:
            asked = time.monotonic()
            places, epochs, indices = (array.astype(np.int32) for array in self._indices(order, step))
            batch = gather(people, indices, places, epochs)
            self.sent += time.monotonic() - asked
            step += 1
            yield batch


def _on_devices(mesh: Mesh, people: People, threads: int) -> Batch:
    """All people as one batch, split over the devices; padded with copies of the last person."""
    each = -(-len(people) // mesh.size)
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in mesh.local_devices]
    room = CACHE_SHARE * min((limit for limit in limits if limit), default=np.inf)
    needed = each * people.patch**2 * 3
    if needed > room:
        raise PosefixError(
            f"data.cache device: {len(people)} people of {people.patch}x{people.patch} pixels need {needed / 2**30:.1f} "
            f"GiB on each of {mesh.size} devices, which may use {room / 2**30:.1f}; use more devices or no cache"
        )
    share = each * len(mesh.local_devices)
    first = jax.process_index() * share

    def arrays(index: int) -> dict:
        return to_arrays(people, min(index, len(people) - 1), sample=0, epoch=0)

    local = {key: np.empty((share, *np.shape(value)), value.dtype) for key, value in arrays(first).items()}
    with ThreadPoolExecutor(threads) as pool:
        for i, row in enumerate(pool.map(arrays, range(first, first + share))):
            for key, value in row.items():
                local[key][i] = value
    return place_batch(mesh, Batch(**local))
