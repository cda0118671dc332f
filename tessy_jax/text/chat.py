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
from functools import cached_property, partial
from typing import Any

from tessy_jax.errors import DataError, TokenizerError
from tessy_jax.records import CLOSE, OPEN
from tessy_jax.store.messages import REASONING
from tessy_jax.text.thinking import find
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.text.turn_end import turn_end

logger = logging.getLogger(__name__)

# control tokens of GPT-OSS, which marks the thinking by channels
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
HARMONY_OPEN = "<|channel|>analysis<|message|>"
HARMONY_CLOSE = "<|end|><|start|>assistant<|channel|>final<|message|>"
# variables by which templates turn thinking on
THINKING_MODE = {"enable_thinking": True, "thinking": True}
OURS = ("messages", "conversation", "chat_template", "add_generation_prompt", "tokenize", "strftime_now", "date_directives")

Messages = Sequence[Mapping[str, str]]

# a prompt with what tokenizers split differently
PROBE = [{"role": "user", "content": "Hello. It's 3 × 14159,  isn't it?\n\n\tWe'LL see: naïve 中文 👍 CamelCase"}]
PLACEHOLDER = re.compile("\uf8fe([0-9]+)\uf8ff")
# transformers passes only plain data to templates, so strftime_now is a macro
DATE_MACRO = (
    "{%- macro strftime_now(format) -%}{%- set filled = namespace(text=format) -%}"
    "{%- for directive, text in date_directives -%}{%- set filled.text = filled.text | replace(directive, text) -%}"
    "{%- endfor -%}{{- filled.text -}}{%- endmacro %}{{ '' }}"
)
DATE_DIRECTIVES = ("-d", "-m", "-j", "-y", "-H", "-I", "-M", "-S", *"aAbBcdDeFGhHIjmMpSuUVwWxXyYZ")


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
    end_ids: tokens that end the turn.

    Raises:
        TokenizerError: markers or end of turn are unknown, or the template is missing, fails, closes the thinking, or ends a
            turn with a token that is not in end_ids.
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
        self.end_ids = frozenset(tokenizer.eos_ids()) | ({vocabulary["<|return|>"]} if harmony else set())
        if not self.end_ids:
            raise TokenizerError(
                f"{tokenizer.folder}: has no token that ends a turn; set eos_token_id in its generation_config.json"
            )
        self._template, self._variables = self._with_date(variables, date)
        self._shown: set[tuple[str, ...]] = set()
        self._added = {token.content: int(i) for i, token in self._hf.added_tokens_decoder.items()}
        special = {int(i) for i, token in self._hf.added_tokens_decoder.items() if token.special}
        self._special = special | (self.closing_ids & set(self._added.values()))
        self.rendered([{"role": "user", "content": "Hello."}])  # refuses an unusable template early
        _ = self.turn_end  # and one whose turns would not end generation
        self._tokenizer.refuse_disagreement(self._rendered(PROBE), self._applied(PROBE, tokenize=True, return_dict=False))

    def prompt(self, messages: Messages) -> list[int]:
        """Token ids of the messages in the template, up to and including the opening of the thinking.

        Raises:
            TokenizerError: the template fails on these messages, leaves one out, or does not know the thinking of an earlier
                answer.
        """
        messages = self._prepared(messages)
        text = self._opened(messages)
        self._check_shown(messages)
        token_ids = self._encode(text)
        separated = self._separate(messages, text)
        if separated is None:
            if any(name in message["content"] for name in self._added for message in messages):
                logger.warning("%s: the chat template rewrites a message with control tokens", self._tokenizer.folder)
            return token_ids
        skeleton, contents = separated
        skeleton_ids = self._encode(skeleton)
        control = self._special | (set(skeleton_ids) & {i for name, i in self._added.items() if name.strip()})
        expected = [i for i in skeleton_ids if i in control]
        if [i for i in token_ids if i in control] == expected:
            return token_ids
        guarded = self._encode_guarded(skeleton, contents, control)
        if [i for i in guarded if i in control] == expected and self._decode(guarded) == self._decode(token_ids):
            return guarded
        logger.warning("%s: control tokens in a message cannot be kept as text", self._tokenizer.folder)
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
        off = next((name for name in THINKING_MODE if re.search(rf"\b{name}\b", self._template)), None)
        if not thinks and (self._opens or not own):
            raise TokenizerError(
                f"{self._tokenizer.folder}: the chat template opens the thinking, but an answer has none; "
                + (f"turn it off in the template's variables (template: {{{off}: false}}), or " if off else "")
                + "leave out answers without thinking, or give them an empty one (<think></think>)"
            )
        token_ids = self.prompt(messages)
        first = len(token_ids) - own
        return token_ids[:first], token_ids[first:] if thinks else []

    @cached_property
    def turn_end(self) -> list[int]:
        """The tokens by which the template ends an assistant's turn.

        Raises:
            TokenizerError: as `text.turn_end`; `Chat` itself raises it.
        """
        return turn_end(self._tokenizer, self.end_ids, partial(self._rendered, add_generation_prompt=False))

    def text_tokens(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a text without control tokens, and the character at which each token begins.

        Raises:
            TokenizerError: the tokenizer does not keep the text.
        """
        return self._tokenizer.encode_text(text)

    @cached_property
    def _opens(self) -> bool:
        """Whether the template opens the thinking, possibly without the white space after the marker."""
        text = self._rendered(self._with_system([{"role": "user", "content": "Hello."}]))
        return text.rstrip().endswith(self._opener.rstrip())

    @cached_property
    def _own_opening(self) -> list[int]:
        """The tokens that open the thinking, if the template leaves that to the assistant."""
        messages = self._with_system([{"role": "user", "content": "Hello."}])
        before, after = self._rendered(messages), self._opened(messages)
        before_ids, after_ids = self._encode(before), self._encode(after)
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

    def _with_date(self, variables: Mapping[str, Any], date: datetime.date) -> tuple[str, dict[str, Any]]:
        """The template's source and its variables, which make it print this date and never read the clock."""
        for name in variables:
            if name in OURS:
                raise TokenizerError(f"template.{name}: cannot be set in a configuration; leave it out")
        if not self._hf.chat_template:
            raise TokenizerError(f"{self._tokenizer.folder}: has no chat template; fetch the model's chat_template.jinja")
        try:
            template: str = self._hf.get_chat_template()
        except Exception as error:
            raise TokenizerError(
                f"{self._tokenizer.folder}: has no default chat template ({error}); save one as chat_template.jinja"
            ) from error
        filled: dict[str, Any] = {**THINKING_MODE, **variables}
        if "strftime_now" in template:
            filled["date_directives"] = [[f"%{name}", date.strftime(f"%{name}")] for name in DATE_DIRECTIVES]
            template = DATE_MACRO + template
        return template, filled

    def _with_system(self, messages: Messages) -> list[dict[str, str]]:
        rest = [dict(message) for message in messages]
        if self._system is None:
            return rest
        own = [rest.pop(0)["content"]] if rest and rest[0]["role"] == "system" else []
        return [{"role": "system", "content": "\n\n".join([self._system, *own])}, *rest]

    def _prepared(self, messages: Messages) -> list[dict[str, str]]:
        """The messages that the template renders: with the system message, and with the thinking of earlier answers where
        the template looks for it, in the text or in a field of its own."""
        prepared = self._with_system(messages)
        if CLOSE.strip() in self._template:
            return prepared
        field = next((name for name in REASONING if re.search(rf"(\.|['\"]){name}\b(?!\s*[:=(])", self._template)), None)
        for i, message in enumerate(prepared):
            content = message["content"]
            if message["role"] != "assistant" or CLOSE.strip() not in content:
                continue
            try:
                thinking = find(content, self.open_text, self.close_text)
            except DataError:
                thinking = None
            if thinking is None:
                continue
            if field is None:
                raise TokenizerError(
                    f"{self._tokenizer.folder}: messages[{i}] is an earlier answer with thinking, which the chat template "
                    "does not know; leave out the thinking of earlier answers"
                )
            prepared[i] = {**message, "content": content[thinking.answer :], field: content[thinking.start : thinking.end]}
        return prepared

    def _check_shown(self, messages: Sequence[dict[str, str]]) -> None:
        """Refuses messages that the template leaves out, as many do with a role that they do not know."""
        roles = tuple(message["role"] for message in messages)
        if roles in self._shown:
            return
        text = self._rendered([{**message, "content": f"\uf8fe{i}\uf8ff"} for i, message in enumerate(messages)])
        lost = [i for i, role in enumerate(roles) if role != "assistant" and f"\uf8fe{i}\uf8ff" not in text]
        if lost:
            raise TokenizerError(
                f"{self._tokenizer.folder}: the chat template leaves out messages[{lost[0]}], of the role "
                f"{roles[lost[0]]!r}; give it a role that the template knows, or leave out such rows"
            )
        self._shown.add(roles)

    def _opened(self, messages: Sequence[dict[str, str]]) -> str:
        """The rendered template, ending with the opening of the thinking."""
        folder, text = self._tokenizer.folder, self._rendered(messages)
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

    def _rendered(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The rendered template."""
        try:
            return str(self._applied(messages, add_generation_prompt=add_generation_prompt, tokenize=False))
        except Exception as error:  # templates are programs and can raise any type
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            roles = ", ".join(message["role"] for message in messages)
            raise TokenizerError(
                f"{self._tokenizer.folder}: the chat template fails on messages of {roles} ({reason}); change the messages, "
                "or the template's variables in the configuration (template)"
            ) from error

    def _applied(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True, **how: Any) -> Any:
        return self._hf.apply_chat_template(
            messages,
            chat_template=self._template,
            add_generation_prompt=add_generation_prompt,
            **how,
            **self._variables,
        )

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

    def _encode_guarded(self, skeleton: str, contents: Sequence[str], control: set[int]) -> list[int]:
        """Token ids in which only the template's text can be control tokens.

        Text between two control tokens is encoded as one piece, as it would be if the contents had no control tokens.
        """
        names = sorted((name for name, i in self._added.items() if i in control), key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, names))})", skeleton)
        token_ids: list[int] = []
        for i, piece in enumerate(pieces):
            if i % 2:
                token_ids.append(self._added[piece])
                continue
            text = _filled(piece, contents)
            if i and self._hf.added_tokens_decoder[self._added[pieces[i - 1]]].rstrip:
                text = text.lstrip()
            if i + 1 < len(pieces) and self._hf.added_tokens_decoder[self._added[pieces[i + 1]]].lstrip:
                text = text.rstrip()
            token_ids += self._tokenizer.encode_piece(text, first=not i) if text else []
        return token_ids

    def _encode(self, text: str) -> list[int]:
        return list(self._hf(text, add_special_tokens=False)["input_ids"])

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._hf.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _filled(skeleton: str, contents: Sequence[str]) -> str:
    """The text with every placeholder replaced by its content."""
    return PLACEHOLDER.sub(lambda match: contents[int(match[1])], skeleton)
