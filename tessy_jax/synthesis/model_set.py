"""The models of a synthesis: tokenizers, chat templates, vocabularies and bridges, and, on request, weights.

All checks that need no weights run here, before weights are loaded.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from tessy_jax import config as settings
from tessy_jax.config import RECIPES, Recipe, Roles, Writer
from tessy_jax.decode.engine import Engine, longest
from tessy_jax.decode.response_state import ResponseState, TokenizedView
from tessy_jax.decode.sampling import Sampling
from tessy_jax.decode.state import DecodeParams, LaneScalars, LoopConfig
from tessy_jax.decode.tables import TextTables, VocabTables
from tessy_jax.errors import ConfigError, TokenizerError
from tessy_jax.models import hf
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.hf_config import read_config
from tessy_jax.models.labels import CLASSES, check_labels
from tessy_jax.models.restack import restack
from tessy_jax.models.transformer import Decoder
from tessy_jax.processes import smallest
from tessy_jax.sharding import Partitioner
from tessy_jax.synthesis.memory import fitting_lanes
from tessy_jax.text.bridges import AnyBridge, joined, make_bridge
from tessy_jax.text.chat import Chat
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.text.vocab import Vocabulary, read_vocabulary, same_vocabulary

BYTES_PER_TOKEN = 16
"""The byte budget of a response, per token of its token budget; text has four or five bytes per token."""
MAX_PENDING_BYTES = 64
"""Bytes of an unfinished word that a bridge may hold back before it tokenizes them."""


@dataclass(frozen=True)
class WriterSpec:
    """A writer without its weights. content: its parsed tokenizer.json."""

    name: Writer
    section: settings.Model
    folder: Path
    config: ModelConfig
    chat: Chat
    vocabulary: Vocabulary
    content: dict[str, Any]

    @property
    def sampling(self) -> settings.Sampling:
        """The sampling settings of the writer's section."""
        assert self.section.sampling is not None
        return self.section.sampling


@dataclass(frozen=True)
class PredictorSpec:
    """A boundary predictor without its weights. reads: the side whose tokens it reads."""

    folder: Path
    config: ModelConfig
    reads: int


def writer_spec(name: Writer, section: settings.Model, date: datetime.date) -> WriterSpec:
    """Reads a model's configuration, tokenizer and chat template.

    Raises:
        ConfigError, TokenizerError: the model cannot be a writer; names the folder and the remedy.
    """
    folder = hf.resolve(section.model, weights=False, revision=section.revision)
    config = read_config(folder)
    if config.labels is not None:
        raise ConfigError(f"{name}: {folder} is a token classifier; a writer should be a …ForCausalLM model")
    tokenizer = Tokenizer(folder, config.vocab)
    thinking = section.thinking
    chat = Chat(
        tokenizer, open=thinking.open, close=thinking.close, variables=section.template, system=section.system, date=date
    )
    vocabulary = read_vocabulary(tokenizer.content, config.vocab)
    return WriterSpec(name, section, folder, config, chat, vocabulary, tokenizer.content)


def predictor_spec(key: str, model: str, own: int, writers: Sequence[WriterSpec]) -> PredictorSpec:
    """Reads a predictor's configuration and finds the side whose tokens it reads: side `own`, whose turns it decides on, if
    the vocabularies are equal, else the other side.

    Raises:
        ConfigError: the model is not a classifier with the labels of a predictor, or its vocabulary equals neither writer's.
    """
    folder = hf.resolve(model, weights=False)
    config = read_config(folder)
    if config.labels is None:
        raise ConfigError(
            f"{key}: {folder} is a causal language model; a boundary predictor is a token classifier with 2 labels; give a "
            "folder that `tessy boundary train` has written"
        )
    check_labels(config, CLASSES, f"{key}: {folder}")
    vocabulary = vocabulary_of(folder, config)
    return PredictorSpec(folder, config, side_read(key, folder, vocabulary, own, writers))


def vocabulary_of(folder: Path, config: ModelConfig) -> Vocabulary:
    """The vocabulary of a model's folder.

    Raises:
        TokenizerError: the tokenizer cannot be read, or does not keep text.
    """
    return read_vocabulary(Tokenizer(folder, config.vocab).content, config.vocab)


def side_read(key: str, folder: Path, vocabulary: Vocabulary, own: int, writers: Sequence[WriterSpec]) -> int:
    """The side whose tokens a predictor of this vocabulary reads; see `predictor_spec`.

    Raises:
        ConfigError: no writer has the vocabulary.
    """
    for side in (own, *(i for i in range(len(writers)) if i != own)):
        if same_vocabulary(vocabulary, writers[side].vocabulary):
            return side
    names = " nor ".join(f"the {v.name}'s" for v in writers)
    raise ConfigError(f"{key}: {folder} has neither {names} vocabulary; train a predictor on a backbone of one of them")


class ModelSet:
    """The writers and predictors of a synthesis. lanes: the responses that are written in parallel. pool: tokens that the
    cache of each writer holds; None for the default, see `Engine`.

    Raises:
        ConfigError, TokenizerError, ShardingError: the models do not fit the configuration; see the message.
    """

    def __init__(self, config: settings.Synthesize, partitioner: Partitioner) -> None:
        assert config.date is not None
        self.config, self.partitioner = config.resolved(), partitioner
        self.recipe: Recipe = RECIPES[config.synthesis.recipe]
        date = datetime.date.fromisoformat(config.date)
        sections = {name: getattr(self.config, name) for name in self.recipe.writers}
        self.writers = [self.read_writer(name, section, date) for name, section in sections.items()]
        self.names: tuple[Writer, ...] = self.recipe.writers
        synthesis = self.config.synthesis
        for v in self.writers:
            if self.tokens > v.config.max_positions:
                raise ConfigError(
                    f"synthesis.max_prompt_tokens + max_response_tokens is {self.tokens}, {v.folder} has "
                    f"{v.config.max_positions} positions; lower one of the two keys"
                )
        self._check_pool()
        self.predictors: list[PredictorSpec | None] = [None] * len(self.writers)
        if self.recipe.interleaved:
            for i, name in enumerate(self.names):
                model = getattr(self.config.boundary, name)
                self.predictors[i] = self.read_predictor(f"boundary.{name}", model, i)
        lanes = synthesis.lanes
        self.lanes, self.pool = fitting_lanes(self) if lanes == "auto" else (lanes, synthesis.cache_tokens)
        partitioner.check({"lanes": (self.lanes, "synthesis.lanes")})
        # saved responses have the student's thinking markers, if there is a student
        self.open_text, self.close_text = self._markers(date)

    @property
    def tokens(self) -> int:
        """The most tokens of prompt and response."""
        return self.config.synthesis.max_prompt_tokens + self.config.synthesis.max_response_tokens

    @property
    def longest(self) -> int:
        """The most tokens of a lane, see `decode.engine.longest`."""
        return longest(self.tokens, self._window_bytes, max(self.steps))

    def _check_pool(self) -> None:
        """Refuses a pool that cannot hold one response of full length on each shard."""
        synthesis, shards = self.config.synthesis, self.partitioner.num_shards("lanes")
        least = shards * self.longest
        if synthesis.cache_tokens is not None and synthesis.cache_tokens < least:
            raise ConfigError(
                f"synthesis.cache_tokens is {synthesis.cache_tokens}, one response of full length"
                f"{f' on each of {shards} shards' if shards > 1 else ''} takes {least} tokens; set it to at least {least}, "
                "lower synthesis.max_prompt_tokens or max_response_tokens, or set cache_tokens to null"
            )

    def read_writer(self, name: Writer, section: settings.Model, date: datetime.date) -> WriterSpec:
        """See `writer_spec`. `PlannedModels` overrides this method and the four below."""
        return writer_spec(name, section, date)

    def read_predictor(self, key: str, model: str, own: int) -> PredictorSpec:
        """See `predictor_spec`."""
        return predictor_spec(key, model, own, self.writers)

    def make_bridge(self, v: WriterSpec) -> AnyBridge:
        """The bridge into a writer's vocabulary."""
        return make_bridge(v.content, v.vocabulary, v.folder)

    def load_writer(self, v: WriterSpec) -> Decoder:
        """A writer with its weights."""
        return hf.load(self._weights(v.section), dtype=v.section.dtype, partitioner=self.partitioner)

    def load_predictor(self, p: PredictorSpec) -> Decoder:
        """A predictor with its weights."""
        return hf.load(hf.resolve(p.folder), dtype=self.config.boundary.dtype, partitioner=self.partitioner)

    def _markers(self, date: datetime.date) -> tuple[str, str]:
        by_name = {v.name: v for v in self.writers}
        if "student" in by_name:
            chat = by_name["student"].chat
        elif self.config.student is not None:
            chat = self.read_writer("student", self.config.student, date).chat
        else:
            chat = self.writers[0].chat
        return chat.open_text, chat.close_text

    @cached_property
    def one_vocabulary(self) -> bool:
        """Whether all writers share one vocabulary."""
        return all(same_vocabulary(self.writers[0].vocabulary, v.vocabulary) for v in self.writers)

    @cached_property
    def bridges(self) -> list[AnyBridge]:
        """The bridge of each writer; the same bridge if the writers share a vocabulary."""
        first = self.make_bridge(self.writers[0])
        if self.one_vocabulary:
            return [first] * len(self.writers)
        return [first, *(self.make_bridge(v) for v in self.writers[1:])]

    @property
    def steps(self) -> tuple[int, ...]:
        """The largest number of tokens per proposal, per writer."""
        synthesis = self.config.synthesis
        return tuple(cast(int, getattr(synthesis, f"{name}_step")) for name in self.names)

    @property
    def _longest_token(self) -> int:
        return max(v.vocabulary.longest for v in self.writers)

    @property
    def _max_proposal_bytes(self) -> int:
        return 12 * max(self.steps)

    @property
    def _window_bytes(self) -> int:
        return -(-(MAX_PENDING_BYTES + self._max_proposal_bytes + self._longest_token) // 64) * 64

    @property
    def loop_config(self) -> LoopConfig:
        """The static configuration of the decode loop."""
        synthesis, boundary = self.config.synthesis, self.config.boundary
        assert synthesis.word_rule is not None
        return LoopConfig(
            word_rule=synthesis.word_rule,
            online=boundary.mode == "online",
            one_vocabulary=self.one_vocabulary,
            predictor_reads=tuple(None if p is None else p.reads for p in self.predictors),
            half_window=boundary.window // 2,
            max_token_bytes=self._longest_token,
            window_bytes=self._window_bytes,
            max_proposal_tokens=max(self.steps),
            max_proposal_bytes=self._max_proposal_bytes,
            max_pending_bytes=MAX_PENDING_BYTES,
            repetition_period=synthesis.repetition.period,
            repetition_window=synthesis.repetition.window,
        )

    def decode_params(self) -> DecodeParams:
        """The numbers of the decode loop."""
        synthesis, boundary = self.config.synthesis, self.config.boundary
        threshold = boundary.threshold
        samplings = [v.sampling for v in self.writers]
        return DecodeParams(
            samplings=tuple(Sampling.of(s.temperature, s.top_p, s.top_k, s.min_p) for s in samplings),
            steps=tuple(jnp.int32(step) for step in self.steps),
            min_span_tokens=jnp.int32(boundary.min_span_tokens),
            logit_threshold=jnp.float32(math.log(threshold / (1 - threshold))),
            label_flip_prob=jnp.float32(boundary.label_flip_prob) if boundary.label_flip_prob else None,
            max_response_tokens=jnp.int32(synthesis.max_response_tokens),
            max_response_bytes=jnp.int32(BYTES_PER_TOKEN * synthesis.max_response_tokens),
            handover=jnp.float32(synthesis.handover),
            rounds_per_dispatch=jnp.float32(synthesis.rounds_per_dispatch),
            harvest=jnp.int32(1),
            seed=jnp.uint32(self.config.seed),
        )

    def text_tables(self) -> TextTables:
        """Vocabularies, bridges and markers as arrays."""
        close = np.frombuffer(self.close_text.encode(), np.uint8)
        markers = sorted({text for v in self.writers for text in v.chat.closing_texts})
        longest = max(len(marker) for marker in markers)
        rows = np.array([list(marker.ljust(longest, b"\0")) for marker in markers], np.uint8)
        return TextTables(
            vocabs=tuple(_vocab_tables(v, self.loop_config.max_token_bytes) for v in self.writers),
            bridge=joined(self.bridges),
            markers_MI=jnp.asarray(rows),
            marker_lengths_M=jnp.asarray([len(marker) for marker in markers], jnp.int32),
            close_X=jnp.asarray(close),
        )

    def limit_lanes(self, responses: int) -> None:
        """With `synthesis.lanes: auto`, reduces the lanes to the number of responses to write, rounded up to fill the
        shards, and makes lanes and pool the same in all processes. Every process must call it."""
        if self.config.synthesis.lanes == "auto":
            shards = self.partitioner.num_shards("lanes")
            self.lanes = smallest(min(self.lanes, max(1, -(-responses // shards)) * shards))
            pool = smallest(0 if self.pool is None else self.pool)  # 0 if a process does not know its memory
            self.pool = self.config.synthesis.cache_tokens or (min(pool, self.lanes * self.longest) or None)

    def engine(self, student: Decoder | None = None, *, pool: int | None = None) -> Engine:
        """Loads the weights into an engine with free lanes. student: the student's model, if it is loaded already. pool: see
        `Engine` (default: `self.pool`)."""
        synthesis = self.config.synthesis

        def loaded(v: WriterSpec) -> Decoder:
            if v.name == "student" and student is not None:
                return restack(student, dtype=v.section.dtype, partitioner=self.partitioner)
            return self.load_writer(v)

        return Engine(
            [loaded(v) for v in self.writers],
            [None if p is None else self.load_predictor(p) for p in self.predictors],
            self.text_tables(),
            self.loop_config,
            self.decode_params(),
            lanes=self.lanes,
            tokens=self.tokens,
            pool=self.pool if pool is None else pool,
            pass_lanes=synthesis.pass_lanes,
        )

    @staticmethod
    def _weights(section: settings.Model) -> Path:
        return hf.resolve(section.model, revision=section.revision)

    def roles(self, number: int) -> Roles:
        """The thinkers and the answerer of the response with a number."""
        roles = self.recipe.roles[number % len(self.recipe.roles)]
        return replace(roles, answerer=roles.answerer or self.config.synthesis.final_answer)

    def prompts(self, messages: Sequence[Mapping[str, str]]) -> list[list[int]]:
        """The prompt in the tokens of each writer."""
        return [v.chat.prompt(messages) for v in self.writers]

    def new_response(self, prompts: Sequence[list[int]], number: int, attempt: int) -> ResponseState:
        """The state of an empty response. prompts: its prompt per writer. number: see `response_seed`."""
        roles = self.roles(number)
        sides = [self.names.index(name) for name in roles.thinkers]
        return ResponseState(
            views=tuple(TokenizedView(ids, len(ids), []) for ids in prompts),
            scalars=LaneScalars(
                thinkers=sum(1 << side for side in sides),
                answerer=self.names.index(cast(Writer, roles.answerer)),
                sample=number,
                attempt=attempt,
                speaker=sides[0],
            ),
        )


def response_seed(prompt_id: str, rollout: int) -> int:
    """The number that, with seed and attempt, determines the randomness of a response: 32 bits of a hash of its key."""
    return int.from_bytes(hashlib.sha256(f"{rollout}\0{prompt_id}".encode()).digest()[:4], "little")


def _vocab_tables(v: WriterSpec, size: int) -> VocabTables:
    def ids(numbers: Sequence[int]) -> Any:
        return jnp.asarray(sorted(numbers) or [-1], jnp.int32)

    if not v.chat.close_ids:
        raise TokenizerError(f"{v.folder}: {v.chat.close_text!r} has no tokens; configure {v.name}.thinking.close")
    return VocabTables(
        bytes_VI=jnp.asarray(v.vocabulary.rows(size)),
        lengths_V=jnp.asarray(np.diff(v.vocabulary.offsets)),
        control_V=jnp.asarray(v.vocabulary.control),
        closing_X=ids(list(v.chat.closing_ids)),
        ends_X=ids(list(v.chat.end_ids)),
        answer_X=jnp.asarray(v.chat.close_ids, jnp.int32),
    )
