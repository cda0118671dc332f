"""The state of every lane during decoding, and the static configuration of the compiled loop.

A lane holds one response in progress. Both models share its text, which is bytes. Each model is a side, with the prompt in
its own chat template, the tokenized part of the response in its own vocabulary, and a cache. A lane is an independent state
machine: other lanes only affect when it takes its next step.

Arrays of both sides have an axis M, so that one piece of code serves the side whose turn it is. Sides are numbered by
integers or by traced scalars.

Invariants: committed_B ≤ written_B; the bytes in between are the proposal of the lane's speaker. Tokens of a side cover
the text up to its last token's end, which is written_B for the speaker once it may write, and at most committed_B for the
listener. A cache holds a prefix of its side's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tessy_jax.decode.batch import Room
from tessy_jax.decode.cache import PageCache
from tessy_jax.decode.sampling import Sampling
from tessy_jax.decode.windows import read_window, write_window
from tessy_jax.models.pages import PagedKV

T = TypeVar("T")
Index = int | jax.Array
"""The number of a side, or one per lane [B]; traced where one piece of code serves both sides."""

STUDENT, TEACHER, TEMPLATE = 0, 1, 2
"""Writers, as `source_BY` has them; the first two number the sides, too."""
THINK, ANSWER = 0, 1
"""Phases."""
ALONE = (1, 2)
INTERLEAVED = 3
"""Thinkers: bit 0 is the student, bit 1 the teacher."""
EMPTY, RUNNING, DONE, LENGTH, REPETITION, EARLY_END, CONTROL, UNENCODABLE = range(8)
"""Status: from DONE on, the lane has ended. LENGTH: a token or byte budget is spent. REPETITION: the text repeats itself.
EARLY_END: the turn ended inside the thinking. CONTROL: a control token was sampled in place of text. UNENCODABLE: the other
vocabulary has no tokens for the text."""
CONTINUES, CLOSED, ENDED, CONTROL_TOKEN = range(4)
"""Why a proposal stops before its full length: the thinking closed, the turn ended, or a control token was sampled."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeParams:
    """The numbers of a run. They are traced, so a new value does not recompile the loop. `Sampling.top_k` is static, and so
    is the choice of None for a value."""

    samplings: tuple[Sampling, ...]
    """Sampling of each side."""
    steps: tuple[jax.Array, ...]
    """Tokens per proposal, for each side."""
    min_span_tokens: jax.Array
    """Tokens of a proposal, in the predictor's vocabulary, that a cut cannot precede."""
    logit_threshold: jax.Array
    """A token counts as style if its style score exceeds its capability score by more than this."""
    label_flip_prob: jax.Array | None
    """Probability of inverting a predictor's label; None inverts none and draws no random numbers."""
    max_response_tokens: jax.Array
    """Tokens per response, in either vocabulary."""
    max_response_bytes: jax.Array
    """Bytes per response."""
    handover: jax.Array
    """Share of a speaker's lanes that must have handed over before the other speaker's turn."""
    rounds_per_dispatch: jax.Array
    """Rounds between two visits of the host."""
    harvest: jax.Array
    """Number of ended lanes that returns control to the host."""
    seed: jax.Array
    """Seed of all randomness."""


class LoopConfig(NamedTuple):
    """Static configuration: the loop is compiled for these values."""

    word_rule: str
    """How a span ends inside a word; see `cut`."""
    online: bool
    """Whether predictors stop a proposal at the flip, or cut the whole proposal afterwards."""
    one_vocabulary: bool
    """Whether both sides count the same tokens."""
    predictor_reads: tuple[int | None, ...]
    """For each side, the side whose tokens its predictor reads; None without a predictor."""
    half_window: int
    """Half of a predictor's window, in tokens."""
    max_token_bytes: int
    """Bytes of the longest token."""
    window_bytes: int
    """Bytes of text that one operation reads."""
    max_proposal_tokens: int
    """The most tokens of a proposal on any side."""
    max_proposal_bytes: int
    """Bytes at which a proposal ends."""
    max_pending_bytes: int
    """Bytes of an unfinished word that may wait for the rest before the listener tokenizes them."""
    repetition_period: int
    """Longest period, in tokens, of a text that counts as repetitive."""
    repetition_window: int
    """Last tokens that are checked for a period; 0 turns the check off."""
    room: Room | None = None
    """What a forward pass has room for. None: the engine chooses."""
    predictor_tokens: tuple[int, ...] = ()
    """Tokens per lane in one pass of a predictor: for lanes that catch up, and for lanes that have sampled a token. With one
    number, or if not `online`, all passes use the first. Empty: the default of the platform, see `flips`."""
    predictor_lanes: int = 0
    """Lanes in a catch-up pass of a predictor, or in any pass if not `online`; 0 for all lanes, also if lanes are sharded.
    Online with one number of `predictor_tokens`, each pass reads all lanes."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """The tokens of every lane in the vocabulary of each side."""

    ids_MBS: jax.Array
    """Tokens of prompt and response."""
    ends_MBS: jax.Array
    """Bytes of the response up to the end of each token; 0 in the prompt."""
    prompt_MB: jax.Array
    """Number of prompt tokens."""
    known_MB: jax.Array
    """Number of all tokens, the speaker's proposal included."""

    def known_B(self, m: Index) -> jax.Array:
        """Number of all tokens of side m."""
        return of_side(self.known_MB, m)

    def prompt_B(self, m: Index) -> jax.Array:
        """Number of prompt tokens of side m."""
        return of_side(self.prompt_MB, m)

    def encoded_B(self, m: Index) -> jax.Array:
        """Bytes of the response that the tokens of side m cover."""
        return self.end_B(m, self.known_B(m))

    def end_B(self, m: Index, count_B: jax.Array) -> jax.Array:
        """Bytes of the response that the first count_B tokens of side m cover."""
        return read_window(self.ends_MBS, count_B - 1, 1, m)[:, 0]

    def response_B(self, m: Index) -> jax.Array:
        """Tokens of the response."""
        return self.known_B(m) - self.prompt_B(m)

    def up_to(self, m: Index, bytes_B: jax.Array, known_B: jax.Array | None = None) -> jax.Array:
        """How many [B] of the first known_B tokens (default: all) end within the first bytes_B bytes of the response."""
        known_B = self.known_B(m) if known_B is None else known_B
        index_S = jnp.arange(self.ids_MBS.shape[2])
        covered_BS = (of_side(self.ends_MBS, m) <= bytes_B[:, None]) & (index_S < known_B[:, None])
        return covered_BS.sum(axis=1, dtype=jnp.int32)

    def written(self, m: Index, ids_BQ: jax.Array, ends_BQ: jax.Array, start_B: jax.Array) -> Tokens:
        """With these tokens of side m after the first start_B ones. `known_MB` does not change; tokens beyond it do not
        count."""
        return replace(
            self,
            ids_MBS=write_window(self.ids_MBS, ids_BQ, start_B, m),
            ends_MBS=write_window(self.ends_MBS, ends_BQ, start_B, m),
        )

    def with_known(self, m: Index, known_B: jax.Array) -> Tokens:
        """With known_B known tokens of side m."""
        own_MB = jnp.arange(self.known_MB.shape[0])[:, None] == m
        return replace(self, known_MB=jnp.where(own_MB, known_B, self.known_MB))

    def truncated(self, where_B: jax.Array, bytes_B: jax.Array) -> Tokens:
        """Without the tokens of both sides that end after bytes_B bytes, in lanes where_B."""
        known_MBS = jnp.arange(self.ids_MBS.shape[2]) < self.known_MB[..., None]
        kept_MB = ((self.ends_MBS <= bytes_B[:, None]) & known_MBS).sum(axis=2, dtype=jnp.int32)
        return replace(self, known_MB=jnp.where(where_B, jnp.maximum(kept_MB, self.prompt_MB), self.known_MB))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PredictorState:
    """The state of one boundary predictor: two windows per lane, see `predictor_window`."""

    kv: PagedKV
    """Keys and values: a ring of pages per window, two windows per lane."""
    read_B: jax.Array
    """Tokens of the response that the predictor has read."""
    first_B: jax.Array
    """The first token of the response that the pages still hold."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Counts:
    """Work since the start of the dispatch, as float32 numbers, for each side."""

    passes_M: jax.Array
    """Forward passes."""
    sampled_M: jax.Array
    """Tokens sampled in these passes, over all lanes."""
    rows_M: jax.Array
    """Rows of tokens in these passes, see `batch`."""
    caught_up_M: jax.Array
    """Tokens read without sampling from them."""
    predictor_passes_M: jax.Array
    """Forward passes of the side's predictor."""
    bridged_M: jax.Array
    """Tokens that the bridge made from text."""
    rounds: jax.Array
    """Rounds of the loop, a scalar."""

    def add(self, m: Index, **numbers: jax.Array) -> Counts:
        """With these numbers added to those of side m."""
        own_M = jnp.arange(self.passes_M.shape[0]) == m
        return replace(self, **{f"{n}_M": getattr(self, f"{n}_M") + jnp.where(own_M, x, 0) for n, x in numbers.items()})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LaneScalars:
    """The numbers of a response that are inserted, extracted and stored in snapshots: arrays [B] for all lanes on a device,
    integers for one response on the host. Tuples hold one per side, always two. The defaults are those of an empty lane."""

    thinkers: Any = 0
    """Sides that think, as bits; INTERLEAVED for both."""
    answerer: Any = 0
    """Side that answers."""
    sample: Any = 0
    """Sample number, uint32; seed, sample and attempt decide the lane's randomness."""
    attempt: Any = 0
    """Attempt number."""
    speaker: Any = STUDENT
    """Side that writes: STUDENT or TEACHER."""
    phase: Any = THINK
    """THINK or ANSWER."""
    thinking_bytes: Any = -1
    """Bytes of the thinking once it has closed; -1 before."""
    generated: tuple[Any, Any] = (0, 0)
    """Tokens sampled."""
    discarded: tuple[Any, Any] = (0, 0)
    """Tokens sampled and not kept."""
    switches: Any = 0
    """Hand-overs after a flip."""
    status: Any = EMPTY
    """EMPTY, RUNNING, or the reason for the end. Insertion sets RUNNING."""

    def arrays(self) -> LaneScalars:
        """The numbers of one response as NumPy scalars: uint32 for `sample`, int32 for the others."""
        scalars: LaneScalars = jax.tree.map(np.int32, replace(self, sample=0))
        return replace(scalars, sample=np.uint32(self.sample))

    def of_row(self, row: int) -> LaneScalars:
        """The numbers of one response, as integers."""
        numbers: LaneScalars = jax.tree.map(lambda x: int(x[row]), self)
        return numbers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lanes:
    """The state of all lanes."""

    text_BY: jax.Array
    """Bytes of the response, uint8."""
    source_BY: jax.Array
    """Writer of each committed byte, uint8: STUDENT, TEACHER or TEMPLATE."""
    committed_B: jax.Array
    """Bytes committed."""
    written_B: jax.Array
    """Bytes committed or proposed."""
    proposed_B: jax.Array
    """Tokens of the proposal."""
    stop_B: jax.Array
    """Why the proposal stops: CONTINUES, CLOSED, ENDED or CONTROL_TOKEN."""
    flip_B: jax.Array
    """Bytes up to the flip of the predictor's label; -1 without a flip."""
    scalars: LaneScalars
    """The numbers that a response keeps outside its lane, as arrays [B]."""
    pending_B: jax.Array
    """Tokens of the listener after its known ones: those of the proposal's closed words, which no following text can
    change."""
    parked_B: jax.Array
    """Whether the lane waits for free pages, with empty caches, until the host takes it back."""
    starved_B: jax.Array
    """Whether the lane found no free page in this dispatch."""
    tokens: Tokens
    """The tokens of both sides."""
    first_MD: jax.Array
    """The lane of each shard that is served first in the next forward pass of each side."""
    caches: tuple[PageCache, ...]
    """The cache of each side's model; it holds a prefix of the side's tokens."""
    predictors: tuple[PredictorState | None, ...]
    """The state of each side's boundary predictor; None without one."""
    counts: Counts
    """Work since the start of the dispatch."""

    @property
    def running_B(self) -> jax.Array:
        return (self.scalars.status == RUNNING) & ~self.parked_B

    @property
    def ended_B(self) -> jax.Array:
        return self.scalars.status >= DONE

    @property
    def interleaves_B(self) -> jax.Array:
        """Whether the lane is thinking and both models write the thinking in turns."""
        return (self.scalars.phase == THINK) & (self.scalars.thinkers == INTERLEAVED)

    def with_predictor(self, m: int, predictor: PredictorState) -> Lanes:
        return replace(self, predictors=replace_at(self.predictors, m, predictor))

    def with_scalars(self, **values: Any) -> Lanes:
        """The lanes with other values of these fields of `LaneScalars`."""
        return replace(self, scalars=replace(self.scalars, **values))

    def speaks_B(self, m: Index) -> jax.Array:
        return self.running_B & (self.scalars.speaker == m)

    def ready_B(self, m: Index) -> jax.Array:
        """Whether side m may write the lane's next token: it is its turn, and its tokens cover the text."""
        return self.speaks_B(m) & (self.tokens.encoded_B(m) == self.written_B)

    def free_B(self, m: Index) -> jax.Array:
        """The number of tokens of side m that count: the known ones and, for the listener, the pending ones. New tokens are
        written after them."""
        return self.tokens.known_B(m) + jnp.where(self.scalars.speaker == m, 0, self.pending_B)


def of_side(x: jax.Array, m: Index) -> jax.Array:
    """Part m of an array [M, B, ...]. If m is [B], each lane has its own part."""
    return x[m] if jnp.ndim(m) == 0 else x[m, jnp.arange(x.shape[1])]


def replace_at(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    """The tuple with one item replaced."""
    return (*items[:index], item, *items[index + 1 :])


def add_at(items: tuple[jax.Array, ...], m: Index, number: jax.Array) -> tuple[jax.Array, ...]:
    """The tuple with a number added to the item of side m."""
    return tuple(jnp.where(m == i, item + number, item) for i, item in enumerate(items))


def pick_side(items: Sequence[jax.Array], m: Index) -> jax.Array:
    """The item of side m, for items of equal shapes."""
    return jnp.stack(items)[m]
