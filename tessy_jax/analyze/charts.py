"""Charts of several variants. Each variant has a colour, a marker and a dash pattern, so that colour-blind readers can
distinguish them. A chart is drawn twice: for the page with its CSS variables, and as files in light colours on white."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from markupsafe import Markup

from tessy_jax.report.figures import HUES, STAND_IN, Colour, Paint, inline, light, plotted, plotting, svg_of
from tessy_jax.report.page import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.4)),
    (0, (7, 2, 1.4, 2)),
    (0, (3, 1.2)),
    (0, (9, 2.5)),
    (0, (5, 1.5, 1, 1.5, 1, 1.5)),
    (0, (1, 3)),
)
WIDTH = 4.2
"""Width of every chart in inches; on the page a chart fills its column."""
ROW = 0.3
"""Height of a labelled row in inches."""
SPREAD = 0.6
"""Share of the row height over which dots of several groups are spread."""
LONGEST = 22
"""Characters of a name that are shown; the middle of longer names is replaced by an ellipsis."""
DRAWN = 100
"""Maximum number of points drawn per variant."""
DPI = 200


class Look(NamedTuple):
    """The appearance of a series. filled: whether its markers are filled."""

    colour: Colour
    marker: str
    dash: Any = "-"
    filled: bool = True


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn. name: of its files. label: alternative text. size: in inches. columns: of the legend."""

    name: str
    label: str
    draw: Callable[[Axes, Paint], None]
    x_label: str = ""
    y_label: str = ""
    size: tuple[float, float] = (WIDTH, 3.1)
    grid: Literal["x", "y", "both"] | None = "y"
    columns: int = 3

    def inline(self) -> Markup:
        """Returns the chart as markup for a page."""
        with plotting():
            return inline(svg_of(self._figure(STAND_IN)), self.label)

    def files(self) -> dict[str, bytes]:
        """Returns the SVG and PNG files by name; equal charts give equal bytes."""
        buffer = io.BytesIO()
        with plotting(light()):
            figure = self._figure(light())
            svg = svg_of(figure, transparent=False)
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return {f"{self.name}.svg": svg.encode(), f"{self.name}.png": buffer.getvalue()}

    def _figure(self, paint: Paint) -> Any:
        def draw(axes: Axes) -> None:
            self.draw(axes, paint)

        return plotted(draw, self.x_label, self.y_label, size=self.size, grid=self.grid, columns=self.columns)


@dataclass(frozen=True)
class Dots:
    """One value per row of a chart; None for missing values. ranges: the interval of each row."""

    name: str
    values: Sequence[float | None]
    look: Look
    ranges: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Curve:
    """A line with a symmetric band. off: half the height of the band; None if unknown."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    off: Sequence[float | None]


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Returns the look of each variant, which is the same in all charts."""
    count = len(HUES)
    return {
        name: Look(HUES[i % count], MARKERS[(i + i // count) % count], DASHES[(i + i // count) % count])
        for i, name in enumerate(names)
    }


def shown(name: str) -> str:
    """Returns a name as charts show it."""
    name = visible(name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-(LONGEST // 2 - 1) :]}"


def scatter(
    name: str,
    label: str,
    points: Mapping[str, Sequence[Sequence[float]]],
    centroids: Mapping[str, Sequence[float]],
    axes_labels: tuple[str, str],
) -> Chart:
    """Draws the points of each variant, small and pale, and its centroid, large."""
    styles = looks(list(points))

    def draw(axes: Axes, paint: Paint) -> None:
        for variant, own in points.items():
            some = own[:: -(-len(own) // DRAWN)]
            across, up = ([point[axis] for point in some] for axis in (0, 1))
            axes.plot(across, up, styles[variant].marker, ms=3.2, mew=0, color=paint[styles[variant].colour], alpha=0.45)
        for i, (variant, (x, y)) in enumerate(centroids.items()):
            look, edge = styles[variant], paint["ink"]
            size = 11 - 4 * i / len(centroids)  # overlapping centroids stay visible
            axes.plot(
                [x], [y], look.marker, ms=size, mew=1.2, mec=edge, color=paint[look.colour], label=shown(variant), ls="none"
            )
        axes.margins(0.06)

    columns, above = _legend(list(points))
    return Chart(name, label, draw, *axes_labels, (WIDTH, 3.4 + above), "both", columns)


def matrix(name: str, label: str, names: Sequence[str], values: Sequence[Sequence[float | None]]) -> Chart:
    """Draws a number for each pair of variants; darker cells have higher values."""
    known = [value for line in values for value in line if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)

    def draw(axes: Axes, paint: Paint) -> None:
        from matplotlib.patches import Rectangle

        for i, line in enumerate(values):
            for j, value in enumerate(line):
                if value is not None:
                    alpha = 0.06 + 0.5 * (value - low) / ((high - low) or 1.0)
                    cell = Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=paint["blue"], alpha=alpha, lw=0)
                    axes.add_patch(cell)
                text = "–" if value is None else f"{value:.2f}"
                axes.text(j, i, text, ha="center", va="center", color=paint["ink"], size=9 if len(names) < 7 else 7.5)
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal", anchor="N")
        axes.set_yticks(range(len(names)), [shown(variant) for variant in names], color=paint["ink"])
        axes.set_xticks(
            range(len(names)), [shown(variant) for variant in names], rotation=55, ha="right", rotation_mode="anchor"
        )
        axes.tick_params(axis="x", labelcolor=paint["ink"])
        axes.spines[:].set_visible(False)

    return Chart(name, label, draw, size=(WIDTH, 1.5 + 0.3 * len(names)), grid=None)


def boxes(name: str, label: str, x_label: str, rows: Mapping[str, tuple[Sequence[float], float]]) -> Chart:
    """Draws five quantiles of each variant as a box with whiskers, and a marker for the mean."""
    styles = looks(list(rows))

    def draw(axes: Axes, paint: Paint) -> None:
        for i, (variant, (quantiles, mean)) in enumerate(rows.items()):
            colour = paint[styles[variant].colour]
            low, left, middle, right, high = quantiles
            axes.plot([low, high], [i, i], color=colour, lw=1.2, solid_capstyle="butt")
            axes.plot(
                [low, low, math.nan, high, high], [i - 0.14, i + 0.14, math.nan, i - 0.14, i + 0.14], color=colour, lw=1.2
            )
            axes.barh(i, right - left, 0.5, left, color=colour, alpha=0.4, lw=0)
            axes.plot([middle, middle], [i - 0.25, i + 0.25], color=paint["ink"], lw=1.8, solid_capstyle="butt")
            axes.plot([mean], [i], styles[variant].marker, color=colour, ms=5, mec=paint["ink"], mew=0.8)
        axes.set_xlim(left=0)
        _rows(axes, paint, list(rows))

    return Chart(name, label, draw, x_label, size=_height(len(rows)), grid="x")


def stacks(name: str, label: str, parts: Mapping[str, Colour], rows: Mapping[str, Mapping[str, int]]) -> Chart:
    """Draws the parts of each variant as stacked bars, in per cent."""

    def draw(axes: Axes, paint: Paint) -> None:
        left = dict.fromkeys(rows, 0.0)
        for part, colour in parts.items():
            widths = {variant: 100 * own[part] / (sum(own.values()) or 1) for variant, own in rows.items()}
            axes.barh(
                range(len(rows)),
                list(widths.values()),
                0.6,
                list(left.values()),
                color=paint[colour],
                alpha=0.6,
                lw=0,
                label=part,
            )
            for i, (variant, width) in enumerate(widths.items()):
                if width >= 9:
                    middle = left[variant] + width / 2
                    axes.text(middle, i, f"{width:.0f} %", ha="center", va="center", size=8.5, color=paint["ink"])
                left[variant] += width
        axes.set_xlim(0, 100)
        _rows(axes, paint, list(rows))

    return Chart(name, label, draw, "% of tokens", size=_height(len(rows)), grid="x")


def dots(
    name: str,
    label: str,
    x_label: str,
    rows: Sequence[str],
    groups: Sequence[Dots],
    *,
    row: float = ROW,
    legend: bool = True,
) -> Chart:
    """Draws the values of several groups as dots in rows. row: the row height in inches."""
    size = 5.0 if row >= ROW else 3.6
    columns, above = _legend([group.name for group in groups] if legend else [])

    def draw(axes: Axes, paint: Paint) -> None:
        for k, group in enumerate(groups):
            colour, shift = paint[group.look.colour], SPREAD * ((k + 0.5) / len(groups) - 0.5)
            for i, ends in enumerate(group.ranges):
                axes.plot(ends, [i + shift] * 2, color=colour, lw=2, alpha=0.6, solid_capstyle="butt")
            face, edge = (colour, 0.4) if group.look.filled else ("none", 1.1)
            x = [math.nan if value is None else value for value in group.values]
            y = [i + shift for i in range(len(x))]
            text = shown(group.name) if legend else None
            axes.plot(x, y, group.look.marker, ls="none", color=colour, mfc=face, mew=edge, ms=size, label=text)
        _rows(axes, paint, rows)

    width, height = _height(len(rows), row)
    return Chart(name, label, draw, x_label, size=(width, height + above), grid="both", columns=columns)


def curves(
    name: str,
    label: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Curve],
    styles: Mapping[str, Look],
    *,
    markers: bool = False,
    ticks: Mapping[float, str] | None = None,
) -> Chart:
    """Draws lines with bands. look_of: the look of each line, by name. ticks: labels by position on the axis."""

    def draw(axes: Axes, paint: Paint) -> None:
        from matplotlib.ticker import MaxNLocator

        for line in lines:
            look = styles[line.name]
            y = [math.nan if value is None else value for value in line.y]
            off = [value or 0.0 for value in line.off]
            marker = look.marker if markers or len(y) == 1 else ""
            axes.plot(line.x, y, color=paint[look.colour], ls=look.dash, marker=marker, label=shown(line.name))
            if any(off):
                low, high = ([v + sign * d for v, d in zip(y, off, strict=True)] for sign in (-1, 1))
                axes.fill_between(line.x, low, high, color=paint[look.colour], alpha=0.15, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        if ticks:
            axes.set_xticks(list(ticks), [visible(text) for text in ticks.values()])

    columns, above = _legend([line.name for line in lines])
    return Chart(name, label, draw, x_label, y_label, (WIDTH, 2.8 + above), columns=columns)


def _rows(axes: Axes, paint: Paint, names: Sequence[str]) -> None:
    """Labels the rows on the left axis, the first row at the top."""
    axes.set_yticks(range(len(names)), [shown(variant) for variant in names])
    axes.tick_params(axis="y", labelcolor=paint["ink"])
    axes.set_ylim(len(names) - 0.4, -0.6)


def _height(rows: int, row: float = ROW) -> tuple[float, float]:
    return WIDTH, 1.0 + row * max(rows, 2)


def _legend(names: Sequence[str]) -> tuple[int, float]:
    """Returns the number of columns that fit into the legend, and its height in inches."""
    longest = max((len(shown(name)) for name in names), default=1)
    columns = max(1, min(3, 58 // (longest + 6)))
    return columns, 0.2 * -(-len(names) // columns)
