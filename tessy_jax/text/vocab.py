"""The bytes that the tokens of a vocabulary spell."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessy_jax.errors import TokenizerError


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

    def bytes_of(self, token_ids: Iterable[int]) -> bytes:
        """The concatenated bytes of the tokens."""
        return b"".join(self.data[self.offsets[i] : self.offsets[i + 1]].tobytes() for i in token_ids)


def description(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """The content of the folder's tokenizer.json, or of the one that transformers builds from other tokenizer files.

    Raises:
        TokenizerError: the tokenizer has no such description.
    """
    file = folder / "tokenizer.json"
    if file.exists():
        return dict(json.loads(file.read_text("utf-8")))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"{folder}: has no tokenizer.json, and its tokenizer is not a fast one; save it as a fast tokenizer"
        )
    return dict(json.loads(backend.to_str()))


def read_vocabulary(content: dict[str, Any], size: int) -> Vocabulary:
    """The spelling of the tokens of a tokenizer.json, for a model with `size` embedding rows."""
    model, added = content["model"], content.get("added_tokens") or []
    entries = model["vocab"]
    names = (
        {int(i): t for t, i in entries.items()} if isinstance(entries, dict) else {i: e[0] for i, e in enumerate(entries)}
    )
    spell = _byte_level if is_byte_level(content) else _metaspace
    texts = {i: spell(name) for i, name in names.items()}
    for token in added:
        texts[int(token["id"])] = None if token["special"] else token["content"].encode()
    unknown = model.get("unk_token") if isinstance(entries, dict) else model.get("unk_id")
    if unknown is not None:
        texts[entries[unknown] if isinstance(entries, dict) else int(unknown)] = None
    spelled = [texts.get(i) for i in range(size)]
    lengths = [len(text or b"") for text in spelled]
    return Vocabulary(
        data=np.frombuffer(b"".join(text or b"" for text in spelled) or b"\0", np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        control=np.array([not text for text in spelled]),
    )


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


def _byte_level(name: str) -> bytes | None:
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else name.encode()


def _metaspace(name: str) -> bytes | None:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()
