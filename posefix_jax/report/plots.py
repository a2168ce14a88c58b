"""Plots as SVG text, by matplotlib: in the color of the text around them, with values as tooltips."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PALETTE = ("#8a94a6", "#2f7fd6", "#d9822b", "#3f9f5f", "#a05fc0", "#c94f4f")
SVG = "http://www.w3.org/2000/svg"
_TEXT = "#010203"
"""Stands for the color of the text around the plot."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "posefix",  # equal plots give equal text
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "lines.solid_capstyle": "butt",
    **{
        name: _TEXT
        for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    },
}

Points = Sequence[tuple[float, float]]
Tips = list[tuple[Artist, str]]
"""What is drawn, and the tooltip it gets."""


def bars(
    categories: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    y_label: str = "",
    intervals: Mapping[str, Points] | None = None,
    stacked: bool = False,
    percent: bool = False,
    colors: Mapping[str, str] | None = None,
) -> str:
    """The bars of each series, beside each other in each category or stacked.

    Args:
      intervals: (low, high) of each bar by series, drawn as whiskers; for bars that are not stacked.
      percent: the values are shares, shown as percentages.
      colors: CSS color by series.
    """
    color_of = _color_of(series, colors)
    tilted = len(categories) > 8

    def value(number: float) -> str:
        return f"{100 * number:.4g}%" if percent else f"{number:.4g}"

    def draw(axes: Axes) -> Tips:
        tips: Tips = []
        width = 0.78 / (1 if stacked else max(len(series), 1))
        base = [0.0] * len(categories)
        for i, (name, heights) in enumerate(series.items()):
            offset = 0.0 if stacked else (i - (len(series) - 1) / 2) * width
            places = [place + offset for place in range(len(categories))]
            drawn = axes.bar(places, heights, width * (1 if stacked else 0.94), base, color=color_of[name], label=name)
            texts = [f"{category}, {name}: {value(h)}" for category, h in zip(categories, heights, strict=True)]
            if stacked:
                base = [low + height for low, height in zip(base, heights, strict=True)]
            elif intervals:
                axes.vlines(places, *zip(*intervals[name], strict=True), color=_TEXT, linewidth=1)
                texts = [
                    f"{text} [{value(low)}, {value(high)}]"
                    for text, (low, high) in zip(texts, intervals[name], strict=True)
                ]
            tips += zip(drawn, texts, strict=True)
        axes.set_xticks(range(len(categories)), categories)
        axes.tick_params(axis="x", length=0)
        if tilted:
            axes.tick_params(axis="x", rotation=40)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.axhline(0, color=_TEXT, linewidth=0.8)
        axes.set_ylabel(y_label)
        axes.margins(x=0.01)
        if percent:
            axes.yaxis.set_major_formatter(lambda number, _: value(number))
        if stacked and percent:
            axes.set_ylim(0, 1)
        return tips

    return _svg(title, (6.4, 3.2 if tilted else 2.7), draw, legend=len(series) > 1)


def histogram(
    counts: Sequence[int], edges: Sequence[float], *, title: str, x_label: str, y_label: str = "people"
) -> str:
    """Counts between rising `edges`, one more than there are counts: negative ones red, positive ones green."""
    spans = list(zip(edges[:-1], edges[1:], strict=True))

    def draw(axes: Axes) -> Tips:
        colors = [PALETTE[0] if low < 0 < high else PALETTE[5] if high <= 1e-12 else PALETTE[3] for low, high in spans]
        widths = [0.94 * (high - low) for low, high in spans]
        drawn = axes.bar([(low + high) / 2 for low, high in spans], counts, widths, color=colors)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
        texts = [f"{low:.3g} to {high:.3g}: {count}" for (low, high), count in zip(spans, counts, strict=True)]
        return list(zip(drawn, texts, strict=True))

    return _svg(title, (6.4, 2.5), draw)


def curves(
    lines: Mapping[str, Points],
    points: Mapping[str, Points] | None = None,
    *,
    title: str,
    x_label: str,
    y_label: str,
    diagonal: bool = False,
) -> str:
    """Lines with a mark at each (x, y), over a scatter of points of the same names; `diagonal`: x = y, dashed."""
    color_of = _color_of(lines, None)

    def draw(axes: Axes) -> Tips:
        tips: Tips = []
        for name, rows in (points or {}).items():
            axes.plot(*_columns(rows), "o", color=color_of[name], markersize=2.5, alpha=0.3, markeredgewidth=0)
        for name, rows in lines.items():
            axes.plot(*_columns(rows), "-", color=color_of[name], linewidth=1.8, label=name)
            for x, y in rows:
                (mark,) = axes.plot(x, y, "o", color=color_of[name], markersize=5.5)
                tips.append((mark, f"{name}: {x:.3f}, {y:.3f}"))
        if diagonal:
            low = max(axes.get_xlim()[0], axes.get_ylim()[0])
            high = min(axes.get_xlim()[1], axes.get_ylim()[1])
            if high > low:
                axes.plot((low, high), (low, high), "--", color=_TEXT, linewidth=0.8, alpha=0.6)
        axes.grid(True, axis="both")
        axes.set(xlabel=x_label, ylabel=y_label)
        return tips

    return _svg(title, (6.4, 3.2), draw, legend=True)


def _columns(rows: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in rows], [y for _, y in rows]


def _color_of(series: Mapping[str, object], colors: Mapping[str, str] | None) -> dict[str, str]:
    return {name: (colors or {}).get(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(series)}


def _svg(title: str, size: tuple[float, float], draw: Callable[[Axes], Tips], *, legend: bool = False) -> str:
    """What `draw` puts on axes of `size` inches."""
    text = io.StringIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        tips = draw(axes)
        for number, (artist, _) in enumerate(tips):
            artist.set_gid(f"tip-{number}")
        if legend:
            figure.legend(loc="outside upper left", ncols=7, handlelength=1, columnspacing=1.2)
        with warnings.catch_warnings():  # names so long that they leave no room for the axes
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    root.remove(root[0])  # the metadata
    for name in ("width", "height"):
        del root.attrib[name]
    root.set("role", "img")
    _titled(root, title)
    whole = text.getvalue()
    for element in root.iter():
        identity = element.attrib.get("id", "")
        if identity.startswith("tip-"):
            _titled(element, tips[int(identity.removeprefix("tip-"))][1])
        if f"#{identity}" not in whole:  # several plots lie in one page, where an id is one element's
            element.attrib.pop("id", None)
        link = element.attrib.pop("{http://www.w3.org/1999/xlink}href", None)
        if link:
            element.set("href", link)
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode").replace(_TEXT, "currentColor")


def _titled(element: ElementTree.Element, text: str) -> None:
    title = ElementTree.Element(f"{{{SVG}}}title")
    title.text = text
    element.insert(0, title)
