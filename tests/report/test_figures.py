"""Tests of charts: their content, the page's colours, and determinism."""

import re
import subprocess
import sys

import matplotlib as mpl
import pytest

from tessy_jax.errors import DataError
from tessy_jax.report.figures import COLOURS, Bars, Series, bar_chart, line_chart
from tessy_jax.report.page import asset

from .parsed import parse

NAMES = {"label": "what it shows", "x_label": "across", "y_label": "up"}


def texts(svg):
    return [node.text for node in parse(svg).all("text")]


def both():
    lines = [Series("one", [0, 1, 2], [0.1, 0.5, 0.4], markers=True), Series("two", [0, 2], [0.3, 0.2])]
    ideal = Series("ideal", [0, 2], [0, 1])
    yield line_chart(lines, **NAMES, y_range=(0, 1), mark=("in use", 1), reference=ideal)
    yield bar_chart([Bars("one", [0, 1], [3, 4]), Bars("two", [1, 2], [2, 1])], **NAMES)


def test_a_chart_names_its_axes_and_series_and_has_alternative_text():
    for svg in both():
        assert {"across", "up", "one", "two"} <= set(texts(svg))
        assert parse(svg).one("svg").attributes["aria-label"] == "what it shows"
    assert {"in use", "ideal"} <= set(texts(next(both())))


def test_all_colours_are_css_variables():
    for svg in both():
        assert not re.search(r"#[0-9a-f]{3}", svg)
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(COLOURS)
    assert all(f"--{colour}:" in asset("page.css") for colour in COLOURS)


def test_a_chart_has_no_ids_and_no_fonts():
    for svg in both():
        assert not re.search(r"\bid=|href|url\(|xmlns|font-family|font:|<use|<defs|<metadata", svg)


def test_equal_charts_are_equal_bytes_under_any_user_settings():
    first = list(both())
    before = dict(mpl.rcParams)
    with mpl.rc_context({"svg.fonttype": "path", "lines.linewidth": 9, "axes.facecolor": "red"}):
        assert list(both()) == first
    assert dict(mpl.rcParams) == before


def test_a_line_goes_through_its_points():
    svg = line_chart([Series("one", [0, 1, 2], [0, 1, 0], "green")], **NAMES)
    (path,) = [
        node.attributes["d"]
        for node in parse(svg).all("path")
        if "var(--green)" in node.attributes["style"] and len(re.findall("[ML]", node.attributes["d"])) == 3
        if float(node.attributes["d"].split()[2]) > 40  # below the legend
    ]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split()) for point in re.split("[ML]", path)[1:])
    assert y0 == y2 > y1
    assert x1 - x0 == pytest.approx(x2 - x1)


def test_non_finite_values_leave_a_gap():
    svg = line_chart([Series("one", [0, 1, 2, 3, 4], [0, 1, float("nan"), 1, float("inf")], "green", markers=True)], **NAMES)
    assert "nan" not in svg
    assert "inf" not in svg


def test_bars_at_the_same_x_are_side_by_side():
    def edges(groups):
        svg = bar_chart(groups, **NAMES)
        shapes = [node.attributes for node in parse(svg).all("path") if "fill: var(--" in node.attributes["style"]]
        boxes = [[float(x) for x in re.findall(r"[ML] ([\d.]+)", shape["d"])] for shape in shapes[:2]]  # then the legend
        return [(min(box), max(box)) for box in boxes]

    (_, end), (start, _) = edges([Bars("one", [0], [3]), Bars("two", [0], [2])])
    assert end == pytest.approx(start)
    (_, end), (start, _) = edges([Bars("one", [0], [3]), Bars("two", [1], [2])])
    assert end < start


def test_bars_accept_tick_labels_and_an_axis_range():
    names = {0: "one", 1: "<b>", 2: "many"}
    svg = bar_chart([Bars("spans", [0, 1, 2], [3, 4, 5])], **NAMES, ticks=names, y_range=(0, 20))
    labels = texts(svg)
    assert [text for text in labels if text in names.values()] == list(names.values())
    assert "20" in labels or "20.0" in labels


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '$\\frac{$ & "', "nul \0 \u202e \ud800 ]]>"])
def test_hostile_names_are_text(name):
    svg = line_chart([Series(name, [0, 1], [0, 1])], label=name, x_label=name, y_label="y")
    assert "<script" not in svg
    assert not re.search("[\0\u202e\ud800]", svg)
    assert len([text for text in texts(svg) if text.startswith(name[:4])]) == 2


def test_a_chart_without_data_is_valid():
    assert texts(line_chart([], **NAMES))
    assert texts(bar_chart([Bars("none", [], [])], **NAMES))


def test_series_of_unequal_lengths_are_refused():
    with pytest.raises(DataError, match="'one' has 2 x and 1 y; give sequences of equal length"):
        line_chart([Series("one", [0, 1], [0])], **NAMES)
    with pytest.raises(DataError, match="'one' has 0 x and 1 y"):
        bar_chart([Bars("one", [], [0])], **NAMES)


def test_matplotlib_is_imported_lazily():
    code = "import sys, tessy_jax.report.predictor_page; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
