"""Run folders opened for a job, whose first process alone writes, and for those who do not know whether one is there."""

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
    """The run folder of a job, open as long as the stack is, its configuration as settled with earlier starts, and its text,
    which is for the caller to save when nothing is found wrong with it. All processes ask for it together; the first alone
    has the store, the others an empty list.

    Raises:
        ConfigError: it holds another kind of run, or one with other settings, or another process writes to it.
        DataError: it cannot be written.
    """
    stores: list[RunStore] = []

    def settled() -> str:
        stores.append(stack.enter_context(RunStore(config.output)))
        return dump(reconcile(config, stores[0].config()))

    text = on_primary(settled)
    return stores, type(config).model_validate(yaml.safe_load(text)), text


def finished(output: str) -> RunReader | None:
    """A run folder that has come to its end, whose summary is the last thing that is written; None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    reader = reader_of(output)
    return reader if reader is not None and reader.summary() is not None else None


def reader_of(output: str) -> RunReader | None:
    """A run folder, where there is one.

    Raises:
        DataError: it cannot be read.
    """
    with suppress(ConfigError):
        return RunReader(output)
    return None
