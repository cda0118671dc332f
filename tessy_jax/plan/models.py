"""The models of a plan: their shapes, without weights.

Folders and reachable hub models are read as in a job. Other hub names need a published shape (`configs/models`):
`config.json`, and `plan.json` with the hub names of this shape and the sizes of the tokenizer's tables. A predictor that is
not trained yet has the shape of a small published model, or of the smallest writer.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from tessy_jax import config as settings
from tessy_jax.config import Writer
from tessy_jax.errors import ConfigError
from tessy_jax.models import hf
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.hf_config import as_classifier, read_config, shortened
from tessy_jax.models.labels import CLASSES
from tessy_jax.models.transformer import Decoder
from tessy_jax.sharding import Partitioner
from tessy_jax.synthesis.model_set import ModelSet, PredictorSpec, WriterSpec, side_read, vocabulary_of
from tessy_jax.text.bridge import DeviceBridge
from tessy_jax.text.characters import code_point_classes
from tessy_jax.text.chat import Chat
from tessy_jax.text.vocab import Vocabulary, same_vocabulary
from tessy_jax.text.words import WIDTH, Table, Words

SHAPES = "plan.json"
PREDICTOR = "qwen3-0.6b-base"
"""The first choice for the shape of a predictor that is not trained yet."""


@dataclass(frozen=True)
class Published:
    """Published shapes. folder: their folder; None for no published shapes. layers: number of layers to plan (None: all).
    used: notes on replacements of models."""

    folder: Path | None
    layers: int | None = None
    used: list[str] = field(default_factory=list)

    def resolve(self, model: str) -> Path:
        """The folder of a model, or of its published shape if the model is not reachable.

        Raises:
            ConfigError: the model has neither.
        """
        shape = next((place for place, names in self._shapes() if model in names), None)
        try:
            return hf.resolve(model, weights=False)
        except ConfigError:
            if shape is None:
                raise
        self.note(f"{model}: not reachable; planned with the published shape of {shape.name}")
        return shape

    def shape(self, folder: Path) -> ModelConfig:
        """The configuration of a folder, with the number of layers to plan."""
        config = read_config(folder)
        return config if self.layers is None else shortened(config, min(self.layers, config.layers))

    @staticmethod
    def sizes(folder: Path) -> dict[str, Any]:
        """The sizes of the tokenizer's tables of a published shape.

        Raises:
            ConfigError: the folder has no such sizes.
        """
        if not (folder / SHAPES).exists():
            raise ConfigError(f"{folder}: has no tokenizer; give a complete folder, or a hub name that configs/models lists")
        return dict(json.loads((folder / SHAPES).read_text("utf-8"))["tokenizer"])

    def _shapes(self) -> Iterator[tuple[Path, list[str]]]:
        for file in sorted(self.folder.glob(f"*/{SHAPES}")) if self.folder is not None else ():
            yield file.parent, json.loads(file.read_text("utf-8"))["names"]

    def note(self, text: str) -> None:
        """Adds a note, unless it is already present."""
        if text not in self.used:
            self.used.append(text)


class PlannedModels(ModelSet):
    """The models of a synthesis with shapes instead of weights.

    Raises:
        ConfigError, TokenizerError, ShardingError: as `ModelSet`.
    """

    def __init__(self, config: settings.Synthesize, partitioner: Partitioner, published: Published) -> None:
        self.published = published
        super().__init__(config, partitioner)

    def read_writer(self, name: Writer, section: settings.Model, date: datetime.date) -> WriterSpec:
        folder = self.published.resolve(section.model)
        config = self.published.shape(folder)
        if not (folder / SHAPES).exists():
            return replace(super().read_writer(name, section, date), config=config)
        sizes = self.published.sizes(folder)
        chat = cast(Chat, _Template(section))
        return WriterSpec(name, section, folder, config, chat, _vocabulary(config.vocab, sizes), sizes)

    def read_predictor(self, key: str, model: str, own: int) -> PredictorSpec:
        try:
            folder = self.published.resolve(model)
        except ConfigError:
            return self._backbone(key, model, own)
        config = self.published.shape(folder)
        return self._predictor(key, folder, config, self._vocabulary(folder, config), own)

    def _backbone(self, key: str, model: str, own: int) -> PredictorSpec:
        """The shape of a predictor that is not trained yet: that of `PREDICTOR` if a writer has its vocabulary, else that of
        the smallest writer."""
        place = None if self.published.folder is None else self.published.folder / PREDICTOR
        folders = [place] if place is not None and (place / SHAPES).exists() else []
        smallest = min(self.writers, key=lambda v: v.config.embed * v.config.layers)
        for folder in (*folders, smallest.folder):
            config = self.published.shape(folder)
            vocabulary = self._vocabulary(folder, config)
            if any(same_vocabulary(vocabulary, v.vocabulary) for v in self.writers):
                break
        self.published.note(f"{key}: {model} is not reachable or not trained yet; planned with the shape of {folder.name}")
        return self._predictor(key, folder, config, vocabulary, own)

    def _vocabulary(self, folder: Path, config: ModelConfig) -> Vocabulary:
        if (folder / SHAPES).exists():
            return _vocabulary(config.vocab, self.published.sizes(folder))
        return vocabulary_of(folder, config)

    def _predictor(self, key: str, folder: Path, config: ModelConfig, vocabulary: Vocabulary, own: int) -> PredictorSpec:
        config = config if config.labels is not None else as_classifier(config, CLASSES)
        return PredictorSpec(folder, config, side_read(key, folder, vocabulary, own, self.writers))

    def make_bridge(self, v: WriterSpec) -> Any:
        return _bridge(v.content) if "merge_buckets" in v.content else super().make_bridge(v)

    def load_writer(self, v: WriterSpec) -> Decoder:
        return hf.abstract(v.config, dtype=v.section.dtype, partitioner=self.partitioner)

    def load_predictor(self, p: PredictorSpec) -> Decoder:
        return hf.abstract(p.config, dtype=self.config.boundary.dtype, partitioner=self.partitioner)


@dataclass(frozen=True)
class _Template:
    """The attributes of a chat template that a synthesis reads, in typical sizes: a few tokens, markers of a few bytes."""

    section: settings.Model
    close_ids: tuple[int, ...] = (0, 1, 2)
    closing_ids: frozenset[int] = frozenset({0})
    end_ids: frozenset[int] = frozenset({1, 2})

    @property
    def open_text(self) -> str:
        return self.section.thinking.open or "<think>\n"

    @property
    def close_text(self) -> str:
        return self.section.thinking.close or "\n</think>\n\n"

    @property
    def closing_texts(self) -> tuple[bytes, ...]:
        return (self.close_text.strip().encode(),)


def _vocabulary(size: int, sizes: dict[str, Any]) -> Vocabulary:
    """A vocabulary of zeros with these sizes. Its first token has the maximum length."""
    offsets = np.full(size + 1, sizes["longest_token"], np.int32)
    offsets[0] = 0
    offsets[-1] = sizes["bytes"]
    offsets[1:-1] = np.minimum(sizes["longest_token"] * np.arange(1, size), sizes["bytes"] - sizes["longest_token"])
    return Vocabulary(np.zeros(sizes["bytes"], np.uint8), offsets, np.zeros(size, np.bool_))


def _bridge(sizes: dict[str, Any]) -> DeviceBridge:
    pages, classes = code_point_classes()
    return DeviceBridge(
        rules=(sizes["rule"],),
        pages_X=jnp.asarray(pages),
        classes_X256=jnp.asarray(classes),
        bytes_M256=jnp.zeros((1, 256), jnp.int32),
        merges=Table.of([jnp.zeros((sizes["merge_buckets"], 128), jnp.int32)]),
        words=Words(
            table=Table.of([jnp.zeros((sizes["word_buckets"], 128), jnp.int32)]),
            spelled_XI=jnp.zeros((sizes["words"], WIDTH), jnp.uint8),
            first_M=jnp.zeros(1, jnp.int32),
        ),
    )
