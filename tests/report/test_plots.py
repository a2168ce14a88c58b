"""Plots: what is drawn has the size of the data, and says it as a tooltip."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from posefix_jax.report.plots import PALETTE, bars, curves, histogram

NS = "{http://www.w3.org/2000/svg}"


def tipped(svg: str) -> dict[str, ElementTree.Element]:
    """Elements with a tooltip, by its text, the plot's own title left out."""
    root = ElementTree.fromstring(svg)
    found = {}
    for element in root.iter():
        title = element.find(f"{NS}title")
        if title is not None and element is not root:
            found[title.text] = element
    return found


def box(element: ElementTree.Element) -> np.ndarray:
    """[2, 2] lowest and highest x, y of a bar."""
    numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", element.find(f"{NS}path").get("d"))]
    points = np.reshape(numbers, (-1, 2))
    return np.array([points.min(axis=0), points.max(axis=0)])


def size(element: ElementTree.Element) -> np.ndarray:
    return np.ptp(box(element), axis=0)


def test_bars_side_by_side():
    series = {"before": [0.5, 0.25], "after": [0.75, 0.0]}
    spans = {"before": [(0.4, 0.6), (0.2, 0.3)], "after": [(0.7, 0.8), (0.0, 0.1)]}
    svg = bars(["good", "<miss>"], series, title="kinds & shares", intervals=spans, percent=True)
    found = tipped(svg)
    assert list(found) == [
        "good, before: 50% [40%, 60%]",
        "<miss>, before: 25% [20%, 30%]",
        "good, after: 75% [70%, 80%]",
        "<miss>, after: 0% [0%, 10%]",
    ]
    heights = [size(bar)[1] for bar in found.values()]
    np.testing.assert_allclose(np.divide(heights, heights[0]), [1, 0.5, 1.5, 0], atol=1e-3)
    left = [box(bar)[0, 0] for bar in found.values()]
    assert left[0] < left[2] < left[1] < left[3]
    fills = [bar.find(f"{NS}path").get("style") for bar in found.values()]
    assert all(color in fill for color, fill in zip(np.repeat(PALETTE[:2], 2), fills, strict=True))
    root = ElementTree.fromstring(svg)
    texts = {text.text for text in root.iter(f"{NS}text")}
    assert {"good", "<miss>", "before", "after"} <= texts and root.find(f"{NS}title").text == "kinds & shares"
    assert "currentColor" in svg and bars(["good", "<miss>"], series, title="kinds & shares", percent=True) != svg


def test_stacked_bars_stand_on_each_other():
    colors = {"good": "#123456", "jitter": "#654321"}
    found = tipped(
        bars(
            ["a", "b"], {"good": [0.6, 0.2], "jitter": [0.4, 0.3]}, title="t", stacked=True, percent=True, colors=colors
        )
    )
    low, high = found["b, good: 20%"], found["b, jitter: 30%"]
    assert box(low)[0, 1] == pytest.approx(box(high)[1, 1], abs=1e-3)  # SVG counts y downwards
    assert size(high)[1] / size(low)[1] == pytest.approx(1.5, abs=1e-3)
    assert "#123456" in low.find(f"{NS}path").get("style") and "#654321" in high.find(f"{NS}path").get("style")


def test_histogram():
    found = tipped(histogram([2, 8, 4], [-1.5, -0.5, 0.5, 1.5], title="t", x_label="change"))
    assert list(found) == ["-1.5 to -0.5: 2", "-0.5 to 0.5: 8", "0.5 to 1.5: 4"]
    heights = [size(bar)[1] for bar in found.values()]
    np.testing.assert_allclose(np.divide(heights, heights[0]), [1, 4, 2], rtol=1e-3)
    fills = [bar.find(f"{NS}path").get("style") for bar in found.values()]
    assert [PALETTE[5] in fills[0], PALETTE[0] in fills[1], PALETTE[3] in fills[2]] == [True] * 3


def test_curves():
    lines = {"before": [(0.2, 0.1), (0.6, 0.5)], "after": [(0.4, 0.3)]}
    points = {"before": [(0.1, 0.2)] * 7, "after": []}
    svg = curves(lines, points, title="t", x_label="score", y_label="OKS", diagonal=True)
    found = tipped(svg)
    assert list(found) == ["before: 0.200, 0.100", "before: 0.600, 0.500", "after: 0.400, 0.300"]
    marks = [element.find(f".//{NS}use") for element in found.values()]
    x, y = (np.array([float(mark.get(axis)) for mark in marks]) for axis in "xy")
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(0.5, abs=1e-3)
    assert (y[2] - y[0]) / (y[1] - y[0]) == pytest.approx(0.5, abs=1e-3)
    assert svg.count("fill-opacity: 0.3") >= 7 and "stroke-dasharray" in svg
    assert "stroke-dasharray" not in curves(lines, title="t", x_label="score", y_label="OKS")
    assert curves({"none": []}, title="t", x_label="x", y_label="y")


def test_ids_are_those_that_are_referred_to():
    """Several plots lie in one page."""
    svg = bars(["a"], {"x": [1.0]}, title="t")
    ids = re.findall(r' id="([^"]*)"', svg)
    assert ids and all(f"#{name}" in svg for name in ids)
    assert not re.search(r"https?://(?!www.w3.org/2000/svg\")", svg)
