"""`posefix prepare`: turns annotations and photographs into shards of person records."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from posefix_jax.core import geometry
from posefix_jax.core.joint_sets import load_skeleton
from posefix_jax.core.skeleton import tell_joints
from posefix_jax.data.coco import OVERLAP_IOU, Annotations, Person, box_iou, read_annotations
from posefix_jax.data.detections import read_detections
from posefix_jax.data.image_sources import Images
from posefix_jax.data.images import UnreadableImage, encode_jpeg, ordered_map, warp_affine
from posefix_jax.data.records import MANIFEST, MAX_DETECTED, MAX_OTHERS, Manifest, Record
from posefix_jax.files import MARK, check_apart, claim, discard
from posefix_jax.report.progress import Progress
from posefix_jax.types import PosefixError, printable

MADE_BY = "posefix prepare"
MAX_SCALE, MAX_SHIFT = 1.3, 0.1
"""The largest augmentation that a patch has room for; `AugmentConfig` respects it."""
SHOWN = 10
"""Photographs that were not read, on the terminal."""
MATCH_IOU = 0.2
"""Extent IoU from which an estimator's pose may belong to a person, if each is the other's best partner."""


@dataclass(frozen=True)
class PrepareOptions:
    """Turns a COCO keypoint annotation file and its photographs into shards of person records."""

    annotations: Path
    """COCO keypoint annotation file (.json)"""
    images: Path
    """folder with the photographs it names"""
    out: Path
    """folder to write; must not exist, or be one that prepare wrote"""
    skeleton: str = ""
    """sigmas, flip pairs and limbs of the joints: a JSON file (docs/skeletons.md) or a built-in skeleton; by default from the
    annotations' joint names"""
    detections: tuple[Path, ...] = ()
    """files of poses from any estimators on the same photographs, stored with the people they match"""
    pseudo_poses: Path | None = None
    """file of poses whose joints are given to training where none is labelled, as input only (released code)"""
    pseudo_score: float = 0.2
    """least score of such a joint"""
    patch: int = 384
    """largest side in pixels of a stored patch; smaller people keep their own resolution"""
    holdout: float = 0.0
    """share of the photographs that go to the folder OUT-holdout instead, chosen by a hash of the image id"""
    shard_size: int = 2048
    """people per shard"""
    exif: bool = False
    """rotate photographs as their EXIF orientation says (COCO ignores it)"""


def prepare(options: PrepareOptions) -> list[Manifest]:
    """Writes the shards and their manifest; returns the manifests (one, or two with a holdout).

    Raises:
      PosefixError: bad input, or an output folder that holds something else.
    """
    if not 0 <= options.holdout < 1:
        raise PosefixError(f"--holdout must lie in [0, 1), found {options.holdout}")
    if len(options.detections) > MAX_DETECTED:
        raise PosefixError(f"--detections takes at most {MAX_DETECTED} files, found {len(options.detections)}")
    if options.patch < 64 or options.shard_size < 1:
        raise PosefixError(
            f"--patch must be 64 or more and --shard-size positive, found {options.patch}, {options.shard_size}"
        )
    holdout = options.out.with_name(options.out.name + "-holdout")
    folders = (options.out, holdout) if options.holdout else (options.out,)
    read: list[Path | str] = [options.annotations, options.images, *options.detections]
    read += [options.pseudo_poses] if options.pseudo_poses else []
    read += [options.skeleton] if options.skeleton else []
    check_apart([place for folder in folders for place in (folder, _partial(folder))], read)
    skeleton = load_skeleton(options.skeleton) if options.skeleton else None
    annotations = read_annotations(options.annotations, skeleton)
    if not annotations.people:
        raise PosefixError(f"{options.annotations}: nobody with a labelled joint in it")
    images = Images(options.images, annotations.file_names)
    files = images.find_all(p.image_id for p in annotations.people)
    detected = match_detections(annotations, options.detections)
    guessed = match_detections(annotations, (options.pseudo_poses,) if options.pseudo_poses else ())
    pseudo = {
        index: pseudo_joints(annotations.people[index], poses[0], options.pseudo_score)
        for index, poses in guessed.items()
    }
    apart = [held_out(person.image_id, options.holdout) for person in annotations.people]
    parts = {options.out: [p for p, out in zip(annotations.people, apart, strict=True) if not out]}
    if options.holdout:
        parts[holdout] = [p for p, out in zip(annotations.people, apart, strict=True) if out]
    for folder, people in parts.items():
        if not people:
            raise PosefixError(f"{folder}: no people for it; change --holdout")
        _check_free(folder)
    tell_joints(annotations.skeleton, options.annotations)
    for folder in parts:
        discard(_partial(folder), MADE_BY)  # from a run that was killed
        claim(_partial(folder), MADE_BY)
    # Everything is written beside its place first: an old folder is removed only when all new ones are complete.
    manifests = [
        _write(folder, people, annotations, images, files, (detected, pseudo), options)
        for folder, people in parts.items()
    ]
    for folder in parts:
        _remove_prepared(folder)
        _partial(folder).rename(folder)
    return manifests


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".writing")


def _check_free(folder: Path) -> Manifest | None:
    """The manifest that an earlier prepare wrote into the folder, if any.

    Raises:
      PosefixError: the folder holds anything else.
    """
    if folder.is_symlink():
        raise PosefixError(f"{folder} is a symbolic link; name the folder itself")
    if folder.exists() and not folder.is_dir():
        raise PosefixError(f"{folder} is a file; --out is a folder to write")
    names = {path.name for path in folder.iterdir()} - {MARK} if folder.exists() else set()
    if not names:
        return None
    try:
        manifest = Manifest.read(folder)
    except PosefixError as error:
        raise PosefixError(f"{folder}: exists and was not written by prepare; choose another --out") from error
    foreign = names - {MANIFEST, *manifest.shards}
    if foreign:
        raise PosefixError(
            f"{folder}: holds {min(foreign)}, which prepare did not write; move it or choose another --out"
        )
    return manifest


def _remove_prepared(folder: Path) -> None:
    """Removes what prepare wrote, file by file: if anything else is in the folder, it stays."""
    manifest = _check_free(folder)
    # The manifest is removed after the shards that it names, so that the next run can clean up after a killed one.
    names = (*manifest.shards, MANIFEST) if manifest is not None else ()
    try:
        for name in (*names, MARK):
            (folder / name).unlink(missing_ok=True)
        if folder.exists():
            folder.rmdir()
    except OSError as error:
        raise PosefixError(
            f"{folder}: cannot replace it ({error.strerror}); the new one is {_partial(folder)}"
        ) from error


def held_out(image_id: int | str, share: float) -> bool:
    """Whether a photograph belongs to the share held out from training. By its id, so all its people are on one side."""
    digest = hashlib.sha256(str(image_id).encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def match_detections(annotations: Annotations, files: tuple[Path, ...]) -> dict[int, list[np.ndarray]]:
    """The estimators' poses of each person, by position in `annotations.people`.

    A pose and a person match if the boxes around the joints that both have overlap with an IoU of at least 0.2, and neither
    has a better partner within the photograph and the file.
    """
    by_image = defaultdict(list)
    for index, person in enumerate(annotations.people):
        by_image[person.image_id].append(index)
    matched = defaultdict(list)
    for file in files:
        rows = defaultdict(list)
        for pose in read_detections(
            file,
            images=annotations.images,
            skeleton=annotations.skeleton,
            annotations=annotations.path,
            scored=False,
            skip_unknown=True,
        ):
            if (pose.joints[:, 2] > 0).any():
                rows[pose.image].append(pose.joints)
        for image_id, poses in rows.items():
            people = by_image.get(image_id, [])
            if not people:
                continue
            iou = np.array([[_extent_iou(annotations.people[i], pose) for pose in poses] for i in people])
            for row, index in enumerate(people):
                best = iou[row].argmax()
                if iou[row, best] >= MATCH_IOU and iou[:, best].argmax() == row:
                    matched[index].append(poses[best])
    return matched


def _extent_iou(person: Person, pose: np.ndarray) -> float:
    both = person.labelled & (pose[:, 2] > 0)
    if both.sum() < 2:
        return 0.0
    return float(
        box_iou(geometry.joint_extent(person.joints[:, :2], both), geometry.joint_extent(pose[:, :2], both)[None])[0]
    )


def pseudo_joints(person: Person, pose: np.ndarray, least: float) -> np.ndarray:
    """[K, 3] the joints of an estimator's pose with a score of at least `least`, where the person has no label; else 0."""
    return np.where((~person.labelled & (pose[:, 2] >= max(least, 1e-9)))[:, None], pose, 0.0)


def _write(folder: Path, people, annotations, images, files, found, options) -> Manifest:
    detected, pseudo = found
    position = {id(person): index for index, person in enumerate(annotations.people)}
    in_image = defaultdict(list)
    for person in annotations.people:
        in_image[person.image_id].append(person)
    by_image = defaultdict(list)
    for person in people:
        by_image[person.image_id].append(person)

    def records_of(image_id) -> tuple[list[Record], str | None]:
        reason, image = None, None
        name = annotations.file_names.get(image_id, str(image_id))
        if image_id not in files:
            reason = f"{name}: not in {options.images}"
        else:
            try:
                image = images.read(files[image_id], exif=options.exif, in_turn=True)
            except UnreadableImage as error:
                reason = f"{name}: {error}"
        records = [
            make_record(
                image,
                person,
                in_image[image_id],
                detected.get(position[id(person)], []),
                options.patch,
                pseudo=pseudo.get(position[id(person)]),
            )
            for person in by_image[image_id]
        ]
        return records, reason

    partial = _partial(folder)
    num_shards = -(-len(people) // options.shard_size)
    shards = tuple(f"people-{i:05d}-of-{num_shards:05d}.array_record" for i in range(num_shards))
    unreadable: list[str] = []
    writer: Any = None
    done = detections = 0
    with ThreadPoolExecutor() as pool, Progress("prepare", len(people), unit="people") as progress:
        for records, reason in ordered_map(pool, records_of, by_image):
            if reason is not None:
                unreadable.append(reason)
            for record in records:
                if done % options.shard_size == 0:
                    if writer is not None:
                        writer.close()
                    writer = ArrayRecordWriter(str(partial / shards[done // options.shard_size]), "group_size:1")
                writer.write(record.encode())
                detections += len(record.detected)
                done += 1
            progress.update(done)
    writer.close()
    manifest = Manifest(
        skeleton=annotations.skeleton,
        shards=shards,
        people=len(people),
        images=len(by_image),
        labelled=tuple(int(n) for n in np.sum([person.labelled for person in people], axis=0)),
        detections=detections,
        patch=options.patch,
        skipped=annotations.skipped,
        unreadable=tuple(unreadable),
        sources=(
            options.annotations.name,
            *(file.name for file in (*options.detections, options.pseudo_poses) if file is not None),
        ),
    )
    manifest.write(partial)
    return manifest


def patch_side(box_wh: np.ndarray) -> float:
    """The side of the square that contains every augmented crop of a box: any rotation, the largest scale and shift.

    For crops from 3:4 (width : height) to square.
    """
    sides = []
    for aspect_hw in ((4, 3), (1, 1)):
        w, h = geometry.fit_aspect(np.array([0, 0, *box_wh]), aspect_hw)[2:] * geometry.CROP_PADDING
        sides.append(MAX_SCALE * np.hypot(w, h) + 2 * MAX_SHIFT * max(w, h))
    return max(*sides, 8.0)


def make_record(
    image: np.ndarray | None,
    person: Person,
    in_image: Sequence[Person],
    detected: Sequence[np.ndarray],
    patch: int,
    *,
    pseudo: np.ndarray | None = None,
) -> Record:
    """Cuts a person's patch, around both the joints' box (their extent x 1.2) and the annotated one."""
    joints_box = geometry.grow_box(
        geometry.joint_extent(person.joints[:, :2], person.labelled),
        geometry.JOINT_BOX_GROWTH,
        minimum=geometry.EMPTY_EXTENT,
    )
    box = np.asarray(person.box)
    low = np.minimum(joints_box[:2], box[:2])
    high = np.maximum(joints_box[:2] + joints_box[2:], box[:2] + box[2:])
    side = patch_side(high - low)
    center = (low + high) / 2
    pixels = int(min(patch, np.ceil(side)))
    scale = side / pixels
    corner = center - side / 2 + 0.5 * scale  # image position of the center of patch pixel (0, 0)

    def to_patch(joints):
        joints = np.array(joints, np.float64)
        joints[..., :2] = np.where(joints[..., 2:] > 0, (joints[..., :2] - corner) / scale, 0.0)
        return joints.astype(np.float32)

    mine = np.asarray(person.box)
    near = [other for other in in_image if other is not person]
    iou = box_iou(mine, np.array([other.box for other in near]).reshape(-1, 4))
    order = [i for i in np.argsort(-iou, kind="stable") if iou[i] >= OVERLAP_IOU]
    nearest = [near[i] for i in order[:MAX_OTHERS]]
    jpeg = b""
    if image is not None:
        affine = np.array([[1 / scale, 0, -corner[0] / scale], [0, 1 / scale, -corner[1] / scale]])
        jpeg = encode_jpeg(warp_affine(image, affine, (pixels, pixels)))
    empty = np.zeros((0, *person.joints.shape), np.float32)
    return Record(
        jpeg=jpeg,
        side=pixels,
        joints=to_patch(person.joints),
        others=to_patch([other.joints for other in nearest]) if nearest else empty,
        others_area=np.array([other.positive_area / scale**2 for other in nearest], np.float32),
        detected=to_patch(detected) if detected else empty,
        pseudo=to_patch(np.zeros_like(person.joints) if pseudo is None else pseudo),
        box=(*map(float, (mine[:2] - corner) / scale), *map(float, mine[2:] / scale)),  # type: ignore[arg-type]
        area=float(person.positive_area / scale**2),
        overlap=len(order),
        patch_to_image=(float(scale), float(corner[0]), float(corner[1])),
        image_id=person.image_id,
        annotation_id=person.annotation_id,
    )


def summary_of(manifests: list[Manifest]) -> str:
    """A few lines for the terminal."""
    lines = []
    for manifest in manifests:
        lines.append(
            f"{manifest.people} people of {manifest.images} photographs in {len(manifest.shards)} shard(s), "
            f"{manifest.detections} matched detections"
        )
    lines += [f"{count} people left out: {reason}" for reason, count in manifests[0].skipped.items() if count]
    for manifest in manifests:
        lines += [
            f"photograph not read, so its people have weight 0: {printable(reason)}"
            for reason in manifest.unreadable[:SHOWN]
        ]
        if len(manifest.unreadable) > SHOWN:
            lines.append(f"and {len(manifest.unreadable) - SHOWN} more photographs not read; {MANIFEST} lists them")
    return "\n".join(lines)
