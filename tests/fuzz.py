"""Damaged files for `posefix refine`: poses and photographs, made from good ones by a seed. Used by a test and a bench."""

import contextlib
import io
import json
import random
import re
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np

from posefix_jax.core.joint_sets import BLAZEPOSE, canonical

TABLES = (".csv", ".tsv", ".txt")
POSES = (
    "landmarks",
    "pose_landmarks",
    "poseLandmarks",
    "annopoints",
    "joints",
    "joints_vis",
    "skeleton",
    "x",
    "y",
    "visibility",
)
GOOD, BAD = "valid output", "one clear line"


def poses_file(rng: random.Random, good: list[dict], others: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """The name and the bytes of a results file, or of one of `others`, that somebody or something has damaged."""
    if others and (not good or rng.random() < 0.5):
        name, data = rng.choice(others)
        if name.endswith(".npz"):
            return name, _damaged_archive(rng, data)
        if name.endswith(".h5"):
            return name, _damaged_hdf5(rng, data)
        text = data.decode()
        if name.endswith(TABLES):
            text = _damaged_table(rng, text)
        else:
            for _ in range(rng.randint(0, 2)):  # another value somewhere
                places = [i for i, c in enumerate(text) if c in ":,["]
                place = rng.choice(places or [0]) + 1
                end = next((i for i in range(place, len(text)) if text[i] in ",]}"), len(text))
                text = text[:place] + json.dumps(odd_value(rng)) + text[end:]
        data = text.encode("utf-8", "surrogatepass")
        return name, _bytes_changed(rng, data) if data and rng.random() < 0.4 else data
    return "d.json", _results_file(rng, good)


def _damaged_table(rng: random.Random, text: str) -> str:
    """A text table with other cells, lines or delimiters."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.randint(0, 3)):
        at = rng.choice([0, rng.randrange(len(lines)), rng.randrange(len(lines))])
        action = rng.randrange(9)
        if action < 4:
            delimiter = max(",;\t ", key=lines[at].count)
            cells = lines[at].split(delimiter)
            place = rng.randrange(len(cells))
            names = [
                "nose_x",
                "left_eye_y",
                "x",
                "image_id",
                "",
                "bodyparts",
                "joint",
                "score",
                '"',
                '"a',
                "é\u2028",
                "1,5",
            ]
            value = rng.choice(["nan", "inf", "-1", "1e999", "1e308", "-", *names, str(odd_value(rng))[:3000]])
            if action == 0:
                del cells[place]
            elif action == 1:
                cells.insert(place, value)
            else:
                cells[place] = value
            lines[at] = delimiter.join(cells)
        elif action == 4:
            lines.insert(at, rng.choice(["\n", "\r\n", " \n", lines[at], rng.choice(lines)]))
        elif action == 5 and len(lines) > 1:
            del lines[at]
        elif action == 6:
            rng.shuffle(lines)
        elif action == 7:
            lines[at] = lines[at].replace(
                *rng.choice([(",", ";"), (".", ","), ("\n", "\r\n"), ("_", " "), ("\t", ",")])
            )
        else:
            whole = "".join(lines)
            lines = whole[: rng.randrange(len(whole) + 1)].splitlines(keepends=True) or ["\n"]
    return "".join(lines)


def _damaged_archive(rng: random.Random, data: bytes) -> bytes:
    """An archive whose arrays have other types and shapes, or whose bytes are damaged."""
    arrays = dict(np.load(io.BytesIO(data)))
    for _ in range(rng.randint(0, 2)):
        name = rng.choice(list(arrays))
        array = arrays[name]
        action = rng.randrange(7)
        if action == 0:
            arrays[rng.choice(["image_id", "frame", "note", "keypoint_scores", "a/../b", "é"])] = arrays.pop(name)
        elif action == 1 and array.dtype != object:
            arrays[name] = array.astype(rng.choice(["f4", ">f8", "f2", "i8", "U9", "S9", "c16", "?"]), copy=True)
        elif action == 2:
            arrays[name] = array[rng.choice([slice(1), slice(0), slice(None, None, -1), None, Ellipsis])]
        elif action == 3 and array.dtype.kind == "f":
            arrays[name] = (
                np.where(array == array.flat[0], rng.choice([np.nan, np.inf, -1.0, 0.0]), array)
                if array.size
                else array
            )
        elif action == 4:
            arrays[name] = np.array([None, {"a": 1}], object)
        elif action == 5:
            arrays[name] = np.asfortranarray(array[..., ::2] if array.ndim else array)
        else:
            arrays[name] = array.reshape(-1)
    file = io.BytesIO()
    rng.choice([np.savez, np.savez_compressed])(file, **arrays)
    data = file.getvalue()
    if rng.random() < 0.3:
        data = _bytes_changed(rng, data)
    return data[: rng.randrange(len(data))] if rng.random() < 0.2 else data


def _damaged_hdf5(rng: random.Random, data: bytes) -> bytes:
    """A file whose arrays and attributes are of other types, shapes or places, or whose bytes are damaged."""
    import h5py

    file = io.BytesIO(data)
    with h5py.File(file, "r+") as archive:
        arrays: list[str] = []
        archive.visititems(lambda name, item: arrays.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in rng.sample(arrays, rng.randint(0, 2)):
            values = np.asarray(archive[name][()])
            action = rng.randrange(8)
            if action == 0:
                attributes = rng.choice([archive, archive[name], archive[name].parent]).attrs
                key = rng.choice([*attributes, "dims", "transpose"])
                attributes[key] = rng.choice([0, b"frame", b"frame_table", '["frame"]', "[", np.zeros(3), b"\x80\x04."])
            elif action < 6:
                link = rng.choice([h5py.SoftLink("/"), h5py.SoftLink(name), h5py.ExternalLink("a.h5", "/a")])
                other = rng.choice([3, "text", np.zeros((2, 0)), h5py.Empty("f8"), link])
                if action == 1 and values.dtype.kind == "f" and values.size:
                    other = np.where(values == values.flat[0], rng.choice([np.nan, np.inf, -1.0, 0.0]), values)
                elif action == 2 and values.dtype.kind in "fiu":
                    other = values.astype(rng.choice(["f4", ">f8", "f2", "i8", "c16", "?"]))
                elif action == 3 and values.ndim:
                    other = values[rng.choice([slice(1), slice(0), slice(None, None, -1), None])]
                del archive[name]
                archive[name] = other
            elif action == 6:
                archive.move(name, rng.choice(["a", "b/c"]) + str(len(arrays)) + name.replace("/", ""))
    data = file.getvalue()
    if rng.random() < 0.5:
        data = _bytes_changed(rng, data)
    return data[: rng.randrange(len(data))] if rng.random() < 0.1 else data


def _results_file(rng: random.Random, good: list[dict]) -> bytes:
    """A damaged list of COCO results."""
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


def judge(
    refine, folder: Path, seed: int, good: list[dict], others: list[tuple[str, bytes]], only: bool = False
) -> str:
    """Makes case `seed` in `folder`, runs `refine(detections, images, out)`, returns `GOOD` or `BAD`.

    `only`: every case is one of `others`.

    Raises:
      AssertionError: something else came of it; says what.
    """
    from posefix_jax.types import PosefixError

    rng = random.Random(seed)
    images = folder / "images"
    images.mkdir(exist_ok=True)
    name, data = "d.json", json.dumps(good).encode()
    if only or rng.random() < 0.7:
        name, data = poses_file(rng, [] if only else good, others)
    detections, out = folder / name, folder / f"out{Path(name).suffix}"
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
    assert _rest(name, data) == _rest(name, out.read_bytes()), f"seed {seed}: something else changed"
    kept = json.loads(Path(f"{out}.report.json").read_text())
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


def _rest(name: str, data: bytes) -> object:
    """What must come out of a file as it went in."""
    if name.endswith(".npz"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        changed = ("keypoints.npy", "scores.npy", "score.npy", "keypoint_scores.npy")
        return list(members), {key: value for key, value in members.items() if key not in changed}
    if name.endswith(".h5"):
        return _other_arrays(data)
    if name.endswith(TABLES):  # every cell that is no number, and the first cell of each line
        lines = [line for line in data.decode("utf-8-sig").split("\n") if line.strip()]
        return [
            re.sub(r"[-+]?[\d.]+(e[-+]?\d+)?|nan|null|none|n/?a|[\s\"]", "", line, flags=re.IGNORECASE)
            for line in lines
        ][:2]
    return json.dumps(_without_poses(_values(data.decode("utf-8-sig"))))


def _other_arrays(data: bytes) -> dict[str, object]:
    """What is stored of arrays that are no poses, and the attributes. Nothing is decoded that libhdf5 might crash on."""
    import h5py

    from posefix_jax.data.formats.hdf5 import is_plain

    broken = (AttributeError, LookupError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
    found: dict[str, object] = {}
    poses = ("table", "block0_values", "tracks", "point_scores", "instance_scores")

    def stored(array):
        places = [(array.id.get_offset() or 0, array.id.get_storage_size())]
        if array.chunks is not None:
            chunks = (array.id.get_chunk_info(i) for i in range(array.id.get_num_chunks()))
            places = [(chunk.byte_offset, chunk.size) for chunk in chunks]
        # A damaged size may reach into the bytes of other arrays.
        return [data[first : first + size] if size < array.nbytes + 64 else size for first, size in places]

    def keep(name, item):
        if (
            "_i_table" in name
        ):  # PyTables' index, over which libhdf5 writes where a damaged byte says that nothing is there
            return
        try:
            of_item = [h5py.h5a.open(item.id, key.encode()) for key in item.attrs]
            found[name] = {a.name: str(item.attrs[a.name.decode()]) for a in of_item if is_plain(a.get_type())}
            if isinstance(item, h5py.Dataset):
                values = str(item.shape) if name.split("/")[-1] in poses else stored(item)
                found[name] = found[name], str(item.dtype), values
        except broken as error:
            found[name] = type(error).__name__

    with h5py.File(io.BytesIO(data), "r") as archive, contextlib.suppress(*broken):
        archive.visititems(keep)
    return found


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
        some = {k: v for k, v in value.items() if canonical(k) not in BLAZEPOSE.joints}  # landmarks may be added
        return {k: _without_poses(v, inside or "keypoint" in k or "kpts" in k or k in POSES) for k, v in some.items()}
    if isinstance(value, list):
        return [
            _without_poses(v, inside) for v in value if not (isinstance(v, dict) and {"x", "y", "name"} <= v.keys())
        ]
    return 0 if inside and (value is None or isinstance(value, int | float)) else value
