"""`tessy export`: the data and the results of a training, for other programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import yaml
from pydantic import ValidationError

from tessy_jax.config import Train, earlier_version, reconcile
from tessy_jax.errors import ConfigError
from tessy_jax.models import hf
from tessy_jax.models.export import export
from tessy_jax.sharding import Partitioner
from tessy_jax.store import RunReader
from tessy_jax.store.parquet import write_data_set
from tessy_jax.train.data import tokenized_row
from tessy_jax.train.examples import KINDS
from tessy_jax.train.job import examples, plain, restored
from tessy_jax.train.lora import export_lora

CARD = """\
# {title}

{described}. Tokenized for {model} through its chat template with tessy_jax, one conversation a row, as `tessy train`
uses it.

- `input_ids`: the conversation's tokens.
- `labels`: the token where it is a target, otherwise -100; not shifted.
- `source_ids`: who wrote the token: {sources}.
"""


def run_config(run_folder: str) -> Train:
    """The configuration of a training's run folder.

    Raises:
        ConfigError: the folder is not that of a training.
    """
    try:
        config = Train.model_validate(yaml.safe_load(RunReader(run_folder).config() or ""))
    except ValidationError as error:
        problem = earlier_version(Train, error)
        remedy = "export it with that version" if problem else "give the `output` of `tessy train`"
        raise ConfigError(f"{run_folder}: holds {problem or 'no training'}; {remedy}") from None
    return config.model_copy(update={"output": run_folder})  # the folder may have been moved


def export_model(run_folder: str, folder: Path, step: int | None) -> int:
    """The student of a checkpoint (None: the newest) as a Hugging Face folder, adapters merged; returns the step.

    Raises:
        TessyError: there is no such training or checkpoint, or the folder cannot be written.
    """
    config = run_config(run_folder)
    model, step = restored(config, step, Partitioner.of(config.mesh))
    base = hf.resolve(config.student.model, revision=config.student.revision, weights=False)
    export(plain(config, model), folder, copy_from=base)
    return step


def export_adapter(run_folder: str, folder: Path, step: int | None) -> int:
    """The adapter of a checkpoint (None: the newest) as PEFT reads it; returns the step.

    Raises:
        TessyError: there is no such training or checkpoint, it has no adapter, or the folder cannot be written.
    """
    config = run_config(run_folder)
    if config.lora is None:
        raise ConfigError(f"{run_folder}: was trained without adapters; export its model, or train with `lora`")
    model, step = restored(config, step, Partitioner.of(config.mesh))
    export_lora(model, config.lora, folder, base=config.student.model)
    return step


def export_tokens(config: Train, folder: Path) -> int:
    """The data of a training as a tokenized data set, which `tessy train` and others take as it is; returns the rows.

    Raises:
        TessyError: as `tessy train` before its first step; or the folder cannot be written.
    """
    config = reconcile(config, None)
    data, _ = examples(config, hf.resolve(config.student.model, revision=config.student.revision, weights=False))
    schema = pa.schema(
        [("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), ("source_ids", pa.list_(pa.int8()))]
    )

    def rows() -> Iterator[dict[str, list[int]]]:
        return (tokenized_row(data[i]) for i in range(len(data)))

    sources = ", ".join(f"{i} {name}" for i, name in enumerate(KINDS))
    card = CARD.format(title=folder.name, described=data.described(), model=config.student.model, sources=sources)
    return write_data_set(folder, rows(), schema, card=card, tags=["tessy", "tokenized"])
