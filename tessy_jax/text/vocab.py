"""The bytes that the tokens of a vocabulary spell."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessy_jax.errors import TokenizerError

logger = logging.getLogger(__name__)

LOSSY = frozenset(
    (
        "Lowercase",
        "StripAccents",
        "BertNormalizer",
        "Whitespace",
        "WhitespaceSplit",
        "BertPreTokenizer",
        "CharDelimiterSplit",
    )
)
"""Normalizers and pre-tokenizers that lose information: the tokens do not determine the text."""
ADDED_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
ADDING = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that can add tokens to those of a tokenizer.json, or of other tokenizer files."""
BYTE_NAME = re.compile("<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """Spelling of the tokens 0 … size−1, where size is the number of rows of the model's embedding.

    data [N] uint8, offsets [size + 1] int32: token v spells data[offsets[v]:offsets[v + 1]]. control [size] bool: tokens
    without text (special tokens, and ids that the tokenizer lacks); they spell nothing.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int32]
    control: NDArray[np.bool_]

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.control)

    @property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return int(np.diff(self.offsets).max())

    def rows(self, size: int) -> NDArray[np.uint8]:
        """The bytes of each token, padded with 0 [size of the vocabulary, size]."""
        index = self.offsets[:-1, None] + np.arange(size)
        inside = index < self.offsets[1:, None]
        return np.where(inside, self.data[np.minimum(index, len(self.data) - 1)], np.uint8(0))

    def bytes_of(self, token_ids: Iterable[int]) -> bytes:
        """The concatenated bytes of the tokens."""
        return b"".join(self.data[self.offsets[i] : self.offsets[i + 1]].tobytes() for i in token_ids)


def read_description(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """The content of the folder's tokenizer.json, or of the one that transformers builds from other tokenizer files. It
    contains no padding and truncation: a call that pads or truncates leaves them in a tokenizer that is saved later.

    Raises:
        TokenizerError: the tokenizer has no such description, or a file gives an added token a number that it does not have.
    """
    content = read_object(folder / "tokenizer.json")
    if not content:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TokenizerError(
                f"{folder}: has no tokenizer.json, and its tokenizer is not a fast one; save it as a fast tokenizer"
            )
        content = dict(json.loads(backend.to_str()))
    if "type" not in content["model"]:  # a file from before 2020, to which the library adds the missing keys
        from tokenizers import Tokenizer

        content = dict(json.loads(Tokenizer.from_str(json.dumps(content)).to_str()))
    known = getattr(tokenizer, "added_tokens_decoder", None)
    if known is not None:  # other files may declare more added tokens
        _check_numbers(folder, content, {token.content: int(i) for i, token in known.items()})
        content["added_tokens"] = [
            {"id": int(i), "content": token.content} | {name: getattr(token, name) for name in ADDED_FLAGS}
            for i, token in sorted(known.items(), key=lambda entry: int(entry[0]))
        ]
    return {**content, "padding": None, "truncation": None}


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object of a file of a model folder; empty if the file is missing.

    Raises:
        TokenizerError: the file cannot be read, or holds something else.
    """
    try:
        text = file.read_text("utf-8")
        raw = json.loads(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        if isinstance(error, json.JSONDecodeError) and text.startswith("version https://git-lfs"):
            raise TokenizerError(f"{file}: is a pointer of Git LFS; fetch the file with `git lfs pull`") from None
        raise TokenizerError(f"{file}: cannot be read as JSON ({error}); fetch the file again") from None
    if not isinstance(raw, dict):
        raise TokenizerError(f"{file}: holds a {type(raw).__name__}, expected a JSON object; fetch the file again")
    return raw


def _check_numbers(folder: Path, content: dict[str, Any], known: dict[str, int]) -> None:
    """Compares the numbers that the files give to added tokens with those that they have: they follow the last token without
    a gap.

    known: every added token and its number.

    Raises:
        TokenizerError: one has another number.
    """
    decoder = read_object(folder / ADDING[0]).get("added_tokens_decoder") or {}
    named = {
        "tokenizer.json": [(token["content"], token["id"]) for token in content.get("added_tokens") or []],
        ADDING[0]: [(token["content"], int(i)) for i, token in decoder.items()],
        ADDING[2]: list(read_object(folder / ADDING[2]).items()),
    }
    numbers = {**own_names(content), **known}
    for file, tokens in named.items():
        for name, number in tokens:
            if numbers.get(name) != number:
                found = f"its number is {numbers[name]}" if name in numbers else "another token has it"
                raise TokenizerError(
                    f"{folder / file}: gives the added token {name!r} the number {number}, but {found}, as in transformers; "
                    "fetch all tokenizer files again, or correct the number"
                )
    named_in_any = {name for tokens in named.values() for name, _ in tokens}.union(own_names(content))
    new = ", ".join(f"{name!r} ({number})" for name, number in known.items() if name not in named_in_any)
    if new and (folder / "tokenizer.json").exists():
        text = (
            "%s: tokens that tokenizer.json lacks are added, as in transformers: %s; a model that was not trained with them "
            "does not know them"
        )
        _warn_once(text, folder / ADDING[0], new)


def own_names(content: dict[str, Any]) -> dict[str, int]:
    """The tokens of the model of a tokenizer.json, without added ones, and their numbers."""
    entries = content["model"]["vocab"]
    return entries if isinstance(entries, dict) else {entry[0]: i for i, entry in enumerate(entries)}


@cache
def _warn_once(text: str, file: Path, tokens: str) -> None:
    """A command reads the files of a model more than once."""
    logger.warning(text, file, tokens)


def refuse_lossy(content: dict[str, Any], file: Path) -> None:
    """Refuses a tokenizer.json whose tokens do not spell their text, or are drawn at random.

    Raises:
        TokenizerError: there is a setting with this effect; names it.
    """
    model = content["model"]
    if model["type"] not in ("BPE", "Unigram"):
        setting, reason = f"model.type {model['type']!r}", "its tokens do not preserve white space"
    elif model.get("dropout"):
        setting, reason = f"model.dropout {model['dropout']}", "the tokens of a text are random; set it to null"
    elif model.get("continuing_subword_prefix"):
        setting = f"model.continuing_subword_prefix {model['continuing_subword_prefix']!r}"
        reason = "the prefix is not part of the text"
    elif model.get("end_of_word_suffix"):
        setting = f"model.end_of_word_suffix {model['end_of_word_suffix']!r}"
        reason = "the suffix is not part of the text"
    else:
        steps = [("normalizer", step) for step in parts(content.get("normalizer"), "normalizers")]
        steps += [("pre_tokenizer", step) for step in parts(content.get("pre_tokenizer"), "pretokenizers")]
        lossy = [(key, step) for key, step in steps if step["type"] in LOSSY or _removes(step)]
        if not lossy:
            return
        key, step = lossy[0]
        setting, reason = f"{key} {step['type']}", "it removes or replaces characters"
    raise TokenizerError(
        f"{file}: has {setting}: {reason}; responses preserve every character, so use a model with a byte-level BPE or "
        "SentencePiece tokenizer, or correct the file"
    )


def _removes(step: dict[str, Any]) -> bool:
    """Whether a Split removes its matches. If inverted, it keeps them, and they usually cover the complete text."""
    return step.get("behavior") == "Removed" and not step.get("invert")


def read_vocabulary(content: dict[str, Any], size: int) -> Vocabulary:
    """The spelling of the tokens of a tokenizer.json, for a model with `size` embedding rows."""
    texts = spellings(content)
    spelled = [texts.get(i) for i in range(size)]
    lengths = [len(text or b"") for text in spelled]
    return Vocabulary(
        data=np.frombuffer(b"".join(text or b"" for text in spelled) or b"\0", np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        control=np.array([not text for text in spelled]),
    )


def spellings(content: dict[str, Any]) -> dict[int, bytes | None]:
    """The bytes that each token of a tokenizer.json spells; None for control tokens and the unknown token."""
    model, added = content["model"], content.get("added_tokens") or []
    entries = model["vocab"]
    names = (
        {int(i): t for t, i in entries.items()} if isinstance(entries, dict) else {i: e[0] for i, e in enumerate(entries)}
    )
    spell = _byte_level if is_byte_level(content) else _sentencepiece(content)
    texts: dict[int, bytes | None] = {i: spell(name) for i, name in names.items()}
    for token in added:
        i, name = int(token["id"]), token["content"]
        if token["special"]:
            texts[i] = None
        elif is_byte_level(content) or names.get(i) != name:  # a model token that is also an added token keeps its spelling
            texts[i] = name.encode()
    unknown = model.get("unk_token") if isinstance(entries, dict) else model.get("unk_id")
    if unknown is not None:
        number = entries.get(unknown) if isinstance(entries, dict) else int(unknown)
        if number is not None:  # an unknown token without an id never occurs
            texts[number] = None
    return texts


def same_vocabulary(a: Vocabulary, b: Vocabulary) -> bool:
    """Whether both spell every token equally; additional rows that spell nothing are ignored."""
    n = min(a.size, b.size)
    return (
        bool(a.control[n:].all() and b.control[n:].all())
        and np.array_equal(a.control[:n], b.control[:n])
        and np.array_equal(a.offsets[: n + 1], b.offsets[: n + 1])
        and np.array_equal(a.data[: a.offsets[n]], b.data[: b.offsets[n]])
    )


def parts(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, normalizer or decoder of a tokenizer.json, with sequences flattened."""
    if not step:
        return []
    return [part for inner in step[key] for part in parts(inner, key)] if step["type"] == "Sequence" else [step]


def is_byte_level(content: dict[str, Any]) -> bool:
    """Whether tokens are written in GPT-2's byte alphabet."""
    steps = parts(content.get("pre_tokenizer"), "pretokenizers") + parts(content.get("decoder"), "decoders")
    return any(step["type"] == "ByteLevel" for step in steps)


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes are their own characters; the others, in order, are characters from 256 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(b): b for b in printing} | {chr(256 + i): b for i, b in enumerate(others)}


def _byte_level(name: str) -> bytes:
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else name.encode()


def _sentencepiece(content: dict[str, Any]) -> Callable[[str], bytes]:
    """The function that spells names in which a character, usually U+2581, stands for the space."""
    steps = parts(content.get("pre_tokenizer"), "pretokenizers") + parts(content.get("decoder"), "decoders")
    space = next((step["replacement"] for step in steps if step["type"] == "Metaspace"), "\u2581")
    has_bytes = bool(content["model"].get("byte_fallback")) or any(step["type"] == "ByteFallback" for step in steps)

    def spell(name: str) -> bytes:
        if has_bytes and BYTE_NAME.fullmatch(name):
            return bytes([int(name[3:5], 16)])
        return name.replace(space, " ").encode()

    return spell
