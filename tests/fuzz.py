"""Damaged files for `posefix refine`: poses and photographs, made from good ones by a seed. Used by a test and a bench."""

import io
import json
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

POSES = ("landmarks", "pose_landmarks", "poseLandmarks", "annopoints")
GOOD, BAD = "valid output", "one clear line"


def poses_file(rng: random.Random, good: list[dict], others: list[str]) -> bytes:
    """The bytes of a results file, or of one of `others`, that somebody or something has damaged."""
    if others and rng.random() < 0.5:
        text = rng.choice(others)
        for _ in range(rng.randint(0, 2)):  # another value somewhere
            places = [i for i, c in enumerate(text) if c in ":,["]
            place = rng.choice(places or [0]) + 1
            end = next((i for i in range(place, len(text)) if text[i] in ",]}"), len(text))
            text = text[:place] + json.dumps(odd_value(rng)) + text[end:]
        return _bytes_changed(rng, text.encode()) if rng.random() < 0.5 else text.encode()
    rows = json.loads(json.dumps(good))
    kinds = ["bytes", "value", "value", "value", "structure", "structure", "truncated", "text"]
    kind = rng.choice(kinds)
    if kind == "value":
        for _ in range(rng.randint(1, 4)):
            row = rng.choice(rows)
            row[rng.choice([*row, "keypoints"])] = odd_value(rng)
    if kind == "structure":
        _restructure(rng, rows)
        rows = rng.choice([rows, rows, {"annotations": rows}, {"images": rows}, [rows], {"people": rows}, rows[:1] * 3])
        if rng.random() < 0.3:
            rows = [{"image_id": 1, "instances": rows}] if isinstance(rows, list) else rows
    text = json.dumps(rows, indent=rng.choice([None, None, 1]))
    if kind == "text":
        text = rng.choice(
            ["", " ", "[]", "{}", "null", "7", '"x"', "[[[" * 3000, "nan", text * 2, text + "]", "\ufeff" + text]
            + [text.replace(",", ",,", 1), text.replace('"', "'"), "[" + "9" * 5000 + "]", "{" * 2000, text[1:]]
            + ["0 0.5 0.5 0.1 0.1 " + "0.5 0.5 1 " * 17, '{"annolist": [{"image": []}]}', '{"landmarks": [[{"x": 1}]]}']
        )
    data = text.encode()
    if kind == "truncated":
        data = data[: rng.randrange(len(data))]
    if kind == "bytes":
        data = _bytes_changed(rng, data)
    return data


def _bytes_changed(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.choice([rng.randrange(256), *b'"[]{},:0-e'])
    return bytes(changed)


def odd_value(rng: random.Random):
    numbers = [float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 10**400, -1, 0, 1e-320, -(2**63), 2**64]
    others = [
        None,
        True,
        "",
        "12",
        "x" * 10000,
        [],
        {},
        [[]],
        [None] * 51,
        {"a": {"b": [1]}},
        [0] * 50,
        [0] * 52,
        [0] * 51,
    ]
    poses = [[rng.choice(numbers) for _ in range(51)], [100, 100, 1] * 17, [-1e5, 1e7, 1] * 17, ["1"] * 51]
    poses += [[rng.uniform(-1e4, 1e4) for _ in range(51)], [[1, 2, 3]] * 17, [1e17, 1e17, 1] * 17]
    return rng.choice([rng.choice(numbers), rng.choice(others), rng.choice(poses)])


def _restructure(rng: random.Random, rows: list) -> None:
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(rows))
        action = rng.randrange(6)
        if action == 0:
            rng.shuffle(rows)
        elif action == 1:
            rows.insert(place, rows[place])
        elif action == 2 and isinstance(rows[place], dict) and rows[place]:
            rows[place].pop(rng.choice(list(rows[place])))
        elif action == 3:
            rows[place] = rng.choice([None, [], 3, "row", {}, {"image_id": 1}, [rows[place]]])
        elif action == 4 and isinstance(rows[place], dict):
            rows[place][rng.choice(["instances", "keypoint_scores", "landmarks", "", "é\u0000"])] = odd_value(rng)
        elif isinstance(rows[place], dict):
            rows[place]["image_id"] = rng.choice(
                [77, -1, "1", "../../etc/passwd", "/etc/passwd", "a/../1", 1.5, True, 2**70]
            )


def photograph(rng: random.Random) -> bytes:
    """The bytes of a photograph that may be broken, strange, or none at all."""
    image = np.frombuffer(rng.randbytes(60 * 80 * 3), np.uint8).reshape(60, 80, 3)
    kind = rng.randrange(12)
    suffix = rng.choice([".jpg", ".png", ".bmp", ".webp", ".tiff"])
    if kind == 0:
        return b""
    if kind == 1:
        return rng.randbytes(rng.randint(1, 4000))
    if kind == 2:
        image = (image.astype(np.uint16) * 257)[..., : rng.choice([1, 3])]
        suffix = rng.choice([".png", ".tiff"])
    if kind == 3:
        image = image[..., :1]
    if kind == 4:
        return cmyk(rng)
    if kind == 5:
        image, suffix = np.zeros((rng.choice([1, 20000]), 3, 3), np.uint8), ".png"
    if kind == 6:
        return bomb(rng.choice([40000, 100000, 2**31 - 1]))
    data = cv2.imencode(suffix, image)[1].tobytes()
    if kind == 7:
        data = data[: rng.randrange(len(data))]
    if kind == 8:
        data = bytearray(data)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data)
    return data


def cmyk(rng: random.Random) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.frombytes("CMYK", (40, 30), rng.randbytes(4800)).save(file, "JPEG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that says that it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10000)))
        + chunk(b"IEND", b"")
    )


def judge(refine, folder: Path, seed: int, good: list[dict], others: list[str]) -> str:
    """Makes case `seed` in `folder`, runs `refine(detections, images, out)`, returns `GOOD` or `BAD`.

    Raises:
      AssertionError: something else came of it; says what.
    """
    from posefix_jax.types import PosefixError

    rng = random.Random(seed)
    detections, images, out = folder / "d.json", folder / "images", folder / "r.json"
    images.mkdir(exist_ok=True)
    data = poses_file(rng, good, others) if rng.random() < 0.7 else json.dumps(good).encode()
    detections.write_bytes(data)
    for image in {row["image_id"] for row in good}:
        (images / f"{image}.jpg").write_bytes(photograph(rng))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    try:
        report = refine(detections, images, out)
    except PosefixError as error:
        assert str(error) and not out.exists(), f"seed {seed}: an error and an output"
        leftover = {p.name for p in folder.rglob("*") if p.is_file()} - {p.name for p in before}
        assert not any(name.endswith(".writing") for name in leftover), f"seed {seed}: half a file {leftover}"
        return BAD
    rows, after = (_values(content.decode("utf-8-sig")) for content in (data, out.read_bytes()))
    assert json.dumps(_without_poses(rows)) == json.dumps(_without_poses(after)), f"seed {seed}: other keys changed"
    kept = json.loads((folder / "r.json.report.json").read_text())
    assert report["refined"] + len(kept["passed_through"]) == report["rows"], f"seed {seed}: a row is lost"
    assert rows_in(out) == report["rows"], f"seed {seed}: the output does not read as its input did"
    for path, content in before.items():
        assert path.read_bytes() == content, f"seed {seed}: {path} was written to"
    return GOOD


def rows_in(path: Path) -> int:
    """How many people the package's own reader finds in a file."""
    from posefix_jax.core.joint_sets import COCO
    from posefix_jax.data.pose_files import open_pose_file

    return sum(len(e.poses) for e in open_pose_file(str(path), skeleton=None, preferred=COCO).elements())


def _values(text: str):
    """The document, or those of its lines."""
    try:
        return json.loads(text)
    except ValueError:
        decoder, values, at = json.JSONDecoder(), [], 0
        while at < len(text.rstrip()):
            value, at = decoder.raw_decode(text, len(text) - len(text[at:].lstrip()))
            values.append(value)
        return values


def _without_poses(value, inside: bool = False):
    """The value less the numbers of its poses: what must come out as it went in."""
    if isinstance(value, dict):
        return {k: _without_poses(v, inside or "keypoint" in k or k in POSES) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_poses(v, inside) for v in value]
    return 0 if inside and isinstance(value, int | float) else value
