"""The page from a small report of made-up numbers: it holds them, parses, loads nothing, and escapes names."""

import re
from html.parser import HTMLParser

import pytest

from posefix_jax import report as report_package
from posefix_jax.report.error_page import error_page
from posefix_jax.types import PosefixError

KINDS = ("good", "jitter", "inversion", "swap", "miss", "absent")


def side(good: float) -> dict:
    rest = (1 - good) / 5

    def rows(by, bin):
        return [
            {
                "by": by,
                "bin": bin,
                "kind": kind,
                "count": 10 + i,
                "total": 75,
                "share": share,
                "low": share / 2,
                "high": 0.9,
            }
            for i, (kind, share) in enumerate(zip(KINDS, (good, *[rest] * 5), strict=True))
        ]

    gains = {name: 0.01 * i for i, name in enumerate((*KINDS[1:], "all errors", "every joint", "true scores"))}
    return {
        "figures": {"AP": good, "AP50": 0.91, "AP75": 0.62, "AR": 0.73},
        "people": 40,
        "matched": 31,
        "unmatched_people": 9,
        "unmatched_rows": 4,
        "mean_oks": 0.7654,
        "shares": [
            row
            for by, bin in (
                ("total", "all"), ("group", "wrist"), ("group", "<i>ankle</i>"), ("joint", "left_wrist"),
                ("labelled joints", "> 10"), ("overlap", "0"), ("size", "large"),
            )
            for row in rows(by, bin)
        ],
        "together": {kind: {"count": 3, "total": 8, "share": 0.375, "low": 0.1, "high": 0.7} for kind in KINDS[1:]},
        "ap_gain": gains,
        "ap_if": {name: good + gain for name, gain in gains.items()},
        "coco_analyze": {"AP": good, **dict.fromkeys(("jitter", "inversion", "swap", "miss"), 0.0123)},
        "calibration": {"bins": [{"score": 0.4, "oks": 0.5, "count": 3}], "error": 0.1234, "rank": None},
        "score_and_oks": [[0.4, 0.5], [0.3, 0.6]],
    }  # fmt: skip


@pytest.fixture
def made() -> dict:
    return {
        "files": {"before": "d & <d>.json", "after": "r.json"},
        "annotations": "gt.json",
        "skeleton": "coco",
        "before": side(0.5),
        "after": side(0.6),
        "change": {
            "AP": 0.1,
            "interval": (0.05, 0.15),
            "people": 30,
            "better": 20,
            "worse": 8,
            "same": 2,
            "mean_oks": 0.0321,
            "ks": [{"by": "total", "bin": "all", "joints": 51, "before": 0.7111, "after": 0.8222}],
            "oks_histogram": {"counts": [1, 5, 7], "edges": [-0.15, -0.05, 0.05, 0.15]},
            "transitions": {"states": ["good", "unmatched"], "counts": [[6, 2], [0, 0]]},
        },
    }


class Page(HTMLParser):
    """Tables as lists of cell texts; checks that tags close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tables, self.texts, self.sources = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name == "src"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def test_before_and_after_holds_the_numbers(made):
    text = error_page(made, {"Where OKS rose <most>": [("photograph 'a\"b'", b"jpeg")], "Where OKS fell most": []})
    page = Page(text)
    summary, kinds, together, costs, ks, changed, scores = page.tables
    assert summary[0] == ["", "before", "after"] and summary[1] == ["AP", "0.5000", "0.6000"]
    assert summary[5] == ["people matched", "31 of 40", "31 of 40"]
    assert kinds[1] == ["good", "10", "50.0% [25.0%, 90.0%]", "10", "60.0% [30.0%, 90.0%]"]
    assert together[1] == ["jitter", *["3 of 8 (37.5% [10.0%, 70.0%])"] * 2]
    assert costs[2] == ["inversion", "+0.0100 (0.5100)", "+0.0100 (0.6100)", "+0.0123", "+0.0123"]
    assert ks == [["", "joints", "before", "after"], ["all", "51", "0.7111", "0.8222"]]
    assert changed == [
        ["before \\ after", "good", "unmatched", "joints"],
        ["good", "6", "2", "8"],
        ["unmatched", "0", "0", "0"],
    ]
    assert scores[1] == ["before", "0.1234", "-"]
    said = " ".join("".join(page.texts).split())
    assert "AP changes by +0.1000, 95% interval [+0.0500, +0.1500]" in said
    assert "Of 30 people matched in both files, OKS rose for 20, fell for 8 and stayed for 2" in said
    assert 'title="75.0%">6<' in text and "rgba(47, 127, 214, 0.41)" in text


def test_names_are_escaped_and_nothing_is_loaded(made):
    text = error_page(made, {"Where OKS rose <most>": [("photograph 'a\"b'", b"jpeg")], "Where OKS fell most": []})
    page = Page(text)
    assert "d &amp; &lt;d&gt;.json" in text and "<d>" not in text and "<i>" not in text and "<most>" not in text
    assert "photograph 'a\"b'" in page.texts and page.sources == ["data:image/jpeg;base64,anBlZw=="]
    assert "None." in page.texts
    assert not re.search(r"https?:(?!//www.w3.org/2000/svg\")|url\((?!#)|<script|<link", text)
    # Kinds and their costs, five divisions of both files, each kind's change, the histogram, the scores.
    assert text.count("<svg") == 2 + 5 * 2 + 6 + 1 + 1


def test_one_file(made):
    alone = {key: made[key] for key in ("annotations", "skeleton", "after")} | {"files": {"after": "r.json"}}
    page = Page(error_page(alone, {}))
    assert page.tables[0][0] == ["", "detections"] and len(page.tables) == 5
    assert "What changed" not in page.texts and "Pose errors" in page.texts


def test_too_many_bins_are_named_not_drawn(made):
    row = next(row for row in made["after"]["shares"] if row["by"] == "joint")
    made["after"]["shares"] += [row | {"bin": f"joint {i}"} for i in range(60)]
    text = error_page(made, {})
    assert "61 joints: their shares are in errors.csv." in text and text.count("<svg") == 19


def test_a_missing_package_is_named_before_work_begins(monkeypatch):
    monkeypatch.setattr(report_package, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(PosefixError, match=r"posefix study .* matplotlib, .*pip install 'posefix-jax\[report\]'"):
        report_package.check_report_packages("posefix study")
