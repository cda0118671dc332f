"""How probable each model finds what stands in a few responses, token by token: who wrote what they could have written
alone, and who did not. For people to look at; kept as scores.jsonl in the run folder of a synthesis."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tessy_jax.decode.generate import bucket
from tessy_jax.models.loss import token_losses
from tessy_jax.models.transformer import Decoder
from tessy_jax.processes import gather
from tessy_jax.records import Row
from tessy_jax.sharding import put
from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.text.chat import Chat

SCORES = "scores.jsonl"
"""The file in the run folder: an object a line, see `score`."""
LIMIT = 4096
"""Tokens of prompt and response that are read at most; what comes after them has no score."""
SHORTEST = 256  # tokens of a program; else as many as a cache
CHUNK = 256  # tokens of all rows whose log-probabilities over the vocabulary are held at once

Score = tuple[int, int, float]
"""Code points start…end−1 of the assistant's content, and the log-probability of the token that stands there."""


class Scorer(NamedTuple):
    """A model that scores, with its own chat template."""

    model: Decoder
    chat: Chat


class _Reading(NamedTuple):
    """A row in a model's own tokens. places: of each token that is scored: its index, and its code points."""

    tokens: list[int]
    places: list[tuple[int, int, int]]


def first_rows(rows: Iterable[Row], count: int) -> list[dict[str, Any]]:
    """The rows to score, the first in the order of the input, as JSON: one process may read them for all."""
    first = heapq.nsmallest(count, rows, key=lambda row: row.place)
    return [row.to_json() for row in first]


def score_lines(models: ModelSet, writers: Sequence[Decoder], rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of scores.jsonl for some rows as JSON; all processes ask for it together. writers: the models of the cast's
    voices."""
    scorers: dict[str, Scorer] = {
        writer.name: Scorer(model, writer.chat) for writer, model in zip(models.writers, writers, strict=True)
    }
    known = [_as_seen(Row.from_json(row), models.config.synthesis.isolation) for row in rows]
    found = score(known, scorers, open_text=models.open_text, close_text=models.close_text)
    return "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in found)


def score(
    rows: Sequence[Row], scorers: Mapping[str, Scorer], *, open_text: str, close_text: str, limit: int = LIMIT
) -> list[dict[str, Any]]:
    """Per row {"id": its id, and per scorer by name: its `Score`s in order}; all processes ask for it together.

    The log-probability is that of the whole vocabulary at temperature 1. A model reads what it read when the row was
    written: the prompt in its own template, the thinking, what it closes thinking with, and the answer. What opens and
    closes the thinking is not scored, being neither model's. A token ends where the next one begins; of tokens that share
    a character the last one has it.

    rows: as synthesis writes them. open_text, close_text: how thinking opens and closes in them.
    """
    found: list[dict[str, Any]] = [{"id": row.id} for row in rows]
    for name, (model, chat) in scorers.items():
        readings = [_reading(chat, row, open_text, close_text, limit) for row in rows]
        values = _log_probabilities(model, [reading.tokens for reading in readings])
        for line, reading, value in zip(found, readings, values, strict=True):
            line[name] = [(start, end, round(float(value[at]), 4)) for at, start, end in reading.places]
    return found


def _as_seen(row: Row, isolation: str | None) -> Row:
    """The row without the system message that no writer has seen."""
    if isolation is None:
        return row
    first, *rest = row.messages
    own = first["content"].removeprefix(isolation).removeprefix("\n\n")
    return replace(row, messages=(*([{"role": "system", "content": own}] if own else []), *rest))


def _reading(chat: Chat, row: Row, open_text: str, close_text: str, limit: int) -> _Reading:
    content, first = row.content, len(open_text)
    closes = content.find(close_text, first)
    thought = len(content) if closes < 0 else closes
    tokens = chat.prompt(row.messages[:-1])
    places: list[tuple[int, int, int]] = []

    def read(start: int, end: int) -> None:
        ids, begins = chat.text_tokens(content[start:end])
        spans = pairwise([*begins, end - start])
        places.extend((len(tokens) + i, start + begin, start + stop) for i, (begin, stop) in enumerate(spans))
        tokens.extend(ids)

    read(first, thought)
    if closes >= 0:
        tokens.extend(chat.close_ids)
        read(closes + len(close_text), len(content))
    return _Reading(tokens[:limit], [place for place in places if place[0] < limit])


def _log_probabilities(model: Decoder, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Of every token of some sequences, given those before it; 0 for the first. Sequences of like length share a pass, as
    many as the mesh cuts lanes into pieces, and a program."""
    partitioner = model.partitioner
    at_once = partitioner.num_shards("lanes")
    graph, params = nnx.split(model)
    program = _program(partitioner.sharding((None, None)))
    found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for start in range(0, len(order), at_once):
        group = order[start : start + at_once]
        size = bucket(max(SHORTEST, len(sequences[group[-1]])))  # the longest comes last
        tokens_BT, segments_BT = np.zeros((2, at_once, size), np.int32)
        for row, i in enumerate(group):
            tokens_BT[row, : len(sequences[i])] = sequences[i]
            segments_BT[row, : len(sequences[i])] = 1
        values_BT = gather(program(graph, params, *(put(x, partitioner, ("lanes", None)) for x in (tokens_BT, segments_BT))))
        for row, i in enumerate(group):
            found[i] = values_BT[row, : len(sequences[i])]
    return found


@cache
def _program(sharding: Any) -> Any:
    """`_scored`, compiled once for models of one shape, however often they are asked."""
    return jax.jit(_scored, static_argnums=0, out_shardings=sharding)


def _scored(graph: Any, params: Any, tokens_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Log-probabilities float32 [B, T] of the tokens, those of the first being 0."""
    model = nnx.merge(graph, params)
    hidden_BTD, _ = model(tokens_BT, segments_BT=segments_BT)
    losses_BT = token_losses(model, hidden_BTD[:, :-1], tokens_BT[:, 1:], chunk=CHUNK)
    return jnp.pad(-losses_BT, ((0, 0), (1, 0)))
