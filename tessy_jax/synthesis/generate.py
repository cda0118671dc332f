"""`tessy generate`: one model continues prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from tessy_jax.decode.generate import generate
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.models import hf
from tessy_jax.models.hf_config import read_config
from tessy_jax.sharding import Partitioner
from tessy_jax.store.messages import BESIDE, encodable, messages_of, refuse_rendered
from tessy_jax.store.tables import table_rows
from tessy_jax.text.template import Template
from tessy_jax.text.tokenizer import Tokenizer


class Row(TypedDict):
    """One output row."""

    prompt: str
    text: str
    token_ids: list[int]


def read_prompts(path: str) -> list[str]:
    """The `prompt` of every row of a table.

    Raises:
        DataError: the table cannot be read, a row has no non-empty string `prompt`, or it has a column that the model would
            not see, such as a system message; names file and line.
        ConfigError: a package is missing.
    """
    prompts = []
    for place, row in table_rows(path, "train", None, ("prompt", *BESIDE)):
        if isinstance(row, DataError):
            raise DataError(f"{place}: {row}")
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt:
            given = {key: value for key, value in row.items() if value is not None} if isinstance(row, dict) else row
            raise DataError(f"{place}: is {given!r:.60}; it should be an object with a non-empty string `prompt`")
        try:
            messages = messages_of(row, ("prompt",))[1]
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        if len(messages) > 1:
            raise DataError(
                f"{place}: has a system message, which `tessy generate` does not support; write it into the prompt, or "
                "leave it out"
            )
        prompts.append(prompt)
    if not prompts:
        raise DataError(f"{path}: holds no rows; give at least one prompt")
    return prompts


def generate_rows(
    model: str,
    prompts: Sequence[str],
    *,
    chat: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    dtype: Any,
    partitioner: Partitioner,
    batch_size: int,
) -> list[Row]:
    """Continues every prompt; returns rows in the order of the prompts. Inputs are checked before weights are loaded.

    Raises:
        ConfigError, CheckpointError, TokenizerError, ShardingError, DataError: model or prompts are invalid.
    """
    folder = hf.resolve(model)
    config = read_config(folder)
    if config.labels is not None:
        raise ConfigError(f"{folder}: is a token classifier; give a …ForCausalLM model")
    tokenizer = Tokenizer(folder, config.vocab)
    template = Template(tokenizer, {}) if chat else None
    for number, prompt in enumerate(prompts, 1):
        encodable(prompt, f"prompt {number}:")
    if template:
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        for number, messages in enumerate(asked, 1):
            refuse_rendered(messages, f"prompt {number}")
        encoded = [template.prompt(messages) for messages in asked]
    else:
        encoded = [tokenizer.encode(prompt) for prompt in prompts]
    for number, ids in enumerate(encoded, 1):
        if not ids:
            raise DataError(f"prompt {number}: has no tokens; give some text to continue")
        if len(ids) + max_new_tokens > config.max_positions:
            raise DataError(
                f"prompt {number}: {len(ids)} tokens and {max_new_tokens} new tokens exceed the model's "
                f"{config.max_positions} positions; shorten it or lower --max-new-tokens"
            )
    eos_ids = sorted(template.end_ids) if template else tokenizer.eos_ids()
    decoder = hf.load(folder, dtype=dtype, partitioner=partitioner)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # prompts of similar length share a bucket
    rows: dict[int, Row] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        written = generate(
            decoder,
            [encoded[i] for i in batch],
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            temperature=temperature,
            seed=seed,
            samples=batch,
        )
        for i, (ids, _) in zip(batch, written, strict=True):
            rows[i] = {"prompt": prompts[i], "text": tokenizer.decode(ids), "token_ids": ids}
    return [rows[i] for i in range(len(encoded))]


def check_output(file: Path) -> None:
    """Checks, before any work, that an output can be written.

    Raises:
        DataError: the folder is missing or not writable, or the path is a folder or a device.
    """
    if file.exists() and not file.is_file():
        raise DataError(f"{file}: is not a regular file; name a file, or leave out --output to print the text")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise DataError(f"{file}: cannot be written; name a file in an existing, writable folder")


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """Writes JSONL atomically; a symbolic link stays one.

    Raises:
        DataError: the file cannot be written.
    """
    file = file.resolve()
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{file}: cannot be written ({error}); name a file in an existing, writable folder") from None
