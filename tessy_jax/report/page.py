"""The skeleton of every report: one HTML file that needs nothing but itself.

Text is hostile: models wrote it. Whatever is no Markup is escaped by the templates, what a browser would act upon unseen is
made visible, and the page allows no request and no script but its own, so that a slip in one place is caught by the others.
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
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but not tabs and line breaks
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"  # what reorders text, or takes no room in it
    "\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"  # separators, halves of pairs, what is no character
)
PLACES = {"decimal": 3, "percent": 1}
"""Digits after the point of what `decimal` and `percent` show."""


@dataclass(frozen=True)
class Table:
    """A table. rows: one cell per column each, the first its heading; the others are numbers, already formatted."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture with its title. image: inline SVG, see `figures`. note: what one should know to read it."""

    title: str
    image: Markup
    note: str = ""


@dataclass(frozen=True)
class Beside:
    """Pieces side by side, as many as there is room for; the others below."""

    pieces: Sequence[Table | Figure | Markup]


@dataclass(frozen=True)
class Section:
    """A part of a page. Pieces that are Markup stand as they are: make them with `fragment`, whose templates escape."""

    heading: str
    lead: str = ""
    pieces: Sequence[Table | Figure | Beside | Markup] = ()


@dataclass(frozen=True)
class Page:
    """A page. styles, script: our own, see `asset`; never anything that was read. data: JSON for the script, which finds it
    in the element `data`."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    styles: str = ""
    script: str = ""
    data: Any = None


def render(page: Page) -> str:
    """The HTML of a page; the same page gives the same bytes in UTF-8.

    Raises:
        DataError: a row of a table has not one cell per column.
    """
    for section in page.sections:
        for piece in section.pieces:
            for table in piece.pieces if isinstance(piece, Beside) else [piece]:
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
    """A piece of a page from one of the package's templates, which escapes every value that is no Markup."""
    return Markup(_templates().get_template(template).render(**values))


def asset(name: str) -> str:
    """The text of a style sheet or script of the package."""
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def visible(text: str) -> str:
    """Text in which what acts unseen (control characters, marks that reorder text, halves of surrogate pairs) is shown by a
    stand-in: the picture of a control character, or ⟨U+202E⟩."""
    return UNSEEN.sub(_stand_in, text)


def decimal(value: float) -> str:
    """A measure such as 0.987."""
    return f"{value:.{PLACES['decimal']}f}"


def percent(share: float) -> str:
    """A share such as 98.7 %."""
    return f"{100 * share:.{PLACES['percent']}f} %"


def count(number: int) -> str:
    """A number of things such as 12,345."""
    return f"{number:,}"


def _stand_in(match: re.Match[str]) -> str:
    point = ord(match[0])
    return chr(0x2400 + point) if point < 0x20 else f"⟨U+{point:04X}⟩"


def _check(table: Table) -> None:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise DataError(
                f"table {table.title!r}: a row has {len(row)} cells, with {len(table.columns)} columns; give one per column"
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
    environment.tests.update({kind.__name__.lower(): _is(kind) for kind in (Table, Figure, Beside)})
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)
