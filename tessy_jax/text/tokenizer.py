"""A model's own tokenizer and chat template, with errors that name the file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tessy_jax.errors import TokenizerError


class Tokenizer:
    """The tokenizer of a Hugging Face model folder.

    vocab: rows of the model's embedding.

    Raises:
        TokenizerError: tokenizer files are missing or cannot be read, or the tokenizer has more tokens than `vocab`.
    """

    def __init__(self, folder: Path, vocab: int) -> None:
        os.environ.setdefault(
            "TRANSFORMERS_VERBOSITY", "error"
        )  # transformers warns if torch is absent, which is not needed
        from transformers import AutoTokenizer  # slow to import: only when text is needed

        self.folder, self.vocab = folder, vocab
        files = [name for name in ("tokenizer.json", "tokenizer.model", "vocab.json") if (folder / name).exists()]
        if not files:
            raise TokenizerError(f"{folder}: no tokenizer.json or tokenizer.model; fetch the model's tokenizer files")
        try:
            self.hf: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the libraries raise many types, from KeyError to Exception itself
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TokenizerError(f"{folder / files[0]}: cannot be read ({reason}); fetch the file again") from error
        if len(self.hf) > vocab:
            raise TokenizerError(
                f"{folder / files[0]}: has {len(self.hf)} tokens, the model has {vocab}; tokenizer and weights are not of "
                "the same model; fetch both again"
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of raw text, including tokens that the tokenizer prepends."""
        return list(self.hf(text)["input_ids"])

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of one user message in the chat template, up to the beginning of the assistant's turn.

        Raises:
            TokenizerError: the tokenizer has no chat template, or the template fails.
        """
        if not self.hf.chat_template:
            raise TokenizerError(f"{self.folder}: has no chat template; leave out --chat to continue raw text")
        message = [{"role": "user", "content": text}]
        try:
            rendered = self.hf.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates are programs and can raise any type
            raise TokenizerError(
                f"{self.folder}: the chat template fails on a user message ({error}); leave out --chat to continue raw text"
            ) from error
        return list(self.hf(rendered, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.hf.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def eos_ids(self) -> list[int]:
        """The tokens that end a turn: from generation_config.json, else config.json, else the tokenizer.

        Raises:
            TokenizerError: one of the files is not a JSON object, or its eos_token_id is not a token or a list of tokens.
        """
        for name in ("generation_config.json", "config.json"):
            try:
                raw = json.loads((self.folder / name).read_text("utf-8"))
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                raise TokenizerError(
                    f"{self.folder / name}: cannot be read as JSON ({error}); fetch the file again"
                ) from None
            if not isinstance(raw, dict):
                raise TokenizerError(
                    f"{self.folder / name}: holds a {type(raw).__name__}, expected a JSON object; fetch the file again"
                )
            value = raw.get("eos_token_id")
            if value is not None:
                return self._checked_ends(value, name)
        return [] if self.hf.eos_token_id is None else [int(self.hf.eos_token_id)]

    def _checked_ends(self, value: Any, name: str) -> list[int]:
        ids = value if isinstance(value, list) else [value]
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self.vocab:
                raise TokenizerError(
                    f"{self.folder / name}: eos_token_id is {value!r}, expected the number of a token below {self.vocab} or "
                    "a list of them; set it to the token that ends a turn"
                )
        return ids
