"""Rows out as a data set: a folder of Parquet files and a card, as the hub lays data sets out and `datasets` loads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
import yaml

from tessy_jax.errors import DataError
from tessy_jax.store.files import whole_folder

AT_ONCE = 1000  # rows that are held
FILE_BYTES = 400 << 20
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))


def write_data_set(folder: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema, *, card: str, tags: list[str]) -> int:
    """Writes rows of a schema; returns how many. card: what stands below the card's header. The folder appears whole.

    Raises:
        DataError: the folder exists and is not empty or cannot be written, or there are no rows.
    """
    count = 0
    with whole_folder(folder, DataError) as staging:
        data = staging / "data"
        data.mkdir()
        files: list[Path] = []
        writer: pq.ParquetWriter | None = None
        for batch in _batches(rows):
            if writer is None or files[-1].stat().st_size > FILE_BYTES:
                if writer is not None:
                    writer.close()
                files.append(data / f"{len(files)}.partial")
                writer = pq.ParquetWriter(files[-1], schema, compression="zstd")
            writer.write_table(pa.Table.from_pylist(batch, schema))
            count += len(batch)
        if writer is None:
            raise DataError(f"{folder}: there are no rows to write; finish some responses first")
        writer.close()
        for i, file in enumerate(files):
            file.rename(data / f"train-{i:05}-of-{len(files):05}.parquet")
        header = {
            "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
            "size_categories": [next((name for limit, name in SIZES if count < limit), "n>10M")],
            "tags": tags,
        }
        (staging / "README.md").write_text(f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n{card}", "utf-8")
    return count


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    left = iter(rows)
    while batch := list(islice(left, AT_ONCE)):
        yield batch
