"""Poses and their photographs in, refined poses out: crops are cut in threads while the devices run the batch before."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from posefix_jax.core import geometry
from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.refine_step import Network, make_refine_step
from posefix_jax.core.trust import Trust, uniform
from posefix_jax.data.images import UnreadableImage, ordered_map, warp_affine
from posefix_jax.runtime.devices import compiler_options, data_mesh, place_batch, replicated, split

log = logging.getLogger(__name__)

NO_JOINT = "no usable joint"
NO_JOINT_NOR_BOX = "no usable joint and no usable bbox"


class Refined(NamedTuple):
    """Refined poses.

    Attributes:
      poses: [..., K, 3] float64: image x, y, score.
      quality: [...] the expected OKS of each pose, in 0..1: the mean confidence of its joints.
      confidence: [..., K] the expected KS of each joint, in 0..1; 0 for one that the refiner does not know.
      agreement: [..., 8] how each input agrees with the picture alone; `core.trust.measures` takes it.
    """

    poses: np.ndarray
    quality: np.ndarray
    confidence: np.ndarray
    agreement: np.ndarray


class Skipped(NamedTuple):
    """A pose that was not refined, and why."""

    reason: str


class Group(NamedTuple):
    """The poses of one photograph.

    Attributes:
      image: the photograph's name, for the function that reads it.
      poses: [n, K, 3] image x, y, score; or x, y in fractions of its width and height (`fraction`).
      boxes: (x, y, width, height) in the image per pose, or None: where to place the crop of a pose without a usable
        joint, whose pose is then estimated from the photograph alone. None: such poses are skipped.
    """

    image: object
    poses: np.ndarray
    fraction: bool = False
    boxes: Sequence[tuple | None] | None = None


class Crop(NamedTuple):
    """One pose made ready for the network: its crop, where the crop lies in the image, and the pose in it."""

    pixels: np.ndarray
    geometry: geometry.CropGeometry
    crop_xy: np.ndarray
    present: np.ndarray


@dataclass
class _Work:
    """Groups whose results are given out as one, and those results so far."""

    groups: Sequence[Group]
    results: list = field(init=False)
    sizes: dict = field(default_factory=dict)

    def __post_init__(self):
        self.results = [None] * sum(len(group.poses) for group in self.groups)
        self.left = len(self.results)

    def put(self, index: int, result: Refined | Skipped) -> None:
        self.results[index] = result
        self.left -= 1


class Results(NamedTuple):
    """What became of some groups: a result per pose, in order, and (height, width) of the photographs that were read."""

    poses: list[Refined | Skipped]
    sizes: dict


class Engine:
    """Runs a network on the devices, in batches.

    Args:
      network, variables, spec: what to run.
      flip: also run the mirrored crop and average.
      batch_size: crops per step, rounded up to a multiple of the devices. Fewer crops are padded to a sixteenth or a
        quarter of it where that is enough, so a single person does not wait for a full batch and at most three programs
        are compiled.
      iterations: how often a pose is refined, each time from the pose before.
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
    ):
        self.spec, self.flip = spec, flip
        self._network = network
        self._mesh = data_mesh()
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self.waits = {"decode": 0.0, "device": 0.0}
        """seconds that the last `run` spent waiting for crops and for the devices"""
        self._variables = jax.device_put(variables, replicated(self._mesh))
        self._compiled: set[int] = set()
        self._step = jax.jit(
            make_refine_step(network, spec, flip=flip, iterations=iterations),
            in_shardings=(replicated(self._mesh), *(split(self._mesh),) * 3, replicated(self._mesh)),
            out_shardings=split(self._mesh),
            compiler_options=compiler_options(),
        )

    @property
    def variables(self) -> dict:
        """The network's parameters and batch statistics, on the devices."""
        return self._variables

    def mirrored(self) -> "Engine":
        """This engine, with the mirrored crop."""
        return Engine(self._network, self._variables, self.spec, batch_size=self.batch_size)

    def run(
        self,
        work: Iterable[Sequence[Group]],
        read: Callable[[Any], np.ndarray],
        *,
        trust: Trust | None = None,
        threads: int = 4,
        min_score: float = 0.0,
        fill_missing: bool = True,
        on_done: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Results]:
        """The results of each piece of work, in order.

        A batch never holds poses of two pieces, so a result depends on its own piece only. Pieces are taken as needed:
        there may be endlessly many.

        Args:
          work: per piece, the poses of some photographs. Each photograph is read once per group.
          read: gives a group's photograph, [H, W, 3] uint8 RGB, or raises `UnreadableImage`; called from threads.
          trust: in the input poses; None for the spec's default.
          threads: how many read and cut crops.
          min_score: joints with a score up to this count as missing.
          fill_missing: also place joints that are missing.
          on_done: called with the number of poses that are newly done.
        """
        begun: deque[_Work] = deque()
        waiting: list[tuple[_Work, int, Crop, np.ndarray]] = []
        in_flight = None
        self.waits = dict.fromkeys(self.waits, 0.0)

        def receive(sent) -> None:
            rows, started = sent
            poses = np.stack([pose for *_, pose in rows])
            refined = self._timed("device", lambda: self.receive(started, poses, fill_missing=fill_missing))
            for (piece, index, *_), *result in zip(rows, *refined, strict=True):
                piece.put(index, Refined(*result))
            on_done(len(rows))

        def jobs() -> Iterator[tuple[_Work, int, Group | None]]:
            for groups in work:
                piece = _Work(groups)
                begun.append(piece)
                first = 0
                for group in groups:
                    yield piece, first, group
                    first += len(group.poses)
                yield piece, first, None

        def cut(job):
            piece, first, group = job
            return piece, first, group, () if group is None else self._crops_of(piece, group, read, min_score)

        with ThreadPoolExecutor(threads) as pool:
            ready = ordered_map(pool, cut, jobs(), ahead=4 * threads)
            while (item := self._timed("decode", lambda: next(ready, None))) is not None:
                piece, first, group, outcomes = item
                skipped = 0
                for index, outcome in enumerate(outcomes, start=first):
                    if isinstance(outcome, Skipped):
                        piece.put(index, outcome)
                        skipped += 1
                    else:
                        waiting.append((piece, index, *outcome))
                on_done(skipped)
                # At the end of a piece the batch is sent as it is.
                while len(waiting) >= self.batch_size or (group is None and waiting):
                    rows, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
                    sent = rows, self.send([crop for _, _, crop, _ in rows], trust)
                    if in_flight is not None:
                        receive(in_flight)
                    in_flight = sent
                while begun and not begun[0].left:
                    done = begun.popleft()
                    yield Results(done.results, done.sizes)
            if in_flight is not None:
                receive(in_flight)
            for piece in begun:
                yield Results(piece.results, piece.sizes)

    def _crops_of(self, piece: _Work, group: Group, read: Callable[[Any], np.ndarray], min_score: float) -> list:
        """A (crop, its pose in the image frame) or `Skipped` per pose."""
        try:
            image = read(group.image)
        except UnreadableImage as error:
            return [Skipped(f"photograph unreadable: {error}")] * len(group.poses)
        piece.sizes[group.image] = image.shape[:2]
        poses = group.poses * [image.shape[1], image.shape[0], 1] if group.fraction else group.poses
        boxes = (None,) * len(poses) if group.boxes is None else group.boxes
        crops = [self.crop(image, pose, min_score=min_score, box=box) for pose, box in zip(poses, boxes, strict=True)]
        skipped = Skipped(NO_JOINT if group.boxes is None else NO_JOINT_NOR_BOX)
        return [skipped if crop is None else (crop, pose) for crop, pose in zip(crops, poses, strict=True)]

    def _timed(self, what: str, function: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = function()
        self.waits[what] += time.perf_counter() - begun
        return result

    def crop(
        self, image: np.ndarray, pose: np.ndarray, *, min_score: float = 0.0, box: Sequence[float | int] | None = None
    ) -> Crop | None:
        """The crop around one pose ([K, 3], image frame); None if no joint that the network knows is usable.

        A joint is present if it is nearer than `geometry.FARTHEST` and its score is above `min_score`. If none is, the crop
        is placed around `box` (x, y, width, height), where given and of such a size: the network then estimates the pose
        from the photograph alone.
        """
        model = self.spec.model
        present = geometry.is_near(pose) & (pose[:, 2] > min_score)
        around = present & np.asarray(self.spec.trained_joints)
        xy = np.where(present[:, None], pose[:, :2], 0.0)
        if around.any():
            box = geometry.crop_box_of_joints(xy, around, model.crop_hw)
        elif box is not None and (np.abs(given := np.asarray(box, np.float64)) < geometry.FARTHEST).all():
            box = geometry.crop_box(given, model.crop_hw)
        else:
            return None
        place = geometry.crop_geometry(box, model.crop_hw, frame=model.frame)
        pixels = warp_affine(image, place.image_to_crop, model.crop_hw, antialias=model.frame != "reference")
        return Crop(pixels, place, np.where(present[:, None], place.to_crop(xy), 0.0).astype(np.float32), present)

    def send(self, crops: list[Crop], trust: Trust | None = None) -> tuple[list[Crop], Any]:
        """Sends up to `batch_size` crops to the devices and returns at once; `receive` waits for the result.

        `trust` is that in the input poses; None for the spec's default.
        """
        if trust is None:
            trust = uniform(self.spec.decode.trust, self.spec.skeleton.num_joints)
        size, devices = self.batch_size, self._mesh.size
        while size > self.batch_size // 16 and size % (4 * devices) == 0 and size // 4 >= len(crops):
            size //= 4
        if size not in self._compiled:
            log.info("compiling for batches of %d crops", size)
            self._compiled.add(size)
        fill = size - len(crops)
        fields = ([crop.pixels for crop in crops], [crop.crop_xy for crop in crops], [crop.present for crop in crops])
        batch = [np.stack(field) for field in fields]
        batch = [np.concatenate([array, np.zeros((fill, *array.shape[1:]), array.dtype)]) for array in batch]
        return crops, self._step(self._variables, *place_batch(self._mesh, tuple(batch)), trust)

    def receive(self, started: tuple[list[Crop], Any], poses: np.ndarray, *, fill_missing: bool = True) -> Refined:
        """The results of what `send` started; `poses` are the inputs, [n, K, 3] in the image frame.

        A joint that is kept has its input's values. A joint that was missing is filled in with its confidence as score.
        """
        crops, refined = started
        refined = jax.device_get(refined)
        trained = np.asarray(self.spec.trained_joints)
        out, quality = np.array(poses, np.float64), np.zeros(len(crops))
        confidence = np.zeros(out.shape[:2])
        for i, crop in enumerate(crops):
            image_xy = crop.geometry.to_image(refined.crop_xy[i].astype(np.float64))
            moved = refined.moved[i] & (crop.present | fill_missing) & np.isfinite(image_xy).all(axis=1)
            out[i, moved, :2] = image_xy[moved]
            filled = moved & ~crop.present
            out[i, filled, 2] = refined.output_ks[i, filled]
            counted = trained & (crop.present | moved)
            confidence[i] = np.where(counted, np.where(moved, refined.output_ks[i], refined.input_ks[i]), 0)
            quality[i] = confidence[i, counted].mean()
        return Refined(out, quality, confidence, refined.agreement[: len(crops)])
