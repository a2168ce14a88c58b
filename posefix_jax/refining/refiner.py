"""The `Refiner`: poses and photographs in, better poses out."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import jax
import numpy as np
from numpy.typing import ArrayLike

from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.refine_step import Network
from posefix_jax.data.image_sources import Images
from posefix_jax.data.images import UnreadableImage, read_image
from posefix_jax.refining.engine import Engine, Group, Refined
from posefix_jax.runtime.checkpoints import load_refiner
from posefix_jax.types import PosefixError


class Refiner:
    """A refiner that is ready to run. `Refiner.load()` gives the one that comes with the package.

    Args:
      network: as `core.step.Network`.
      variables: its parameters and batch statistics.
      spec: skeleton, sizes, frames, decoding.
      flip, batch_size, iterations: as `Engine`.
      identity: changes with the weights; an interrupted job only continues with the same one.
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
        self.engine = Engine(network, variables, spec, flip=flip, batch_size=batch_size, iterations=iterations)

    @property
    def batch_size(self) -> int:
        """Crops per step."""
        return self.engine.batch_size

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
        """A refiner from a checkpoint, or the one that comes with the package.

        Args:
          checkpoint: a training run's folder (its latest step), one step's folder, or one that `posefix package` wrote.
          flip: also run the mirrored crop and average.
          batch_size: crops per step.
          iterations: how often a pose is refined, each time from the pose before.
          keep_margin, min_ks: override the checkpoint's own; see `DecodeConfig`. Both 0: every move is accepted.

        Raises:
          PosefixError: no refiner there.
        """
        variables, spec = load_refiner(checkpoint)
        weights = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variables)))
        spec = replace(spec, decode=spec.decode.given(keep_margin=keep_margin, min_ks=min_ks))
        return cls(
            spec.network().apply,
            variables,
            spec,
            flip=flip,
            batch_size=batch_size,
            iterations=iterations,
            identity=weights.hexdigest(),
        )

    def refine(
        self,
        image: np.ndarray | str | Path | Sequence,
        poses: np.ndarray | Sequence,
        *,
        boxes: np.ndarray | Sequence | None = None,
        min_score: float = 0.0,
        fill_missing: bool = True,
    ) -> Refined | list[Refined]:
        """Refines one pose or many, in one photograph or several.

        Args:
          image: a photograph: a path, or an array [H, W, 3] uint8 RGB or [H, W] uint8 greyscale. A list or tuple of
            photographs refines `poses[i]` in each.
          poses: [N, K, 2 or 3] or a single pose [K, 2 or 3]: image x, y, and a score; a joint with a score up to
            `min_score`, or a value that is not finite, is missing. For several photographs, one such array for each.
          boxes: [N, 4] or [4] image x, y, width, height: where a person without a usable joint is, whose pose is then
            estimated from the photograph alone.
          min_score: joints with a score up to this count as missing.
          fill_missing: also place joints that are missing.

        Returns:
          For one photograph, `Refined(poses, quality)`: [N, K, 3] float64 and [N], or [K, 3] and a number for a single
          pose. A joint that is kept has its input's values; a missing joint that is placed has its expected KS as score.
          A pose that cannot be refined (no usable joint nor box) comes back as it was, with quality 0. For several
          photographs, a list of these.

        Raises:
          PosefixError: a photograph cannot be read, or shapes do not fit, or K is not the skeleton's.
        """
        several = isinstance(image, list | tuple)
        images: Sequence = image if isinstance(image, list | tuple) else [image]
        poses = poses if several else [poses]
        boxes = boxes if several and boxes is not None else [boxes] * len(images)
        if not len(images) == len(poses) == len(boxes):
            raise PosefixError(
                f"{len(images)} photographs need as many arrays of poses (and of boxes), found {len(poses)} and {len(boxes)}"
            )
        pixels = [_pixels(one) for one in images]
        given = [self._as_poses(one) for one in poses]
        groups = [
            Group(i, one, boxes=None if box is None else _as_boxes(box, len(one)))
            for i, (one, box) in enumerate(zip(given, boxes, strict=True))
        ]
        (results,) = self.engine.run(
            [groups], lambda i: pixels[i], threads=1, min_score=min_score, fill_missing=fill_missing
        )
        outcomes, found = iter(results.poses), []
        for one, original in zip(given, poses, strict=True):
            refined = Refined(np.array(one), np.zeros(len(one)))
            for i, outcome in zip(range(len(one)), outcomes, strict=False):
                if isinstance(outcome, Refined):
                    refined.poses[i], refined.quality[i] = outcome
            alone = np.ndim(original) == 2
            found.append(Refined(refined.poses[0], refined.quality[0]) if alone else refined)
        return found if several else found[0]

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
          rows: a photograph's name and a pose, [K, 2] or [K, 3] as for `refine`. Consecutive poses of one photograph have
            it decoded once.
          images: a function of the name that gives [H, W, 3] uint8 RGB (called from several threads) and raises
            `UnreadableImage`; or what `data.image_sources.Images` takes: a folder, `.zip`, `.tar`, a video, a URL.
          threads: decoding threads.
          min_score: joints with a score up to this count as missing.
          fill_missing: also place joints that are missing.

        Yields:
          [K, 3] float64 per row; a pose whose photograph cannot be read, or without a usable joint, as it was.

        Raises:
          PosefixError: a pose is not of the skeleton's size.
        """
        waiting: deque[np.ndarray] = deque()

        def work() -> Iterator[list[Group]]:
            source = iter(rows)
            while batch := list(islice(source, self.batch_size)):
                groups = []
                for name, some in groupby(batch, itemgetter(0)):
                    poses = np.concatenate([self._as_poses([pose], name) for _, pose in some])
                    waiting.extend(poses)
                    groups.append(Group(name, poses))
                yield groups

        read = images if callable(images) else Images(images).read_named
        for results in self.engine.run(work(), read, threads=threads, min_score=min_score, fill_missing=fill_missing):
            for outcome in results.poses:
                pose = waiting.popleft()
                yield outcome.poses if isinstance(outcome, Refined) else pose

    def _as_poses(self, poses: ArrayLike, name: object = None) -> np.ndarray:
        """[N, K, 3] float64. Raises PosefixError."""
        joints = self.spec.skeleton.num_joints
        array = np.array(poses, np.float64)
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[1] != joints or array.shape[2] not in (2, 3):
            where = "" if name is None else f" of {name!r}"
            raise PosefixError(f"poses{where} must be [N, {joints}, 2 or 3], found {np.shape(poses)}")
        return array if array.shape[2] == 3 else np.concatenate([array, np.ones((*array.shape[:2], 1))], axis=2)


def _pixels(image: object) -> np.ndarray:
    """[H, W, 3] uint8 RGB of an array or file. Raises PosefixError."""
    if isinstance(image, str | Path):
        try:
            return read_image(Path(image))
        except UnreadableImage as error:
            raise PosefixError(f"{image}: {error}") from error
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise PosefixError(f"image must be [H, W, 3] or [H, W] uint8, found {image.shape} {image.dtype}")
    image = image[..., None] if image.ndim == 2 else image
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _as_boxes(boxes: ArrayLike, count: int) -> list[tuple | None]:
    """A box per pose; None where it has no area. Raises PosefixError."""
    array = np.asarray(boxes, np.float64).reshape(-1, 4) if np.size(boxes) % 4 == 0 else None
    if array is None or len(array) != count:
        raise PosefixError(f"boxes must be [{count}, 4] (x, y, width, height), found {np.shape(boxes)}")
    return [tuple(box) if np.isfinite(box).all() and min(box[2:]) > 0 else None for box in array]
