"""The output of `tessy rows`: the rows of a run folder in the order of the input."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator

from tessy_jax.records import Failure, Row
from tessy_jax.store import RunReader


def rows_in_order(run_folder: str) -> Iterator[Row]:
    """Yields finished responses by input row and rollout. Memory holds them compressed, to about a fifth of their size.

    Raises:
        ConfigError: the folder is not a run folder.
        DataError: the folder cannot be read.
    """
    compressed = [
        (row.place[:2], zlib.compress(json.dumps(row.to_json()).encode(), 1)) for row in RunReader(run_folder).rows()
    ]
    for _, packed in sorted(compressed, key=lambda item: item[0]):
        yield Row.from_json(json.loads(zlib.decompress(packed)))


def failures_in_order(run_folder: str) -> Iterator[Failure]:
    """Yields failures in the order in which they were recorded.

    Raises:
        ConfigError, DataError: as `rows_in_order`.
    """
    yield from RunReader(run_folder).failures()
