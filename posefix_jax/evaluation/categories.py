"""Which rows count: categories apart, as pycocotools has them, or all together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from posefix_jax.data.coco import Person
from posefix_jax.data.formats import Pose
from posefix_jax.types import PosefixError, warn_once

Categories = Literal["auto", "apart", "together"]
CATEGORIES = ("auto", "apart", "together")


def check_categories(value: str) -> None:
    """Raises PosefixError unless it is one of `CATEGORIES`."""
    if value not in CATEGORIES:
        raise PosefixError(f"--categories must be {', '.join(CATEGORIES)}, found {value!r}")


def in_categories(
    people: Sequence[Person],
    files: Sequence[tuple[Path, list[Pose]]],
    *,
    known: Sequence[int | str],
    how: Categories,
    annotations: Path,
) -> tuple[list[Person], list[list[Pose]]]:
    """People and poses, each with the category in which it counts.

    Args:
      people: the true people.
      files: files of poses, with their paths for messages.
      known: the categories of the annotations; a row without `category_id` is of the first.
      how: apart: rows of other categories are left out, with a warning. together: everybody and every row is of one
        category. auto: apart, but together if there are several categories and a file has rows of none.
      annotations: the annotations' file, for messages.

    Raises:
      PosefixError: no row of a file is of a known category.
    """
    if how == "auto":
        nameless = any(poses and all(pose.category is None for pose in poses) for _, poses in files)
        how = "together" if nameless and len(known) > 1 else "apart"
    if how == "together":
        return (
            [replace(person, category=1) for person in people],
            [[pose._replace(category=1) for pose in poses] for _, poses in files],
        )
    kept = []
    names = ", ".join(repr(category) for category in known[:4]) + (", ..." if len(known) > 4 else "")
    for path, poses in files:
        placed = [pose._replace(category=known[0]) if pose.category is None else pose for pose in poses]
        mine = [pose for pose in placed if pose.category in known]
        others = sorted({repr(pose.category) for pose in placed if pose.category not in known})
        if others and not mine:
            raise PosefixError(
                f"{path}: no row has a category_id of {annotations} ({names}), found {', '.join(others[:4])}; "
                "--categories together ignores categories"
            )
        if others:
            warn_once(
                f"{path}: {len(placed) - len(mine)} of {len(placed)} rows have category_id {', '.join(others[:4])}, "
                f"{annotations} has {names}: they do not count (--categories together ignores categories)"
            )
        kept.append(mine)
    if len(known) > 1:
        warn_once(
            f"{annotations}: {len(known)} categories; figures are means over categories, as in pycocotools "
            "(--categories together ignores them)"
        )
    return list(people), kept
