"""A model's own chat template, checked before any work by every command that uses it."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tessy_jax.errors import TokenizerError
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.text.vocab import read_object

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, str]]

OURS = ("messages", "conversation", "chat_template", "add_generation_prompt", "tokenize", "strftime_now", "date_directives")
PROBE = [{"role": "user", "content": "Hello. It's 3 × 14159,  isn't it?\n\n\tWe'LL see: naïve 中文 👍 CamelCase"}]
"""A prompt with text that tokenizers split differently."""
MARKER = "\uf8fe0\uf8ff"
EXCHANGE = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": MARKER}]
DATE_MACRO = (
    "{%- macro strftime_now(format) -%}{%- set filled = namespace(text=format) -%}"
    "{%- for directive, text in date_directives -%}{%- set filled.text = filled.text | replace(directive, text) -%}"
    "{%- endfor -%}{{- filled.text -}}{%- endmacro %}{{ '' }}"
)
"""transformers passes only plain data to templates, so strftime_now is a macro."""
DATE_DIRECTIVES = ("-d", "-m", "-j", "-y", "-H", "-I", "-M", "-S", *"aAbBcdDeFGhHIjmMpSuUVwWxXyYZ")


class Template:
    """The chat template of a tokenizer.

    variables: values for the template. date: today's date for the template; None: the date of the clock. also_end: tokens
    that end generation, in addition to those of the model's files.

    source: the template's text. end_ids: tokens that end generation. turn_end: the tokens by which the template ends an
    assistant's turn; the last of them is in end_ids.

    Raises:
        TokenizerError: the template is missing or fails, only this package may set a given variable, no token ends
            generation, transformers and tokenizer.json give different tokens, or the template drops an assistant's message
            or ends it with a token that does not end generation.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        variables: Mapping[str, Any],
        *,
        date: datetime.date | None = None,
        also_end: Collection[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self.end_ids = frozenset(tokenizer.eos_ids()) | frozenset(also_end)
        if not self.end_ids:
            raise TokenizerError(
                f"{tokenizer.folder}: has no token that ends a turn; set eos_token_id in its generation_config.json"
            )
        for name in variables:
            if name in OURS:
                raise TokenizerError(f"template.{name}: cannot be set in a configuration; leave it out")
        self.source = self._default()
        self._variables = dict(variables)
        if date is not None and "strftime_now" in self.source:
            self._variables["date_directives"] = [[f"%{name}", date.strftime(f"%{name}")] for name in DATE_DIRECTIVES]
            self.source = DATE_MACRO + self.source
        text = self.rendered(PROBE)
        tokenizer.refuse_disagreement(text, tokenizer.encode_rendered(text))
        self.turn_end = self._checked_turn_end()

    def rendered(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        """The text of the messages.

        Raises:
            TokenizerError: the template fails on these messages.
        """
        try:
            text = self._tokenizer.hf.apply_chat_template(
                messages,
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **self._variables,
            )
        except Exception as error:  # templates are programs and can raise any type
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            roles = ", ".join(message["role"] for message in messages)
            raise TokenizerError(
                f"{self._tokenizer.folder}: the chat template fails on messages of {roles} ({reason}); change the messages, "
                "or the template's variables in the configuration (template)"
            ) from error
        return str(text)

    def prompt(self, messages: Messages) -> list[int]:
        """Token ids of the messages, up to the beginning of the assistant's turn. The name of a control token in a message
        becomes that token.

        Raises:
            TokenizerError: the template fails on these messages.
        """
        return self._tokenizer.encode_rendered(self.rendered(messages))

    def _default(self) -> str:
        hf, folder = self._tokenizer.hf, self._tokenizer.folder
        if not hf.chat_template:
            elsewhere = (folder / "chat_template.json").exists()  # the place of processors of images, not of tokenizers
            raise TokenizerError(
                f"{folder}: has no chat template; "
                + (
                    "save the text of chat_template.json as chat_template.jinja"
                    if elsewhere
                    else "fetch the model's chat_template.jinja, or use an instruction-tuned model"
                )
                + " (`tessy generate` continues raw text without --chat)"
            )
        beside = read_object(folder / "tokenizer_config.json").get("chat_template")
        named = beside if isinstance(beside, list) else []
        names = [entry["name"] for entry in named]
        if len(set(names)) < len(names):
            raise TokenizerError(
                f"{folder / 'tokenizer_config.json'}: chat_template has the names {', '.join(names)}, expected different "
                "ones; remove those that are not meant"
            )
        try:
            chosen = str(hf.get_chat_template())
        except Exception as error:
            raise TokenizerError(
                f"{folder}: has no default chat template ({error}); save one as chat_template.jinja"
            ) from error
        others = [entry["template"] for entry in named if entry["name"] == "default"] or [beside]
        if (folder / "chat_template.jinja").exists() and isinstance(others[0], str) and others[0] != chosen:
            logger.warning(
                "%s: chat_template.jinja is used, as in transformers, and not the other chat_template of "
                "tokenizer_config.json",
                folder,
            )
        return chosen

    def _checked_turn_end(self) -> list[int]:
        tokenizer = self._tokenizer
        text = self.rendered(EXCHANGE, add_generation_prompt=False)
        _, marker, after = text.rpartition(MARKER)
        if not marker:
            raise TokenizerError(
                f"{tokenizer.folder}: the chat template drops the content of an assistant's message (it writes "
                f"{text[-40:]!r}); use a template that keeps it"
            )
        special = {int(i) for i, token in tokenizer.hf.added_tokens_decoder.items() if token.special}
        written = tokenizer.encode_continuing(after)
        for i, token in enumerate(written):
            if token in self.end_ids:
                return written[: i + 1]
            if token in special:
                break
        named = ", ".join(str(i) for i in sorted(self.end_ids))
        missing = next((token for token in written if token in special), None)
        if missing is None:
            raise TokenizerError(
                f"{tokenizer.folder}: the chat template ends an assistant's message with {after!r}, which holds no token "
                f"that ends a turn (eos_token_id is {named}); use a template that ends its turns, or set eos_token_id in "
                "generation_config.json"
            )
        raise TokenizerError(
            f"{tokenizer.folder}: the chat template ends an assistant's turn with "
            f"{tokenizer.hf.convert_ids_to_tokens(missing)} ({missing}), which does not end generation (eos_token_id is "
            f"{named}); set eos_token_id in generation_config.json to "
            f"[{', '.join(str(i) for i in sorted({*self.end_ids, missing}))}]"
        )
