"""Opens run folders: for a job, where only process 0 writes, and for readers, where the folder may not exist."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TypeVar

import yaml

from tessy_jax.config import dump, reconcile
from tessy_jax.config.sections import Dated
from tessy_jax.errors import ConfigError
from tessy_jax.processes import on_primary
from tessy_jax.store.run import RunReader, RunStore

D = TypeVar("D", bound=Dated)


def open_run(stack: ExitStack, config: D) -> tuple[list[RunStore], D, str]:
    """Opens the run folder of a job for the lifetime of the stack. Every process must call it.

    Returns the store (a list that is empty in all processes but process 0), the configuration reconciled with earlier
    starts, and its YAML, which the caller saves once all checks have passed.

    Raises:
        ConfigError: the folder holds another kind of run or other settings, or another process writes to it.
        DataError: the folder cannot be written.
    """
    stores: list[RunStore] = []

    def reconciled() -> str:
        stores.append(stack.enter_context(RunStore(config.output)))
        return dump(reconcile(config, stores[0].config()))

    text = on_primary(reconciled)
    return stores, type(config).model_validate(yaml.safe_load(text)), text


def finished(output: str) -> RunReader | None:
    """A reader of a finished run folder (one with a summary, which is written last); None if it is absent or unfinished.

    Raises:
        DataError: the folder cannot be read.
    """
    reader = reader_of(output)
    return reader if reader is not None and reader.summary() is not None else None


def reader_of(output: str) -> RunReader | None:
    """A reader of a run folder; None if it is absent.

    Raises:
        DataError: the folder cannot be read.
    """
    with suppress(ConfigError):
        return RunReader(output)
    return None
