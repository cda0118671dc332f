"""Rows as token ids: the context, the targets, and the writer of each target.

The context equals, token for token, the prompt that synthesis gives the student: the chat template up to the opened
thinking. The thinking, its closing marker, the answer and the end of the turn are tokenized separately, as during synthesis.
Training therefore sees the tokens that the student will produce, and a chat template that drops or changes thinking does not
affect them. Thinking in any form that `text/thinking.py` recognises gets the student's own markers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tessy_jax.errors import DataError, TokenizerError
from tessy_jax.records import Row
from tessy_jax.store.messages import short
from tessy_jax.text.chat import Chat
from tessy_jax.text.thinking import Thinking, check, find
from tessy_jax.train.pack import NO_TARGET, Example, TargetKind

KINDS = tuple(kind.name.lower() for kind in TargetKind)
"""The names of `TargetKind`, in the order of their numbers."""


def example(chat: Chat, row: Row) -> Example:
    """The example of a row. Targets are the tokens of the assistant's last message and of the end of its turn.

    The kind of a token is that of its first character. Without spans it is UNKNOWN.

    Raises:
        DataError: the message does not close its thinking, has no answer after it, has markers of thinking elsewhere, or the
            template cannot render the row.
    """
    content = row.content
    char_kinds = _kinds(row)
    try:
        thinking = _thinking(chat, row)
        context, opening = chat.turn_start(row.messages[:-1], thinks=thinking is not None)
        pieces: list[tuple[Sequence[int], Sequence[int]]] = [
            (context, [NO_TARGET] * len(context)),
            (opening, [TargetKind.TEMPLATE] * len(opening)),
        ]
        first = 0
        if thinking is not None:
            pieces.append(_text(chat, content, char_kinds, thinking.start, thinking.end))
            pieces.append((chat.close_ids, [TargetKind.TEMPLATE] * len(chat.close_ids)))
            first = thinking.answer
        pieces.append(_text(chat, content, char_kinds, first, len(content)))
        pieces.append((chat.turn_end, [TargetKind.TEMPLATE] * len(chat.turn_end)))
    except (DataError, TokenizerError) as error:
        raise DataError(f"row {short(row.id)}: {error}") from error
    tokens = np.array([token for ids, _ in pieces for token in ids], np.int32)
    return Example(tokens, tokens, np.array([kind for _, kinds in pieces for kind in kinds], np.uint8))


def _thinking(chat: Chat, row: Row) -> Thinking | None:
    """The thinking of a row. If a row has spans, they decide whether it has thinking, and its text may mention markers."""
    if row.spans and all(span.phase != "think" for span in row.spans):
        return None
    thinking = find(row.content, chat.open_text, chat.close_text)
    if not row.spans:
        check(row.content, thinking, chat.open_text, chat.close_text)
        if thinking is not None and not row.content[thinking.answer :].strip():
            raise DataError("has thinking but no answer after it; leave out answers that were cut off")
    return thinking


def _kinds(row: Row) -> np.ndarray:
    """The kind of every character of the content."""
    kinds = np.full(len(row.content), TargetKind.UNKNOWN, np.uint8)
    for span in row.spans:
        kinds[span.start : span.end] = TargetKind[span.source.upper()]
    return kinds


def _text(chat: Chat, content: str, kinds: np.ndarray, start: int, end: int) -> tuple[list[int], list[int]]:
    token_ids, begins = chat.text_tokens(content[start:end])
    return token_ids, kinds[start:end][begins].tolist() if begins else []
