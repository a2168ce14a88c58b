"""Records and cells of text tables: commas, semicolons or tabs between cells, some of which may be in quotes."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

from posefix_jax.data.text_lines import LONGEST, replaced
from posefix_jax.types import PosefixError

DELIMITERS = ",;\t|"
_NOTHING = {"", "nan", "na", "n/a", "null", "none"}
_WHOLE = re.compile(r"(0|-?[1-9]\d{0,17})(?:\.0+)?", re.ASCII)
_QUOTED = r'[ \t]*"(?:[^"]|"")*"[ \t]*'


def records(lines: Iterable[str], path: str) -> Iterator[tuple[int, str]]:
    """The records of a table: (number of its first line, its text). A line end within quotes ends no record.

    Raises:
      PosefixError: a quote has no end.
    """
    begun, held = 1, ""
    number = 0
    for number, line in enumerate(lines, start=1):
        if not held and '"' not in line:
            yield number, line
            continue
        begun = begun if held else number
        held += line
        if held.count('"') % 2 == 0:
            yield begun, held
            held = ""
        elif len(held) > LONGEST:
            break
    if held:
        raise PosefixError(f"{path}: line {begun}: a quote has no end")


def delimiter_of(header: str) -> str:
    """What stands between the cells of a header: the commonest of the delimiters outside of quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=bare.count)


def cells_of(record: str, delimiter: str) -> list[str]:
    """The cells of a record, quotes and spaces included. Raises ValueError."""
    body = record.rstrip("\r\n")
    if '"' not in body:
        return body.split(delimiter)
    cells = _pattern(delimiter).findall(body)
    if sum(map(len, cells)) + len(cells) - 1 != len(body):
        raise ValueError("a cell has a quote within it")
    return cells


def spans_of(record: str, delimiter: str) -> list[tuple[int, int]]:
    """Where the cells of a record are. Raises ValueError: a quote within a cell."""
    ends = list(accumulate(len(cell) + 1 for cell in cells_of(record, delimiter)))
    return [(start, end - 1) for start, end in zip([0, *ends], ends, strict=False)]


@lru_cache
def _pattern(delimiter: str) -> re.Pattern:
    """A cell after the start of the record or a delimiter."""
    other = re.escape(delimiter)
    return re.compile(f'(?:^|{other})({_QUOTED}|[^"{other}]*)')


def columns_of(pairs: Sequence[str]) -> dict[str, str]:
    """What `--columns` says, OURS=THEIRS each: our name of a column by theirs. Raises PosefixError."""
    columns: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        ours, theirs = ours.strip(), theirs.strip()
        if not (ours and equals and theirs) or theirs in columns or any(c in ours for c in DELIMITERS + '"'):
            what = "names a column again" if theirs in columns else "is not OURS=THEIRS"
            raise PosefixError(f"--columns: {pair!r:.60} {what}; expected such as image_id=clip nose_x=n.x nose_y=n.y")
        columns[theirs] = ours
    return columns


def renamed(header: str, columns: Mapping[str, str] | None, path: str) -> str:
    """A header in which the columns have our names. Raises PosefixError: it lacks one."""
    if not columns:
        return header
    delimiter = delimiter_of(header)
    try:
        spans = spans_of(header, delimiter)
    except ValueError as error:
        raise PosefixError(f"{path}: a broken header ({error})") from error
    names = [plain(header[start:end]).strip() for start, end in spans]
    lacking = [name for name in columns if name not in names]
    if lacking:
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise PosefixError(f"--columns: {path} has no column {lacking[0]!r:.40}; it has {some:.160}")
    changed = ((name, span) for name, span in zip(names, spans, strict=True) if name in columns)
    return replaced(header, [(*inner(header, span), columns[name]) for name, span in changed])


def inner(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """Where the content of a cell is, without the spaces and quotes around it."""
    start, end = span
    cell = text[start:end]
    start, end = end - len(cell.lstrip()), start + len(cell.rstrip())
    if start > end:  # nothing but spaces
        return span[1], span[1]
    quoted = end - start >= 2 and text[start] == text[end - 1] == '"'
    return (start + 1, end - 1) if quoted else (start, end)


def plain(cell: str) -> str:
    """The text that a cell stands for."""
    start, end = inner(cell, (0, len(cell)))
    return cell[start:end].replace('""', '"')


def quoted(text: str, delimiter: str = ",") -> str:
    """A cell that stands for a text; in quotes where it needs them, or could be taken for a number."""
    bare = (
        not any(c in text for c in (delimiter, '"', "\n", "\r")) and text == text.strip() and not _WHOLE.fullmatch(text)
    )
    return text if bare and text else '"' + text.replace('"', '""') + '"'


def name_or_number(cell: str) -> int | str:
    """What a cell calls a photograph or a person: a whole number that is not in quotes is one, anything else a name."""
    text = plain(cell)
    whole = _WHOLE.fullmatch(cell.strip())
    return int(whole[1]) if whole else text


def number(cell: str) -> float:
    """The number in a cell; NaN where it is empty, nan, null, ... Raises ValueError."""
    text = plain(cell).strip()
    try:
        return math.nan if text.lower() in _NOTHING else float(text)
    except ValueError as error:
        hint = "; expected a decimal point" if re.fullmatch(r"-?\d+,\d+", text) else ""
        raise ValueError(f"{text!r:.40} is no number{hint}") from error


def numbers_of(cells: Sequence[str], columns: Sequence[int], header: Sequence[str]) -> list[float]:
    """The numbers in some columns. Raises ValueError with the column's name."""
    try:
        return [float(cells[column]) for column in columns]
    except ValueError:
        return [_number_of(cells[column], header[column]) for column in columns]


def _number_of(cell: str, column: str) -> float:
    try:
        return math.nan if cell.strip().lower() in _NOTHING else float(cell)
    except ValueError:
        try:
            return number(cell)
        except ValueError as error:
            raise ValueError(f"column {column!r:.40}: {error}") from error
