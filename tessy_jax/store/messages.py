"""Messages out of the forms in which conversations are published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tessy_jax.errors import DataError

ROLES = ("system", "user", "assistant")
FROM = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""Speakers of `conversations`, and their roles."""


def messages_of(
    row: Any, forms: Sequence[str], role: str = "user", *, or_else: str = ""
) -> tuple[str, list[dict[str, str]]]:
    """The first of these keys that a row has, and the messages, role and content each, that it holds.

    `conversations` have from and value; a string as prompt or completion is one message of `role`. or_else: what a row may
    hold instead, for the error.

    Raises:
        DataError: the row is no object, has none of the keys, or what it has is no messages.
    """
    if not isinstance(row, dict):
        raise DataError(f"is {_kind(row)}; it should be an object with {_listed(forms)}")
    form = next((form for form in forms if row.get(form) is not None), None)  # Parquet has null for what a row lacks
    if form is None:
        right = _listed(forms) + (f", {or_else}" if or_else else "")
        raise DataError(f"holds {_listed(sorted(row), 'and') or 'nothing'}; it should hold {right}")
    value, plain = row[form], form in ("prompt", "completion")
    if plain and isinstance(value, str):
        return form, [{"role": role, "content": _text(value, form)}]
    if isinstance(value, list):
        return form, [_message(turn, f"{form}[{i}]", form == "conversations") for i, turn in enumerate(value)]
    right = "a string or a list of messages" if plain else "a list of messages"
    raise DataError(f"{form} is {_kind(value)}; it should be {right}")


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


def _message(turn: Any, name: str, spoken: bool) -> dict[str, str]:
    """A message out of role and content, or (spoken) out of from and value."""
    keys, roles = (("from", "value"), tuple(FROM)) if spoken else (("role", "content"), ROLES)
    if not isinstance(turn, dict) or any(key not in turn for key in keys):
        found = _listed(sorted(turn), "and") or "nothing" if isinstance(turn, dict) else f"{_kind(turn)}"
        raise DataError(
            f"{name} {'holds' if isinstance(turn, dict) else 'is'} {found}; it should hold {keys[0]} and {keys[1]}"
        )
    role, content = turn[keys[0]], turn[keys[1]]
    if role not in roles:
        raise DataError(
            f"{name}.{keys[0]} is {_kind(role) if not isinstance(role, str) else repr(role)}; use {_listed(roles)}"
        )
    if not isinstance(content, str):
        raise DataError(f"{name}.{keys[1]} is {_kind(content)}; it should be a string")
    return {"role": FROM[role], "content": _text(content, f"{name}.{keys[1]}")}


def _text(text: str, name: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half of a surrogate pair, which is no text; remove it") from None
    return text


def _kind(value: Any) -> str:
    """What a JSON value is, for messages."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")


def _listed(names: Sequence[str], last: str = "or") -> str:
    """The first dozen names, as a sentence has them."""
    shown = [f"`{name}`" for name in names[:12]] + ["more"] * (len(names) > 12)
    return f" {last} ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
