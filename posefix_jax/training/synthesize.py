"""`posefix synthesize`: synthetic poses of prepared people, as a picture and as a table of frequencies."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.synthesis import error_model_of, make_synthesizer
from posefix_jax.core.train_step import Batch, person_of, sample_keys
from posefix_jax.data.images import warp_affine
from posefix_jax.data.pipeline import People, evaluation_batches
from posefix_jax.files import check_apart, write_json
from posefix_jax.report.pictures import GREEN, WHITE, draw_pose, kind_legend, sheet, side_by_side, write_picture
from posefix_jax.runtime.devices import keep_compiled
from posefix_jax.types import KINDS, PosefixError


@dataclass(frozen=True)
class SynthesizeOptions:
    """Draws poses as training sees them: a sheet of examples, and the frequency of each kind of error."""

    data: tuple[str, ...]
    """folders from `posefix prepare`"""
    preview: Path | None = None
    """picture to write (.png or .jpg): one row per person, the truth and some draws in each"""
    out: Path | None = None
    """COCO keypoint results file to write: one drawn pose per person, in pixels of the person's photograph, to refine and
    evaluate"""
    errors: tuple[str, ...] = ("posefix",)
    """synthetic errors: posefix (the paper's), scalar, gaussian, dropout, limb, poserefiner, empirical, none,
    gaussian:SPREAD (in units of 2 sigma sqrt(area)), an error model from `posefix analyze fit` (.json), or your own Python file (.py); of several, one is drawn per person"""
    error_weights: tuple[float, ...] = ()
    """relative weight of each entry of errors; equal if empty"""
    people: int = 6
    """people on the sheet"""
    draws: int = 4
    """draws per person on the sheet"""
    sample: int = 2000
    """poses behind the frequencies, one per person; people repeat if there are fewer"""
    seed: int = 0
    """seed of the draws"""

    def __post_init__(self):
        if self.preview is None and self.out is None:
            raise PosefixError("nothing to write: give --preview, --out or both")
        if self.preview is not None and self.preview.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise PosefixError(f"--preview must end in .png or .jpg, found {self.preview}")
        if min(self.people, self.draws, self.sample) < 1:
            raise PosefixError(
                f"--people, --draws and --sample must be positive, found {self.people}, {self.draws}, {self.sample}"
            )


def synthesize(options: SynthesizeOptions) -> str:
    """Writes the sheet and the poses; returns a table of the drawn frequencies next to the intended ones.

    Raises:
      PosefixError: no such synthesizer or folder.
    """
    keep_compiled()
    check_apart([path for path in (options.preview, options.out) if path], [*options.data, *options.errors])
    people = People(options.data)
    skeleton = people.skeleton
    people.check_detections(options.errors)
    synthesizer = make_synthesizer(options.errors, options.error_weights, skeleton)
    draw = jax.jit(
        lambda batch, root: jax.vmap(synthesizer)(
            sample_keys(root, batch.epoch, batch.sample),
            jax.vmap(lambda record: person_of(record, np.ones(skeleton.num_joints, bool)))(batch),
        )
    )
    root = jax.random.key(options.seed)
    rows, found, results = [], [], []
    wanted = min(options.people, len(people)) if options.preview else 0
    for batch in _passes(people):
        pose = jax.tree.map(np.asarray, draw(batch, root))
        real = batch.weight > 0
        found.append((pose.kind[real], batch.labelled[real], batch.overlap[real]))
        if options.out and len(results) < len(people):
            results += [_result(people, int(i), xy, on) for i, xy, on in zip(batch.sample, *pose[:2], strict=True)]
        for i in np.flatnonzero(real)[: wanted - len(rows)]:
            few = jax.tree.map(lambda array, i=i: np.repeat(array[i : i + 1], options.draws, axis=0), batch)
            few = few._replace(epoch=np.arange(options.draws, dtype=np.int32))
            poses = jax.tree.map(np.asarray, draw(few, root))
            rows.append(_row(batch.patch[i], batch.patch_xy[i], batch.labelled[i], poses, skeleton))
        drawn = sum(len(kind) for kind, *_ in found) >= options.sample
        if drawn and len(rows) == wanted and (not options.out or len(results) >= len(people)):
            break
    if options.preview:
        write_picture(options.preview, sheet([kind_legend(), *rows]))
    if options.out:
        write_json(options.out, [result for result in results[: len(people)] if result is not None])
    kind, labelled, overlap = (np.concatenate(part)[: options.sample] for part in zip(*found, strict=True))
    table = _table(kind, labelled, overlap, skeleton, options)
    return "\n".join([table, *(str(path) for path in (options.preview, options.out) if path)])


def _passes(people: People) -> Iterator[Batch]:
    """All people, endlessly; each pass has other draws."""
    for again in itertools.count():
        for arrays in evaluation_batches(people, batch_size=min(64, len(people))):
            yield Batch(**arrays)._replace(epoch=np.full_like(arrays["epoch"], again))


def _result(people: People, index: int, patch_xy: np.ndarray, present: np.ndarray) -> dict | None:
    """A drawn pose as a row of a COCO results file; None without a joint."""
    if not present.any():
        return None
    record = people[index]
    scale, x, y = record.patch_to_image
    xy = ((patch_xy + 0.5) * record.side / people.patch - 0.5) * scale + (x, y)
    joints = np.column_stack([xy.round(3), np.ones(len(xy))])
    keypoints = np.where(present[:, None], joints, 0).reshape(-1).tolist()
    return {"image_id": record.image_id, "category_id": 1, "keypoints": keypoints, "score": 1.0}


def _row(patch, patch_xy, labelled, poses, skeleton: Skeleton) -> np.ndarray:
    """The truth and the draws of one person, cropped around them."""
    xy = np.concatenate([patch_xy[labelled], poses.xy[poses.present]])
    center = (patch_xy[labelled].min(axis=0) + patch_xy[labelled].max(axis=0)) / 2
    half = min(max(np.abs(xy - center).max() + 8, 32), len(patch))
    scale = 120 / half
    affine = np.array([[scale, 0, 120 - scale * center[0]], [0, scale, 120 - scale * center[1]]])
    picture = warp_affine(patch, affine, (240, 240))

    def moved(points):
        return points * scale + affine[:, 2]

    tiles = [draw_pose(picture, moved(patch_xy), labelled, skeleton, GREEN)]
    for points, present, kinds in zip(poses.xy, poses.present, poses.kind, strict=True):
        tiles.append(draw_pose(picture, moved(points), present, skeleton, WHITE, kinds=kinds))
    return side_by_side(tiles, ["truth", *(f"draw {i + 1}" for i in range(len(tiles) - 1))])


def _table(kind, labelled, overlap, skeleton: Skeleton, options: SynthesizeOptions) -> str:
    """The share of each kind of error among the labelled joints of each group: drawn, and intended by the error
    model."""
    intended = _intended(labelled, overlap, skeleton, options)
    names = [kind.name.lower() for kind in KINDS] + ["absent"]
    lines = ["share of the labelled joints, drawn" + (" (intended):" if intended is not None else ":")]
    lines.append(f"{'':10s} {'joints':>7s}" + "".join(f"{name:>18s}" for name in names))
    groups = np.array(skeleton.groups)
    for group in (*dict.fromkeys(skeleton.groups), "all"):
        of = (groups == group) | (group == "all")
        on = labelled[:, of]
        if not on.any():
            continue
        cells = []
        for each in [*map(int, KINDS), -1]:
            share = f"{(kind[:, of] == each)[on].mean():.3f}"
            if intended is not None and each >= 0:
                share += f" ({intended[:, of, each][on].mean():.3f})"
            cells.append(f"{share:>18s}")
        lines.append(f"{group:10s} {on.sum():7d}{''.join(cells)}")
    many = [
        f"{each.name.lower()} {np.where(of.sum(axis=1) >= 4, of.sum(axis=1), 0).sum() / of.sum():.3f}"
        for each in KINDS[1:]
        if (of := (kind == each) & labelled).any()
    ]
    lines.append(f"share of each kind in people with four or more of it: {', '.join(many)}")
    if intended is not None:
        lines.append("A kind without room around a joint passes its share on to the others.")
    return "\n".join(lines)


def _intended(labelled, overlap, skeleton: Skeleton, options: SynthesizeOptions) -> np.ndarray | None:
    """[people, K, kinds] probabilities of the error models; None if a synthesizer has no error model."""
    models = [error_model_of(name) for name in options.errors]
    if any(model is None for model in models):
        return None
    weights = np.asarray(options.error_weights or [1.0] * len(models))
    count = labelled.sum(axis=1)
    total = 0.0
    for model, weight in zip(models, weights / weights.sum(), strict=True):
        total = total + weight * model.table(skeleton)[:, *model.bin_of(count, overlap)].transpose(1, 0, 2)
    return total
