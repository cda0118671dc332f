"""Token log-probabilities of a few responses under each model, for the report: scores.jsonl in a run folder."""

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
"""The file in the run folder, with one object per line; see `score`."""
LIMIT = 4096
"""The largest number of tokens of prompt and response; later tokens have no score."""
CHUNK = 256  # tokens whose log-probabilities over the vocabulary are in memory at the same time

Score = tuple[int, int, float]
"""Code points start…end−1 of the assistant's content, and the log-probability of the token there."""


class Scorer(NamedTuple):
    """A scoring model with its chat template."""

    model: Decoder
    chat: Chat


class _Reading(NamedTuple):
    """A row in a model's tokens. places: index and code points (start, end) of each scored token."""

    tokens: list[int]
    places: list[tuple[int, int, int]]


def first_rows(rows: Iterable[Row], count: int) -> list[dict[str, Any]]:
    """The first `count` rows in the order of the input, as JSON, so that one process can read them for all."""
    first = heapq.nsmallest(count, rows, key=lambda row: row.place)
    return [row.to_json() for row in first]


def score_lines(models: ModelSet, writers: Sequence[Decoder], rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of scores.jsonl. All processes call it. writers: the decoders of `models.writers`. rows: rows as JSON."""
    scorers: dict[str, Scorer] = {
        writer.name: Scorer(model, writer.chat) for writer, model in zip(models.writers, writers, strict=True)
    }
    seen = [_as_seen(Row.from_json(row), models.config.synthesis.isolation) for row in rows]
    lines = score(seen, scorers, open_text=models.open_text, close_text=models.close_text)
    return "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)


def score(
    rows: Sequence[Row], scorers: Mapping[str, Scorer], *, open_text: str, close_text: str, limit: int = LIMIT
) -> list[dict[str, Any]]:
    """For each row {"id": its id, and by name of each scorer: its `Score`s in order}. All processes call it.

    Log-probabilities are over the full vocabulary at temperature 1. A model reads the prompt in its own template, the
    thinking, its own closing marker, and the answer, as when the row was written. The markers of the thinking are not
    scored, because neither model wrote them. A token ends where the next one begins; a character that several tokens share
    belongs to the last of them.

    rows: rows of a synthesis. open_text, close_text: the thinking markers in these rows.
    """
    lines: list[dict[str, Any]] = [{"id": row.id} for row in rows]
    for name, (model, chat) in scorers.items():
        readings = [_reading(chat, row, open_text, close_text, limit) for row in rows]
        values = _log_probabilities(model, [reading.tokens for reading in readings])
        for line, reading, value in zip(lines, readings, values, strict=True):
            line[name] = [(start, end, round(float(value[at]), 4)) for at, start, end in reading.places]
    return lines


def _as_seen(row: Row, isolation: str | None) -> Row:
    """The row without the isolating system message, which no writer saw."""
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
    """For each sequence, the float32 log-probability of every token given those before it; 0 for the first token.

    Sequences of similar length share a forward pass, one per lane shard, and a compiled program."""
    partitioner = model.partitioner
    at_once = partitioner.num_shards("lanes")
    graph, params = nnx.split(model)
    program = _program(partitioner.sharding((None, None)))
    results: list[np.ndarray] = [np.zeros(0, np.float32)] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for start in range(0, len(order), at_once):
        group = order[start : start + at_once]
        size = bucket(len(sequences[group[-1]]))  # the longest comes last
        tokens_BT, segments_BT = np.zeros((2, at_once, size), np.int32)
        for row, i in enumerate(group):
            tokens_BT[row, : len(sequences[i])] = sequences[i]
            segments_BT[row, : len(sequences[i])] = 1
        values_BT = gather(program(graph, params, *(put(x, partitioner, ("lanes", None)) for x in (tokens_BT, segments_BT))))
        for row, i in enumerate(group):
            results[i] = values_BT[row, : len(sequences[i])]
    return results


@cache
def _program(sharding: Any) -> Any:
    """`_scored`, compiled once per model shape."""
    return jax.jit(_scored, static_argnums=0, out_shardings=sharding)


def _scored(graph: Any, params: Any, tokens_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Log-probabilities of the tokens, float32 [B, T]; 0 for the first token of a row."""
    model = nnx.merge(graph, params)
    hidden_BTD, _ = model(tokens_BT, segments_BT=segments_BT)
    losses_BT = token_losses(model, hidden_BTD[:, :-1], tokens_BT[:, 1:], chunk=CHUNK)
    return jnp.pad(-losses_BT, ((0, 0), (1, 0)))
