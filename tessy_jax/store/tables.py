"""Rows of a table: JSONL, one JSON array, CSV, TSV, Parquet, or a data set by name or folder."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tessy_jax.errors import DataError
from tessy_jax.store.data_sets import data_set_rows, parquet_rows
from tessy_jax.store.run import MARK
from tessy_jax.store.table_files import ADDRESS, BOM, GIVE, format_of, opened

Rows = Iterator[tuple[str, Any]]
"""The place (file:line) and content of every row. A DataError as content says why a line holds no row."""
LARGEST_FIELD = 1 << 30
"""Maximum length of a CSV field, in characters."""
DELIMITERS = {"csv": ",", "tsv": "\t"}


def table_rows(path: str, split: str, limit: int | None, columns: Collection[str], *, subset: str | None = None) -> Rows:
    """The first `limit` rows of a table.

    path: a JSONL, JSON, CSV, TSV or Parquet file or address, also compressed, or the folder or name of a data set. split,
    subset: the split and the configuration of a data set. columns: the columns to read, so that a data set need not be read
    completely.

    Raises:
        DataError: the table cannot be read. For a line that is not JSON, a DataError takes the place of the row.
        ConfigError: a package is missing.
    """
    path = path if ADDRESS.match(path) else os.path.expanduser(path)
    place = Path(path)
    form = None if place.is_dir() else format_of(path)  # some programs write folders of shards named ….parquet
    is_file = form is not None or place.is_file() or ADDRESS.match(path) is not None
    if is_file and subset is not None:
        raise DataError(f"{path}: is a file, which has no configurations, but subset is {subset!r}; leave it out")
    if form == "parquet":
        rows = parquet_rows(path, columns)
    elif form in DELIMITERS:
        rows = _delimited_rows(path, DELIMITERS[form], columns)
    elif is_file:
        rows = _json_rows(path)
    elif path.startswith(("/", "./", "../")) and not place.exists():
        raise DataError(f"{path}: there is no such file or folder; {GIVE}")
    elif _is_run_folder(place):
        raise DataError(f"{path}: is a run folder; give a table of rows, such as the output of `tessy rows {path}`")
    else:
        rows = data_set_rows(path, split, subset, columns)
    yield from islice(rows, limit)


def _is_run_folder(folder: Path) -> bool:
    config = folder / "config.yaml"
    return config.is_file() and config.read_bytes().startswith(MARK.encode())


def _json_rows(path: str) -> Rows:
    """The rows of a JSON file: its lines that are not blank, the items of its one array, or its one object over several
    lines. Only \\n ends a line: U+2028 may occur in a string."""
    with opened(path) as file:
        numbered = enumerate(file, 1)
        number, first = next(((number, line) for number, line in numbered if line.removeprefix(BOM).strip()), (0, b""))
        if not first:
            return
        first = first.removeprefix(BOM)
        value, array, lines = _parsed(first), first.lstrip().startswith(b"["), file
        if array or (isinstance(value, DataError) and first.lstrip().startswith(b"{")):
            rest = file.read()
            whole = _parsed(first + rest, number) if rest.strip() else value
            if isinstance(whole, list):
                yield from ((f"{path}: item {item_number}", item) for item_number, item in enumerate(whole, 1))
                return
            if isinstance(whole, dict):
                yield f"{path}:{number}", whole
                return
            if isinstance(value, DataError) and array:
                raise DataError(f"{path}: begins as one array of rows, but {whole}")
            lines = io.BytesIO(rest)
        yield f"{path}:{number}", value
        for line_number, line in enumerate(lines, number + 1):
            if line.strip():
                yield f"{path}:{line_number}", _parsed(line)


def _parsed(text: bytes, line: int | None = None) -> Any:
    """The value of a JSON text, or a DataError. line: the first line of a text of several lines, for the message."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_object)
    except DataError as error:
        return error
    except UnicodeDecodeError as error:
        return DataError(f"is not UTF-8 ({error.reason} at byte {error.start}); save the file in UTF-8")
    except json.JSONDecodeError as error:
        if line is not None:
            where = f"{error.msg.removesuffix(' at')} at line {line + error.lineno - 1}, column {error.colno}"
            return DataError(f"is not JSON ({where}); correct it there, or write one object per line")
        stripped = text.rstrip()
        if stripped.endswith(b",") and not isinstance(_parsed(stripped[:-1]), DataError):
            return DataError("is not JSON (it ends with a comma); remove the comma, or enclose all lines in [ and ]")
        where = f"{error.msg.removesuffix(' at')} at column {error.colno} of {error.doc.strip()[:30]!r}"
        return DataError(f"is not JSON ({where}); write one object per line")
    except (ValueError, RecursionError) as error:
        return DataError(f"is not JSON ({error}); write one object per line")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs.

    Raises:
        DataError: a key has two different values.
    """
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(((key, value) for key, value in pairs if row[key] != value), None)
        if twice is not None:
            key, value = twice
            raise DataError(f"has an object with `{key}` twice ({value!r:.40} and {row[key]!r:.40}); keep one of them")
    return row


def _delimited_rows(path: str, delimiter: str, columns: Collection[str]) -> Rows:
    """The rows of a CSV or TSV file, whose first row names the columns. All values are text; an empty field is None.

    Raises:
        DataError: the file is not CSV in UTF-8, or two of the columns to read have the same name.
    """
    csv.field_size_limit(LARGEST_FIELD)
    with opened(path) as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
        header: list[str] = []
        while True:
            number = rows.line_num + 1
            try:
                fields = next(rows, None)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: is not UTF-8 ({error.reason}); save the file in UTF-8") from None
            except csv.Error as error:
                raise DataError(
                    f"{path}:{number}: the row that begins here is not CSV ({error}); enclose fields with quotes, line "
                    'breaks or separators in quotes, and write a quote inside as ""'
                ) from None
            if fields is None:
                return
            if not fields:  # a blank line
                continue
            if header:
                yield f"{path}:{number}", _named(fields, header, delimiter)
            else:
                header = _checked_header(path, fields, delimiter, columns)


def _checked_header(path: str, header: list[str], delimiter: str, columns: Collection[str]) -> list[str]:
    twice = next((name for name in header if name in columns and header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has {header.count(twice)} columns named {twice!r}; rename or remove all but one")
    other = next((name for name in ";\t,|" if len(header) == 1 and name != delimiter and name in header[0]), None)
    if other is not None:
        raise DataError(
            f"{path}: has one column, {header[0]!r:.60}; separate columns by {delimiter!r} instead of {other!r} (.csv: "
            "commas, .tsv: tabs)"
        )
    return header


def _named(fields: list[str], header: list[str], delimiter: str) -> dict[str, str | None] | DataError:
    if any("\n" in field and "\t" in field for field in fields) and delimiter == "\t":
        return DataError("has a field with line breaks and tabs, perhaps because a quote joins rows; save the file as JSONL")
    if len(fields) < len(header) or any(fields[len(header) :]):
        return DataError(
            f"has {len(fields)} fields, but the header has {len(header)}; enclose fields with separators in quotes"
        )
    return {name: value or None for name, value in zip(header, fields, strict=False) if name}
