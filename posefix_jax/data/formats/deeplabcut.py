"""DeepLabCut's tables as CSV: three or four header lines, then a record per frame.

https://deeplabcut.github.io/DeepLabCut/docs/standardDeepLabCut_UserGuide.html: rows `scorer`, `individuals` (of several
animals), `bodyparts`, `coords`; columns x, y, likelihood of every body part, or x and y alone in labelled data.
"""

from collections.abc import Sequence
from typing import Any

from posefix_jax.data.formats.base import ImageId, PoseFile
from posefix_jax.data.formats.cells import cells_of, plain
from posefix_jax.data.formats.table import Cells, Layout, Table, image_named
from posefix_jax.types import PosefixError, warn_once

_AXES = ("x", "y", "likelihood")


class DeepLabCut(Table):
    """The photograph is the frame's number, or its path in the first columns; a missing body part is empty."""

    name = "deeplabcut"

    def header_ends(self, header: Sequence[str]) -> bool:
        return header[-1].startswith(("coords,", '"coords",')) or len(header) == 4

    def photograph_of(self, value: Any, file: PoseFile) -> ImageId | None:
        layout, (record,) = value
        return image_named(record, layout)

    def layout(self, header: Sequence[str], path: str) -> Layout:
        try:
            rows = [[plain(cell) for cell in cells_of(record, ",")] for record in header]
        except ValueError as error:
            raise _unfit(path, f"a broken line ({error})") from error
        kinds = [row[0] for row in rows]
        if kinds not in (["scorer", "bodyparts", "coords"], ["scorer", "individuals", "bodyparts", "coords"]):
            raise _unfit(path, f"lines {', '.join(kinds):.80}")
        if len({len(row) for row in rows}) > 1:
            raise _unfit(path, f"lines of {', '.join(str(len(row)) for row in rows)} cells")
        parts, axes = rows[-2], rows[-1]
        # In labelled data, the path of the photograph may be in three columns.
        first = next((place for place in range(1, len(axes)) if axes[place]), len(axes))
        people: dict[str, dict[str, dict[str, int]]] = {}
        for place in range(first, len(axes)):
            of_part = people.setdefault(rows[1][place] if len(rows) == 4 else "", {}).setdefault(parts[place], {})
            if axes[place] not in _AXES or axes[place] in of_part:
                raise _unfit(
                    path, f"{axes[place]!r:.20} of {parts[place]!r:.40}, twice or not one of {', '.join(_AXES)}"
                )
            of_part[axes[place]] = place
        for of_person in people.values():
            for part, places in of_person.items():
                if not {"x", "y"} <= places.keys():
                    raise _unfit(path, f"no x or no y of {part!r:.40}")
        if not people:
            raise _unfit(path, "no body parts")
        joints = max((list(of_person) for of_person in people.values()), key=len)
        others = [name for name, of_person in people.items() if set(of_person) != set(joints)]
        if others:
            warn_once(
                f"{path}: {', '.join(others[:4])} have other body parts than the rest; they pass through unchanged"
            )
        return Layout(
            ",",
            tuple("/".join(row[place] for row in rows[1:] if row[place]) for place in range(len(axes))),
            tuple(joints),
            tuple(
                (
                    name or None,
                    tuple(Cells(p["x"], p["y"], p.get("likelihood")) for p in map(of_person.get, joints) if p),
                )
                for name, of_person in people.items()
                if name not in others
            ),
            tuple(range(first)),
        )


def _unfit(path: str, what: str) -> PosefixError:
    return PosefixError(
        f"{path}: the header has {what}; expected lines scorer, perhaps individuals, bodyparts, coords, with x and y of every "
        "body part (read as deeplabcut)"
    )
