"""Person records to batches, by Grain. Deterministic given the position; all randomness is the device's."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import grain
import numpy as np

from posefix_jax.data.images import UnreadableImage, decode_jpeg
from posefix_jax.data.records import MAX_DETECTED, MAX_OTHERS, Manifest, Record
from posefix_jax.types import PosefixError


class People:
    """The people of one or more prepared folders, as one random-access source of numbered records."""

    def __init__(self, folders: Sequence[str | Path]):
        if not folders:
            raise PosefixError("no prepared folder given; run `posefix prepare` and name its output")
        self.folders = [Path(folder) for folder in folders]
        self.manifests = [Manifest.read(folder) for folder in self.folders]
        self.skeleton = self.manifests[0].skeleton
        for folder, manifest in zip(self.folders, self.manifests, strict=True):
            if manifest.skeleton.joints != self.skeleton.joints:
                raise PosefixError(
                    f"{folder}: its skeleton is {manifest.skeleton.name}, that of {self.folders[0]} is "
                    f"{self.skeleton.name}; expected the same joints"
                )
            for shard in manifest.shards:
                if not (folder / shard).is_file():
                    raise PosefixError(f"{folder / shard}: missing, but its manifest names it; prepare again")
        self.patch = max(manifest.patch for manifest in self.manifests)
        self._records = grain.sources.ArrayRecordDataSource(
            [str(folder / shard) for folder, m in zip(self.folders, self.manifests, strict=True) for shard in m.shards]
        )
        expected = sum(manifest.people for manifest in self.manifests)
        if len(self._records) != expected:
            raise PosefixError(
                f"{', '.join(map(str, self.folders))}: manifests promise {expected} people, the shards hold "
                f"{len(self._records)}; prepare again"
            )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[int, Record]:
        return int(index), Record.decode(self._records[int(index)])

    @property
    def num_labelled(self) -> np.ndarray:
        """[K] people who have each joint labelled."""
        return np.sum([manifest.labelled for manifest in self.manifests], axis=0)


def to_arrays(index: int, record: Record, *, epoch: int, patch: int) -> dict[str, np.ndarray]:
    """One element of a batch; see `step.Batch` for the fields. A patch that does not decode has weight 0."""
    try:
        image = decode_jpeg(record.jpeg) if record.jpeg else None
    except UnreadableImage:
        image = None
    weight = np.float32(image is not None)
    zoom = patch / record.side
    if image is None:
        image = np.zeros((patch, patch, 3), np.uint8)
    elif zoom != 1:
        image = cv2.resize(image, (patch, patch), interpolation=cv2.INTER_LINEAR)

    def place(joints, slots=None):
        """Patch pixels after the zoom, edges on edges; padded to `slots` people."""
        if slots is not None:
            padded = np.zeros((slots, *joints.shape[1:]), np.float32)
            padded[: min(len(joints), slots)] = joints[:slots]
            joints = padded
        present = joints[..., 2] > 0
        return np.where(present[..., None], (joints[..., :2] + 0.5) * zoom - 0.5, 0).astype(np.float32), present

    half = np.array([0.5, 0.5, 0, 0], np.float32)
    patch_xy, labelled = place(record.joints)
    others_xy, others_labelled = place(record.others, MAX_OTHERS)
    detected_xy, detected = place(record.detected, MAX_DETECTED)
    return {
        "patch": image,
        "patch_xy": patch_xy,
        "labelled": labelled,
        "others_xy": others_xy,
        "others_labelled": others_labelled,
        "overlap": np.int32(record.overlap),
        "detected_xy": detected_xy,
        "detected": detected,
        "box": ((np.asarray(record.box, np.float32) + half) * np.float32(zoom) - half),
        "area": np.float32(record.area * zoom**2),
        "weight": weight,
        "sample": np.int32(index),
        "epoch": np.int32(epoch),
    }


def training_batches(
    people: People, *, batch_size: int, seed: int, threads: int, process: int = 0, processes: int = 1
) -> "grain.DatasetIterator":
    """This process's share of the endless sequence of global batches; its iterator can save and set its position.

    Epochs follow one another without a gap, each in an order of its own; a batch may straddle two. The global
    order does not depend on the number of processes: local batch i of process p is part p of global batch i.
    """
    if batch_size % processes:
        raise PosefixError(f"a batch of {batch_size} cannot be split over {processes} processes")
    count = len(people)
    positions = grain.MapDataset.source(people).seed(seed).shuffle().repeat(1 << 30)

    def with_epoch(position, element):
        index, record = element
        return to_arrays(index, record, epoch=position // count, patch=people.patch)

    local = positions.map_with_index(with_epoch).batch(batch_size // processes)[process::processes]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * threads, 4))
    return iter(local.to_iter_dataset(options))


def evaluation_batches(people: People, *, batch_size: int) -> Iterator[dict]:
    """Everybody once, in order; the last batch is filled up with records of weight 0."""
    count = len(people)
    for start in range(0, count, batch_size):
        rows = [
            to_arrays(*people[i], epoch=0, patch=people.patch) for i in range(start, min(start + batch_size, count))
        ]
        filler = {key: np.zeros_like(value) for key, value in rows[0].items()}
        rows += [filler] * (batch_size - len(rows))
        yield {key: np.stack([row[key] for row in rows]) for key in rows[0]}
