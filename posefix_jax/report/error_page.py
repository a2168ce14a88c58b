"""The page of `posefix analyse`: one HTML file without links, from the report's dictionary."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from posefix_jax.report.pictures import KIND_COLOURS
from posefix_jax.report.plots import bars, curves, histogram
from posefix_jax.types import ErrorKind

COLOURS = {kind.name.lower(): "#{:02x}{:02x}{:02x}".format(*rgb) for kind, rgb in KIND_COLOURS.items()}
_STYLE = """
:root { color-scheme: light dark; --text: #22262c; --soft: #646c78; --back: #fbfbfa; --panel: #fff; --edge: #dfe2e6; }
@media (prefers-color-scheme: dark) {
  :root { --text: #dde1e6; --soft: #98a1ad; --back: #17191c; --panel: #1f2226; --edge: #363b42; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 1080px; margin: 0 auto; padding: 24px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 8px; } h3 { font-size: 15px; margin: 20px 0 4px; }
p { max-width: 75ch; margin: 6px 0; } .soft { color: var(--soft); }
table { border-collapse: collapse; margin: 10px 0; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 3px 12px; text-align: right; border-bottom: 1px solid var(--edge); }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
figure { margin: 10px 0; padding: 12px; background: var(--panel); border: 1px solid var(--edge); border-radius: 6px; }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 6px; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; display: block; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 0 16px; }
figure img { max-width: 100%; display: block; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin: 0 5px 0 14px; border: 1px solid #8888; }
"""
_KINDS = """A joint's kind is that of the true joint which it is most similar to (KS, with the true person's area):
itself at KS 0.85 or more is good, at 0.5 or more jitter; the own left/right twin inversion; the same joint or its twin of
another person in the photograph swap; below 0.5 to all of them miss, as on people who are not labelled. Absent are joints that the detection left out.
Shares are of the labelled joints of matched people. A detection is matched with the free person of the highest OKS, if
that is at least 0.1, in the order of the scores. Whiskers and brackets are 95 % Wilson intervals, wider
where the errors of a person come together."""
_COST = """What AP would gain if the joints of one kind stood at their true place, and all else were as it is. "All errors" moves
every joint that is not good; "every joint" the good ones too; "true scores" moves nothing, and scores each detection with
its OKS to the person it is matched with (0 without one). What is then missing to 1 are people whom no detection matches."""


def error_page(report: Mapping, pictures: Mapping[str, Sequence[tuple[str, bytes]]]) -> str:
    """The page.

    Args:
      report: what `posefix analyse` writes as `analysis.json`.
      pictures: per heading, (caption, JPEG).
    """
    sides = {side: report[side] for side in ("before", "after") if side in report}
    single = len(sides) == 1
    names = {side: "detections" if single else side for side in sides}
    parts = [
        f"<h1>Pose errors{'' if single else ', before and after'}</h1>",
        "".join(f"<p class=soft>{escape(names[s])}: {escape(report['files'][s])}</p>" for s in sides),
        f"<p class=soft>truth: {escape(report['annotations'])} ({escape(report['skeleton'])})</p>",
        _summary(report, sides, names),
        "<h2>How often</h2>",
        f"<p>{_KINDS}</p>",
        _kinds(sides, names),
        _divisions(sides, names),
        "<h2>How they come together</h2>",
        _together(sides, names),
        "<h2>What they cost</h2>",
        f"<p>{_COST}</p>",
        _costs(sides, names),
    ]
    if "change" in report:
        parts += ["<h2>What changed</h2>", _change(report["change"])]
    parts += ["<h2>What the scores are worth</h2>", _calibration(sides, names)]
    for heading, shown in pictures.items():
        parts += [f"<h2>{escape(heading)}</h2>", _legend() if shown else "<p>None.</p>"]
        parts += [_picture(caption, jpeg) for caption, jpeg in shown]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Pose errors</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str | int]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(caption: str, content: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def _summary(report, sides, names) -> str:
    def row(name, value):
        return [name, *(value(side) for side in sides.values())]

    rows = [row(name, lambda s, name=name: f"{s['figures'][name]:.4f}") for name in ("AP", "AP50", "AP75", "AR")]
    rows += [
        row("people matched", lambda s: f"{s['matched']} of {s['people']}"),
        row("people without a detection", lambda s: s["unmatched_people"]),
        row("detections without a person", lambda s: s["unmatched_rows"]),
        row("mean OKS of the matched", lambda s: f"{s['mean_oks']:.4f}"),
    ]
    text = _table(["", *names.values()], rows)
    if "change" in report:
        low, high = report["change"]["interval"]
        gain = report["change"]["AP"]
        text += (
            f"<p>AP changes by {gain:+.4f}, 95 % interval [{low:+.4f}, {high:+.4f}] (bootstrap over photographs).</p>"
        )
    return text


def _of(side, by):
    """{bin: {kind: share row}} of a division."""
    found = {}
    for row in side["shares"]:
        if row["by"] == by:
            found.setdefault(row["bin"], {})[row["kind"]] = row
    return found


def _kinds(sides, names) -> str:
    total = {side: _of(content, "total")["all"] for side, content in sides.items()}
    kinds = list(next(iter(total.values())))
    rows = []
    for kind in kinds:
        cells = []
        for of in total.values():
            one = of[kind]
            cells += [one["count"], f"{one['share']:.1%} [{one['low']:.1%}, {one['high']:.1%}]"]
        rows.append([kind, *cells])
    header = ["", *(f"{names[side]}, {what}" for side in sides for what in ("joints", "share"))]
    chart = bars(
        kinds,
        {names[side]: [of[kind]["share"] for kind in kinds] for side, of in total.items()},
        intervals={names[side]: [(of[kind]["low"], of[kind]["high"]) for kind in kinds] for side, of in total.items()},
        title="share of joints by kind",
        y_label="share of joints",
        percent=True,
    )
    return _figure("Share of labelled joints by kind", chart) + _table(header, rows)


def _divisions(sides, names) -> str:
    parts, many = [], 40
    for by in ("group", "joint", "labelled joints", "overlap", "size"):
        charts = []
        for side, content in sides.items():
            of = _of(content, by)
            if len(of) > many:
                charts.append(f"<p class=soft>{len(of)} {by}s: their shares are in errors.csv.</p>")
                continue
            kinds = list(next(iter(of.values())))
            series = {kind: [of[name][kind]["share"] for name in of] for kind in kinds}
            few = by not in ("group", "joint")
            labels = [f"{name} ({next(iter(of[name].values()))['total']} joints)" if few else name for name in of]
            chart = bars(labels, series, title=f"kinds by {by}", stacked=True, percent=True, colours=COLOURS)
            what = {"overlap": "people whose box overlaps (IoU 0.1 or more)", "size": "size of the person (COCO)"}
            charts.append(_figure(f"{names[side]}: kinds by {what.get(by, by)}", chart))
        parts.append(f'<div class="{"two" if len(charts) > 1 else "one"}">{"".join(charts)}</div>')
    if len(sides) > 1:
        of = {side: _of(content, "group") for side, content in sides.items()}
        charts = []
        for kind in next(iter(of["after"].values())):
            if not any(row[kind]["count"] for side in of.values() for row in side.values()):
                continue
            common = [group for group in of["before"] if group in of["after"]]
            series = {side: [of[side][group][kind]["share"] for group in common] for side in of}
            spans = {s: [(of[s][g][kind]["low"], of[s][g][kind]["high"]) for g in common] for s in of}
            chart = bars(common, series, intervals=spans, title=f"{kind} by group", percent=True)
            charts.append(_figure(f"{kind}, before and after, by joint group", chart))
        parts.append(f"<h3>Change of each kind</h3><div class=two>{''.join(charts)}</div>")
    return "".join(parts)


def _together(sides, names) -> str:
    kinds = list(next(iter(sides.values()))["together"])
    cells = {s: {k: of["together"][k] for k in kinds} for s, of in sides.items()}

    def cell(of):
        return f"{of['count']} of {of['total']} ({of['share']:.1%} [{of['low']:.1%}, {of['high']:.1%}])"

    return (
        "<p>Joints of a kind that lie in people with four or more joints of that kind.</p>"
    ) + _table(["", *names.values()], [[k, *(cell(cells[s][k]) for s in sides)] for k in kinds])  # fmt: skip


def _costs(sides, names) -> str:
    kinds = list(next(iter(sides.values()))["ap_gain"])
    series = {names[side]: [content["ap_gain"][kind] for kind in kinds] for side, content in sides.items()}
    chart = bars(kinds, series, title="AP gain of each correction", y_label="AP gained")
    rows = [
        [kind, *(f"{content['ap_gain'][kind]:+.4f} ({content['ap_if'][kind]:.4f})" for content in sides.values())]
        for kind in kinds
    ]
    return _figure("AP gained by correcting one kind", chart) + _table(
        ["corrected", *(f"{name}: gain (AP)" for name in names.values())], rows
    )


def _change(change) -> str:
    hist = change["oks_histogram"]
    text = (
        f"<p>Of {change['people']} people matched in both files OKS rose for {change['better']}, fell for {change['worse']} "
        f"and stayed for {change['same']}; its mean change is {change['mean_oks']:+.4f}.</p>"
    )
    chart = histogram(
        hist["counts"], hist["edges"], title="change of OKS a person", x_label="change of OKS (after - before)"
    )
    text += _figure("Change of OKS of each person (grey: the bin around 0)", chart)
    rows = [[of["bin"], str(of["joints"]), f"{of['before']:.4f}", f"{of['after']:.4f}"] for of in change["ks"]]
    text += "<h3>Mean KS of labelled joints</h3>" + _table(["", "joints", "before", "after"], rows)
    states, counts = change["transitions"]["states"], change["transitions"]["counts"]
    head = "<th>before \\ after</th>" + "".join(f"<th>{escape(s)}</th>" for s in states) + "<th>joints</th>"
    body = ""
    for state, row in zip(states, counts, strict=True):
        total = sum(row)
        cells = ""
        for n in row:
            share = n / total if total else 0
            cells += f'<td style="background: rgba(47, 127, 214, {0.55 * share:.2f})" title="{share:.1%}">{n}</td>'
        body += f"<tr><td>{escape(state)}</td>{cells}<td>{total}</td></tr>"
    return (
        text
        + f"<h3>From which kind to which (joints)</h3><table><tr>{head}</tr>{body}</table>"
        + "<p class=soft>Unmatched: no detection is matched with the person. Shade: share of the row.</p>"
    )


def _calibration(sides, names) -> str:
    lines, points, rows = {}, {}, []
    for side, content in sides.items():
        of = content["calibration"]
        lines[names[side]] = [(row["score"], row["oks"]) for row in of["bins"]]
        points[names[side]] = [tuple(at) for at in content["score_and_oks"]]
        error, rank = of["error"], of["rank"]
        rows.append(
            [names[side], "scores leave 0..1" if error is None else f"{error:.4f}", "-" if rank is None else f"{rank:.4f}"]
        )  # fmt: skip
    chart = curves(lines, points, title="score and OKS", x_label="score", y_label="OKS", diagonal=True)
    return (
        _figure("Mean OKS by score decile of matched detections (large marks); dashed: score = OKS", chart)
        + _table(["", "expected calibration error", "rank correlation"], rows)
        + "<p class=soft>Detections that match nobody are not counted here.</p>"
    )


def _legend() -> str:
    keys = "".join(
        f'<span class=key style="background: {COLOURS[kind.name.lower()]}"></span>'
        f"{'no true label' if kind is ErrorKind.ABSENT else kind.name.lower()}"
        for kind in ErrorKind
    )
    return f"<p class=soft>Joints of the pose:{keys}. The truth is green.</p>"


def _picture(caption: str, jpeg: bytes) -> str:
    data = base64.b64encode(jpeg).decode()
    return _figure(caption, f'<img src="data:image/jpeg;base64,{data}" alt="{escape(caption, quote=True)}">')
