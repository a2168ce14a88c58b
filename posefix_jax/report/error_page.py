"""The page of `posefix analyze`: one HTML file that loads nothing, from the report's dictionary."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from posefix_jax.report import plots
from posefix_jax.report.pictures import KIND_COLORS
from posefix_jax.types import ErrorKind

COLORS = {kind.name.lower(): "#{:02x}{:02x}{:02x}".format(*rgb) for kind, rgb in KIND_COLORS.items()}
MOST_BARS = 40
"""Bins of a division that are still drawn; more are in errors.csv only."""
_CAPTIONS = {"overlap": "people whose box overlaps (IoU 0.1 or more)", "size": "size of the person (COCO)"}

Sides = Mapping[str, Mapping[str, Any]]
"""What `analysis.json` says of each results file, by the name that the page gives it."""


def error_page(report: Mapping[str, Any], pictures: Mapping[str, Sequence[tuple[str, bytes]]]) -> str:
    """The page.

    Args:
      report: what `posefix analyze` writes as `analysis.json`.
      pictures: (caption, JPEG) pairs under each heading.
    """
    keys = [side for side in ("before", "after") if side in report]
    names = {side: side if len(keys) > 1 else "detections" for side in keys}
    sides = {names[side]: report[side] for side in keys}
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("error_page.html").render(
        report={"change": None, **report},
        names=names,
        summary=_summary(sides),
        kinds=_kinds(sides),
        divisions=[list(_division(sides, by)) for by in ("group", "joint", "labelled joints", "overlap", "size")],
        changes_by_kind=list(_changes_by_kind(sides)) if len(sides) > 1 else [],
        together=_together(sides),
        costs=_costs(sides),
        change=_change(report["change"]) if "change" in report else None,
        scores=_scores(sides),
        legend={"no true label" if kind is ErrorKind.ABSENT else name: COLORS[name] for kind, name in _kind_names()},
        pictures={
            heading: [(caption, base64.b64encode(jpeg).decode()) for caption, jpeg in shown]
            for heading, shown in pictures.items()
        },
    )


def _kind_names() -> Iterator[tuple[ErrorKind, str]]:
    return ((kind, kind.name.lower()) for kind in ErrorKind)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], plot: str = "") -> dict[str, Any]:
    return {"header": header, "rows": rows, "plot": Markup(plot)}  # the plot is markup already


def _summary(sides: Sides) -> dict[str, Any]:
    of = sides.values()
    rows = [[name, *(f"{side['figures'][name]:.4f}" for side in of)] for name in ("AP", "AP50", "AP75", "AR")]
    rows += [
        ["people matched", *(f"{side['matched']} of {side['people']}" for side in of)],
        ["people without a detection", *(side["unmatched_people"] for side in of)],
        ["detections without a person", *(side["unmatched_rows"] for side in of)],
        ["mean OKS of matched people", *(f"{side['mean_oks']:.4f}" for side in of)],
    ]
    return _table(["", *sides], rows)


def _shares(side: Mapping[str, Any], by: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The rows of a division by bin and kind."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in side["shares"]:
        if row["by"] == by:
            found.setdefault(row["bin"], {})[row["kind"]] = row
    return found


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['share']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"


def _kinds(sides: Sides) -> dict[str, Any]:
    total = {name: _shares(side, "total")["all"] for name, side in sides.items()}
    kinds = list(next(iter(total.values())))
    plot = plots.bars(
        kinds,
        {name: [of[kind]["share"] for kind in kinds] for name, of in total.items()},
        intervals={name: [(of[kind]["low"], of[kind]["high"]) for kind in kinds] for name, of in total.items()},
        title="share of joints by kind",
        y_label="share of joints",
        percent=True,
    )
    rows = [
        [kind, *(cell for of in total.values() for cell in (of[kind]["count"], _interval(of[kind])))] for kind in kinds
    ]
    return _table(["", *(f"{name}, {what}" for name in sides for what in ("joints", "share"))], rows, plot)


def _division(sides: Sides, by: str) -> Iterator[tuple[str, Markup | None]]:
    """(caption, plot) of each side; no plot where there are too many bins."""
    for name, side in sides.items():
        of = _shares(side, by)
        if len(of) > MOST_BARS:
            yield f"{len(of)} {by}s: their shares are in errors.csv.", None
            continue
        labels = list(of)
        if by not in ("group", "joint"):
            labels = [f"{bin} ({next(iter(kinds.values()))['total']} joints)" for bin, kinds in of.items()]
        series = {kind: [kinds[kind]["share"] for kinds in of.values()] for kind in next(iter(of.values()))}
        plot = plots.bars(labels, series, title=f"kinds by {by}", stacked=True, percent=True, colors=COLORS)
        yield f"{name}: kinds by {_CAPTIONS.get(by, by)}", Markup(plot)


def _changes_by_kind(sides: Sides) -> Iterator[tuple[str, Markup]]:
    of = {name: _shares(side, "group") for name, side in sides.items()}
    before, after = of.values()
    common = [group for group in before if group in after]
    for kind in next(iter(after.values())):
        if not any(row[kind]["count"] for groups in of.values() for row in groups.values()):
            continue
        series = {name: [groups[group][kind]["share"] for group in common] for name, groups in of.items()}
        spans = {
            name: [(groups[group][kind]["low"], groups[group][kind]["high"]) for group in common]
            for name, groups in of.items()
        }
        plot = plots.bars(common, series, intervals=spans, title=f"{kind} by group", percent=True)
        yield f"{kind}, before and after, by joint group", Markup(plot)


def _together(sides: Sides) -> dict[str, Any]:
    rows = [
        [
            kind,
            *(
                f"{of['count']} of {of['total']} ({_interval(of)})"
                for of in (side["together"][kind] for side in sides.values())
            ),
        ]
        for kind in next(iter(sides.values()))["together"]
    ]
    return _table(["", *sides], rows)


def _costs(sides: Sides) -> dict[str, Any]:
    kinds = list(next(iter(sides.values()))["ap_gain"])
    series = {name: [side["ap_gain"][kind] for kind in kinds] for name, side in sides.items()}
    plot = plots.bars(kinds, series, title="AP gain of each correction", y_label="AP gained")
    rows = [
        [
            kind,
            *(f"{side['ap_gain'][kind]:+.4f} ({side['ap_if'][kind]:.4f})" for side in sides.values()),
            *(f"{side['coco_analyze'][kind]:+.4f}" if kind in side["coco_analyze"] else "" for side in sides.values()),
        ]
        for kind in kinds
    ]
    header = [*(f"{name}: gain (AP)" for name in sides), *(f"{name}: gain as coco-analyze" for name in sides)]
    return _table(["corrected", *header], rows, plot)


def _change(change: Mapping[str, Any]) -> dict[str, Any]:
    of = change["oks_histogram"]
    plot = plots.histogram(
        of["counts"], of["edges"], title="change of OKS per person", x_label="change of OKS (after - before)"
    )
    rows = [[of["bin"], of["joints"], f"{of['before']:.4f}", f"{of['after']:.4f}"] for of in change["ks"]]
    return {"plot": Markup(plot), "ks": _table(["", "joints", "before", "after"], rows)}


def _scores(sides: Sides) -> dict[str, Any]:
    lines, points, rows = {}, {}, []
    for name, side in sides.items():
        of = side["calibration"]
        lines[name] = [(row["score"], row["oks"]) for row in of["bins"]]
        points[name] = [(score, oks) for score, oks in side["score_and_oks"]]
        error = "scores leave 0..1" if of["error"] is None else f"{of['error']:.4f}"
        rows.append([name, error, "-" if of["rank"] is None else f"{of['rank']:.4f}"])
    plot = plots.curves(lines, points, title="score and OKS", x_label="score", y_label="OKS", diagonal=True)
    return _table(["", "expected calibration error", "rank correlation"], rows, plot)
