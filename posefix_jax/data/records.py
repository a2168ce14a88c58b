"""Person records, which training reads: a JPEG patch around a person and everything known about the person."""

import json
import struct
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.files import inside, read_json, write_json
from posefix_jax.types import PosefixError, check_fields

FORMAT = 1
MANIFEST = "manifest.json"
MAX_OTHERS = 4
"""Neighbors stored per person, highest box IoU first. Further ones count towards the overlap, but no error is drawn
from them or avoids them; the released code uses all."""
LARGEST = 1 << 14
"""Side of a patch, pixels."""
MAX_DETECTED = 8
"""Estimators' poses stored per person."""


@dataclass(frozen=True)
class Record:
    """One person. Coordinates are patch pixels; arrays are float32.

    Attributes:
      jpeg: the patch, `side` x `side` pixels; empty if the photograph could not be read (the record has weight zero).
      joints: [K, 3] x, y, visibility.
      others: [N, K, 3] the nearest people in the photograph, at most `MAX_OTHERS`.
      others_area: [N] their areas. In a record that has none, of an earlier version, the person's area stands for them.
      detected: [M, K, 3] estimators' poses of this person; x, y, score.
      pseudo: [K, 3] an estimator's joints where none is labelled, x, y, score; zeros elsewhere.
      box: (x, y, w, h) as annotated.
      area: the person's area.
      overlap: how many people in the photograph have a box with IoU >= 0.1 with this one.
      patch_to_image: (scale, x, y): image = patch * scale + (x, y).
      image_id, annotation_id: the source.
    """

    jpeg: bytes
    side: int
    joints: np.ndarray
    others: np.ndarray
    others_area: np.ndarray
    detected: np.ndarray
    pseudo: np.ndarray
    box: tuple[float, float, float, float]
    area: float
    overlap: int
    patch_to_image: tuple[float, float, float]
    image_id: int | str
    annotation_id: int | str

    def encode(self) -> bytes:
        """The record as bytes: a length, a JSON header, the JPEG. Coordinates keep two decimals."""
        header = {key: value for key, value in vars(self).items() if key != "jpeg"}
        for key in ("joints", "others", "others_area", "detected", "pseudo"):
            header[key] = np.round(np.asarray(header[key], np.float64), 2).tolist()
        text = json.dumps(header, separators=(",", ":")).encode()
        return struct.pack("<I", len(text)) + text + self.jpeg

    @classmethod
    def decode(cls, data: bytes) -> "Record":
        """Inverts `encode`. Raises ValueError on bytes that are not a record."""
        try:
            (length,) = struct.unpack_from("<I", data)
            fields = json.loads(data[4 : 4 + length])
            joints = np.asarray(fields.pop("joints"), np.float32)
            shape = (-1, *joints.shape)
            others = np.asarray(fields.pop("others"), np.float32).reshape(shape)
            others_area = np.asarray(fields.pop("others_area", [fields["area"]] * len(others)), np.float32)
            detected = np.asarray(fields.pop("detected"), np.float32).reshape(shape)
            pseudo = np.asarray(fields.pop("pseudo", np.zeros_like(joints)), np.float32)
            box, place = tuple(fields.pop("box")), tuple(fields.pop("patch_to_image"))
            return cls(
                jpeg=data[4 + length :],
                joints=joints,
                others=others,
                others_area=others_area,
                detected=detected,
                pseudo=pseudo,
                box=box,
                patch_to_image=place,
                **fields,
            )
        except (struct.error, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a person record: {error}") from error


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds, as `manifest.json` beside them.

    `labelled` counts, per joint, the people who have it labelled. `skipped` counts people left out, by reason.
    `unreadable` lists the photographs whose people are records of weight zero.
    """

    skeleton: Skeleton
    shards: tuple[str, ...]
    people: int
    images: int
    labelled: tuple[int, ...]
    detections: int
    patch: int
    skipped: dict
    unreadable: tuple[str, ...]
    sources: tuple[str, ...]

    def write(self, folder: Path) -> None:
        fields = asdict(self) | {"skeleton": self.skeleton.to_dict(), "format": FORMAT}
        write_json(folder / MANIFEST, fields)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises PosefixError when the folder was not written by `posefix prepare`, or by another version."""
        folder = Path(folder)
        if not folder.is_dir():
            raise PosefixError(f"{folder}: no such folder; expected one that `posefix prepare` wrote")
        if not (folder / MANIFEST).is_file():
            raise PosefixError(f"{folder}: no {MANIFEST} in it; expected a folder that `posefix prepare` wrote")
        fields = read_json(folder / MANIFEST)
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise PosefixError(f"{folder / MANIFEST}: not of format {FORMAT}; run `posefix prepare` again")
        try:
            skeleton = Skeleton.from_dict(fields.pop("skeleton"))
            lists: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
            }
            manifest = cls(skeleton=skeleton, **lists)
        except (TypeError, KeyError, PosefixError) as error:
            raise PosefixError(f"{folder / MANIFEST}: {error}; run `posefix prepare` again") from error
        check_fields(replace(manifest, unreadable=(), sources=()), f"{folder / MANIFEST}: ")
        if manifest.people < 1 or len(manifest.labelled) != skeleton.num_joints or not 1 <= manifest.patch <= LARGEST:
            raise PosefixError(
                f"{folder / MANIFEST}: expected people, a count per joint in labelled, and a patch of up to {LARGEST} "
                f"pixels, found {manifest.people}, {len(manifest.labelled)} counts, {manifest.patch}; run `posefix "
                "prepare` again"
            )
        for shard in manifest.shards:
            inside(folder, shard, str(folder / MANIFEST))
        return manifest
