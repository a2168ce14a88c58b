"""JSON of any size: lists are read one element at a time, and edits leave all other characters as they were.

Kept by hand: streaming parsers do not keep an element's own text, which an edit needs in order to change a few numbers
and nothing else.
"""

import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from posefix_jax.data.text_lines import Readable, replaced
from posefix_jax.types import PosefixError

CHUNK = 1 << 18
LONGEST = 1 << 25
"""Most characters in one element of a list. A longer one counts as a broken file."""
LONGEST_ASIDE = 1 << 29
"""The same for a list that is skipped, the other members of a document: its text is held."""


class _Doubled(Exception):
    """An object has the same name twice."""


def _object(pairs: list[tuple[str, object]]) -> dict:
    """Refuses duplicate names: readers differ in which one they use, so an edit could have no effect."""
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Doubled(f"the name {next(n for n in names if names.count(n) > 1)!r} is used twice in an object")
    return members


_decoder = json.JSONDecoder(object_pairs_hook=_object)
_NUMBER = "0123456789.eE+-"
_space = re.compile(r"[ \t\r\n]*")
_flat = re.compile(r"[^\"\[\]{}]*[0-9a-z][^\"\[\]{}]*")
"""The inside of a non-empty list of numbers, true, false and null."""


def _after_space(text: str, at: int) -> int:
    """Where the white space at `at` ends."""
    match = _space.match(text, at)
    return match.end() if match else at


class Item(NamedTuple):
    """An element of a list: the text since the element before it, its own text, and its value.

    The last item of a document has the text after the last element, "", and None.
    """

    lead: str
    text: str
    value: object


class JsonStream:
    """Reads a document from a binary file, holding at most one element and a chunk in memory.

    Every method raises PosefixError with `name` and the byte at fault where the text is not UTF-8 or not JSON.
    """

    def __init__(self, file: Readable, name: str):
        self._file, self._name = file, name
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text, self._at, self._before = "", 0, 0

    def peek(self) -> str:
        """The next character; "" at the end."""
        if self._at == len(self._text):
            self._fill(CHUNK)
        return self._text[self._at : self._at + 1]

    def space(self) -> str:
        """Consumes white space and, at the start, a byte order mark."""
        taken = ""
        if not self._before and not self._at and self.peek() == "\ufeff":
            taken, self._at = "\ufeff", 1
        while self.peek():
            end = _after_space(self._text, self._at)
            taken += self._text[self._at : end]
            self._at = end
            if len(taken) > LONGEST:
                raise self.broken("nothing but white space")
            if end < len(self._text):
                break
        return taken

    def take(self, expected: str) -> str:
        """Consumes one character, which must be in `expected`."""
        found = self.peek()
        if not found or found not in expected:
            raise self.broken(f"expected {' or '.join(expected)}, found {found or 'the end'!r}")
        self._at += 1
        return found

    def skipped(self) -> str:
        """Consumes a value; returns its text. Of a list only one element at a time is decoded."""
        if self.peek() != "[":
            return self.value()[1]
        texts, length = [], 0
        for item in self.items():
            texts.append(item.lead + item.text)
            length += len(texts[-1])
            if length > LONGEST_ASIDE:
                raise self.broken(f"a list of more than {LONGEST_ASIDE} characters beside the rows")
        return "".join(texts)

    def beginning(self, most: int = 64) -> object:
        """Consumes a value and returns it; of a list, the first elements."""
        if self.peek() != "[":
            return self.value()[0]
        first: list[object] = []
        for item in self.items():
            if item.text and len(first) < most:
                first.append(item.value)
        return first

    def value(self) -> tuple[object, str]:
        """Consumes a value; returns it and its text."""
        grow = CHUNK
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self._at)
                # A number at the end of the buffer may continue: 1.5 of 1.5e-3.
                rest = self._text[end : end + 4]
                goes_on = len(rest) < 4 and not rest.strip(_NUMBER) and self._text[end - 1] not in '}]"'
                if not goes_on or not self._fill(grow):
                    text, self._at = self._text[self._at : end], end
                    return value, text
            except ValueError as error:
                if len(self._text) - self._at > LONGEST:
                    raise self.broken(f"an element of more than {LONGEST} characters") from error
                if not self._fill(grow):
                    raise self.broken(getattr(error, "msg", str(error)), getattr(error, "pos", self._at)) from error
            except RecursionError as error:
                raise self.broken("nested too deep") from error
            except _Doubled as error:
                raise self.broken(str(error)) from error
            grow *= 2

    def items(self, lead: str = "") -> Iterator[Item]:
        """The elements of the next list, then an item whose lead ends in the closing bracket."""
        lead += self.take("[") + self.space()
        if self.peek() == "]":
            yield Item(lead + self.take("]"), "", None)
            return
        while True:
            value, text = self.value()
            yield Item(lead, text, value)
            lead = self.space()
            ends = self.take(",]")
            lead += ends
            if ends == "]":
                yield Item(lead, "", None)
                return
            lead += self.space()

    def members(self) -> Iterator[tuple[str, str]]:
        """The names of the next object, each with the text before its value. The caller consumes the value.

        Last comes "" with the text that closes the object.
        """
        lead = self.take("{") + self.space()
        if self.peek() == "}":
            yield "", lead + self.take("}")
            return
        names = set()
        while True:
            if self.peek() != '"':
                raise self.broken("expected a name in double quotes")
            name, text = self.value()
            assert isinstance(name, str)  # it begins with a quote
            if name in names:
                raise self.broken(f"the name {name!r} is used twice in an object")
            names.add(name)
            yield name, lead + text + self.space() + self.take(":") + self.space()
            lead = self.space()
            ends = self.take(",}")
            lead += ends
            if ends == "}":
                yield "", lead
                return
            lead += self.space()

    def rest(self) -> str:
        """Consumes white space up to the end of the file. Anything else is an error."""
        taken = self.space()
        if self.peek():
            raise self.broken("unexpected text after the end of the document")
        return taken

    def broken(self, why: str, place: int | None = None) -> PosefixError:
        byte = self._before + len(self._text[: self._at if place is None else place].encode("utf-8", "surrogatepass"))
        return PosefixError(f"{self._name}: broken JSON at byte {byte} ({why})")

    def _fill(self, size: int) -> bool:
        try:
            data = self._file.read(size)
            more = self._decode(data, not data)
        except UnicodeDecodeError as error:
            raise PosefixError(f"{self._name}: not JSON text ({error})") from error
        except EOFError as error:
            raise PosefixError(f"{self._name}: the compressed file is cut short ({error})") from error
        if self._at > CHUNK:
            self._before += len(self._text[: self._at].encode("utf-8", "surrogatepass"))
            self._text, self._at = self._text[self._at :], 0
        self._text += more
        return bool(data)


def edit(text: str, changes: Mapping[tuple, object]) -> str:
    """The JSON text with new values at some paths (tuples of names and indices). All other characters stay.

    A name that an object lacks is added at its end, the index just after a list's end appended.
    """
    tree: dict = {}
    for path, value in changes.items():
        node = tree
        for step in path[:-1]:
            node = node.setdefault(step, {})
        plain = type(value) is int or (type(value) is float and math.isfinite(value))
        node[path[-1]] = _New(repr(value) if plain else json.dumps(value))
    spans: list[tuple[int, int, str]] = []
    _find(text, _after_space(text, 0), tree, spans)
    return replaced(text, spans)


class _New(str):
    """The text of a new value."""


def _find(text: str, at: int, tree: dict | _New | None, spans: list[tuple[int, int, str]]) -> int:
    """Lists the spans that the tree changes in the value at `at`. Returns where the value ends."""
    if isinstance(tree, _New):
        end = _decoder.raw_decode(text, at)[1]
        spans.append((at, end, tree))
        return end
    kind = text[at]
    if tree is None or kind not in "{[":
        return _decoder.raw_decode(text, at)[1]
    end = text.find("]", at) if kind == "[" else -1
    if end > 0 and _flat.fullmatch(text, at + 1, end) and all(isinstance(new, _New) for new in tree.values()):
        # By far the most common case: a list of numbers.
        words = text[at + 1 : end].split(",")
        for index, new in tree.items():
            if index < len(words):
                words[index] = words[index].replace(words[index].strip(), new, 1)
            else:
                words.append(" " + new)
        spans.append((at + 1, end, ",".join(words)))
        return end + 1
    missing, index, at = dict(tree), 0, _after_space(text, at + 1)
    empty = text[at] in "}]"
    while text[at] not in "}]":
        key = index
        if kind == "{":
            key, at = _decoder.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)
        missing.pop(key, None)
        at = _after_space(text, _find(text, at, tree.get(key), spans))
        index += 1
        if text[at] == ",":
            at = _after_space(text, at + 1)
    for key, new in missing.items():
        if isinstance(new, _New):
            added = f"{json.dumps(key)}: {new}" if kind == "{" else new
            spans.append((at, at, added if empty else ", " + added))
            empty = False
    return at + 1
