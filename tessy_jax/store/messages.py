"""Reads messages from the published forms of conversations.

No content of a message is dropped: text parts are joined, reasoning becomes the thinking at the start of the content, and
every other field that has a value is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tessy_jax.errors import DataError
from tessy_jax.records import CLOSE, OPEN

ROLES = ("system", "developer", "user", "assistant", "tool")
FROM = {**{role: role for role in ROLES}, "human": "user", "gpt": "assistant"}
"""Names of speakers, and their roles."""
FORMS = ("messages", "dialogs", "conversations")
"""Columns that hold a complete conversation."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields that hold the thinking of an assistant message or a completion."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a content that hold text."""
SETTINGS = ("on", "off", "true", "false", "low", "medium", "high")
"""Values of these fields that set how much a model should think; they are not thinking."""
SYSTEM = ("system", "system_prompt", "system_message")
"""Columns that hold the system message of a row."""
UNSEEN = (
    *("tools", "functions", "documents", "chat_template_kwargs"),
    *("image", "images", "audio", "audios", "video", "videos"),
)
"""Columns that other tools show to the model together with the messages."""
PROMPT_PARTS = ("input", "context", "passage", "article", "story", "document")
"""Columns that belong to a prompt that is one text."""
LISTS_FILES = "JSONL, JSON and Parquet"
SHOWN = 60
"""Maximum length of a value in an error, in characters."""
PAIRS = (("role", "content"), ("from", "value"))
"""The fields of a message: speaker and text."""
BESIDE = (*SYSTEM, *UNSEEN, *PROMPT_PARTS, *REASONING)
"""Columns that are read in addition to those of the forms."""
THOUGHTS = ("thought", "thoughts", "think", "cot", "chain_of_thought", "reasoning_trace", "deepseek_reasoning")
"""Other columns of data sets that hold the thinking of an answer."""
MARKS = ("label", "train", "weight")
"""Columns that say whether a row should be learnt, and with which weight."""
LIST_AS_TEXT = re.compile(r"\s*(?:array\()?\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")
RENDERED = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>)?\s*(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>"
    r"|<\|start\|>(?:system|developer|user)|<\|start_of_role\|>|<\|prompter\|>|<｜(?:User|Assistant)｜>|\[INST\])"
)
"""The beginning of a text that a chat template has already rendered."""
ENDED = re.compile(
    r"(?:<\|(?:im_end|eot_id|eom_id|endoftext|end_of_text|return)\|>|<end_of_turn>|<｜end▁of▁sentence｜>)\s*\Z"
)
"""The end of an answer that a chat template has already rendered."""


def messages_of(
    row: Any, forms: Sequence[str], role: str = "user", *, or_else: str = "", beside: str = ""
) -> tuple[str, list[dict[str, str]]]:
    """The first of these keys that a row has, and the messages, role and content each, that it holds.

    A message has role and content, or from and value; a string as prompt or completion is one message of `role`. The
    messages may also be one object of lists of equal length, the form of a `datasets` Sequence column. The row's own system
    message comes first, unless `role` is the assistant. or_else: other contents that a row may hold, and beside:
    another remedy for a column beside a prompt, both for the errors.

    Raises:
        DataError: the row is not an object, has none of the keys, holds no messages under its key, the row or a message has
            a field that would be dropped, such as tools, or two columns hold different conversations.
    """
    if not isinstance(row, dict):
        raise DataError(f"is {_kind(row)}; it should be an object with {_listed(forms)}{or_else and f', {or_else}'}")
    form = next((form for form in forms if row.get(form) is not None), None)  # Parquet has null for what a row lacks
    if form is None:
        right = _listed(forms) + (f", {or_else}" if or_else else "")
        raise DataError(f"holds {held_by(row)}; it should hold {right}")
    unseen = (*UNSEEN, *PROMPT_PARTS) if form == "prompt" else UNSEEN
    lost = next((name for name in unseen if not _empty(row.get(name))), None)
    if lost is not None:
        other_remedy = f", {beside}" if beside and lost in PROMPT_PARTS else ""
        raise DataError(
            f"has `{lost}` beside `{form}`, which no model would see; move what the model should see into `{form}`, and "
            f"leave `{lost}` out{other_remedy}"
        )
    messages = _messages(row, form, role)
    for other in FORMS:
        if form in FORMS and other != form and not _absent(row.get(other)) and _messages(row, other, role) != messages:
            raise DataError(f"holds different conversations in `{form}` and `{other}`; leave one of them out")
    return form, messages if role == "assistant" else _with_system(row, messages)


def refuse_rendered(messages: Sequence[dict[str, str]], form: str) -> None:
    """Refuses messages that a chat template has already rendered, and texts that hold a list of messages. The model's own
    template is applied to them, so the model would see two templates, or brackets and quotes.

    Raises:
        DataError: there is one; names the message and its marker.
    """
    for i, message in enumerate(messages):
        content, name = message["content"], f"{form}[{i}]" if len(messages) > 1 else form
        if LIST_AS_TEXT.match(content):
            raise DataError(
                f"{name} is a text that holds a list of messages ({short(content)}); give the list itself, as {LISTS_FILES} "
                "can hold it"
            )
        begins = RENDERED.match(content)
        ends = ENDED.search(content) if message["role"] == "assistant" else None
        if begins or ends:
            where = f"begins with {short(begins[0])}" if begins else f"ends with {short(ends[0]) if ends else ''}"
            raise DataError(
                f"{name} {where}, so a chat template has already rendered it; give the text of each message alone, because "
                "the model's own template is applied to it"
            )


def refuse_unlearnt(row: dict[str, Any], messages: Sequence[dict[str, str]]) -> None:
    """Refuses a training row whose columns say that it should not be learnt unchanged.

    Raises:
        DataError: the last message lacks the thinking in another column, or one of `MARKS` excludes or weights the row.
    """
    for key in (*REASONING, *THOUGHTS):
        value = row.get(key)
        if isinstance(value, str) and value not in SETTINGS and value.strip() not in messages[-1]["content"]:
            raise DataError(
                f"has a column `{key}` beside its messages, which would be dropped; move it into the last assistant message"
            )
    off = next((name for name in ("label", "train") if str(row.get(name)).lower() == "false"), None)
    if off is not None:
        raise DataError(
            f"has `{off}` false, which marks an answer that should not be learnt; leave out such rows, or the column if it "
            "means something else"
        )
    if row.get("weight") not in (None, "", 1, "1", "1.0"):
        raise DataError(
            f"has the weight {short(row['weight'])}, but rows cannot have weights; leave out the row or its weight"
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
    return encodable(str(value), "id")


def _messages(row: dict[str, Any], form: str, role: str) -> list[dict[str, str]]:
    value, plain = row[form], form in ("prompt", "completion")
    if plain and isinstance(value, str):
        content = encodable(value, form)
        return [{"role": role, "content": _thought(row, "", content) if role == "assistant" else content}]
    if isinstance(value, dict):
        value = _side_by_side(value, form)
    if isinstance(value, list):
        return [
            _message(turn, f"{form}[{i}]", PAIRS[::-1] if form == "conversations" else PAIRS) for i, turn in enumerate(value)
        ]
    right = "a string or a list of messages" if plain else "a list of messages"
    remedy = f", as {LISTS_FILES} can hold it" if isinstance(row[form], str) else ""
    raise DataError(f"{form} is {_kind(row[form])}; it should be {right}{remedy}")


def _side_by_side(value: dict[str, Any], form: str) -> Any:
    """The messages in an object of lists of equal length; None if it is not such an object."""
    if not value or not all(isinstance(column, list) for column in value.values()):
        return None
    lengths = {name: len(column) for name, column in value.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{n} in `{name}`" for name, n in lengths.items())
        raise DataError(f"{form} is an object of lists of different lengths ({shown}); give one item per message")
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def _with_system(row: dict[str, Any], messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages with the row's own system message in front."""
    given = {name: row[name] for name in SYSTEM if not _absent(row.get(name))}
    if not given:
        return messages
    name, value = next(iter(given.items()))
    wrong = next((name for name, other in given.items() if not isinstance(other, str)), None)
    if wrong is not None:
        shown = _kind(given[wrong])
        raise DataError(f"{wrong} is {shown}; it should be the text of the system message; correct it or leave it out")
    if len(set(given.values())) > 1:
        raise DataError(f"holds different system messages in {_listed(list(given), 'and')}; keep one of them")
    system = {"role": "system", "content": encodable(value, name)}
    if messages and messages[0]["role"] == "system":
        if messages[0] != system:
            raise DataError(f"has `{name}` and a different system message among its messages; keep one of them")
        return messages
    return [system, *messages]


def _message(turn: Any, name: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A message. pairs: names of the fields for speaker and text, the usual names of the form first."""
    fields = turn if isinstance(turn, dict) else {}
    pair = next((pair for pair in pairs if fields.keys() >= set(pair)), None)
    if pair is None:
        shown = _listed(sorted(fields), "and") or "nothing" if isinstance(turn, dict) else _kind(turn)
        right = " and ".join(pairs[0])
        raise DataError(f"{name} {'holds' if isinstance(turn, dict) else 'is'} {shown}; it should hold {right}")
    speaker, text = pair
    role = turn[speaker]
    if not isinstance(role, str) or role not in FROM:
        raise DataError(
            f"{name}.{speaker} is {short(role) if isinstance(role, str) else _kind(role)}; use {_listed(list(FROM))}"
        )
    role = FROM[role]
    known = (speaker, text, *(REASONING if role == "assistant" else ()))
    lost = sorted(key for key, value in turn.items() if key not in known and not _absent(value))
    if lost:
        raise DataError(
            f"{name} ({role}) holds {_listed(lost, 'and')}, which would be dropped; move what the model should see into "
            f"{text}, and remove the rest"
        )
    content = _content(turn[text], f"{name}.{text}")
    return {"role": role, "content": _thought(turn, f"{name}.", content) if role == "assistant" else content}


def _content(value: Any, name: str) -> str:
    """The text of a string, or of a list of strings and text parts."""
    if isinstance(value, str):
        return encodable(value, name)
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} is {_kind(value)}; it should be a string, or a list of text parts")
    texts = []
    for i, part in enumerate(value):
        if isinstance(part, str):
            texts.append(part)
            continue
        given = {key: item for key, item in part.items() if not _absent(item)} if isinstance(part, dict) else {}
        if set(given) - {"text"} != {"type"} or given["type"] not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise DataError(
                f'{name}[{i}] is {short(given or part)}; it should be a text part, {{"type": "text", "text": …}}; write it '
                "as text, or leave out such rows"
            )
        texts.append(part["text"])
    return encodable("".join(texts), name)


def _thought(holder: dict[str, Any], name: str, content: str) -> str:
    """The content of an answer, with the thinking from a separate field in front."""
    given = {key: holder[key] for key in REASONING if not _absent(holder.get(key))}
    wrong = next((key for key, value in given.items() if not isinstance(value, str) or value in SETTINGS), None)
    if wrong is not None:
        shown = _kind(given[wrong])
        raise DataError(f"{name}{wrong} is {shown}; it should be the text of the thinking; correct it or leave it out")
    if len(set(given.values())) > 1:
        raise DataError(f"{name or 'the row '}holds different thinking in {_listed(list(given), 'and')}; keep one of them")
    if not given:
        return content
    key, thinking = next(iter(given.items()))
    in_both, tagged = "the text has {}; keep the thinking in one of them", "contains the tag {}; remove the tags"
    for text, problem in ((content, in_both), (thinking, tagged)):
        marker = re.search(r"</?think(ing)?>", text, re.IGNORECASE)
        if marker:
            raise DataError(f"{name}{key} holds thinking, and {problem.format(marker[0])}")
    return f"{OPEN}{encodable(thinking, name + key).strip()}{CLOSE}{content}"


def _absent(value: Any) -> bool:
    """Whether a field is empty, as in a table with a column that only other rows need."""
    return value is None or value in ("", [], {})


def _empty(value: Any) -> bool:
    """Whether a column is empty, which includes an object of empty values and the text of an empty list."""
    return _absent(value) or value == "[]" or (isinstance(value, dict) and all(map(_absent, value.values())))


def encodable(text: str, name: str) -> str:
    """A text that UTF-8 can encode, unchanged. name: what holds it, for the error.

    Raises:
        DataError: it holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half of a surrogate pair, which is not text; remove it") from None
    return text


def _kind(value: Any) -> str:
    """Describes a JSON value for a message: its value, or the keys of an object."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return f"an object of {_listed(sorted(map(str, value)), 'and')}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    names = {int: "the number", float: "the number", str: "the string"}
    return f"{names.get(type(value), f'the {type(value).__name__}')} {short(value)}"


def short(value: Any) -> str:
    """The beginning of a value, for errors."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}…"


def held_by(row: dict[str, Any]) -> str:
    """The names of the columns that have a value, for errors."""
    return _listed(sorted(name for name, value in row.items() if value is not None), "and") or "nothing"


def _listed(names: Sequence[str], last: str = "or") -> str:
    """The first dozen names, as part of a sentence."""
    cut = [name if len(name) <= SHOWN else f"{name[: SHOWN - 3]}…" for name in names[:12]]
    shown = [f"`{name}`" for name in cut] + ["more"] * (len(names) > 12)
    return f" {last} ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
