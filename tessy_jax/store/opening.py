"""Opens run folders: for a job, where only process 0 writes, and for readers, where the folder may not exist."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import yaml

from tessy_jax.config import dump, reconcile
from tessy_jax.config.sections import Dated
from tessy_jax.errors import ConfigError
from tessy_jax.processes import OnPrimary
from tessy_jax.store.run import RunReader, RunStore

D = TypeVar("D", bound=Dated)


class PrimaryStore(OnPrimary[RunStore]):
    """The run folder of a job of one or more processes. Process 0 writes it, and every process calls each method. `run`
    passes the `RunStore` to a function that needs more than one of its methods."""

    def save_config(self, text: str) -> None:
        """See `RunStore.save_config`."""
        self.run(lambda store: store.save_config(text))

    def save_metrics(self, lines: str) -> None:
        """See `RunStore.save_metrics`."""
        self.run(lambda store: store.save_metrics(lines))

    def save_page(self, name: str, text: str) -> None:
        """See `RunStore.save_page`."""
        self.run(lambda store: store.save_page(name, text))

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """See `RunStore.save_summary`."""
        self.run(lambda store: store.save_summary(summary))


def open_run(stack: ExitStack, config: D) -> tuple[PrimaryStore, D, str]:
    """Opens the run folder of a job for the lifetime of the stack. Every process must call it.

    Returns the store, the configuration reconciled with earlier starts, and its YAML, which the caller saves once all checks
    have passed.

    Raises:
        ConfigError: the folder holds another kind of run or other settings, or another process writes to it.
        DataError: the folder cannot be written.
    """
    store = PrimaryStore(lambda: stack.enter_context(RunStore(config.output)))
    text = store.run(lambda files: dump(reconcile(config, files.config())))
    return store, type(config).model_validate(yaml.safe_load(text)), text


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
