"""Messages out of the forms in which conversations are published.

Nothing that a message holds is dropped: its text parts are joined, its reasoning becomes the thinking at the start of its
content, and whatever else has a value is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tessy_jax.errors import DataError
from tessy_jax.records import CLOSE, OPEN

ROLES = ("system", "developer", "user", "assistant", "tool")
FROM = {"human": "user", "gpt": "assistant", **{role: role for role in ROLES}}
"""Speakers of `conversations`, and their roles."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields that hold the thinking of an assistant's message, or of a completion."""
SETTINGS = ("on", "off", "true", "false", "low", "medium", "high")
"""Values of such a field in data sets that say how much a model should think."""
BESIDE = ("system", "tools", *REASONING)
"""Columns that are read beside those of the forms."""


def messages_of(
    row: Any, forms: Sequence[str], role: str = "user", *, or_else: str = ""
) -> tuple[str, list[dict[str, str]]]:
    """The first of these keys that a row has, and the messages, role and content each, that it holds.

    `conversations` have from and value; a string as prompt or completion is one message of `role`. The messages may also be
    one object of lists side by side, as a `datasets` Sequence column has them. The row's `system` is the first message,
    unless `role` is the assistant. or_else: what a row may hold instead, for the error.

    Raises:
        DataError: the row is no object, has none of the keys, what it has is no messages, or a message or the row holds
            something that would be dropped, such as tools.
    """
    if not isinstance(row, dict):
        raise DataError(f"is {_kind(row)}; it should be an object with {_listed(forms)}")
    form = next((form for form in forms if row.get(form) is not None), None)  # Parquet has null for what a row lacks
    if form is None:
        right = _listed(forms) + (f", {or_else}" if or_else else "")
        held = sorted(key for key, value in row.items() if value is not None)
        raise DataError(f"holds {_listed(held, 'and') or 'nothing'}; it should hold {right}")
    if not _absent(row.get("tools")) and row["tools"] != "[]":
        raise DataError("has tools, which no model would see; write them into the system message, or leave them out")
    messages = _messages(row, form, role)
    return form, messages if role == "assistant" else _with_system(row, messages)


def refuse_lost_thinking(row: dict[str, Any], messages: Sequence[dict[str, str]]) -> None:
    """Refuses a row of messages with a column of thinking that its last message does not hold.

    Raises:
        DataError: names the column.
    """
    for key in REASONING:
        value = row.get(key)
        if isinstance(value, str) and value not in SETTINGS and value.strip() not in messages[-1]["content"]:
            raise DataError(
                f"has `{key}` beside its messages, which would be dropped; write it into the assistant's last message"
            )


def own_id(row: dict[str, Any]) -> str | None:
    """The row's `id`, or None where it has none.

    Raises:
        DataError: it is neither a string nor a whole number, or is empty.
    """
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(
            f"id is {'empty' if value == '' else _kind(value)}; it should be a string or a whole number, or left out"
        )
    return _text(str(value), "id")


def _messages(row: dict[str, Any], form: str, role: str) -> list[dict[str, str]]:
    value, plain = row[form], form in ("prompt", "completion")
    if plain and isinstance(value, str):
        content = _text(value, form)
        return [{"role": role, "content": _thought(row, "", content) if role == "assistant" else content}]
    if isinstance(value, dict):
        value = _side_by_side(value, form)
    if isinstance(value, list):
        return [_message(turn, f"{form}[{i}]", form == "conversations") for i, turn in enumerate(value)]
    right = "a string or a list of messages" if plain else "a list of messages"
    raise DataError(f"{form} is {_kind(row[form])}; it should be {right}")


def _side_by_side(value: dict[str, Any], form: str) -> Any:
    """Messages out of an object of equally long lists; None if it is no such object."""
    if not value or not all(isinstance(column, list) for column in value.values()):
        return None
    lengths = {name: len(column) for name, column in value.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{n} in `{name}`" for name, n in lengths.items())
        raise DataError(f"{form} is an object of lists of different lengths ({shown}); they should have one item a message")
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def _with_system(row: dict[str, Any], messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages with the row's own system message in front."""
    value = row.get("system")
    if _absent(value):
        return messages
    if not isinstance(value, str):
        raise DataError(f"system is {_kind(value)}; it should be the text of the system message, or left out")
    system = {"role": "system", "content": _text(value, "system")}
    if messages and messages[0]["role"] == "system":
        if messages[0] != system:
            raise DataError("has `system` and another system message among its messages; give one of them")
        return messages
    return [system, *messages]


def _message(turn: Any, name: str, spoken: bool) -> dict[str, str]:
    """A message out of role and content, or (spoken) out of from and value."""
    speaker, text = ("from", "value") if spoken else ("role", "content")
    roles = tuple(FROM) if spoken else ROLES
    if not isinstance(turn, dict) or any(key not in turn for key in (speaker, text)):
        found = _listed(sorted(turn), "and") or "nothing" if isinstance(turn, dict) else f"{_kind(turn)}"
        raise DataError(f"{name} {'holds' if isinstance(turn, dict) else 'is'} {found}; it should hold {speaker} and {text}")
    role = turn[speaker]
    if role not in roles:
        shown = repr(role) if isinstance(role, str) else _kind(role)
        raise DataError(f"{name}.{speaker} is {shown}; use {_listed(roles)}")
    role = FROM[role]
    known = (speaker, text, *(REASONING if role == "assistant" else ()))
    lost = sorted(key for key, value in turn.items() if key not in known and not _absent(value))
    if lost:
        raise DataError(
            f"{name} ({role}) holds {_listed(lost, 'and')}, which would be dropped; write into {text} what the model should "
            "see, and leave out the rest"
        )
    content = _content(turn[text], f"{name}.{text}")
    return {"role": role, "content": _thought(turn, f"{name}.", content) if role == "assistant" else content}


def _content(value: Any, name: str) -> str:
    """The text of a string, or of a list of text parts."""
    if isinstance(value, str):
        return _text(value, name)
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} is {_kind(value)}; it should be a string, or a list of text parts")
    texts = []
    for i, part in enumerate(value):
        held = {key: item for key, item in part.items() if not _absent(item)} if isinstance(part, dict) else {}
        if set(held) - {"text"} != {"type"} or held["type"] != "text" or not isinstance(part.get("text"), str):
            raise DataError(
                f"{name} is a list whose part {i} is {_short(held or part)}; only texts are read: "
                '{"type": "text", "text": …}'
            )
        texts.append(part["text"])
    return _text("".join(texts), name)


def _thought(holder: dict[str, Any], name: str, content: str) -> str:
    """An answer's content with the thinking of its own field in front."""
    given = {key: holder[key] for key in REASONING if not _absent(holder.get(key))}
    wrong = next((key for key, value in given.items() if not isinstance(value, str) or value in SETTINGS), None)
    if wrong is not None:
        raise DataError(f"{name}{wrong} is {_kind(given[wrong])}; it should be the text of the thinking, or left out")
    if len(set(given.values())) > 1:
        raise DataError(f"{name or 'the row '}holds different thinking in {_listed(list(given), 'and')}; give one of them")
    if not given:
        return content
    key, thinking = next(iter(given.items()))
    for text, where in ((content, "the text"), (thinking, "its field")):
        marker = re.search(r"</?think(ing)?>", text, re.IGNORECASE)
        if marker:
            raise DataError(
                f"{name}{key} holds thinking, and {where} has {marker[0]}; write the thinking in one of them, without tags"
            )
    return f"{OPEN}{_text(thinking, name + key).strip()}{CLOSE}{content}"


def _absent(value: Any) -> bool:
    """Whether a field says nothing, as where a table has a column that other rows need."""
    return value is None or value in ("", [], {})


def _text(text: str, name: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half of a surrogate pair, which is no text; remove it") from None
    return text


def _kind(value: Any) -> str:
    """What a JSON value is, for messages; it shows the value, or the keys of an object."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return f"an object of {_listed(sorted(map(str, value)), 'and')}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    names = {int: "the number", float: "the number", str: "the string"}
    return f"{names.get(type(value), f'the {type(value).__name__}')} {_short(value)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _listed(names: Sequence[str], last: str = "or") -> str:
    """The first dozen names, as a sentence has them."""
    shown = [f"`{name}`" for name in names[:12]] + ["more"] * (len(names) > 12)
    return f" {last} ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
