"""The common layout of all reports: one self-contained HTML file.

Models wrote the text, so it is untrusted. The templates escape every value that is not Markup, invisible control characters
are made visible, and the content security policy allows no requests and only the page's own script. Each measure covers for
a mistake in the others.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from tessy_jax.errors import DataError

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tabs and line breaks
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"  # bidirectional controls and zero-width characters
    "\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"  # separators, lone surrogates, noncharacters
)
PLACES = {"decimal": 3, "percent": 1}
"""Digits after the decimal point in the output of `decimal` and `percent`."""


@dataclass(frozen=True)
class Table:
    """A table. rows: one cell per column; the first cell is the row heading, the others are formatted numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """An image with a title. image: inline SVG, see `figures`. note: the caption."""

    title: str
    image: Markup
    note: str = ""


@dataclass(frozen=True)
class SideBySide:
    """Pieces in a row that wraps to the page width."""

    pieces: Sequence[Table | Figure | Markup]


@dataclass(frozen=True)
class Section:
    """A part of a page. Markup pieces are inserted unescaped: create them with `fragment`, whose templates escape values."""

    heading: str
    lead: str = ""
    pieces: Sequence[Table | Figure | SideBySide | Markup] = ()


@dataclass(frozen=True)
class Page:
    """A page. styles, script: assets of the package, see `asset`; never text from a run. data: JSON for the script, in the
    element with the id `data`."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    styles: str = ""
    script: str = ""
    data: Any = None


def render(page: Page) -> str:
    """Returns the HTML of a page; equal pages give equal bytes in UTF-8.

    Raises:
        DataError: a table row does not have one cell per column.
    """
    for section in page.sections:
        for piece in section.pieces:
            for table in piece.pieces if isinstance(piece, SideBySide) else [piece]:
                if isinstance(table, Table):
                    _check(table)
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    return visible(
        _templates()
        .get_template("page.html")
        .render(
            page=page,
            styles=Markup(asset("page.css") + page.styles),
            script=Markup(page.script),
            allowed=f"'sha256-{digest}'" if page.script else "'none'",
        )
    )


def fragment(template: str, **values: Any) -> Markup:
    """Renders one of the package's templates, which escapes every value that is not Markup."""
    return Markup(_templates().get_template(template).render(**values))


def asset(name: str) -> str:
    """Returns the text of a style sheet or script of the package."""
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def visible(text: str) -> str:
    """Replaces invisible characters (controls, bidirectional marks, lone surrogates) by visible symbols: the control picture
    of the character, or its code point, such as ⟨U+202E⟩."""
    return UNSEEN.sub(_stand_in, text)


def decimal(value: float) -> str:
    """Formats a metric, such as 0.987."""
    return f"{value:.{PLACES['decimal']}f}"


def percent(share: float) -> str:
    """Formats a share, such as 98.7 %."""
    return f"{100 * share:.{PLACES['percent']}f} %"


def count(number: int) -> str:
    """Formats a count, such as 12,345."""
    return f"{number:,}"


def size(count_of_bytes: float) -> str:
    """Formats a size in bytes, such as 1.23 GiB."""
    return f"{count_of_bytes / 2**30:,.2f} GiB" if count_of_bytes >= 1 << 30 else f"{count_of_bytes / 2**20:,.1f} MiB"


def _stand_in(match: re.Match[str]) -> str:
    point = ord(match[0])
    return chr(0x2400 + point) if point < 0x20 else f"⟨U+{point:04X}⟩"


def _check(table: Table) -> None:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise DataError(
                f"table {table.title!r}: a row has {len(row)} cells, but there are {len(table.columns)} columns; give one "
                "cell per column"
            )


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tessy_jax", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests.update({kind.__name__.lower(): _is(kind) for kind in (Table, Figure, SideBySide)})
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)
