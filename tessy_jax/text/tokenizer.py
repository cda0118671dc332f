"""A model's own tokenizer and chat template, with errors that name the file."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tessy_jax.errors import TokenizerError
from tessy_jax.text.vocab import (
    ADDED_FLAGS,
    ADDING,
    own_names,
    parts,
    read_description,
    read_object,
    refuse_lossy,
    spellings,
)

logger = logging.getLogger(__name__)

GENERATION = "generation_config.json"
NOT_GENERATED: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "length_penalty": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "repetition_penalty": (1,),
    "sequence_bias": ({}, []),
    "stop_strings": ([],),
    "suppress_tokens": ([],),
    "typical_p": (1,),
}
"""Settings of a generation_config.json (without one, of config.json) that change what a model writes and have no counterpart
here, and their values that have no effect."""


class Tokenizer:
    """The tokenizer of a Hugging Face model folder.

    vocab: rows of the model's embedding.

    Raises:
        TokenizerError: tokenizer files are missing or cannot be read, or the tokenizer has tokens beyond `vocab`.
    """

    def __init__(self, folder: Path, vocab: int) -> None:
        os.environ.setdefault(
            "TRANSFORMERS_VERBOSITY", "error"
        )  # transformers warns if torch is absent, which is not needed
        from transformers import AutoTokenizer  # slow to import: only when text is needed

        self.folder, self.vocab = folder, vocab
        self._renamed: dict[str, tuple[Any, dict[int, int]]] = {}
        files = [name for name in ("tokenizer.json", "tokenizer.model", "vocab.json") if (folder / name).exists()]
        if not files:
            raise TokenizerError(f"{folder}: no tokenizer.json or tokenizer.model; fetch the model's tokenizer files")
        try:
            self.hf: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the libraries raise many types; a panic of their Rust code is no Exception
            for name in ("tokenizer.json", *ADDING, "config.json"):
                read_object(folder / name)  # names the file that is not JSON
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TokenizerError(
                f"{folder / files[0]}: cannot be read with the files beside it ({reason:.200}); fetch the files again"
            ) from error
        last, number = max(self.hf.get_vocab().items(), key=lambda entry: entry[1], default=("", -1))
        if number >= vocab:
            origin = files[0] if files[0] != "tokenizer.json" else _origin(folder, last)
            raise TokenizerError(
                f"{folder / origin}: its token {last!r} is the last of {number + 1} tokens, the model has {vocab}; "
                "tokenizer and weights are not of the same model; fetch both again"
                + ("" if origin == files[0] else f", or take {last!r} out of {origin}")
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of raw text to be continued, including tokens that the tokenizer prepends. Tokens that it appends, which
        would end the text, are left out.

        Raises:
            TokenizerError: the tokenizer fails on this text, or see `refuse_disagreement`. The other methods that encode
                raise the first, too.
        """
        own = self.encode_rendered(text)
        if (self.folder / "tokenizer.json").exists():  # without one, a tokenizer may have no description
            self.refuse_disagreement(text, own)
        framed = self._by_library(lambda: list(self.hf(text, verbose=False)["input_ids"]), text)
        starts = (i for i in range(len(framed) - len(own) + 1) if framed[i : i + len(own)] == own)
        return framed[: next(starts, 0) + len(own)]

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a complete text of the chat template. The tokenizer prepends no tokens, because the template does."""
        return self._by_library(lambda: list(self.hf(text, add_special_tokens=False, verbose=False)["input_ids"]), text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.hf.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def eos_ids(self) -> list[int]:
        """The tokens that end a turn: from generation_config.json, else config.json, else the tokenizer.

        Raises:
            TokenizerError: the eos_token_id of a file is not a token or a list of tokens, or the tokenizer's files name
                different ones.
        """
        self._warn_of_generation()
        for name in (GENERATION, "config.json"):
            raw = read_object(self.folder / name)
            value = raw.get("eos_token_id")
            if value is not None:
                return self._checked_ends(value, name)
        named = {file: read_object(self.folder / file).get("eos_token") for file in ADDING[:2]}
        names = [name["content"] if isinstance(name, dict) else name for name in named.values() if name is not None]
        if len(set(names)) > 1:
            raise TokenizerError(
                f"{self.folder}: eos_token is {names[0]!r} in {ADDING[0]} and {names[1]!r} in {ADDING[1]}; correct one, or "
                f"set eos_token_id in {GENERATION} to the token that ends a turn"
            )
        return [] if self.hf.eos_token_id is None else [int(self.hf.eos_token_id)]

    def _warn_of_generation(self) -> None:
        file = self.folder / GENERATION
        if not file.exists():  # as in transformers, and in models of its older versions
            file = self.folder / "config.json"
        raw = read_object(file)
        unused = [f"{key} {raw[key]!r}" for key, same in NOT_GENERATED.items() if raw.get(key) not in (None, *same)]
        if unused:
            logger.warning(
                "%s: has settings that are not followed: %s; text is written without them",
                file,
                ", ".join(unused),
            )

    def _checked_ends(self, value: Any, name: str) -> list[int]:
        ids = value if isinstance(value, list) else [value]
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self.vocab:
                raise TokenizerError(
                    f"{self.folder / name}: eos_token_id is {value!r}, expected a token id below {self.vocab} or a list of "
                    "them; set it to the token that ends a turn"
                )
        return ids

    @cached_property
    def description(self) -> dict[str, Any]:
        """See `read_description`.

        Raises:
            TokenizerError: the tokenizer has no description.
        """
        return read_description(self.hf, self.folder)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The description of a lossless tokenizer.

        Raises:
            TokenizerError: the tokenizer has no description, or is lossy.
        """
        refuse_lossy(self.description, self.folder / "tokenizer.json")
        return self.description

    @cached_property
    def _complete(self) -> Any:
        """The tokenizer of the description, for complete texts."""
        return library_of(self.description)

    @cached_property
    def _continuing(self) -> Any:
        """The tokenizer for text that follows other text."""
        content = unprefixed(self.description)
        same = all(
            parts(content.get(key), inner) == parts(self.description.get(key), inner)
            for key, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"))
        )
        return self._complete if same else library_of(content)

    @cached_property
    def _text(self) -> Any:
        """The same without added tokens."""
        return library_of(unprefixed({**self.content, "added_tokens": []}))

    @cached_property
    def _spelled(self) -> dict[int, bytes | None]:
        return spellings(self.content)

    def encode_continuing(self, text: str) -> list[int]:
        """Token ids of template text that follows other tokens. Names of added tokens become these tokens."""
        return list(self._encoding(self._continuing, text).ids)

    def encode_with_places(self, text: str) -> list[tuple[int, int, int]]:
        """The tokens of a complete text, and the characters start…end−1 of each: (token id, start, end)."""
        encoding = self._encoding(self._complete, text)
        return [(token, *place) for token, place in zip(encoding.ids, encoding.offsets, strict=True)]

    def names_not_in(self, text: str) -> dict[int, str]:
        """A name for every added token, by its id, with a private-use character that the text does not contain."""
        mark = next(chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in text)
        return {token["id"]: f"{mark}{token['id']}{mark}" for token in self.content["added_tokens"]}

    def encode_renamed(self, text: str, names: Mapping[int, str]) -> list[int]:
        """Token ids of a complete text in which added tokens have these names. The library treats the text next to them as
        it does next to the original names. Those are text here, unless they are white space."""
        key = next(iter(names.values()), "")[:1]
        if key not in self._renamed:
            added = self.content["added_tokens"]
            tokens = [{**token, "content": names[token["id"]]} for token in added]
            tokens += [token for token in added if not token["content"].strip()]
            library = library_of({**self.content, "added_tokens": []})
            library.add_tokens([_added(token) for token in tokens])
            numbers = {library.token_to_id(token["content"]): token["id"] for token in tokens}
            self._renamed[key] = library, numbers
        library, numbers = self._renamed[key]
        return [numbers.get(i, i) for i in self._encoding(library, text).ids]

    def _encoding(self, library: Any, text: str) -> Any:
        return self._by_library(lambda: library.encode(text, add_special_tokens=False), text)

    def _by_library(self, call: Callable[[], Any], text: str) -> Any:
        """The result of a library call; an error names the text. The library panics on some texts, such as one in which an
        added token strips a wide space next to it."""
        try:
            return call()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust code is no Exception
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TokenizerError(
                f"{self.folder}: the tokenizer fails on the text {text[:60]!r} ({reason}); change or leave out the text"
            ) from error

    def refuse_disagreement(self, text: str, token_ids: Sequence[int]) -> None:
        """Compares the tokens that transformers gives for a complete text with those of the folder's tokenizer.json. They
        can differ, because transformers rebuilds some tokenizers by its own rules.

        Raises:
            TokenizerError: they differ.
        """
        own = list(self._encoding(self._complete, text).ids)
        if own != list(token_ids):
            at = next(
                (i for i, (a, b) in enumerate(zip(own, token_ids, strict=False)) if a != b), min(len(own), len(token_ids))
            )
            ours, theirs = (self.hf.convert_ids_to_tokens(list(ids[at : at + 5])) for ids in (own, token_ids))
            remedy = "set tokenizer_class in tokenizer_config.json to the class of the model (PreTrainedTokenizerFast uses "
            remedy += "tokenizer.json unchanged), or fetch both files again"
            if self.hf.split_special_tokens:
                remedy = "set split_special_tokens in tokenizer_config.json to false"
            raise TokenizerError(
                f"{self.folder}: tokenizer.json gives the tokens {ours} where transformers ({type(self.hf).__name__}) gives "
                f"{theirs}, in the text {text[:30]!r}; {remedy}"
            )

    def encode_text(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of text that follows other tokens, and the character at which each begins. No part of the text becomes
        an added token, and the tokenizer prepends no space.

        Raises:
            TokenizerError: the tokens spell a different text. A canonically equivalent text (NFC) is accepted.
        """
        encoding = self._encoding(self._text, text)
        spelled = b"".join([self._spelled.get(i) or b"" for i in encoding.ids]).decode("utf-8", "replace")
        if spelled != text and unicodedata.normalize("NFC", spelled) != unicodedata.normalize("NFC", text):
            at = next(
                (i for i, (a, b) in enumerate(zip(text, spelled, strict=False)) if a != b), min(len(text), len(spelled))
            )
            original, changed = (side[max(at - 10, 0) : at + 10] for side in (text, spelled))
            raise TokenizerError(
                f"{self.folder}: the tokenizer turns {original!r} into {changed!r} (character {at} of a text); change or "
                "leave out the text, or use a model whose tokenizer is lossless"
            )
        return list(encoding.ids), [start for start, _ in encoding.offsets]


def library_of(content: dict[str, Any]) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json. It adds no tokens around a text."""
    from tokenizers import Tokenizer as Library

    return Library.from_str(json.dumps({**content, "post_processor": None}))


def _origin(folder: Path, name: str) -> str:
    """The file that gives a token of a folder with a tokenizer.json its name."""
    content = read_object(folder / "tokenizer.json")
    held = name in own_names(content) or any(token["content"] == name for token in content.get("added_tokens") or [])
    mentions = (file for file in ADDING if name in json.dumps(read_object(folder / file), ensure_ascii=False))
    return "tokenizer.json" if held else next(mentions, "tokenizer.json")


def _added(token: dict[str, Any]) -> Any:
    from tokenizers import AddedToken

    return AddedToken(token["content"], **{name: token[name] for name in ADDED_FLAGS})


def _only_at_start(step: dict[str, Any]) -> bool:
    """Whether a normalizer changes the start of a complete text alone: it prepends, or replaces what it finds there."""
    pattern = step.get("pattern")
    anchored = isinstance(pattern, dict) and str(pattern.get("Regex", "")).startswith("\\A")
    return step["type"] == "Prepend" or (step["type"] == "Replace" and anchored)


def unprefixed(content: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json for text that follows other text: it prepends no space, and doubles none."""
    kept = [part for part in parts(content.get("normalizer"), "normalizers") if not _only_at_start(part)]
    steps = [dict(step) for step in parts(content.get("pre_tokenizer"), "pretokenizers")]
    for step in steps:
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    normalizer = {"type": "Sequence", "normalizers": kept} if kept else None
    pre_tokenizer = {"type": "Sequence", "pretokenizers": steps} if steps else None
    return {**content, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
