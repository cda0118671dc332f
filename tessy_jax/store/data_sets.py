"""Rows of data sets: Parquet files, names on the hub, folders, and folders that `save_to_disk` wrote."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tessy_jax.errors import ConfigError, DataError, TessyError
from tessy_jax.store.table_files import refuse_foreign


class NotRead:
    """The value of a column that is not read. Errors can still list the column."""

    def __repr__(self) -> str:
        return "…"


NOT_READ = NotRead()
SAVED = ("state.json", "dataset_dict.json")
"""Files that mark a folder written by `save_to_disk`."""


def parquet_rows(path: str, columns: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The place and content of the rows of a Parquet file or address. columns: the columns to read.

    Raises:
        DataError: the file cannot be read.
        ConfigError: a package is missing.
    """
    datasets = _datasets(path)
    with suppress(OSError):  # an address, or absent
        with Path(path).open("rb") as file:
            start = file.read(64)
        if not start.startswith(b"PAR1"):
            refuse_foreign(path, start)
    try:
        yield from _read(path, datasets.load_dataset("parquet", data_files=path, split="train", streaming=True), columns)
    except TessyError:
        raise
    except Exception as error:  # each builder and file system has errors of its own
        raise _unreadable(path, error) from None


def data_set_rows(path: str, split: str, subset: str | None, columns: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The place and content of the rows of a data set by name or folder. subset: its configuration; None: its default or
    only one. columns: the columns to read.

    Raises:
        DataError: the data set cannot be read, or lacks the configuration or the split.
        ConfigError: a package is missing.
    """
    datasets = _datasets(path)
    saved = any((Path(path) / marker).is_file() for marker in SAVED)
    name = f"{path}[{split}]" if subset is None else f"{path}[{subset}, {split}]"
    if saved and subset is not None:
        raise DataError(f"{path}: is a saved data set, which has no configurations, but subset is {subset!r}; leave it out")
    load = partial(datasets.load_dataset, path, subset, split=split, streaming=True)
    try:
        rows = _saved(datasets.load_from_disk(path), path, split) if saved else load()
        if not saved and rows.info.builder_name == "csv" and rows.features is None:  # `datasets` would guess the types
            texts = _read(name, _texts(path, rows, load, columns), columns)
            yield from ((place, {column: value or None for column, value in row.items()}) for place, row in texts)
        else:
            yield from _read(name, rows, columns)
    except TessyError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and not saved:  # perhaps an unknown configuration or split
            _check_choice(datasets, path, split, subset)
        raise _unreadable(name, error) from None


def _datasets(path: str) -> Any:
    try:
        import datasets  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise ConfigError(
            f"{path}: needs a package that is missing ({error}); pip install datasets, or give JSONL"
        ) from None
    return datasets


def _saved(rows: Any, path: str, split: str) -> Any:
    """The rows of a saved data set: all columns, as Python values. The format that it was saved with does not count."""
    if isinstance(rows, dict):
        if split not in rows:
            raise _no_split(path, split, sorted(rows))
        rows = rows[split]
    return rows.with_format(None)


def _texts(path: str, rows: Any, load: Callable[..., Any], columns: Collection[str]) -> Any:
    """The rows of a data set of CSV files, with all fields as text.

    Raises:
        DataError: two columns have the same name and are to be read.
    """
    datasets = _datasets(path)
    first_row: dict[str, Any] = next(iter(rows), {})
    # `datasets` adds .1 to the name of a second column
    twice = next((name for name in columns if name in first_row and f"{name}.1" in first_row), None)
    if twice is not None:
        raise DataError(f"{path}: has 2 columns named {twice!r}; rename or remove all but one")
    return load(features=datasets.Features({name: datasets.Value("string") for name in first_row}), keep_default_na=False)


def _read(name: str, rows: Any, columns: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The rows with the values of these columns, or of all columns if none of these exists."""
    present = [column for column in columns if column in (rows.column_names or ())]
    others: dict[str, Any] = {}
    if set(present) - {"id"}:
        others = dict.fromkeys(set(rows.column_names) - set(present), NOT_READ)
        rows = rows.select_columns(present)
    for number, row in enumerate(rows, 1):
        yield f"{name}: row {number}", others | row


def _check_choice(datasets: Any, path: str, split: str, subset: str | None) -> None:
    """Checks that a data set has the requested configuration and split, if their names can be read.

    Raises:
        DataError: it lacks one; names those that it has.
    """
    try:
        subsets = datasets.get_dataset_config_names(path)
        default = datasets.get_dataset_default_config_name(path) is not None or len(subsets) == 1
        chosen = subset in subsets or (subset is None and default)
        splits = datasets.get_dataset_split_names(path, subset) if chosen else []
    except Exception:  # the data set itself cannot be read, which the caller reports
        return
    if not chosen:
        missing = "has no default configuration" if subset is None else f"has no configuration {subset!r}"
        raise DataError(f"{path}: {missing}; it has {_listed(subsets)}: set subset to one of them")
    if split not in splits:
        raise _no_split(path, split, splits)


def _no_split(path: str, split: str, splits: Sequence[str]) -> DataError:
    return DataError(f"{path}: has no split {split!r}; it has {_listed(splits)}: set split to one of them")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _unreadable(name: str, error: Exception) -> DataError:
    reason = " ".join(line for line in str(error).splitlines() if line.strip())[:300] or type(error).__name__
    return DataError(
        f"{name}: cannot be read as a data set ({reason}); give JSONL, JSON, CSV, TSV or Parquet, or a data set's folder or "
        "name"
    )
