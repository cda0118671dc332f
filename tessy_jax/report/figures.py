"""Charts as inline SVG that use the page's CSS variables as colours, for light and dark mode.

matplotlib draws each colour as a unique placeholder, which the CSS variable then replaces. References by id are resolved, so
that one page can hold any number of charts. Charts saved as files use the page's light colours.
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
"""Names of CSS variables of the page: `--blue` and so on."""
HUES = COLOURS[:8]
"""Colours of series; the others are for axes and text."""
Paint = Mapping[Colour, str]
"""Maps each colour to its hex code."""
DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (7, 2, 1.4, 2)))
"""Dash patterns, which distinguish lines for colour-blind readers."""
SIZE = (4.0, 2.9)
"""Width and height in inches, at 72 units each; on the page a chart fills its column."""

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
    """A named line through points. Non-finite values leave a gap. markers: whether to draw the points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: Colour | None = None
    markers: bool = False


@dataclass(frozen=True)
class Bars:
    """Named bars of one colour. x: their centres."""

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
    """Draws lines over a common axis.

    label: alternative text. y_range: of the axis; by default that of the data. mark: name and position of a vertical line.
    reference: a thin line behind the others, such as the ideal line.

    Raises:
        DataError: x and y of a series differ in length.
    """
    for line in [*series, *([reference] if reference else [])]:
        _check(line.name, line.x, line.y)

    def draw(axes: Axes) -> None:
        if reference:
            axes.plot(reference.x, reference.y, color=STAND_IN["muted"], lw=0.9, ls=":", label=visible(reference.name))
        if mark:
            axes.axvline(mark[1], color=STAND_IN["muted"], lw=0.9, label=visible(mark[0]))
        for i, line in enumerate(series):
            finite = [y if math.isfinite(y) else math.nan for y in line.y]
            colour = STAND_IN[line.colour or HUES[i % len(HUES)]]
            style, marker = DASHES[i % len(DASHES)], "o" if line.markers else ""
            axes.plot(line.x, finite, color=colour, ls=style, marker=marker, label=visible(line.name))
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
    """Draws bars. Bars of several groups at the same x are drawn side by side. Empty groups are not in the legend.

    label: alternative text. width: of the bars at one x, in units of x. ticks: labels by x, instead of numbers. y_range: of
    the axis; by default that of the data.

    Raises:
        DataError: x and heights of a group differ in length.
    """
    for group in groups:
        _check(group.name, group.x, group.heights)
    places = [x for group in groups for x in group.x]
    shared = len(set(places)) < len(places)

    def draw(axes: Axes) -> None:
        each = width / len(groups) if shared else width
        for i, group in enumerate(groups):
            if not len(group.x):  # an empty group would take a legend entry
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
        raise DataError(f"{name!r} has {len(x)} x and {len(y)} y; give sequences of equal length")


@cache
def light() -> Paint:
    """Returns the page's light colours."""
    first = asset("page.css").partition("}")[0]
    return {colour: re.findall(rf"--{colour}: (#[0-9a-f]{{6}})", first)[0] for colour in COLOURS}


@contextmanager
def plotting(paint: Paint = STAND_IN) -> Iterator[None]:
    """Context in which figures are created and saved in the package's style, independent of the user's settings."""
    import matplotlib as mpl

    painted = {STAND_IN[colour]: value for colour, value in paint.items()}
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser's fonts may have the glyph
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
    """Returns a figure of one chart; call it within `plotting`. size: in inches. grid: its axis. columns: of the legend."""
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
    """Returns the SVG of a figure; equal figures give equal text."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=transparent, metadata=nothing)
    return buffer.getvalue()


def _svg(draw: Callable[[Axes], None], label: str, x_label: str, y_label: str) -> Markup:
    with plotting():
        return inline(svg_of(plotted(draw, x_label, y_label)), label)


def inline(svg: str, label: str) -> Markup:
    """Converts matplotlib's SVG, drawn in placeholder colours, to markup for a page: without namespaces, ids and fonts.
    label: alternative text."""
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
    """Returns the element, or the referenced shape if it is a `use` element."""
    if element.tag != "use":
        return element
    place = f"translate({element.attrib['x']} {element.attrib['y']})"
    shape = {"d": shapes[element.attrib["href"]].attrib["d"], "transform": place, "style": element.attrib["style"]}
    return ElementTree.Element("path", shape)


def _ours(name: str, value: str) -> str:
    """Returns an attribute value with the page's colours and font."""
    if name == "d":
        return " ".join(value.split())
    if name != "style":
        return value
    value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)
    value = re.sub(r"font-family: [^;]*; ?", "", value)
    return re.sub(r"#[0-9a-f]{6}", lambda match: VARIABLE.get(match[0], match[0]), value)
