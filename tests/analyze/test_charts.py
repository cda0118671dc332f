"""Charts distinguish many variants, are the same bytes each time, and show hostile names as text."""

import re

import pytest

from tessy_jax.analyze.charts import LONGEST, Curve, Dots, Look, boxes, curves, dots, looks, matrix, scatter, shown, stacks
from tessy_jax.report.figures import COLOURS, light
from tests.report.parsed import parse

NAMES = [f"variant_{i}" for i in range(8)]
HOSTILE = ["<script>alert(1)</script>", "$\\frac{ & \"'", "nul \0 \u202e \ud800 ]]>"]


def every(names=NAMES):
    many = len(names)
    points = {name: [[i, j] for j in range(3)] for i, name in enumerate(names)}
    told = looks(names)
    courses = [Curve(name, [0, 1, 2], [i, None, i + 1], [0.5, None, None]) for i, name in enumerate(names)]
    yield scatter("map", "l", points, {name: [i, 1] for i, name in enumerate(names)}, ("x", "y"))
    yield matrix("similarity", "l", names, [[None if i == j else i + j for i in range(many)] for j in range(many)])
    yield boxes("lengths", "l", "x", {name: ([1, 2, 3, 4, 5], 3.5) for name in names})
    yield stacks(
        "tokens", "l", {"student": "orange", "teacher": "blue"}, {name: {"student": 1, "teacher": 3} for name in names}
    )
    yield dots("words", "l", "x", ["so", "we"], [Dots(name, [1.0, None], told[name]) for name in names])
    yield dots("quality", "l", "x", names, [Dots("a", [1.0] * many, Look("blue", "o"), [(0.5, 2)] * many)], legend=False)
    yield curves("loss", "l", "x", "y", courses, told, markers=True, ticks={0: "0", 2: "end"})


def test_each_of_many_variants_has_a_look_of_its_own_without_its_colour_too():
    for count in (8, 20):
        all_looks = list(looks([str(i) for i in range(count)]).values())
        assert len(set(all_looks)) == count
    assert len({(look.marker, str(look.dash)) for look in all_looks[:8]}) == 8
    assert list(looks(NAMES).values())[:3] == list(looks(NAMES[:3]).values())


@pytest.fixture(scope="module")
def drawn():
    """(chart, part of a page, files)"""
    return [(chart, chart.inline(), chart.files()) for chart in every()]


def test_a_chart_is_the_same_bytes_each_time(drawn):
    for (_, svg, files), again in zip(drawn, every(), strict=True):
        assert again.inline() == svg
        assert again.files() == files


def test_on_a_page_all_colours_are_its_variables_and_in_files_they_are_its_light_ones(drawn):
    for chart, svg, files in drawn:
        assert not re.search(r"#[0-9a-f]{3}", svg)
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(COLOURS)
        assert sorted(files) == [f"{chart.name}.png", f"{chart.name}.svg"]
        drawn = set(re.findall(r"#[0-9a-f]{6}", files[f"{chart.name}.svg"].decode()))
        assert drawn <= {*light().values(), "#ffffff"}
        assert files[f"{chart.name}.png"].startswith(b"\x89PNG")


def test_every_variant_is_named(drawn):
    for chart, svg, _ in drawn:
        if chart.name != "quality":
            labels = [node.text for node in parse(svg).all("text")]
            assert set(NAMES) <= set(labels), chart.name


def test_hostile_names_are_text():
    for chart in every(HOSTILE):
        part, file = chart.inline(), chart.files()[f"{chart.name}.svg"].decode()
        for svg in (part, file):
            assert "<script" not in svg
            assert not re.search("[\0\u202e\ud800]", svg)
        labels = {node.text for node in parse(part).all("text")}
        assert chart.name == "quality" or {shown(name) for name in HOSTILE} <= labels


def test_a_long_name_keeps_its_beginning_and_its_end():
    assert shown("a" * LONGEST) == "a" * LONGEST
    long = shown("first_" + "x" * 40 + "_last")
    assert len(long) == LONGEST
    assert long.startswith("first_")
    assert long.endswith("_last")


def test_a_band_reaches_as_far_as_the_deviation():
    chart = curves("loss", "l", "x", "y", [Curve("a", [0, 1], [2, 4], [1, 1])], looks(["a"]))
    shapes = [node.attributes for node in parse(chart.inline()).all("path")]

    def heights(kind):
        paths = [one["d"] for one in shapes if kind in one["style"] and "var(--blue)" in one["style"]]
        return [float(number) for number in re.findall(r"[-\d.]+", paths[0])][1::2]  # the legend comes last

    line, band = heights("stroke-linecap: square"), heights("fill-opacity")
    assert max(band) - min(band) == pytest.approx(2 * (line[0] - line[1]), abs=0.01), "from 1 to 5, the line from 2 to 4"
