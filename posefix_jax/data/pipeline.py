"""Person records to batches, with Grain. Deterministic given the position; all randomness is on the devices."""

import functools
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from posefix_jax.core.skeleton import joints_in, tell_joints
from posefix_jax.data.images import UnreadableImage, decode_jpeg
from posefix_jax.data.records import MAX_DETECTED, MAX_OTHERS, Manifest, Record
from posefix_jax.types import PosefixError


class People:
    """The people of one or more prepared folders, as one random-access source of numbered records.

    The joints are those of the first folder. People of other folders contribute joints by name; the rest is unlabelled.

    Attributes:
      repeats: how often each folder's people appear per epoch; with 0.5, every other person, alternating over epochs.
      places: people per epoch.
    """

    def __init__(self, folders: Sequence[str | Path], repeats: Sequence[float] = ()):
        if not folders:
            raise PosefixError("no prepared folder given; run `posefix prepare` and name its output")
        if repeats and (len(repeats) != len(folders) or min(repeats) <= 0):
            raise PosefixError(
                f"data.repeats needs one positive number per folder, found {list(repeats)} for {len(folders)} folders"
            )
        self.folders = [Path(folder) for folder in folders]
        self.manifests = [Manifest.read(folder) for folder in self.folders]
        self.skeleton = self.manifests[0].skeleton
        tell_joints(self.skeleton, self.folders[0])
        self.repeats = tuple(repeats) or (1.0,) * len(self.folders)
        self._joints = [self._joints_in(folder, m) for folder, m in zip(self.folders, self.manifests, strict=True)]
        self.patch = max(manifest.patch for manifest in self.manifests)
        self._shards, self._records, self._folder_of = [], [], []
        for number, (folder, manifest) in enumerate(zip(self.folders, self.manifests, strict=True)):
            shards = [_open(folder / shard) for shard in manifest.shards]
            if sum(map(len, shards)) != manifest.people:
                raise PosefixError(
                    f"{folder}: its manifest promises {manifest.people} people, the shards hold "
                    f"{sum(map(len, shards))}; prepare again"
                )
            self._shards += [folder / shard for shard in manifest.shards]
            self._records += shards
            self._folder_of += [number] * len(shards)
        self._ends = np.cumsum([len(shard) for shard in self._records])
        counts = np.array([manifest.people for manifest in self.manifests])
        self._starts = np.cumsum(counts) - counts
        self._places = np.maximum(np.round(counts * np.array(self.repeats)), 1).astype(int)
        self.places = int(self._places.sum())

    def _joints_in(self, folder: Path, manifest: Manifest) -> np.ndarray | None:
        """[K] the place of each of our joints in the folder's records, or -1; None if the joints are the same."""
        theirs = manifest.skeleton.joints
        if theirs == self.skeleton.joints:
            return None
        index = joints_in(self.skeleton.joints, theirs)
        if (index < 0).all():
            raise PosefixError(
                f"{folder}: its joints ({', '.join(theirs[:4])}, ...) share no name with those of {self.folders[0]} "
                f"({', '.join(self.skeleton.joints[:4])}, ...)"
            )
        return index

    def check_detections(self, errors: Sequence[str]) -> None:
        """Raises PosefixError if only stored detections are to be drawn, and there are none."""
        if set(errors) == {"empirical"} and not any(manifest.detections for manifest in self.manifests):
            raise PosefixError(
                f"{', '.join(map(str, self.folders))}: no detections are stored, which --errors empirical draws from; prepare with "
                "--detections"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        """The shard and number of a record, for messages."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return f"{self._shards[shard]}: record {index - self._ends[shard] + len(self._records[shard])}"

    def __getitem__(self, index: int) -> Record:
        """Raises PosefixError, naming shard and record, if the record cannot be read."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        within = int(index - self._ends[shard] + len(self._records[shard]))
        try:
            record = Record.decode(self._records[shard][within])
        except (RuntimeError, ValueError) as error:
            raise PosefixError(f"{self.name(index)} cannot be read ({error}); prepare again") from error
        joints = self._joints[self._folder_of[shard]]
        return record if joints is None else _by_name(record, joints)

    def index_at(self, place: int | np.ndarray, epoch: int | np.ndarray) -> Any:
        """The index of the record at a place (0 .. `places`) of an epoch; integers, or arrays of them."""
        ends = np.cumsum(self._places)
        folder = np.searchsorted(ends, place, side="right")
        within = place - ends[folder] + self._places[folder]
        counts = np.array([manifest.people for manifest in self.manifests])[folder]
        return self._starts[folder] + (within + epoch * self._places[folder]) % counts

    @property
    def share_labelled(self) -> np.ndarray:
        """[K] the share of an epoch's people who have each joint labelled."""
        labelled = np.zeros(self.skeleton.num_joints)
        for manifest, joints, places in zip(self.manifests, self._joints, self._places, strict=True):
            share = np.append(np.array(manifest.labelled) / manifest.people, 0.0)
            labelled += places * (share[:-1] if joints is None else share[joints])
        return labelled / self.places


def _open(shard: Path) -> "grain.sources.ArrayRecordDataSource":
    if not shard.is_file():
        raise PosefixError(f"{shard}: missing, but its manifest names it; prepare again")
    try:
        source = grain.sources.ArrayRecordDataSource([str(shard)])
        len(source)
    except RuntimeError as error:
        raise PosefixError(f"{shard}: truncated or no ArrayRecord file ({error}); prepare again") from error
    return source


def _by_name(record: Record, joints: np.ndarray) -> Record:
    """The record with the joints of another skeleton; missing joints are unlabelled."""

    def pick(values):
        padded = np.concatenate([values, np.zeros_like(values[..., :1, :])], axis=-2)
        return padded[..., joints, :]

    named = ("joints", "others", "detected", "pseudo")
    return replace(record, **{name: pick(getattr(record, name)) for name in named})


@functools.cache
def _warn(line: str) -> None:
    print(f"posefix: {line}", file=sys.stderr, flush=True)


def to_arrays(people: People, index: int, *, sample: int, epoch: int) -> dict[str, np.ndarray]:
    """One element of a batch; `train_step.Batch` has the fields. A patch that cannot be decoded has weight 0."""
    record, patch = people[index], people.patch
    try:
        image = decode_jpeg(record.jpeg) if record.jpeg else None
    except UnreadableImage as error:
        _warn(f"{people.name(index)}: its picture cannot be decoded ({error}); it gets weight 0")
        image = None
    weight = np.float32(image is not None)
    zoom = patch / record.side
    if image is None:
        image = np.zeros((patch, patch, 3), np.uint8)
    elif zoom != 1:
        image = cv2.resize(image, (patch, patch), interpolation=cv2.INTER_LINEAR)

    def place(joints, slots=None):
        """Patch pixels after the zoom (edges map to edges), padded to `slots` people."""
        if slots is not None:
            padded = np.zeros((slots, *joints.shape[1:]), np.float32)
            padded[: min(len(joints), slots)] = joints[:slots]
            joints = padded
        present = joints[..., 2] > 0
        return np.where(present[..., None], (joints[..., :2] + 0.5) * zoom - 0.5, 0).astype(np.float32), present

    others_area = np.ones(MAX_OTHERS, np.float32)
    others_area[: len(record.others)] = record.others_area[:MAX_OTHERS] * zoom**2
    half = np.array([0.5, 0.5, 0, 0], np.float32)
    patch_xy, labelled = place(record.joints)
    others_xy, others_labelled = place(record.others, MAX_OTHERS)
    detected_xy, detected = place(record.detected, MAX_DETECTED)
    pseudo_xy, pseudo = place(record.pseudo)
    return {
        "patch": image,
        "patch_xy": patch_xy,
        "labelled": labelled,
        "others_xy": others_xy,
        "others_labelled": others_labelled,
        "others_area": others_area,
        "overlap": np.int32(record.overlap),
        "detected_xy": detected_xy,
        "detected": detected,
        "pseudo_xy": pseudo_xy,
        "pseudo": pseudo,
        "box": ((np.asarray(record.box, np.float32) + half) * np.float32(zoom) - half),
        "area": np.float32(record.area * zoom**2),
        "weight": weight,
        "sample": np.int32(sample),
        "epoch": np.int32(epoch),
    }


def training_order(people: People, seed: int) -> "grain.MapDataset":
    """The places (0 .. `people.places`) in training order: endless, and each epoch in a new order."""
    return grain.MapDataset.range(people.places).seed(seed).shuffle().repeat(1 << 30)


def _arrays_at(people: People, position: int, place: int) -> dict[str, np.ndarray]:
    epoch = position // people.places
    return to_arrays(people, int(people.index_at(place, epoch)), sample=place, epoch=epoch)


def _start_worker(index: int, count: int) -> None:
    """A worker ignores Ctrl-C (its parent handles it, and saves first) and exits when its parent is gone."""
    os.setpgid(0, 0)
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def training_batches(
    people: People,
    *,
    batch_size: int,
    seed: int,
    threads: int,
    workers: int = 0,
    process: int = 0,
    processes: int = 1,
    start: int = 0,
) -> Iterator[dict]:
    """This process's share of the endless sequence of global batches, starting at batch `start`.

    Epochs follow without a gap, each in a new order; a batch may span two. The global order does not depend on the number
    of processes: local batch i of process p is part p of global batch i.

    Args:
      threads: reading and decoding threads in each worker.
      workers: worker processes; 0 for threads of this process alone.
    """
    if batch_size % processes:
        raise PosefixError(f"a batch of {batch_size} cannot be split over {processes} processes")

    order = training_order(people, seed).map_with_index(functools.partial(_arrays_at, people))
    local = order.batch(batch_size // processes)[start * processes + process :: processes]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * threads, 4))
    batches = local.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads options of its own from them
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
    return iter(batches)


def evaluation_batches(people: People, *, batch_size: int, process: int = 0, processes: int = 1) -> Iterator[dict]:
    """Everybody once, in order. The last batch is padded with records of weight 0.

    As in training, local batch i of process p is part p of global batch i.
    """
    share = batch_size // processes
    for start in range(process * share, _up(len(people), batch_size), batch_size):
        indices = range(start, min(start + share, len(people)))
        rows = [to_arrays(people, i, sample=i, epoch=0) for i in indices]
        example = rows[0] if rows else to_arrays(people, 0, sample=0, epoch=0)
        rows += [{key: np.zeros_like(value) for key, value in example.items()}] * (share - len(rows))
        yield {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
