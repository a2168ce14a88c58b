"""Plots as inline SVG text: they take the page's text colour, and their values show as tooltips."""

import math
from collections.abc import Mapping, Sequence
from html import escape

PALETTE = ("#8a94a6", "#2f7fd6", "#d9822b", "#3f9f5f", "#a05fc0", "#c94f4f")
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 46


def ticks_of(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low..high, about `count` of them."""
    if not high > low:
        low, high = low - 0.5, low + 0.5
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _number(value: float, percent: bool) -> str:
    return f"{value * 100:.4g} %" if percent else f"{value:.4g}"


class _Canvas:
    """An SVG of fixed size with a plot area, a y axis with grid lines, and a legend above."""

    def __init__(self, title, legend, x, y, *, width=720, height=280, bottom=_BOTTOM, percent=False, labels=("", "")):
        """Args: `x`, `y`: (low, high) of the plot area; `legend`: colour by name; `labels`: of the two axes."""
        self.width, self.height, self.bottom, self.x, self.y = width, height, bottom, x, y
        self.parts = [f"<title>{escape(title)}</title>"]
        for tick in ticks_of(*y):
            if y[0] - 1e-9 <= tick <= y[1] + 1e-9:
                at = self.to_y(tick)
                strong = 0.55 if tick == 0 else 0.13
                self.line((_LEFT, at), (width - _RIGHT, at), "currentColor", opacity=strong)
                self.text(_LEFT - 6, at + 4, _number(tick, percent), anchor="end")
        x_label, y_label = labels
        if x_label:
            self.text((_LEFT + width - _RIGHT) / 2, height - 6, x_label)
        if y_label:
            self.text(14, (_TOP + height - bottom) / 2, y_label, turn=-90)
        left = _LEFT
        for name, colour in legend.items():
            self.rectangle(left, 8, 10, 10, colour)
            self.text(left + 14, 17, name, anchor="start")
            left += 30 + 6.4 * len(name)

    def to_x(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def to_y(self, value: float) -> float:
        low, high = self.y
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.bottom - _TOP)

    def x_axis(self, percent: bool = False) -> None:
        for tick in ticks_of(*self.x, 8):
            if self.x[0] - 1e-9 <= tick <= self.x[1] + 1e-9:
                at, base = self.to_x(tick), self.height - self.bottom
                self.line((at, base), (at, base + 4), "currentColor", opacity=0.55)
                self.text(at, base + 17, _number(tick, percent))

    def line(self, start, end, colour, *, opacity=1.0, width=1.0, dash="") -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="{colour}" '
            f'stroke-opacity="{opacity}" stroke-width="{width}"{dashed}/>'
        )

    def rectangle(self, x, y, width, height, colour, tip="") -> None:
        tip = f"<title>{escape(tip)}</title>" if tip else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}">{tip}</rect>'
        )

    def text(self, x, y, content, *, anchor="middle", turn=0) -> None:
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor"{turned}>{escape(content)}</text>'
        )

    def svg(self) -> str:
        return f'<svg viewBox="0 0 {self.width} {self.height}" role="img">{"".join(self.parts)}</svg>'


def _coloured(names: Sequence[str], colours: Mapping[str, str] | None) -> dict[str, str]:
    return {name: (colours or {}).get(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(names)}


def bars(
    categories: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    y_label: str = "",
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    stacked: bool = False,
    percent: bool = False,
    colours: Mapping[str, str] | None = None,
) -> str:
    """Bars of each series side by side in each category, or on each other.

    Args:
      intervals: (low, high) of each bar by series, drawn as whiskers; not of stacked bars.
      percent: values are shares; show them times 100.
      colours: CSS colour by series.
    """
    colours = _coloured(list(series), colours)
    intervals = intervals or {}
    if stacked:
        values = [sum(column) for column in zip(*series.values(), strict=True)]
    else:
        values = [v for row in series.values() for v in row] + [v for row in intervals.values() for p in row for v in p]
    ticks = ticks_of(min(0.0, *values), max([1e-9, *values]))
    tilted = len(categories) > 8
    legend = colours if len(series) > 1 else {}
    canvas = _Canvas(
        title, legend, (0.0, float(len(categories))), (ticks[0], ticks[-1]), percent=percent, labels=("", y_label),
        bottom=92 if tilted else _BOTTOM, height=320 if tilted else 280,
    )  # fmt: skip
    slot = (canvas.width - _LEFT - _RIGHT) / max(len(categories), 1)
    wide = slot * 0.78 / (1 if stacked else len(series))
    zero = canvas.to_y(0.0)
    for i, category in enumerate(categories):
        left, base = _LEFT + slot * (i + 0.11), 0.0
        for j, (name, row) in enumerate(series.items()):
            tip = f"{category}, {name}: {_number(row[i], percent)}"
            x = left if stacked else left + j * wide
            if stacked:
                low, high = canvas.to_y(base + row[i]), canvas.to_y(base)
                base += row[i]
            else:
                low, high = sorted((canvas.to_y(row[i]), zero))
            span = intervals.get(name)
            if span:
                tip += f" [{_number(span[i][0], percent)}, {_number(span[i][1], percent)}]"
            canvas.rectangle(x, low, wide * (1 if stacked else 0.94), high - low, colours[name], tip)
            if span:
                middle = x + wide / 2
                canvas.line((middle, canvas.to_y(span[i][0])), (middle, canvas.to_y(span[i][1])), "currentColor")
        centre, below = left + slot * 0.39, canvas.height - canvas.bottom
        if tilted:
            canvas.text(centre + 4, below + 14, category, anchor="end", turn=-40)
        else:
            canvas.text(centre, below + 18, category)
    return canvas.svg()


def histogram(
    counts: Sequence[int], edges: Sequence[float], *, title: str, x_label: str, y_label: str = "people"
) -> str:
    """Bars of counts between rising `edges`, one more than there are counts."""
    ticks = ticks_of(0.0, float(max([1, *counts])))
    canvas = _Canvas(title, {}, (edges[0], edges[-1]), (0.0, ticks[-1]), labels=(x_label, y_label))
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        x, y = canvas.to_x(low), canvas.to_y(float(count))
        colour = PALETTE[0] if low < 0 < high else PALETTE[5] if high <= 1e-12 else PALETTE[3]
        tip = f"{low:.3g} to {high:.3g}: {count}"
        canvas.rectangle(x + 0.5, y, max(canvas.to_x(high) - x - 1, 0.5), canvas.to_y(0.0) - y, colour, tip)
    canvas.x_axis()
    return canvas.svg()


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    *,
    title: str,
    x_label: str,
    y_label: str,
    diagonal: bool = False,
) -> str:
    """Lines through (x, y) with a mark at each, over a scatter of points of the same names; `diagonal`: x = y, dashed."""
    points = points or {}
    colours = _coloured(list(lines), None)
    every = [at for rows in (*lines.values(), *points.values()) for at in rows] or [(0.0, 0.0)]
    ranges = [ticks_of(min(at[axis] for at in every), max(at[axis] for at in every)) for axis in (0, 1)]
    canvas = _Canvas(title, colours, *((r[0], r[-1]) for r in ranges), height=340, labels=(x_label, y_label))
    for name, rows in points.items():
        for x, y in rows:
            canvas.parts.append(
                f'<circle cx="{canvas.to_x(x):.1f}" cy="{canvas.to_y(y):.1f}" r="2" fill="{colours[name]}" '
                'fill-opacity="0.3"/>'
            )
    if diagonal:
        low, high = max(r[0] for r in ranges), min(r[-1] for r in ranges)
        if high > low:
            ends = ((canvas.to_x(v), canvas.to_y(v)) for v in (low, high))
            canvas.line(*ends, "currentColor", opacity=0.5, dash="4 4")
    for name, rows in lines.items():
        for (a, b), (c, d) in zip(rows[:-1], rows[1:], strict=True):
            canvas.line((canvas.to_x(a), canvas.to_y(b)), (canvas.to_x(c), canvas.to_y(d)), colours[name], width=2)
        for x, y in rows:
            canvas.parts.append(
                f'<circle cx="{canvas.to_x(x):.1f}" cy="{canvas.to_y(y):.1f}" r="4" fill="{colours[name]}">'
                f"<title>{escape(name)}: {x:.3f}, {y:.3f}</title></circle>"
            )
    canvas.x_axis()
    return canvas.svg()
