"""The `Refiner`: poses and photographs in, better poses out."""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.refine_step import Network
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.synthesis import ErrorModel
from posefix_jax.core.trust import Trust, from_errors, measures, trust_of, uniform
from posefix_jax.data.image_sources import Images
from posefix_jax.data.images import UnreadableImage, read_image
from posefix_jax.refining.engine import Engine, Group, Refined
from posefix_jax.refining.results import refine_results
from posefix_jax.runtime.checkpoints import load_refiner
from posefix_jax.types import PosefixError


class Measured(NamedTuple):
    """What some poses say of their estimator.

    Attributes:
      trust: that they deserve, 0..1.
      fit: how well they fit their photographs, 0..1: the measure `wide, sure` of `core.trust`. Poses of estimators reach 0.7
        and more; poses on other photographs stay below 0.4 (docs/model-card.md).
      people: how many poses were measured.
    """

    trust: float
    fit: float
    people: int


class Refiner:
    """A refiner that is ready to run. `Refiner.load()` gives the one that comes with the package.

    Args:
      network: as `core.step.Network`.
      variables: its parameters and batch statistics.
      spec: skeleton, sizes, frames, decoding.
      flip, batch_size, iterations: as `Engine`.
      trust: in the input poses, as `load`.
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
        trust: float | ErrorModel | None = None,
        identity: str = "",
    ):
        self.spec = spec
        self.trust = trust
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
        trust: float | ErrorModel | None = None,
    ) -> "Refiner":
        """A refiner from a checkpoint, or the one that comes with the package.

        Args:
          checkpoint: a training run's folder (its latest step), one step's folder, or one that `posefix package` wrote.
          flip: also run the mirrored crop and average.
          batch_size: crops per step.
          iterations: how often a pose is refined, each time from the pose before.
          trust: in the input poses: 0 (go where the picture says) to 1 (stay near the input), what `measure_trust` returns,
            or the measured errors of their estimator. None: the checkpoint's default, which suits good estimators.

        Raises:
          PosefixError: no refiner there.
        """
        variables, spec = load_refiner(checkpoint)
        weights = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variables)))
        return cls(
            spec.network().apply,
            variables,
            spec,
            flip=flip,
            batch_size=batch_size,
            iterations=iterations,
            trust=trust,
            identity=weights.hexdigest(),
        )

    @property
    def trust(self) -> Trust | None:
        """Trust in the input poses, per joint; None: the spec's default. Set it to a number, an error model or None."""
        return self._trust

    @trust.setter
    def trust(self, value: "float | ErrorModel | Trust | None") -> None:
        joints = self.spec.skeleton.num_joints
        if isinstance(value, ErrorModel):
            value = from_errors(value, self.spec.skeleton)
        self._trust = value if value is None or isinstance(value, Trust) else uniform(value, joints)

    def measure(
        self,
        groups: Sequence[Group],
        read: Callable[[Any], np.ndarray],
        *,
        threads: int = 4,
        min_score: float = 0.0,
        on_done: Callable[[int], None] = lambda count: None,
    ) -> Measured | None:
        """How poses agree with their photographs, and the trust that this deserves. `measure_trust` with files' arguments.

        Returns:
          None if the refiner was not tuned to tell (`posefix package --tune`), or no pose can be read.
        """
        if not self.spec.decode.trust_weights:
            return None
        engine = self.engine if self.engine.flip else self.engine.mirrored()
        (results,) = engine.run([groups], read, threads=threads, min_score=min_score, on_done=on_done)
        sums = [result.agreement for result in results.poses if isinstance(result, Refined)]
        sums = [each for each in sums if each[-2:].sum() > 0]
        if not sums:
            return None
        measured = measures(np.stack(sums))
        return Measured(round(trust_of(measured, self.spec.decode), 2), round(float(measured[2]), 3), len(sums))

    def measure_trust(
        self, image: np.ndarray | str | Path | Sequence, poses: np.ndarray | Sequence, *, min_score: float = 0.0
    ) -> float:
        """The trust that an estimator's poses deserve, by how they agree with their photographs. Needs no ground truth.

        A hundred people or more tell it well.

        Args:
          image, poses, min_score: as for `refine`.

        Returns:
          A number in 0..1 for `trust`.

        Raises:
          PosefixError: the refiner was not tuned to tell, or no pose can be read; and as for `refine`.
        """
        pixels, given, _ = self._arguments(image, poses, None)
        groups = [Group(i, one) for i, one in enumerate(given)]
        measured = self.measure(groups, lambda i: pixels[i], threads=1, min_score=min_score)
        if measured is None:
            raise PosefixError(
                "trust cannot be measured: no usable pose, or a refiner that was packaged without --tune"
            )
        return measured.trust

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
          For one photograph, `Refined`: poses [N, K, 3] float64, quality [N] (expected OKS), confidence [N, K] (expected KS
          of each joint) and agreement; without the first axis for a single pose. A joint that is kept has its input's
          values; a missing joint that is placed has its confidence as score. A pose that cannot be refined (no usable
          joint nor box) comes back as it was, with quality 0. For several photographs, a list of these.

        Raises:
          PosefixError: a photograph cannot be read, or shapes do not fit, or K is not the skeleton's.
        """
        several = isinstance(image, list | tuple)
        pixels, given, boxes = self._arguments(image, poses, boxes)
        groups = [
            Group(i, one, boxes=None if box is None else as_boxes(box, len(one)))
            for i, (one, box) in enumerate(zip(given, boxes, strict=True))
        ]
        (results,) = self.engine.run(
            [groups],
            lambda i: pixels[i],
            trust=self.trust,
            threads=1,
            min_score=min_score,
            fill_missing=fill_missing,
        )
        outcomes, found = iter(results.poses), []
        for one, original in zip(given, poses if several else [poses], strict=True):
            count = len(one)
            refined = Refined(np.array(one), np.zeros(count), np.zeros(one.shape[:2]), np.zeros((count, 8)))
            for i, outcome in zip(range(count), outcomes, strict=False):
                if isinstance(outcome, Refined):
                    for all_of, of in zip(refined, outcome, strict=True):
                        all_of[i] = of
            found.append(Refined(*(of[0] for of in refined)) if np.ndim(original) == 2 else refined)
        return found if several else found[0]

    def refine_results(
        self,
        results: Any,
        images: Any = None,
        *,
        skeleton: Skeleton | None = None,
        min_score: float = 0.0,
        fill_missing: bool = True,
    ) -> Any:
        """Refines what another library returned, and returns the same kind of object; the given one is left as it was.

            results = refiner.refine_results(model("photograph.jpg"))  # ultralytics

        Args:
          results: one of these, or a list of them: `Results` of ultralytics, `KeyPoints` of supervision, `PoseDataSample`s or
            the dictionaries of MMPose's inferencer, the (keypoints, scores) of rtmlib. In all of them a joint at (0, 0) or
            without a finite value is missing.
          images: the photograph of each, as for `refine`; paths are read upright, as those libraries read them. Not needed
            where the results have them (ultralytics; PoseDataSamples with a path).
          skeleton: what the joints are; by default the refiner's own if there are as many, else the built-in set with that
            many.
          min_score, fill_missing: as for `refine`.

        Returns:
          As `results`, with other coordinates and joint scores in their own types and devices. Joints that the refiner lacks
          stay.

        Raises:
          PosefixError: another kind of object, no photograph, joints that are unknown; and as for `refine`.
        """
        refine = functools.partial(self.refine, min_score=min_score, fill_missing=fill_missing)
        return refine_results(refine, self.spec.skeleton, results, images, skeleton)

    def _arguments(self, image, poses, boxes) -> tuple[list[np.ndarray], list[np.ndarray], Sequence]:
        """Photographs, poses [N, K, 3] and boxes, one of each per photograph. Raises PosefixError."""
        several = isinstance(image, list | tuple)
        images: Sequence = image if several else [image]
        poses = poses if several else [poses]
        boxes = boxes if several and boxes is not None else [boxes] * len(images)
        if not len(images) == len(poses) == len(boxes):
            raise PosefixError(
                f"{len(images)} photographs need as many arrays of poses (and of boxes), found {len(poses)} and {len(boxes)}"
            )
        return [as_pixels(one) for one in images], [self._as_poses(one) for one in poses], boxes

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

        read = images if callable(images) else functools.partial(Images(images).read_named, in_turn=True)
        run = self.engine.run(
            work(), read, trust=self.trust, threads=threads, min_score=min_score, fill_missing=fill_missing
        )
        for results in run:
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


def as_pixels(image: object) -> np.ndarray:
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


def as_boxes(boxes: ArrayLike, count: int) -> list[tuple | None]:
    """A box per pose; None where it has no area. Raises PosefixError."""
    array = np.asarray(boxes, np.float64).reshape(-1, 4) if np.size(boxes) % 4 == 0 else None
    if array is None or len(array) != count:
        raise PosefixError(f"boxes must be [{count}, 4] (x, y, width, height), found {np.shape(boxes)}")
    return [tuple(box) if np.isfinite(box).all() and min(box[2:]) > 0 else None for box in array]
