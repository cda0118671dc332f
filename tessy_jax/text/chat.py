"""A model's chat template in thinking mode: renders prompts, and opens and closes the thinking.

No text of a message becomes a control token: `<|im_end|>` inside a question stays text. Templates are programs, so the
boundary between template and contents is tested, not assumed: the template is rendered a second time with placeholders for
the contents. If replacing the placeholders by the contents gives the same text, the remaining tokens are the template's.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tessy_jax.errors import DataError, TokenizerError
from tessy_jax.records import CLOSE, OPEN
from tessy_jax.store.messages import REASONING
from tessy_jax.text.template import Messages, Template
from tessy_jax.text.thinking import find
from tessy_jax.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# control tokens of GPT-OSS, which marks the thinking by channels
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
HARMONY_OPEN = "<|channel|>analysis<|message|>"
HARMONY_CLOSE = "<|end|><|start|>assistant<|channel|>final<|message|>"
# variables by which templates turn thinking on
THINKING_MODE = {"enable_thinking": True, "thinking": True}

PLACEHOLDER = re.compile("\uf8fe([0-9]+)\uf8ff")


class Chat:
    """The chat template of one model.

    open, close: text of the thinking markers, for tokenizers without such tokens; both or neither.
    variables: variables of the template; they take precedence over the defaults (such as enable_thinking).
    system: system message of every prompt; a prompt's own system message follows in the same message.
    date: the date that the template prints as today.

    open_text, close_text: markers of the thinking in saved text.
    close_ids: tokens that end the thinking and begin the final answer.
    closing_ids: tokens that close the thinking when they are sampled in it.
    closing_texts: UTF-8 texts that close the thinking when they are written in it.
    end_ids, turn_end: see `Template`.

    Raises:
        TokenizerError: the markers are unknown, the template closes the thinking, the tokenizer is lossy, or see `Template`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        open: str | None,
        close: str | None,
        variables: Mapping[str, Any],
        system: str | None,
        date: datetime.date,
    ) -> None:
        self._tokenizer, self._hf, self._system = tokenizer, tokenizer.hf, system
        vocabulary: dict[str, int] = self._hf.get_vocab()
        harmony = all(name in vocabulary for name in HARMONY)
        self.open_text, self.close_text = self._markers(open, close, harmony, vocabulary)
        self._opener = HARMONY_OPEN if harmony else self.open_text
        self._closer = HARMONY_CLOSE if harmony else self.close_text
        self.close_ids: list[int] = tokenizer.encode_continuing(self._closer)
        names = ("<|end|>", "<|channel|>") if harmony else (self.close_text.strip(),)
        self.closing_ids = frozenset(vocabulary[name] for name in names if name in vocabulary)
        self.closing_texts = (self.close_text.strip().encode(),)
        also_end = [vocabulary["<|return|>"]] if harmony else []
        self._template = Template(tokenizer, {**THINKING_MODE, **variables}, date=date, also_end=also_end)
        self.end_ids, self.turn_end = self._template.end_ids, self._template.turn_end
        self._shown: set[tuple[str, ...]] = set()
        self._added = {token["content"]: token["id"] for token in tokenizer.content["added_tokens"]}
        special = {token["id"] for token in tokenizer.content["added_tokens"] if token["special"]}
        self._special = special | (self.closing_ids & set(self._added.values()))
        self.rendered([{"role": "user", "content": "Hello."}])  # refuses a template that closes the thinking

    def prompt(self, messages: Messages) -> list[int]:
        """Token ids of the messages in the template, up to and including the opening of the thinking.

        Raises:
            TokenizerError: the template fails on these messages, drops one, or does not support the thinking of an earlier
                answer; or the tokenizer reads a control token of the template as text.
        """
        messages = self._prepared(messages)
        text = self._opened(messages)
        self._check_shown(messages)
        token_ids = self._tokenizer.encode_rendered(text)
        separated = self._separate(messages, text)
        if separated is None:
            if any(name in message["content"] for name in self._added for message in messages):
                logger.warning("%s: the chat template rewrites a message with control tokens", self._tokenizer.folder)
            return token_ids
        skeleton, contents = separated
        written = self._tokenizer.encode_with_places(skeleton)
        control = self._special | ({i for i, _, _ in written} & {i for name, i in self._added.items() if name.strip()})
        own = [(token, start, end) for token, start, end in written if token in control]
        expected = [token for token, _, _ in own]
        injected = any(self._added[name] in control and name in content for name in self._added for content in contents)
        if not injected and [i for i in token_ids if i in control] == expected:
            return token_ids
        names = self._tokenizer.names_not_in(text)
        for token, start, end in reversed(own):
            first, last = end - len(skeleton[start:end].lstrip()), start + len(skeleton[start:end].rstrip())
            skeleton = skeleton[:first] + names[token] + skeleton[last:]
        token_ids = self._tokenizer.encode_renamed(_filled(skeleton, contents), names)
        if [i for i in token_ids if i in control] != expected:
            raise TokenizerError(
                f"{self._tokenizer.folder}: the tokenizer reads a control token of the chat template as text next to this "
                "message; leave out such messages, or set single_word of the token to false in tokenizer.json"
            )
        return token_ids

    def rendered(self, messages: Messages) -> str:
        """The text of `prompt`.

        Raises:
            TokenizerError: the template fails on these messages.
        """
        return self._opened(self._prepared(messages))

    def turn_start(self, messages: Messages, *, thinks: bool) -> tuple[list[int], list[int]]:
        """The tokens before an assistant's text in training: those of the template, and those by which the assistant itself
        opens the thinking, if the template's generation prompt does not.

        Raises:
            TokenizerError: the template fails on these messages, or opens the thinking of an answer without thinking.
        """
        own = len(self._own_opening)
        off = next((name for name in THINKING_MODE if re.search(rf"\b{name}\b", self._template.source)), None)
        if not thinks and (self._opens or not own):
            raise TokenizerError(
                f"{self._tokenizer.folder}: the chat template opens the thinking, but an answer has none; "
                + (f"turn it off in the template's variables (template: {{{off}: false}}), or " if off else "")
                + "leave out answers without thinking, or give them empty thinking (<think></think>)"
            )
        token_ids = self.prompt(messages)
        first = len(token_ids) - own
        return token_ids[:first], token_ids[first:] if thinks else []

    def text_tokens(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a text without control tokens, and the character at which each token begins.

        Raises:
            TokenizerError: see `Tokenizer.encode_text`.
        """
        return self._tokenizer.encode_text(text)

    @cached_property
    def _opens(self) -> bool:
        """Whether the template opens the thinking, with or without the white space after the marker."""
        text = self._template.rendered(self._with_system([{"role": "user", "content": "Hello."}]))
        return text.rstrip().endswith(self._opener.rstrip())

    @cached_property
    def _own_opening(self) -> list[int]:
        """The tokens that open the thinking, if the template leaves that to the assistant."""
        messages = self._with_system([{"role": "user", "content": "Hello."}])
        before, after = self._template.rendered(messages), self._opened(messages)
        before_ids, after_ids = self._tokenizer.encode_rendered(before), self._tokenizer.encode_rendered(after)
        is_prefix = after.startswith(before) and after_ids[: len(before_ids)] == before_ids
        return after_ids[len(before_ids) :] if is_prefix else []

    def _markers(
        self, open_: str | None, close: str | None, harmony: bool, vocabulary: Mapping[str, int]
    ) -> tuple[str, str]:
        if open_ is not None and close is not None and open_.strip() and close.strip():
            return open_, close
        if open_ is not None or close is not None:
            raise TokenizerError(
                f"thinking.open is {open_!r} and thinking.close {close!r}; set both to some text, such as {OPEN!r} and "
                f"{CLOSE!r}, or neither"
            )
        if harmony or (OPEN.strip() in vocabulary and CLOSE.strip() in vocabulary):
            return OPEN, CLOSE
        raise TokenizerError(
            f"{self._tokenizer.folder}: the tokenizer has no <think> and </think> tokens; set the markers of the model's "
            f"thinking, e.g. thinking.open: {json.dumps(OPEN)} and thinking.close: {json.dumps(CLOSE)}"
        )

    def _with_system(self, messages: Messages) -> list[dict[str, str]]:
        rest = [dict(message) for message in messages]
        if self._system is None:
            return rest
        own = [rest.pop(0)["content"]] if rest and rest[0]["role"] == "system" else []
        return [{"role": "system", "content": "\n\n".join([self._system, *own])}, *rest]

    def _prepared(self, messages: Messages) -> list[dict[str, str]]:
        """The messages that the template renders: with the system message, and with the thinking of earlier answers where
        the template expects it, between markers in the text or in a separate field."""
        prepared = self._with_system(messages)
        pairs = ((self.open_text, self.close_text), (OPEN, CLOSE))
        known = next((pair for pair in pairs if pair[1].strip() in self._template.source), None)
        read = (name for name in REASONING if re.search(rf"(\.|['\"]){name}\b(?!\s*[:=(])", self._template.source))
        field = next(read, None)
        for i, message in enumerate(prepared):
            content = message["content"]
            if message["role"] != "assistant" or (known and known[1].strip() in content):
                continue
            try:
                thinking = find(content, self.open_text, self.close_text)
            except DataError as error:
                raise TokenizerError(f"messages[{i}], an earlier answer, {error}") from None
            if thinking is None:
                continue
            thought, answer = content[thinking.start : thinking.end], content[thinking.answer :]
            if known:
                prepared[i] = {**message, "content": f"{known[0]}{thought}{known[1]}{answer}"}
                continue
            if field is None:
                raise TokenizerError(
                    f"{self._tokenizer.folder}: messages[{i}] is an earlier answer with thinking, which the chat template "
                    "does not support; remove the thinking from earlier answers"
                )
            prepared[i] = {**message, "content": answer, field: thought}
        return prepared

    def _check_shown(self, messages: Sequence[dict[str, str]]) -> None:
        """Refuses messages that the template drops, as many templates do with unknown roles."""
        roles = tuple(message["role"] for message in messages)
        if roles in self._shown:
            return
        text = self._template.rendered([{**message, "content": f"\uf8fe{i}\uf8ff"} for i, message in enumerate(messages)])
        lost = [i for i, role in enumerate(roles) if role != "assistant" and f"\uf8fe{i}\uf8ff" not in text]
        if lost:
            raise TokenizerError(
                f"{self._tokenizer.folder}: the chat template drops messages[{lost[0]}], which has the role "
                f"{roles[lost[0]]!r}; give it a role that the template supports, or leave out such rows"
            )
        self._shown.add(roles)

    def _opened(self, messages: Sequence[dict[str, str]]) -> str:
        """The rendered template, ending with the opening of the thinking."""
        folder, text = self._tokenizer.folder, self._template.rendered(messages)
        body = text.rstrip()
        if body.endswith(self._closer.strip()):
            raise TokenizerError(
                f"{folder}: the chat template closes the thinking (it ends with {text[-40:]!r}); turn thinking on in the "
                "template's variables (template: {enable_thinking: true}), or use a template with thinking"
            )
        marker = self._opener.rstrip()
        if body.endswith(marker):  # the template opens the thinking, possibly without the white space after the marker
            return text if len(text) - len(body) >= len(self._opener) - len(marker) else body + self._opener[len(marker) :]
        return text + self._opener

    def _separate(self, messages: Sequence[dict[str, str]], text: str) -> tuple[str, list[str]] | None:
        """The rendered text with placeholders, and their contents; None if the template rewrites contents.

        Templates may remove the thinking from earlier answers, so rendering is tried with and without placeholders for them.
        """
        for roles in ({message["role"] for message in messages}, {"system", "developer", "user", "tool"}):
            marked = [
                {**message, "content": f"\uf8fe{i}\uf8ff"} if message["role"] in roles else message
                for i, message in enumerate(messages)
            ]
            if any(PLACEHOLDER.search(m["content"]) for m in messages if m["role"] not in roles):
                continue
            try:
                skeleton = self._opened(marked)
            except TokenizerError:
                continue
            plain = [message["content"] for message in messages]
            for contents in (plain, [content.strip() for content in plain]):
                if _filled(skeleton, contents) == text:
                    return skeleton, contents
        return None


def _filled(skeleton: str, contents: Sequence[str]) -> str:
    """The text with every placeholder replaced by its content."""
    return PLACEHOLDER.sub(lambda match: contents[int(match[1])], skeleton)
