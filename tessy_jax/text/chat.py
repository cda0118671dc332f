"""A model's own chat template in thinking mode: how a prompt is rendered, and how thinking opens and closes.

Nothing that a message holds becomes a control token: `<|im_end|>` inside a question stays text. Templates are programs, so
this is found out rather than assumed: the template is rendered a second time with stand-ins for the messages' contents,
and where putting the contents in their places gives the same text, it is known which tokens are the template's own.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tessy_jax.errors import TokenizerError
from tessy_jax.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# how thinking looks in saved text, and in models that mark it by tokens of these names
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"
# GPT-OSS writes channels instead
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
HARMONY_OPEN = "<|channel|>analysis<|message|>"
HARMONY_CLOSE = "<|end|><|start|>assistant<|channel|>final<|message|>"
# what templates call their switch for thinking
THINKING_MODE = {"enable_thinking": True, "thinking": True}
OURS = ("messages", "conversation", "chat_template", "add_generation_prompt", "tokenize", "strftime_now", "date_directives")

Messages = Sequence[Mapping[str, str]]

STAND_IN = re.compile("\uf8fe([0-9]+)\uf8ff")
# transformers hands templates plain data only, so the function that they ask for the date comes as a macro
DATE_MACRO = (
    "{%- macro strftime_now(format) -%}{%- set filled = namespace(text=format) -%}"
    "{%- for directive, text in date_directives -%}{%- set filled.text = filled.text | replace(directive, text) -%}"
    "{%- endfor -%}{{- filled.text -}}{%- endmacro %}{{ '' }}"
)
DATE_DIRECTIVES = ("-d", "-m", "-j", "-y", "-H", "-I", "-M", "-S", *"aAbBcdDeFGhHIjmMpSuUVwWxXyYZ")


class Chat:
    """The chat template of one model.

    open, close: text of the thinking markers, for tokenizers that have none of their own; both or neither.
    variables: further variables of the template; they win over ours (enable_thinking and the like).
    system: put in front of every prompt as its system message, before the prompt's own if it has one.
    date: what the template prints as today.

    open_text, close_text: how thinking opens and closes in saved text.
    close_ids: tokens to write after the thinking, so that the final answer begins.
    closing_ids: tokens that close the thinking when they are sampled in it.
    closing_texts: UTF-8 text that closes the thinking when it is written in it.
    end_ids: tokens that end the turn.

    Raises:
        TokenizerError: no markers or no end of turn is known, or the template is missing, fails, or closes the thinking.
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
        self.close_ids: list[int] = self._encode(self._closer)
        names = ("<|end|>", "<|channel|>") if harmony else (self.close_text.strip(),)
        self.closing_ids = frozenset(vocabulary[name] for name in names if name in vocabulary)
        self.closing_texts = (self.close_text.strip().encode(),)
        self.end_ids = frozenset(tokenizer.eos_ids()) | ({vocabulary["<|return|>"]} if harmony else set())
        if not self.end_ids:
            raise TokenizerError(
                f"{tokenizer.folder}: no token is known to end a turn; put eos_token_id into its generation_config.json"
            )
        self._template, self._variables = self._with_date(variables, date)
        self._added = {token.content: int(i) for i, token in self._hf.added_tokens_decoder.items()}
        special = {int(i) for i, token in self._hf.added_tokens_decoder.items() if token.special}
        self._special = special | (self.closing_ids & set(self._added.values()))
        self.rendered([{"role": "user", "content": "Hello."}])  # a template that cannot be used says so at the start

    def prompt(self, messages: Messages) -> list[int]:
        """Token ids of the messages in the template, up to and including the opened thinking.

        Raises:
            TokenizerError: the template fails on these messages.
        """
        messages = self._with_system(messages)
        text = self._opened(messages)
        token_ids = self._encode(text)
        found = self._own_text(messages, text)
        if found is None:
            if any(name in message["content"] for name in self._added for message in messages):
                logger.warning("%s: its chat template rewrites a message that holds control tokens", self._tokenizer.folder)
            return token_ids
        stand_ins, contents = found
        own = self._encode(stand_ins)
        control = self._special | (set(own) & {i for name, i in self._added.items() if name.strip()})
        written = [i for i in own if i in control]
        if [i for i in token_ids if i in control] == written:
            return token_ids
        guarded = self._encode_guarded(stand_ins, contents, control)
        if [i for i in guarded if i in control] == written and self._decode(guarded) == self._decode(token_ids):
            return guarded
        logger.warning("%s: control tokens in a message cannot be kept as text", self._tokenizer.folder)
        return token_ids

    def rendered(self, messages: Messages) -> str:
        """The text of `prompt`.

        Raises:
            TokenizerError: the template fails on these messages.
        """
        return self._opened(self._with_system(messages))

    def turn_start(self, messages: Messages, *, thinks: bool) -> tuple[list[int], list[int]]:
        """What stands in front of an assistant's text that is learnt from: the tokens that the template writes, and those
        of the opened thinking that are the assistant's own, being no part of the template's generation prompt.

        Raises:
            TokenizerError: the template fails on these messages, or opens thinking where there is none.
        """
        own = len(self._own_opening)
        if not thinks and not own:
            raise TokenizerError(
                f"{self._tokenizer.folder}: the chat template opens the thinking, but an answer has none; turn thinking off "
                "in its variables (template: {enable_thinking: false}), or leave out answers without it"
            )
        token_ids = self.prompt(messages)
        first = len(token_ids) - own
        return token_ids[:first], token_ids[first:] if thinks else []

    @cached_property
    def turn_end(self) -> list[int]:
        """The tokens with which the template ends an assistant's turn.

        Raises:
            TokenizerError: it writes none that ends a turn.
        """
        marked = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "\uf8fe0\uf8ff"}]
        text = self._rendered(marked, add_generation_prompt=False)
        token_ids = self._encode(text.rpartition("\uf8fe0\uf8ff")[2])
        for i, token in enumerate(token_ids):
            if token in self.end_ids:
                return token_ids[: i + 1]
        raise TokenizerError(
            f"{self._tokenizer.folder}: the chat template ends an assistant's message with {text[-30:]!r}, in which no "
            "token is known to end a turn; put eos_token_id into its generation_config.json"
        )

    def text_tokens(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of text in which nothing is a control token, and the character at which each token begins.

        Raises:
            TokenizerError: the tokenizer cannot say where its tokens begin.
        """
        if not text:
            return [], []
        if self._bare is None:
            raise TokenizerError(f"{self._tokenizer.folder}: needs a tokenizer.json to know where tokens begin; fetch it")
        found = self._bare.encode(text, add_special_tokens=False)
        return list(found.ids), [start for start, _ in found.offsets]

    @cached_property
    def _own_opening(self) -> list[int]:
        """The tokens that open the thinking, where the template leaves that to the assistant."""
        messages = self._with_system([{"role": "user", "content": "Hello."}])
        before, after = self._rendered(messages), self._opened(messages)
        first, whole = self._encode(before), self._encode(after)
        return whole[len(first) :] if after.startswith(before) and whole[: len(first)] == first else []

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
            f"{self._tokenizer.folder}: the tokenizer has no <think> and </think> tokens; say how this model's thinking is "
            f"marked, e.g. thinking.open: {json.dumps(OPEN)} and thinking.close: {json.dumps(CLOSE)}"
        )

    def _with_date(self, variables: Mapping[str, Any], date: datetime.date) -> tuple[str, dict[str, Any]]:
        """The template's source and its variables, so that it prints this date and never asks the clock."""
        for name in variables:
            if name in OURS:
                raise TokenizerError(f"template.{name}: is not for configurations to set; leave it out")
        if not self._hf.chat_template:
            raise TokenizerError(f"{self._tokenizer.folder}: has no chat template; fetch the model's chat_template.jinja")
        try:
            template: str = self._hf.get_chat_template()
        except Exception as error:
            raise TokenizerError(f"{self._tokenizer.folder}: has no default chat template ({error})") from error
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

    def _opened(self, messages: Sequence[dict[str, str]]) -> str:
        """The rendered template, ending with the opened thinking."""
        folder, text = self._tokenizer.folder, self._rendered(messages)
        body = text.rstrip()
        if body.endswith(self._closer.strip()):
            raise TokenizerError(
                f"{folder}: the chat template closes the thinking itself (it ends with {text[-40:]!r}); turn thinking on "
                "in its variables (template: {enable_thinking: true}), or use a template that thinks"
            )
        marker = self._opener.rstrip()
        if body.endswith(marker):  # the template opened it, perhaps without the white space after it
            return text if len(text) - len(body) >= len(self._opener) - len(marker) else body + self._opener[len(marker) :]
        return text + self._opener

    def _rendered(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The rendered template as it is."""
        try:
            return str(
                self._hf.apply_chat_template(
                    messages,
                    chat_template=self._template,
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                    **self._variables,
                )
            )
        except Exception as error:  # templates are programs: they raise what they like
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            roles = ", ".join(message["role"] for message in messages)
            raise TokenizerError(
                f"{self._tokenizer.folder}: the chat template fails on messages of {roles} ({reason}); change them, or the "
                "variables that the configuration gives it (template)"
            ) from error

    def _own_text(self, messages: Sequence[dict[str, str]], text: str) -> tuple[str, list[str]] | None:
        """The rendered text with stand-ins, and what they stand for; None where the template rewrites contents.

        Templates may cut thinking out of earlier answers, so it is tried with and without stand-ins for those.
        """
        for roles in ({message["role"] for message in messages}, {"system", "developer", "user", "tool"}):
            marked = [
                {**message, "content": f"\uf8fe{i}\uf8ff"} if message["role"] in roles else message
                for i, message in enumerate(messages)
            ]
            if any(STAND_IN.search(m["content"]) for m in messages if m["role"] not in roles):
                continue
            try:
                stand_ins = self._opened(marked)
            except TokenizerError:
                continue
            plain = [message["content"] for message in messages]
            for contents in (plain, [content.strip() for content in plain]):
                if _filled(stand_ins, contents) == text:
                    return stand_ins, contents
        return None

    def _encode_guarded(self, stand_ins: str, contents: Sequence[str], control: set[int]) -> list[int]:
        """Token ids in which only the template's own text can be control tokens.

        What stands between two of those is encoded as one piece, as it would be if the contents held none.
        """
        names = sorted((name for name, i in self._added.items() if i in control), key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, names))})", stand_ins)
        token_ids: list[int] = []
        for i, piece in enumerate(pieces):
            if i % 2:
                token_ids.append(self._added[piece])
            elif piece:
                token_ids += self._as_text(_filled(piece, contents))
        return token_ids

    @cached_property
    def _as_text(self) -> Callable[[str], list[int]]:
        """Encodes text by a copy of the tokenizer that has no added tokens."""
        bare = self._bare
        if bare is None:  # a tokenizer in Python
            return lambda text: list(self._hf(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        return lambda text: list(bare.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _bare(self) -> Any:
        """A copy of the tokenizer that has no added tokens; None for one in Python."""
        backend = getattr(self._hf, "backend_tokenizer", None)
        if backend is None:
            return None
        return type(backend).from_str(
            json.dumps({**json.loads(backend.to_str()), "added_tokens": [], "post_processor": None})
        )

    def _encode(self, text: str) -> list[int]:
        return list(self._hf(text, add_special_tokens=False)["input_ids"])

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._hf.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _filled(stand_ins: str, contents: Sequence[str]) -> str:
    """The text with every stand-in replaced by what it stands for."""
    return STAND_IN.sub(lambda match: contents[int(match[1])], stand_ins)
