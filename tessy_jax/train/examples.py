"""Rows as token ids: what the student reads, what it learns, and who wrote each token that it learns.

The context is what synthesis gives the student, to the token: its chat template up to the opened thinking. What follows is
tokenized as it was when it was written, piece by piece: the thinking, what closes it, the answer, the end of the turn. So
training sees the tokens that the student will produce, and a template that would cut or change the thinking of an earlier
turn is not asked about this one.
"""

from __future__ import annotations

import numpy as np

from tessy_jax.errors import DataError, TokenizerError
from tessy_jax.records import SOURCES, Row
from tessy_jax.text.chat import Chat
from tessy_jax.train.pack import NO_TARGET, Example

KINDS = ("none", *SOURCES, "unknown")
"""What `Example.kinds` numbers: no target, a target by who wrote it, and a target of a row that does not say."""
STYLE, CAPABILITY = KINDS.index("student"), KINDS.index("teacher")
TEMPLATE, UNKNOWN = KINDS.index("template"), KINDS.index("unknown")


def example(chat: Chat, row: Row) -> Example:
    """The row's tokens. Targets are the assistant's last message and the end of its turn.

    A token is of the kind of the character that it begins with. Rows without spans are `unknown`.

    Raises:
        DataError: the message opens the thinking and does not close it, or the template cannot render the row.
    """
    content = row.content
    kinds_of = _kinds(row)
    thinks = content.startswith(chat.open_text)
    try:
        context, opening = chat.turn_start(row.messages[:-1], thinks=thinks)
        pieces = [(context, [NO_TARGET] * len(context)), (opening, [TEMPLATE] * len(opening))]
        first = 0
        if thinks:
            first = len(chat.open_text)
            end = content.find(chat.close_text, first)
            if end < 0:
                raise DataError(f"row {row.id!r}: opens its thinking with {chat.open_text!r} and never closes it with "
                                f"{chat.close_text!r}; say in student.thinking how the data marks it")  # fmt: skip
            pieces.append(_text(chat, content, kinds_of, first, end))
            pieces.append((chat.close_ids, [TEMPLATE] * len(chat.close_ids)))
            first = end + len(chat.close_text)
        pieces.append(_text(chat, content, kinds_of, first, len(content)))
        pieces.append((chat.turn_end, [TEMPLATE] * len(chat.turn_end)))
    except TokenizerError as error:
        raise DataError(f"row {row.id!r}: {error}") from error
    tokens = [token for ids, _ in pieces for token in ids]
    return Example(np.array(tokens, np.int32), np.array([kind for _, kinds in pieces for kind in kinds], np.uint8))


def _kinds(row: Row) -> np.ndarray:
    """The kind of every character of the content."""
    kinds = np.full(len(row.content), UNKNOWN, np.uint8)
    for span in row.spans:
        kinds[span.start : span.end] = 1 + SOURCES.index(span.source)
    return kinds


def _text(chat: Chat, content: str, kinds: np.ndarray, start: int, end: int) -> tuple[list[int], list[int]]:
    token_ids, begins = chat.text_tokens(content[start:end])
    return token_ids, kinds[start:end][begins].tolist() if begins else []
