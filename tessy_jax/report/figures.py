"""Charts as inline SVG whose colours are the page's variables, so that they are right in light and in dark.

matplotlib draws each colour as a stand-in that nothing else has, which becomes the name of a variable. What refers to
another element by its id is resolved, so that any number of charts fit on one page. As files of their own, charts are drawn
in the page's light colours.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args
from xml.etree import ElementTree

from markupsafe import Markup

from tessy_jax.errors import DataError
from tessy_jax.report.page import asset, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = Literal["blue", "orange", "green", "red", "purple", "teal", "pink", "brown", "muted", "rule", "ink"]
COLOURS: tuple[Colour, ...] = get_args(Colour)
"""Names of variables of the page: `--blue` and so on."""
HUES = COLOURS[:8]
"""Those that tell series apart; the others help to read these."""
Paint = Mapping[Colour, str]
"""What each colour is drawn as."""
DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (7, 2, 1.4, 2)))
"""Lines differ by these, too, for those who do not see the colours apart."""
SIZE = (4.0, 2.9)
"""Inches, at 72 units each; on the page a chart is as wide as its column."""

STAND_IN: Paint = {colour: f"#0a0b{i:02x}" for i, colour in enumerate(COLOURS, 1)}
VARIABLE = {f"#0a0b{i:02x}": f"var(--{colour})" for i, colour in enumerate(COLOURS, 1)}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text remains text, in the page's own font
    "svg.hashsalt": "tessy",
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "font.size": 9.5,
    "axes.edgecolor": STAND_IN["rule"],
    "axes.labelcolor": STAND_IN["muted"],
    "xtick.color": STAND_IN["rule"],
    "ytick.color": STAND_IN["rule"],
    "xtick.labelcolor": STAND_IN["muted"],
    "ytick.labelcolor": STAND_IN["muted"],
    "text.color": STAND_IN["muted"],
    "grid.color": STAND_IN["rule"],
    "grid.linewidth": 0.6,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Series:
    """A line through points, and its name. What is not finite leaves a gap. markers: the points are drawn, too."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: Colour | None = None
    markers: bool = False


@dataclass(frozen=True)
class Bars:
    """Bars of one colour, and what they are. x: their middles."""

    name: str
    x: Sequence[float]
    heights: Sequence[float]
    colour: Colour | None = None


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    mark: tuple[str, float] | None = None,
    reference: Series | None = None,
) -> Markup:
    """Lines over a common axis.

    label: what the chart shows, for those who cannot see it. y_range: of the axis; by default as the data are. mark: name
    and place of an upright line. reference: a thin line behind the others, such as the ideal one.

    Raises:
        DataError: a series has not as many x as y.
    """
    for one in [*series, *([reference] if reference else [])]:
        _check(one.name, one.x, one.y)

    def draw(axes: Axes) -> None:
        if reference:
            axes.plot(reference.x, reference.y, color=STAND_IN["muted"], lw=0.9, ls=":", label=visible(reference.name))
        if mark:
            axes.axvline(mark[1], color=STAND_IN["muted"], lw=0.9, label=visible(mark[0]))
        for i, one in enumerate(series):
            finite = [y if math.isfinite(y) else math.nan for y in one.y]
            colour = STAND_IN[one.colour or HUES[i % len(HUES)]]
            style, marker = DASHES[i % len(DASHES)], "o" if one.markers else ""
            axes.plot(one.x, finite, color=colour, ls=style, marker=marker, label=visible(one.name))
        if y_range:
            axes.set_ylim(*y_range)

    return _svg(draw, label, x_label, y_label)


def bar_chart(
    groups: Sequence[Bars],
    *,
    label: str,
    x_label: str,
    y_label: str,
    width: float = 0.85,
    ticks: Mapping[float, str] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """Bars over numbers; those of several groups at one place stand side by side. A group without bars is not named.

    label: what the chart shows, for those who cannot see it. width: of the bars at one place, in units of x. ticks: what
    stands below some x, instead of numbers. y_range: of the axis; by default as the data are.

    Raises:
        DataError: a group has not as many x as heights.
    """
    for group in groups:
        _check(group.name, group.x, group.heights)
    places = [x for group in groups for x in group.x]
    shared = len(set(places)) < len(places)

    def draw(axes: Axes) -> None:
        each = width / len(groups) if shared else width
        for i, group in enumerate(groups):
            if not len(group.x):  # the legend would give it a colour of its own
                continue
            shift = (i - (len(groups) - 1) / 2) * each if shared else 0.0
            colour = STAND_IN[group.colour or HUES[i % len(HUES)]]
            axes.bar([x + shift for x in group.x], group.heights, each, color=colour, label=visible(group.name))
        if ticks:
            axes.set_xticks(list(ticks), [visible(text) for text in ticks.values()])
        if y_range:
            axes.set_ylim(*y_range)

    return _svg(draw, label, x_label, y_label)


def _check(name: str, x: Sequence[float], y: Sequence[float]) -> None:
    if len(x) != len(y):
        raise DataError(f"{name!r} has {len(x)} x and {len(y)} y; give as many of the one as of the other")


@cache
def light() -> Paint:
    """The page's colours on white paper."""
    first = asset("page.css").partition("}")[0]
    return {colour: re.findall(rf"--{colour}: (#[0-9a-f]{{6}})", first)[0] for colour in COLOURS}


@contextmanager
def plotting(paint: Paint = STAND_IN) -> Iterator[None]:
    """In here figures are made and saved in our style, whatever the user's own settings are."""
    import matplotlib as mpl

    painted = {STAND_IN[colour]: value for colour, value in paint.items()}
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # which the fonts of the browser may well have
        mpl.rcdefaults()
        mpl.rcParams.update({name: painted.get(value, value) for name, value in SETTINGS.items()})
        yield


def plotted(
    draw: Callable[[Axes], None],
    x_label: str,
    y_label: str,
    *,
    size: tuple[float, float] = SIZE,
    grid: Literal["x", "y", "both"] | None = "y",
    columns: int = 3,
) -> Figure:
    """A figure of one chart, within `plotting`. size: in inches. grid: across which axis. columns: of the legend."""
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=visible(x_label), ylabel=visible(y_label), axisbelow=True)
    if grid:
        axes.grid(axis=grid)
    axes.spines[:].set_zorder(0.5)  # below the data, which may lie on the axis
    axes.tick_params(length=0)
    draw(axes)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, handlelength=1.8, columnspacing=1)
    return figure


def svg_of(figure: Figure, *, transparent: bool = True) -> str:
    """matplotlib's SVG of a figure; the same figure gives the same text."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=transparent, metadata=nothing)
    return buffer.getvalue()


def _svg(draw: Callable[[Axes], None], label: str, x_label: str, y_label: str) -> Markup:
    with plotting():
        return inline(svg_of(plotted(draw, x_label, y_label)), label)


def inline(svg: str, label: str) -> Markup:
    """matplotlib's SVG, drawn in stand-ins, as part of a page: without name spaces, ids and fonts of its own. label: what it
    shows, for those who cannot see it."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    shapes = {f"#{element.get('id')}": element for element in root.iter("path") if element.get("id")}
    for parent in list(root.iter()):
        parent[:] = [_placed(shapes, child) for child in parent if child.tag not in ("defs", "metadata")]
    for element in root.iter():
        element.tail = None
        element.text = element.text if element.tag == "text" else None
        element.attrib = {
            name: _ours(name, value) for name, value in element.attrib.items() if name not in ("id", "clip-path")
        }
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": visible(label)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _placed(shapes: Mapping[str, ElementTree.Element], element: ElementTree.Element) -> ElementTree.Element:
    """An element; in place of a reference to a marker's shape, the shape."""
    if element.tag != "use":
        return element
    place = f"translate({element.attrib['x']} {element.attrib['y']})"
    shape = {"d": shapes[element.attrib["href"]].attrib["d"], "transform": place, "style": element.attrib["style"]}
    return ElementTree.Element("path", shape)


def _ours(name: str, value: str) -> str:
    """An attribute with the page's colours and in the page's font."""
    if name == "d":
        return " ".join(value.split())
    if name != "style":
        return value
    value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)
    value = re.sub(r"font-family: [^;]*; ?", "", value)
    return re.sub(r"#[0-9a-f]{6}", lambda match: VARIABLE.get(match[0], match[0]), value)
