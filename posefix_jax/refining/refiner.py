"""The `Refiner`: poses in one photograph in, better poses out."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from posefix_jax.core import geometry
from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.refine_step import Network, make_refine_step
from posefix_jax.data.image_sources import Images
from posefix_jax.data.images import UnreadableImage, ordered_map, warp_affine
from posefix_jax.runtime.checkpoints import load_refiner
from posefix_jax.runtime.devices import compiler_options, data_mesh, place_batch, replicated, split
from posefix_jax.types import PosefixError

SHIPPED = "shipped"
"""Folder of the package that holds the refiner loaded by default."""


def shipped_path() -> Path:
    """The folder of the shipped refiner."""
    return Path(str(resources.files("posefix_jax") / SHIPPED))


class Crop(NamedTuple):
    """One pose made ready for the network: its crop, where that lies, and the pose in it."""

    pixels: np.ndarray
    geometry: geometry.CropGeometry
    crop_xy: np.ndarray
    present: np.ndarray


class Outcome(NamedTuple):
    """Refined poses, [n, K, 3] in the image frame, and the mean expected KS of each pose's joints, [n]."""

    poses: np.ndarray
    quality: np.ndarray


class Group(NamedTuple):
    """The poses of one photograph, [n, K, 3] in the image frame, or in parts of its width and height (`fraction`).

    `tag` is the caller's; `size_hw` is known once it is read. `boxes` say where a pose without a usable joint is, (x, y,
    width, height) in the image frame, or None.
    """

    image: int | str
    poses: np.ndarray
    tag: object = None
    fraction: bool = False
    size_hw: tuple[int, int] | None = None
    boxes: tuple | None = None


_END = object()


class Refiner:
    """A refiner that is ready to run. `Refiner.load()` gives the shipped one.

    Attributes:
      spec: skeleton, sizes, frames, decoding.
      identity: changes with the weights; an interrupted job goes on only with the same.
      batch_size: crops a step; more are run in several. Fewer are padded, to a 16th or a quarter of it where that is
        enough: a single person need not wait for a batch, and no more than three programs are compiled.
    """

    def __init__(
        self,
        network: Network,
        variables: dict,
        spec: RefinerSpec,
        *,
        flip: bool = True,
        batch_size: int = 32,
        iterations: int = 1,
        identity: str = "",
    ):
        self.spec = spec
        self.identity = identity
        self._mesh = data_mesh()
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._variables = jax.device_put(variables, replicated(self._mesh))
        self._step = jax.jit(
            make_refine_step(network, spec, flip=flip, iterations=iterations),
            in_shardings=(replicated(self._mesh), *(split(self._mesh),) * 3),
            out_shardings=split(self._mesh),
            compiler_options=compiler_options(),
        )

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None = None,
        *,
        flip: bool = True,
        batch_size: int = 32,
        iterations: int = 1,
        keep_margin: float | None = None,
        min_ks: float | None = None,
    ) -> "Refiner":
        """A refiner from a checkpoint, or the shipped one.

        Args:
          checkpoint: a training run's folder (its latest step), one step's folder, or a shipped one.
          flip: also run the mirrored crop and average.
          iterations: how often a pose is refined, each time from where the last one left it.
          keep_margin, min_ks: override the checkpoint's own; see `DecodeConfig`. Both 0: every move is taken.

        Raises:
          PosefixError: no refiner there.
        """
        variables, spec = load_refiner(Path(checkpoint) if checkpoint is not None else shipped_path())
        weights = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variables)))
        spec = replace(spec, decode=spec.decode.given(keep_margin=keep_margin, min_ks=min_ks))
        options = {"flip": flip, "batch_size": batch_size, "iterations": iterations}
        return cls(spec.network().apply, variables, spec, identity=weights.hexdigest(), **options)

    def refine(self, image: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Refines poses in one photograph.

        Args:
          image: [H, W, 3] uint8, RGB.
          poses: [N, K, 2] or [N, K, 3]: image x, y, and a score; a joint with score 0 (or not finite) is missing.

        Returns:
          [N, K, 3] float64: image x, y, score. A joint that is kept has its input's values, a joint that was
          missing is filled in with its expected KS as score. A pose without a usable joint comes back as it is.

        Raises:
          PosefixError: shapes do not fit, or K is not the skeleton's.
        """
        image = np.asarray(image)
        poses = np.array(poses, np.float64)
        joints = self.spec.skeleton.num_joints
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise PosefixError(f"image must be [H, W, 3] uint8, found {image.shape} {image.dtype}")
        if poses.ndim != 3 or poses.shape[1] != joints or poses.shape[2] not in (2, 3):
            raise PosefixError(f"poses must be [N, {joints}, 2 or 3], found {poses.shape}")
        if poses.shape[2] == 2:
            poses = np.concatenate([poses, np.ones((*poses.shape[:2], 1))], axis=2)
        crops = [self.crop(image, pose) for pose in poses]
        usable = [i for i, crop in enumerate(crops) if crop is not None]
        for start in range(0, len(usable), self.batch_size):
            rows = usable[start : start + self.batch_size]
            poses[rows] = self.finish(self.start([crops[i] for i in rows]), poses[rows]).poses
        return poses

    def stream(
        self,
        rows: Iterable[tuple[int | str, np.ndarray]],
        images: Callable[[int | str], np.ndarray] | str | Path,
        *,
        threads: int = 4,
        min_score: float = 0.0,
        fill_missing: bool = True,
    ) -> Iterator[np.ndarray]:
        """Refines poses as they come, without end and in their order, decoding ahead of the devices.

        Args:
          rows: a photograph's name and a pose, [K, 2] or [K, 3] as for `refine`; poses of one photograph that stand
            together have it decoded once.
          images: a function of the name that gives [H, W, 3] uint8 RGB (called from several threads) and raises
            `UnreadableImage`; or what `data.sources.Images` takes: a folder, `.zip`, `.tar`, a video, a URL.
          threads: decoding threads.
          min_score: joints with a score up to this count as missing.
          fill_missing: also place joints that are missing.

        Yields:
          [K, 3] float64 a row. A pose whose photograph cannot be read, or without a usable joint, as it was.

        Raises:
          PosefixError: a pose is not of the skeleton's size.
        """
        if not callable(images):
            images = _reader(Images(images))
        shape = (self.spec.skeleton.num_joints, 3)
        waiting: deque[np.ndarray] = deque()  # poses whose outcome has not been given
        done: dict[int, np.ndarray] = {}
        given = 0

        def groups() -> Iterator[Group]:
            taken = 0
            # No more at a time than a batch: rows may go on without end, of one photograph too.
            source = iter(rows)
            for name, some in (
                pair
                for few in iter(lambda: [*islice(source, self.batch_size)], [])
                for pair in groupby(few, itemgetter(0))
            ):
                poses = [np.array(pose, np.float64) for _, pose in some]
                poses = [np.column_stack([p, np.ones(len(p))]) if p.shape == (shape[0], 2) else p for p in poses]
                for pose in poses:
                    if pose.shape != shape:
                        raise PosefixError(f"a pose of {name!r} must be [{shape[0]}, 2 or 3], found {pose.shape}")
                waiting.extend(poses)
                yield Group(name, np.stack(poses), range(taken, taken + len(poses)))
                taken += len(poses)

        for group, i, outcome in self.run(
            groups(), images, threads=threads, min_score=min_score, fill_missing=fill_missing
        ):
            done[group.tag[i]] = waiting[group.tag[i] - given] if isinstance(outcome, str) else outcome.poses
            while given in done:
                waiting.popleft()
                yield done.pop(given)
                given += 1

    def run(
        self,
        groups: Iterable["Group | None"],
        read: Callable[[int | str], np.ndarray],
        *,
        threads: int = 4,
        min_score: float = 0.0,
        fill_missing: bool = True,
        waits: dict | None = None,
    ) -> Iterator[tuple["Group", int, "Outcome | str"]]:
        """What `stream` and `posefix refine` run: crops cut in threads, a batch on the devices while the next is made.

        Args:
          groups: the poses of a photograph each. None: what is waiting is not to wait for more, so that which poses
            share a batch depends on nothing that comes later.
          waits: seconds waited for crops ("decode") and for the devices ("device") are added to it.

        Yields:
          For every pose, not always in order: its group, its index in that, and its outcome or why there is none.
        """
        waits = {} if waits is None else waits

        def crops_of(group: Group | None):
            if group is None:
                return None, []
            try:
                image = read(group.image)
            except UnreadableImage as error:
                return group, [f"photograph unreadable: {error}"] * len(group.poses)
            poses = group.poses
            if group.fraction:
                poses = poses * [image.shape[1], image.shape[0], 1]
            boxes = group.boxes or (None,) * len(poses)
            crops = [
                self.crop(image, pose, min_score=min_score, box=box) for pose, box in zip(poses, boxes, strict=True)
            ]
            group = group._replace(poses=poses, size_hw=image.shape[:2])
            reason = "no usable joint" if group.boxes is None else "no usable joint and no usable bbox"
            return group, [crop or reason for crop in crops]

        def timed(what: str, function, *arguments):
            begun = time.perf_counter()
            result = function(*arguments)
            waits[what] = waits.get(what, 0.0) + time.perf_counter() - begun
            return result

        def finished(sent):
            rows, started = sent
            poses = np.stack([group.poses[i] for group, i in rows])
            outcome = timed("device", lambda: self.finish(started, poses, fill_missing=fill_missing))
            for row, pose, quality in zip(rows, *outcome, strict=True):
                yield *row, Outcome(pose, quality)

        with ThreadPoolExecutor(threads) as pool:
            ready = ordered_map(pool, crops_of, groups, ahead=4 * threads)
            rows, crops, in_flight = [], [], None
            while (item := timed("decode", next, ready, _END)) is not _END:
                group, outcomes = item
                for i, outcome in enumerate(outcomes):
                    if isinstance(outcome, str):
                        yield group, i, outcome
                    else:
                        rows.append((group, i))
                        crops.append(outcome)
                while len(rows) >= self.batch_size or (group is None and rows):
                    sent = rows[: self.batch_size], self.start(crops[: self.batch_size])
                    rows, crops = rows[self.batch_size :], crops[self.batch_size :]
                    if in_flight is not None:
                        yield from finished(in_flight)
                    in_flight = sent
            if in_flight is not None:
                yield from finished(in_flight)
            if rows:
                yield from finished((rows, self.start(crops)))

    def crop(self, image: np.ndarray, pose: np.ndarray, *, min_score: float = 0.0, box=None) -> Crop | None:
        """The crop around one pose ([K, 3], image frame); None if no joint that the model knows is usable.

        A joint is present if finite and its score is above `min_score`. Where none is, the crop is laid around `box` (x, y,
        width, height), if there is one: the network then estimates the pose from the photograph alone.
        """
        model = self.spec.model
        present = np.isfinite(pose).all(axis=1) & (pose[:, 2] > min_score)
        around = present & np.asarray(self.spec.trained_joints)
        xy = np.where(present[:, None], pose[:, :2], 0.0)
        if around.any():
            box = geometry.crop_box_of_joints(xy, around, model.crop_hw)
        elif box is not None:
            box = geometry.crop_box(np.asarray(box, np.float64), model.crop_hw)
        else:
            return None
        place = geometry.crop_geometry(box, model.crop_hw, frame=model.frame)
        pixels = warp_affine(image, place.image_to_crop, model.crop_hw, antialias=model.frame != "reference")
        return Crop(pixels, place, np.where(present[:, None], place.to_crop(xy), 0.0).astype(np.float32), present)

    def start(self, crops: list[Crop]):
        """Sends up to `batch_size` crops to the devices and returns at once; `finish` waits for the outcome."""
        size, devices = self.batch_size, self._mesh.size
        while size > self.batch_size // 16 and size % (4 * devices) == 0 and size // 4 >= len(crops):
            size //= 4
        fill = size - len(crops)
        batch = [np.stack([crop[field] for crop in crops]) for field in (0, 2, 3)]
        batch = [np.concatenate([array, np.zeros((fill, *array.shape[1:]), array.dtype)]) for array in batch]
        return crops, self._step(self._variables, *place_batch(self._mesh, tuple(batch)))

    def finish(self, started, poses: np.ndarray, *, fill_missing: bool = True) -> Outcome:
        """What became of the crops that `start` sent; `poses` are their inputs, [n, K, 3] in the image frame."""
        crops, refined = started
        refined = jax.device_get(refined)
        trained = np.asarray(self.spec.trained_joints)
        out, quality = np.array(poses, np.float64), np.zeros(len(crops))
        for i, crop in enumerate(crops):
            image_xy = crop.geometry.to_image(refined.crop_xy[i].astype(np.float64))
            moved = refined.moved[i] & (crop.present | fill_missing) & np.isfinite(image_xy).all(axis=1)
            out[i, moved, :2] = image_xy[moved]
            filled = moved & ~crop.present
            out[i, filled, 2] = refined.output_ks[i, filled]
            counted = trained & (crop.present | moved)
            quality[i] = np.where(moved, refined.output_ks[i], refined.input_ks[i])[counted].mean()
        return Outcome(out, quality)


def _reader(images: Images) -> Callable[[int | str], np.ndarray]:
    def read(name):
        path = images.find(name)
        if path is None:
            raise UnreadableImage("not there")
        return images.read(path)

    return read
