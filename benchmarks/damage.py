"""How hostile.py damages a file: other values, names, structure or bytes, by a generator of random numbers."""

import json
import random

import numpy as np

RAW = (
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e308",
        "-1e308",
        "1e400",
        "1e-320",
        "-1",
        "0",
        "1.5",
        "true",
        "null",
        "[]",
        "{}",
    ),
    *("9" * 400, "-" + "9" * 400, "9" * 5000, "4294967296", "9223372036854775808", "[[]]", "[1]", '{"a": {"b": [1]}}'),
    *('""', '"1"', '"\\u0000"', '"a\\nb"', '"\\u001b[31m\\u202e"', '"\\ud800"', '"../../x"', '"' + "x" * 100000 + '"'),
    *("[" * 900 + "]" * 900, "[" * 100000 + "]" * 100000, '{"a":' * 3000 + "1" + "}" * 3000),
    *("[" + "0," * 3000 + "0]", "[NaN, 1e308, -1e308, 1e400]", '["a", 1, null]', "[1e308, 1e308, 2]"),
)
"""JSON texts that take the place of a value."""
NUMBERS = (
    "NaN",
    "1e308",
    "-1e308",
    "1e400",
    "1e154",
    "1e39",
    "1e20",
    "-1e9",
    "-1",
    "0",
    "9" * 400,
    "null",
    '"1"',
    "1e-320",
)


def damaged_json(rng: random.Random, text: str) -> str:
    """JSON with other values, without members, or with members twice."""
    value, raw = json.loads(text), []
    holder = [value]

    def mark(content: str) -> str:
        raw.append(content)
        return f"@raw{len(raw) - 1}@"

    for _ in range(rng.choice([1, 1, 2, 4])):
        place, key = _place(rng, holder)
        old = place[key]
        action = rng.randrange(8)
        if action == 0 and place is not holder:
            del place[key]
        elif action == 1 and isinstance(place, list):
            place.insert(key, place[rng.randrange(len(place))])
        elif action == 2 and isinstance(old, list):
            place[key] = rng.choice([old[:1], old * 2, [old], old[::-1], {str(i): item for i, item in enumerate(old)}])
        elif action == 3 and isinstance(place, dict):  # twice, or under another name
            place[rng.choice(["", "é\u0000", "a\nb", mark(json.dumps(key)), *place])] = old
        elif action == 4 and isinstance(old, int | float):
            place[key] = mark(rng.choice(NUMBERS))
        elif action == 5 and isinstance(old, list):
            for index in rng.sample(range(len(old)), min(len(old), 3)):
                old[index] = mark(rng.choice(NUMBERS + RAW))
        else:
            place[key] = mark(rng.choice(RAW))
    text = json.dumps(holder[0])
    for number, content in enumerate(raw):
        text = text.replace(f'"@raw{number}@"', content)
    return text


def _place(rng: random.Random, value) -> tuple:
    """A container within a value, and a key in it; every depth is as likely."""
    places = []
    while isinstance(value, dict | list) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        places.append((value, key))
        value = value[key]
    return rng.choice(places)


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes that are cut off, changed, put in or taken out."""
    changed = bytearray(data)
    action = rng.randrange(4)
    if action == 0:
        return data[: rng.randrange(len(data) + 1)]
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(changed) + 1)
        some = bytes(rng.choice([rng.randrange(256), *b'"[]{},:0-e9.']) for _ in range(rng.choice([1, 1, 3])))
        if action == 1:
            changed[place : place + len(some)] = some
        elif action == 2:
            changed[place:place] = some
        else:
            del changed[place : place + rng.randint(1, 30)]
    return bytes(changed)


def damaged_text(rng: random.Random, text: str) -> bytes:
    """A JSON file with another content, or with other bytes."""
    if rng.random() < 0.8:
        return damaged_json(rng, text).encode("utf-8", "surrogatepass")
    return damaged_bytes(rng, text.encode())


def damaged_arrays(rng: random.Random, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of other names, types and shapes."""
    arrays = dict(arrays)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(arrays))
        array, action = arrays[name], rng.randrange(8)
        if action == 0:
            del arrays[name]
        elif action == 1:
            arrays[rng.choice(["a/b", "params", "backbone", "params/stem", "", name + "/x", "a\nb"])] = arrays.pop(name)
        elif action == 2:
            arrays[name] = np.asarray(rng.choice([0, np.nan, "text", "", '{"backbone": []}', "[1]", "null", 1j]))
        elif action == 3:
            arrays[name] = array.reshape(-1)
        elif action == 4:
            arrays[name] = array[None]
        elif action == 5 and array.ndim:
            arrays[name] = array[..., :0]
        elif action == 6 and array.dtype.kind == "f":
            arrays[name] = array.astype(rng.choice(["f8", "f2", "i4", "c8", "U4"]))
        elif array.ndim:
            arrays[name] = np.full_like(array, np.nan) if array.dtype.kind == "f" else array[:1]
    return arrays
