"""Reads chat completions: the text of the reply, or the reason why there is none.

Servers reply in several forms: content as text or as a list of parts; reasoning without content; an error in a response with
status 200; a reply that ends at the token limit. Each form has its own outcome.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tessy_jax.boundary.spans import Reason
from tessy_jax.store.messages import REASONING, TEXT_PARTS

REASONING_PARTS = frozenset({"thinking", "reasoning", "reasoning_text", "redacted_thinking"})
"""Types of parts that hold reasoning."""
STATUS_OF_CODE = {
    "invalid_api_key": 401,
    "insufficient_quota": 402,
    "model_not_found": 404,
    "rate_limit_exceeded": 429,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "NotFoundError": 404,
}
"""The status of an error, by its code or type, if it gives no number."""
UNKNOWN_ERROR = 500
"""The status of an error that gives no number and no known code or type."""
COMPLETE = frozenset(
    (
        "stop",
        "stop_token",
        "stop_sequence",
        "stop_str",
        "eos",
        "eos_token",
        "end_turn",
        "end",
        "done",
        "finished",
        "completed",
    )
)
"""Finish reasons of a complete reply, in lower case. A server may also give none."""
LIMITED = frozenset({"length", "max_tokens", "model_length", "max_output_tokens"})
"""Finish reasons of a reply that ends at the token limit."""
FILTERED = frozenset({"content_filter", "refusal", "safety", "recitation", "sensitive", "prohibited_content"})
"""Finish reasons of a refusal by the server or its model."""
CALLING = frozenset({"tool_calls", "tool_use", "function_call"})
"""Finish reasons of a reply that calls tools."""


class Completion(NamedTuple):
    """A chat completion. text: the text of the reply. reason: why the text is not a complete reply; None if it is. detail:
    the reason in words, with the remedy. status: the HTTP status of an error; None if there is no error."""

    text: str
    reason: Reason | None = None
    detail: str = ""
    status: int | None = None


def read_completion(body: str) -> Completion:
    """The completion in the body of a response with status 200. Does not raise."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return _no_completion(body)
    choices = parsed.get("choices") if isinstance(parsed, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = _error(parsed) or _error(choice)
    if error is not None:
        status = _status(error)
        return Completion("", "failed", f"an error in a response with status 200 (as {status}): {_short(error)}", status)
    message = choice.get("message")
    if not isinstance(message, dict):
        return _no_completion(body)
    if message.get("tool_calls") or message.get("function_call"):
        return _failed(f"the reply calls tools; leave tools out of annotator.request. The message is {_short(message)}")
    text, part_reasoning, refusal, unknown = _content(message.get("content"))
    if unknown is not None:
        return _failed(f"the content holds {unknown}; it should be text, or parts of type {' or '.join(TEXT_PARTS)}")
    reasoning = next((_text(message[name]) for name in REASONING if message.get(name)), part_reasoning)
    return _outcome(text, reasoning, _text(message.get("refusal")) or refusal, choice.get("finish_reason"))


def truncated(reply: str) -> str:
    """The detail of a reply that ends at the token limit."""
    remedy = "raise annotator.max_new_tokens, or turn reasoning off"
    return f"the reply ends at the token limit (finish_reason: length); {remedy}. It begins: {_short(reply)}"


def _outcome(text: str, reasoning: str, refusal: str, finish: Any) -> Completion:
    """The completion of a message. finish: the reason why the server ended it."""
    only_reasoning = bool(reasoning) and not text.strip()
    ended = "" if finish is None else str(finish).lower()
    if ended in LIMITED:
        return Completion(text, "truncated", truncated(f"(reasoning) {_short(reasoning)}" if only_reasoning else text))
    if refusal or ended in FILTERED:
        return Completion(text, "refused", f"the server or its model refuses: {_short(refusal or finish)}")
    if only_reasoning:
        remedy = "turn off reasoning (annotator.request) or the server's reasoning parser"
        return Completion(text, "reasoning", f"the reply holds only reasoning; {remedy}. It begins: {_short(reasoning)}")
    if ended in CALLING:
        return _failed(f"the reply calls tools (finish_reason: {finish}); leave tools out of annotator.request")
    if ended and ended not in COMPLETE:
        detail = f"the reply is not complete (finish_reason: {_short(finish)}). It begins: {_short(text) or '(empty)'}"
        return Completion(text, "failed", detail, UNKNOWN_ERROR)
    if not text.strip():
        return Completion(text, "empty", f"the reply is empty (finish_reason: {_short(finish)})")
    return Completion(text)


def _failed(detail: str) -> Completion:
    return Completion("", "failed", detail)


def _no_completion(body: str) -> Completion:
    """The completion of a body that is not a chat completion, with the remedy that its beginning suggests."""
    start = body.lstrip()[:5].lower()
    if start in ("data:", "event"):
        problem = "a stream, not a chat completion; leave stream out of annotator.request"
    elif start.startswith("<"):
        problem = "a web page, not a chat completion; check annotator.url"
    else:
        problem = "not a chat completion; check annotator.url"
    return _failed(f"the response is {problem}. It begins: {_short(body)}")


def _content(content: Any) -> tuple[str, str, str, str | None]:
    """The text, the reasoning and the refusal in the content of a message, and the first unknown part, or None."""
    texts: dict[str, list[str]] = {"text": [], "reasoning": [], "refusal": []}
    for part in content if isinstance(content, list) else [] if content is None else [content]:
        kind = "text" if isinstance(part, str) else part.get("type", "text") if isinstance(part, dict) else None
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if kind in TEXT_PARTS and isinstance(text, str):
            texts["text"].append(text)
        elif kind in REASONING_PARTS:
            texts["reasoning"].append(_text(part))
        elif kind == "refusal":
            texts["refusal"].append(_text(part))
        else:
            return "", "", "", f"a part of type {kind!r}" if isinstance(part, dict) else _short(part)
    reply, reasoning, refusal = ("".join(parts) for parts in texts.values())
    return reply, reasoning, refusal, None


def _text(value: Any) -> str:
    """All text in a value, for messages."""
    if isinstance(value, str) or value is None:
        return value or ""
    if isinstance(value, list):
        return "".join(map(_text, value))
    if isinstance(value, dict):
        return "".join(_text(item) for name, item in value.items() if name != "type")
    return str(value)


def _error(holder: Any) -> Any:
    """The error in a body or in a choice, or None."""
    if not isinstance(holder, dict):
        return None
    return holder if holder.get("object") == "error" else holder.get("error") or None


def _status(error: Any) -> int:
    """The HTTP status of an error."""
    for name in ("code", "status", "type") if isinstance(error, dict) else ():
        value = error.get(name)
        if isinstance(value, int | str) and str(value).isdecimal() and 400 <= int(value) < 600:
            return int(value)
        if isinstance(value, str) and value in STATUS_OF_CODE:
            return STATUS_OF_CODE[value]
    return UNKNOWN_ERROR


def _short(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).strip()[:200]
