"""Tests of the page layout: escaping, no requests, and only the page's own script."""

import base64
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from tessy_jax.errors import DataError
from tessy_jax.report.figures import Series, line_chart
from tessy_jax.report.page import (
    Figure,
    Page,
    Section,
    SideBySide,
    Table,
    asset,
    count,
    decimal,
    fragment,
    percent,
    render,
    visible,
)

from .parsed import parse, tables

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</title></style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "&lt;b&gt; &amp; &#x3c;script&#x3e; &",
    "<!-- --> <![CDATA[ ]]> {{ 7 * 7 }} {% raw %}",
    "nul \0, escape \x1b[31m, return \r, delete \x7f, c1 \x9b",
    "bidi \u202eevil\u202c \u2066x\u2069 \u200f \u061c",
    "half \ud800 and \udfff, no character \uffff, mark \ufeff, separator \u2028",
    "👩‍👩‍👧 e\u0301 שלום \U000e0041 𝔘",
]


def page_of(text):
    return Page(
        title=text,
        subtitle=text,
        sections=[
            Section(
                text, text, [Table(text, [text, text], [[text, text]], text), Figure(text, Markup("<svg></svg>"), text)]
            ),
            Section(text, pieces=[SideBySide([Table(text, [text], [[text]])])]),
        ],
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_is_escaped_everywhere(text):
    html = render(page_of(text))
    hostile, plain = parse(html), parse(render(page_of("plain")))
    assert [node.tag for node in hostile.all()] == [node.tag for node in plain.all()]
    names = [sorted(node.attributes) for node in plain.all()]
    assert [sorted(node.attributes) for node in hostile.all()] == names
    assert hostile.one("title").text == hostile.one("h1").text == visible(text)
    assert {node.text for node in hostile.all() if node.tag in ("h2", "th", "td", "h3", "figcaption")} == {visible(text)}


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_invisible_characters_are_made_visible(text):
    html = render(page_of(text))
    assert visible(html) == html
    assert parse(html).one("h1").text == visible(text)
    html.encode("utf-8")


def test_harmless_text_is_unchanged():
    text = "Tabs\tand\nlines, 数学, ≤ 10⁵, 👩‍💻, שלום"
    assert visible(text) == text
    assert visible("a\0\u202eb\ud800") == "a␀⟨U+202E⟩b⟨U+D800⟩"


def test_a_page_makes_no_requests():
    chart = line_chart([Series("a", [0, 1], [0, 1], markers=True)], label="a", x_label="x", y_label="y")
    html = render(Page("t", "s", [Section("h", "l", [Figure("f", chart)]), Section("i")], script="let x = 1;", data=[1]))
    assert not re.search(r"//|https?:|url\(|@import|\bsrc=|xlink", html)
    assert all(
        re.fullmatch(r"#section-\d+", node.attributes["href"]) for node in parse(html).all() if "href" in node.attributes
    )
    assert "default-src 'none'" in html


def test_only_the_script_of_the_page_is_allowed():
    script = "document.title = '<&>';"
    page = parse(render(Page("t", "s", [], script=script)))
    digest = base64.b64encode(hashlib.sha256(page.one("script").text.encode()).digest()).decode()
    policies = [node.attributes.get("content", "") for node in page.all("meta")]
    assert page.one("script").text == script
    assert any(policy.endswith(f"script-src 'sha256-{digest}'") for policy in policies)
    without = parse(render(Page("t", "s", [])))
    assert not list(without.all("script"))
    assert any(node.attributes.get("content", "").endswith("script-src 'none'") for node in without.all("meta"))


def test_data_cannot_close_their_element():
    html = render(Page("t", "s", [], data=["</script><script>alert(1)</script>", 1.5, None]))
    assert len(list(parse(html).all("script"))) == 1
    with pytest.raises(ValueError, match="JSON compliant"):
        render(Page("t", "s", [], data=float("nan")))


def test_several_sections_are_linked():
    several = parse(render(Page("t", "s", [Section("one"), Section("two")])))
    ids = [node.attributes["id"] for node in several.all("section")]
    assert [node.attributes["href"] for node in several.one("nav").all("a")] == [f"#{name}" for name in ids]
    assert not list(parse(render(Page("t", "", [Section("one")]))).all("nav"))


def test_a_table_is_shown_cell_by_cell():
    table = Table("numbers", ["", "a", "b"], [["x", "1", "2"], ["y", "3", "4"]])
    page = parse(render(Page("t", "s", [Section("h", pieces=[table])])))
    assert tables(page) == {"numbers": [["", "a", "b"], ["x", "1", "2"], ["y", "3", "4"]]}


def test_a_row_with_the_wrong_number_of_cells_is_refused():
    with pytest.raises(
        DataError, match="table 'numbers': a row has 1 cells, but there are 2 columns; give one cell per column"
    ):
        render(Page("t", "s", [Section("h", pieces=[SideBySide([Table("numbers", ["", "a"], [["x"]])])])]))


def test_a_fragment_escapes_its_values():
    parsed = parse(fragment("dial.html", speaker="<b>", at=0, last=1, threshold="<i>", cells=[("<u>", "<s>", 1, "")]))
    assert not [node for node in parsed.all() if node.tag in "bius"]
    assert [node.text for node in parsed.all("output")] == ["<i>", "<s>"]


def test_number_formats():
    assert (decimal(0.98765), percent(0.98765), count(1234567)) == ("0.988", "98.8 %", "1,234,567")


def test_the_style_sheet_defines_light_and_dark_colours():
    css = asset("page.css")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    own = set(re.findall(r"--[a-z]+(?=:)", light))
    assert set(re.findall(r"--[a-z]+(?=:)", dark)) == own - {"--sans", "--mono"}
    assert set(re.findall(r"var\((--[a-z]+)\)", css)) <= own
