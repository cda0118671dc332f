"""`tessy export data`: the responses of a run folder as a data set with a card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

from tessy_jax.errors import DataError
from tessy_jax.records import Row
from tessy_jax.store import RunReader
from tessy_jax.store.parquet import write_data_set
from tessy_jax.synthesis.export import rows_in_order

KINDS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
CARD_KEYS = ("recipe", "preset", "word_rule", "student", "student_revision", "teacher", "teacher_revision", "version")

CARD = """\
# {title}

{responses} responses to {prompts} prompts, in which two language models took turns: a student wrote the style and the final
answer, a teacher the capability (TESSY, Huang et al. 2026, arXiv 2604.14164). Made with tessy_jax. The licenses of the
prompts and of both models apply; add the resulting license to this card before you publish.

| made with | |
|---|---|
{made}

| tokens | |
|---|---|
{tokens}

## Columns

- `messages`: role and content; the last message is the assistant's, including its thinking.
- `spans`: the writers of the assistant's content: source (student, teacher, template), phase (think, answer), and the
  code points start to end. The spans tile the content.
- `id`, `prompt_id`, `rollout`: the response, its prompt, and the number of the response to it.
- `meta`: how the response was written: models, settings, attempt, tokens by writer.
"""


@dataclass
class _Survey:
    """The result of a first pass over all rows: the columns of `meta`, and counts for the card."""

    types: dict[str, type] = field(default_factory=dict)
    values: dict[str, set[Any]] = field(default_factory=dict)
    tokens: Counter[str] = field(default_factory=Counter)
    prompts: set[str] = field(default_factory=set)
    responses: int = 0

    def add(self, row: Row) -> None:
        self.responses += 1
        self.prompts.add(row.prompt_id)
        for key, value in row.meta.items():
            known = self.types.get(key, type(None))
            if value is None or known is type(value) or (known, type(value)) == (float, int):
                self.types.setdefault(key, known)
            elif known is type(None) or (known, type(value)) == (int, float):
                self.types[key] = type(value)
            else:
                raise DataError(
                    f"row {row.id!r}: meta.{key} is {value!r}, but a {known.__name__} in other rows; use one type"
                )
            if key in CARD_KEYS and value is not None:
                self.values.setdefault(key, set()).add(value)
            if key.startswith("tokens_") and isinstance(value, int):
                self.tokens[key] += value


def publish(run_folder: str, folder: Path) -> int:
    """Writes the responses of a run folder as a data set; returns their number.

    Raises:
        ConfigError, DataError: the source is not a run folder, cannot be read, or has no responses; or `folder` cannot be
            written.
    """
    survey = _Survey()
    for row in RunReader(run_folder).rows():
        survey.add(row)
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    span = pa.struct([("source", pa.string()), ("phase", pa.string()), ("start", pa.int64()), ("end", pa.int64())])
    meta = pa.struct(
        [(key, KINDS.get(kind, pa.string())) for key, kind in survey.types.items()] or [("version", pa.string())]
    )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("prompt_id", pa.string()),
            ("rollout", pa.int64()),
            ("messages", pa.list_(message)),
            ("spans", pa.list_(span)),
            ("meta", meta),
        ]
    )
    kept = max(survey.tokens["tokens_student"] + survey.tokens["tokens_teacher"], 1)
    tokens = [f"| {key[7:]} | {n} ({n / kept:.1%} of the kept ones) |" for key, n in survey.tokens.items()]
    card = CARD.format(
        title=folder.name,
        responses=survey.responses,
        prompts=len(survey.prompts),
        made="\n".join(f"| {key} | {', '.join(map(str, sorted(values)))} |" for key, values in survey.values.items()),
        tokens="\n".join(tokens),
    )
    return write_data_set(folder, _json(run_folder), schema, card=card, tags=["tessy", "reasoning", "sft"])


def _json(run_folder: str) -> Iterator[dict[str, Any]]:
    return (row.to_json() for row in rows_in_order(run_folder))
