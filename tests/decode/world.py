"""Two tiny random models with vocabularies of their own, their predictors, and both ways to write with them."""

import json
from dataclasses import dataclass
from functools import cache

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tessy_jax.decode.batch import Room
from tessy_jax.decode.engine import Engine
from tessy_jax.decode.response_state import ResponseState, TokenizedView
from tessy_jax.decode.sampling import Sampling
from tessy_jax.decode.state import DONE, DecodeParams, LaneScalars, LoopConfig
from tessy_jax.decode.tables import TextTables, VocabTables
from tessy_jax.models.config import ModelConfig, Rope
from tessy_jax.models.transformer import Decoder
from tessy_jax.sharding import Partitioner
from tessy_jax.text.bridge import device_bridge
from tessy_jax.text.bridges import joined
from tests.decode.oracle import Oracle, OracleSide, Settings

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = (
    "Okay, let me see. we need to compute x = 12 * 7; don't we? so wait, hmm.\n\n  it's é 中文 Ö.\nthus (a+b)'s ok\t\tend. "
    "alright then we'll go on and on, the the answer </t>"
)
SPECIAL = [f"<{name}{i}>" for name, count in (("end", 5), ("close", 7), ("control", 1)) for i in range(count)]
WORDS = (" so", "é", " the", ", ", " 中文", "x", " wait", "\n", " we", "7", " a", "ing", "'s", "Ö", " (", ")")
MARKER = b"c. "


@cache
def tokenizer(kind: str) -> Tokenizer:
    """student: GPT-2's split rule; teacher: Qwen's, and other merges."""
    built = Tokenizer(models.BPE())
    if kind == "student":
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        split = pre_tokenizers.Split(Regex(QWEN), behavior="isolated")
        built.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    built.decoder = decoders.ByteLevel()
    size = 350 if kind == "student" else 330
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    texts = [TEXT] if kind == "student" else [TEXT[40:], TEXT[:70]]
    built.train_from_iterator(texts * 3, trainer)
    return built


def byte_of():
    """GPT-2's alphabet: printable characters stand for themselves, the other bytes for characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {chr(b): b for b in printable}, 256
    for b in range(256):
        if b not in printable:
            table[chr(extra)] = b
            extra += 1
    return table


@cache
def spelled(kind: str) -> list:
    """Bytes of every token; tokens that would spell a part of a character spell a whole one instead, so that random models
    write text. None for control tokens."""
    built, table = tokenizer(kind), byte_of()
    result = []
    for i in range(built.get_vocab_size()):
        token = built.id_to_token(i)
        if token in SPECIAL:
            result.append(None)
            continue
        data = bytes(table[c] for c in token)
        try:
            data.decode()
        except UnicodeDecodeError:
            data = WORDS[i % len(WORDS)].encode()
        result.append(data)
    return result


def encode(kind: str, data: bytes) -> list:
    built, table = tokenizer(kind), byte_of()
    encoding = built.encode(data.decode(), add_special_tokens=False)
    pieces = [(i, bytes(table[c] for c in t)) for i, t in zip(encoding.ids, encoding.tokens, strict=True)]
    assert b"".join(text for _, text in pieces) == data
    return pieces


def split(kind: str, data: bytes) -> tuple:
    """Pre-token starts, and the position up to which no following text changes them."""
    text = data.decode()
    if not text:
        return [], 0
    starts = [a for _, (a, _) in tokenizer(kind).pre_tokenizer.pre_tokenize_str(text)]
    last = starts[-1]
    tail = text[last:]
    before = text[last - 1] if last else ""
    quote = (before == "'" or text[last] == "'") and len(tail) < 3
    unsafe = last > 0 and ((before.isspace() and tail.isspace()) or quote or (before.isalpha() and tail[0].isalpha()))
    solid = [i for i, c in enumerate(text) if not c.isspace()]
    final = last - 1 if unsafe else max(last, solid[-1] if solid else 0)

    def at(i):
        return len(text[:i].encode())

    return [at(s) for s in starts], at(max(final, 0))


def model(
    seed: int, vocab: int, labels: int | None = None, sharp: float = 3.0, head_dim: int = 8, window: int | None = None
) -> Decoder:
    config = ModelConfig(
        family="llama",
        vocab=vocab,
        layers=2,
        embed=32,
        heads=4,
        kv_heads=2,
        head_dim=head_dim,
        ffn=48,
        eps=1e-5,
        tied=False,
        rope=Rope("default", 5000.0, head_dim),
        windows=(window, None),
        sparse=(False, False),
        max_positions=4096,
        query_scale=head_dim**-0.5,
        labels=labels,
    )
    built = Decoder(config, nnx.Rngs(seed), dtype=jnp.float32)
    for _, variable in nnx.iter_graph(built):
        if isinstance(variable, nnx.Param) and variable[...].ndim == 2:
            rows = 1 if variable is built.embed else variable[...].shape[0]
            variable[...] = variable[...] / 0.02 / np.sqrt(rows)  # wide enough that what comes depends on all that was
    part = built.score if labels else built.head
    part.kernel[...] = part.kernel[...] * sharp
    return built


@dataclass(frozen=True)
class World:
    """Everything but the number of lanes. kinds: the vocabularies of student and teacher."""

    kinds: tuple = ("student", "teacher")
    word_rule: str = "discard"
    online: bool = True
    steps: tuple = (6, 8)
    sampling: tuple = (1.0, 0.95, 0, 0.0)
    min_span_tokens: int = 1
    half_window: int = 8
    max_response_tokens: int = 120
    predictor_reads: tuple = (0, 0)
    window_bytes: int = 192
    predictor_tokens: tuple = ()
    max_proposal_bytes: int = 64
    max_pending_bytes: int = 24
    repetition_period: int = 4
    repetition_window: int = 16
    seed: int = 5
    ends: int = 5
    room: Room | None = None
    rounds_per_dispatch: int = 50
    handover: float = 0.5
    pool: int | None = None
    page: int = 128
    longest_prompt: int = 60
    label_flip_prob: float = 0.0

    @property
    def one_vocabulary(self):
        return self.kinds[0] == self.kinds[1]


@cache
def bridges() -> dict:
    return {kind: device_bridge(json.loads(tokenizer(kind).to_str())) for kind in ("student", "teacher")}


@cache
def parts(kinds: tuple, predictor_reads: tuple):
    writers = [model(1 + m, len(spelled(kind)), sharp=2.5) for m, kind in enumerate(kinds)]
    predictors = [model(11 + m, len(spelled(kinds[v])), labels=2, sharp=1.0) for m, v in enumerate(predictor_reads)]
    return writers, predictors


CLOSE = b"\n</t>\n\n"


def special(kind: str, name: str) -> list:
    built = tokenizer(kind)
    return [built.token_to_id(token) for token in SPECIAL if token.startswith(f"<{name}")]


def longest_token(world: World) -> int:
    return max(len(text or b"") for kind in world.kinds for text in spelled(kind))


def spelling(world: World, kind: str) -> VocabTables:
    table = spelled(kind)
    size = longest_token(world)
    rows = [list((text or b"").ljust(size, b"\0")) for text in table]
    return VocabTables(
        bytes_VI=jnp.asarray(rows, jnp.uint8),
        lengths_V=jnp.asarray([len(text or b"") for text in table], jnp.int32),
        control_V=jnp.asarray([text is None for text in table]),
        closing_X=jnp.asarray(special(kind, "close"), jnp.int32),
        ends_X=jnp.asarray(special(kind, "end")[: world.ends], jnp.int32),
        answer_X=jnp.asarray([token for token, _ in encode(kind, CLOSE)], jnp.int32),
    )


def engine(world: World, lanes: int, partitioner: Partitioner | None = None, writers=None, predictors=None) -> Engine:
    mine = parts(world.kinds, world.predictor_reads)
    writers, predictors = writers or mine[0], predictors or mine[1]
    config = LoopConfig(
        word_rule=world.word_rule,
        online=world.online,
        one_vocabulary=world.one_vocabulary,
        predictor_reads=world.predictor_reads,
        half_window=world.half_window,
        max_token_bytes=longest_token(world),
        window_bytes=world.window_bytes,
        predictor_tokens=world.predictor_tokens,
        max_proposal_tokens=max(world.steps),
        max_proposal_bytes=world.max_proposal_bytes,
        max_pending_bytes=world.max_pending_bytes,
        repetition_period=world.repetition_period,
        repetition_window=world.repetition_window,
        room=world.room,
    )
    markers = np.frombuffer(MARKER, np.uint8)[None]
    tables = TextTables(
        vocabs=tuple(spelling(world, kind) for kind in world.kinds),
        bridge=joined([bridges()[kind] for kind in world.kinds]),
        markers_MI=jnp.asarray(markers),
        marker_lengths_M=jnp.asarray([len(MARKER)], jnp.int32),
        close_X=jnp.asarray(np.frombuffer(CLOSE, np.uint8)),
    )
    params = DecodeParams(
        samplings=(Sampling.of(*world.sampling),) * 2,
        steps=tuple(jnp.int32(step) for step in world.steps),
        min_span_tokens=jnp.int32(world.min_span_tokens),
        logit_threshold=jnp.float32(0),
        label_flip_prob=jnp.float32(world.label_flip_prob) if world.label_flip_prob else None,
        max_response_tokens=jnp.int32(world.max_response_tokens),
        max_response_bytes=jnp.int32(16 * world.max_response_tokens),
        handover=jnp.float32(world.handover),
        rounds_per_dispatch=jnp.float32(world.rounds_per_dispatch),
        harvest=jnp.int32(1),
        seed=jnp.uint32(world.seed),
    )
    return Engine(
        writers,
        predictors,
        tables,
        config,
        params,
        lanes=lanes,
        tokens=world.longest_prompt + world.max_response_tokens,
        pool=world.pool,
        page=world.page,
    )


@dataclass(frozen=True)
class Job:
    """A response to write: lengths of the two prompts, and who thinks and answers. like: the sample whose prompts it has;
    own: how many tokens at their end are its own all the same."""

    sample: int
    lengths: tuple = (9, 12)
    thinkers: int = 3
    answerer: int = 0
    attempt: int = 0
    like: int | None = None
    own: int = 0

    def prompts(self, world: World) -> list:
        def drawn(seed: int) -> list:
            rng, sizes = np.random.default_rng(seed), zip(world.kinds, self.lengths, strict=True)
            return [rng.integers(7, len(spelled(kind)), size).tolist() for kind, size in sizes]

        if self.like is None:
            return drawn(self.sample)
        pairs = zip(drawn(self.like), drawn(self.sample), strict=True)
        return [theirs[: len(theirs) - self.own] + mine[len(mine) - self.own :] for theirs, mine in pairs]

    def state(self, world: World) -> ResponseState:
        return ResponseState(
            views=tuple(TokenizedView(prompt, len(prompt), []) for prompt in self.prompts(world)),
            scalars=LaneScalars(
                thinkers=self.thinkers,
                answerer=self.answerer,
                sample=self.sample,
                attempt=self.attempt,
                speaker=1 if self.thinkers == 2 else 0,
            ),
        )


STATUS = {2: "done", 3: "length", 4: "repetition", 5: "early end", 6: "control"}


def by_engine(world: World, jobs: list, lanes: int = 3, built=None, restart_every: int = 0, **options) -> dict:
    """Every response by the engine with refilled lanes: {sample: (text, sources, thinking_bytes, status, switches)}."""
    machine = built or engine(world, lanes, **options)
    queue, active, results, visits = list(jobs), {}, {}, 0
    while queue or active:
        for lane in range(lanes):
            if lane not in active and queue:
                job = queue.pop(0)
                machine.insert(lane, job if isinstance(job, ResponseState) else job.state(world))
                active[lane] = job
        status = machine.run(harvest=1)
        visits += 1
        ended = [lane for lane in active if status[lane] >= DONE]
        for lane, state in zip(ended, machine.extract(ended), strict=True):
            scalars, status_name = state.scalars, STATUS[state.scalars.status]
            results[scalars.sample] = (state.text, state.sources, scalars.thinking_bytes, status_name, scalars.switches)
            machine.free(lane)
            del active[lane]
        if restart_every and visits % restart_every == 0 and active:
            queue = [*machine.extract(list(active)), *queue]
            active = {}
            machine = engine(world, lanes, **options)
    return results


def by_oracle(world: World, job: Job) -> tuple:
    writers, predictors = parts(world.kinds, world.predictor_reads)
    writers = [
        OracleSide(
            model=writers[m],
            sampling=Sampling.of(*world.sampling),
            step=world.steps[m],
            spell=spelled(kind),
            closing=set(special(kind, "close")),
            ends_turn=set(special(kind, "end")[: world.ends]),
            answer=[token for token, _ in encode(kind, CLOSE)],
            encode=lambda data, kind=kind: encode(kind, data),
            split=lambda data, kind=kind: split(kind, data),
            prompt=prompt,
        )
        for m, (kind, prompt) in enumerate(zip(world.kinds, job.prompts(world), strict=True))
    ]
    settings = Settings(
        word_rule=world.word_rule,
        one_vocabulary=world.one_vocabulary,
        min_span_tokens=world.min_span_tokens,
        half_window=world.half_window,
        max_response_tokens=world.max_response_tokens,
        max_proposal_bytes=world.max_proposal_bytes,
        max_pending_bytes=world.max_pending_bytes,
        window_bytes=world.window_bytes,
        repetition_period=world.repetition_period,
        repetition_window=world.repetition_window,
        markers=[MARKER],
        close=CLOSE,
        seed=world.seed,
        label_flip_prob=world.label_flip_prob,
    )
    written = Oracle(
        writers,
        predictors,
        world.predictor_reads,
        settings,
        thinkers=job.thinkers,
        answerer=job.answerer,
        sample_id=job.sample,
        attempt=job.attempt,
    ).write()
    return written.text, written.sources, written.thinking_bytes, written.status, written.switches
