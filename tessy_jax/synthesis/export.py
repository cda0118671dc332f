"""What `tessy rows` prints: the rows of a run folder in the order of the input."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator

from tessy_jax.records import Failure, Row
from tessy_jax.store import RunReader


def rows_in_order(run_folder: str) -> Iterator[Row]:
    """Finished responses by input row and rollout. They are held in memory compressed, about a fifth of their size.

    Raises:
        ConfigError: it is no run folder.
        DataError: it cannot be read.
    """
    held = [(row.place[:2], zlib.compress(json.dumps(row.to_json()).encode(), 1)) for row in RunReader(run_folder).rows()]
    for _, packed in sorted(held, key=lambda item: item[0]):
        yield Row.from_json(json.loads(zlib.decompress(packed)))


def failures_in_order(run_folder: str) -> Iterator[Failure]:
    """What failed for good, as it did one after another.

    Raises:
        ConfigError, DataError: as `rows_in_order`.
    """
    yield from RunReader(run_folder).failures()
