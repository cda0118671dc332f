"""Rows of a table: JSONL, Parquet, or a data set by name or folder."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tessy_jax.errors import ConfigError, DataError

JSON_LINES = re.compile(r"\.(jsonl?|ndjson)(\.\w+)?$")
ADDRESS = re.compile(r"\w+://")

Rows = Iterator[tuple[str, Any]]
"""Where (file:line) and what, or a DataError that says why a line holds no row."""


def table_rows(path: str, split: str, limit: int | None, columns: Collection[str]) -> Rows:
    """The first `limit` rows of a table.

    path: a JSONL or Parquet file or address, or the folder or name of a data set. split: of a data set. columns: all that
    is looked at, so that a data set need not be read in whole.

    Raises:
        DataError: it cannot be read. A line that is no JSON comes as a DataError in the row's place.
        ConfigError: a package is missing.
    """
    place = Path(path)
    if not path.endswith(".parquet") and (place.is_file() or JSON_LINES.search(path) or ADDRESS.match(path)):
        rows = _json_lines(path)
    elif not path.endswith(".parquet") and path.startswith(("/", "./", "../", "~")) and not place.exists():
        raise DataError(f"{path}: there is no such file or folder; give JSONL or Parquet, or a data set")
    else:
        rows = _data_set(path, split, columns)
    for count, row in enumerate(rows):
        if count == limit:
            return
        yield row


def _json_lines(path: str) -> Rows:
    """The lines of a JSONL file that are not blank. Lines end with \\n alone: U+2028 may stand in a string."""
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield f"{path}:{number}", _parsed(text)
    except ConfigError:
        raise
    except Exception as error:  # object stores and decompressors have errors of their own
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); give JSONL or Parquet, or a data set") from None


def _opened(path: str) -> Any:
    if not ADDRESS.match(path) and path.endswith((".jsonl", ".json", ".ndjson")):
        return Path(path).open("rb")
    import fsspec  # type: ignore[import-untyped, import-not-found, unused-ignore]

    try:
        return fsspec.open(path, "rb", compression="infer")
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be opened ({error}); install what serves it, or give a local file") from None


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return DataError(f"is not UTF-8 ({error.reason} at byte {error.start}); save the file in UTF-8")
    except (ValueError, RecursionError) as error:
        return DataError(f"is not JSON ({error}); give one object a line")


def _data_set(path: str, split: str, wanted: Collection[str]) -> Rows:
    """The rows of a Parquet file, or of a data set by folder or name."""
    try:
        import datasets  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise ConfigError(
            f"{path}: needs a package that is missing ({error}); pip install datasets, or give JSONL"
        ) from None

    parquet = path.endswith(".parquet")
    name = path if parquet else f"{path}[{split}]"
    try:
        if parquet:
            rows = datasets.load_dataset("parquet", data_files={split: path}, split=split, streaming=True)
        elif any((Path(path) / marker).is_file() for marker in ("state.json", "dataset_dict.json")):  # save_to_disk's
            rows = datasets.load_from_disk(path)
            if isinstance(rows, dict):
                if split not in rows:
                    raise DataError(
                        f"{path}: has no split {split!r}; it has {', '.join(f'`{name}`' for name in sorted(rows))}"
                    )
                rows = rows[split]
        else:
            rows = datasets.load_dataset(path, split=split, streaming=True)
        columns = [column for column in wanted if column in (rows.column_names or ())]
        if set(columns) - {"id"}:
            rows = rows.select_columns(columns)
        for number, row in enumerate(rows, 1):
            yield f"{name}: row {number}", row
    except DataError:
        raise
    except Exception as error:  # each builder and file system has errors of its own
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{name}: cannot be read as a data set ({reason}); give JSONL, Parquet, or a data set's folder or name"
        ) from None
