"""The method in plain Python: one response at a time, complete forward passes, no caches, no loops on the device.

Proposals are always written to their full length, classified, and cut ("generate, then roll back"); tokens that are cut
off are sampled again. The `tokenizers` library tokenizes the text.
"""

from dataclasses import dataclass, field
from functools import cache, partial

import jax
import numpy as np
from flax import nnx

from tessy_jax.decode.sampling import Sampling, position_keys, sample

STUDENT, TEACHER, TEMPLATE = 0, 1, 2
WHITE = " \t\n\x0b\x0c\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@partial(jax.jit, static_argnums=0)
def _scores(graph, params, tokens_1T, length):
    model = nnx.merge(graph, params)
    hidden = model(tokens_1T)[0]
    return model.logits(jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1))[:, 0]


SIZES = 128, 512  # lengths of a forward pass; shorter sequences are padded


@cache
def _parts(model):
    return nnx.split(model)


def scores(model, tokens, size=None):
    """Scores after the last token, from a whole forward pass."""
    size = size or next(size for size in SIZES if len(tokens) <= size)
    padded = np.zeros((1, size), np.int32)
    padded[0, : len(tokens)] = tokens
    return _scores(*_parts(model), padded, np.int32(len(tokens)))


@jax.jit
def _draw(logits_1V, seed, sample_id, attempt, position, sampling):
    return sample(logits_1V, position_keys(seed, sample_id[None], attempt[None], position[None]), sampling)[0]


@dataclass
class OracleSide:
    """One side: its model, its vocabulary as functions, its prompt, and its tokens of the response."""

    model: object
    sampling: Sampling
    step: int
    spell: list  # bytes of each token, None for control tokens
    closing: set
    ends_turn: set
    answer: list
    encode: object  # bytes -> [(id, bytes)]
    split: object  # bytes -> (starts, final)
    prompt: list
    tokens: list = field(default_factory=list)
    ends: list = field(default_factory=list)

    @property
    def covered(self):
        return self.ends[-1] if self.ends else 0

    def cut(self, end):
        while self.ends and self.ends[-1] > end:
            self.tokens.pop()
            self.ends.pop()

    def append(self, pieces):
        for token, text in pieces:
            self.tokens.append(token)
            self.ends.append(self.covered + len(text))


@dataclass
class Settings:
    word_rule: str
    one_vocabulary: bool
    min_span_tokens: int
    half_window: int
    max_response_tokens: int
    max_proposal_bytes: int
    max_pending_bytes: int
    window_bytes: int
    repetition_period: int
    repetition_window: int
    markers: list
    close: bytes
    seed: int
    logit_threshold: float = 0.0
    label_flip_prob: float = 0.0


@dataclass
class Written:
    text: bytes
    sources: bytes
    thinking_bytes: int
    status: str
    switches: int
    tokens: tuple


def complete(data):
    """The length without an unfinished character at the end."""
    for cut in range(4):
        try:
            data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
        return len(data) - cut
    raise AssertionError("the test's vocabulary spells whole characters")


def style_follows(predictor, tokens, t, half_window, logit_threshold):
    anchor = max(0, (t // half_window - 1) * half_window)
    two = np.asarray(scores(predictor, tokens[anchor : t + 1], size=2 * half_window))[0]
    return two[1] - two[0] > logit_threshold


class Oracle:
    def __init__(self, writers, predictors, predictor_reads, settings, *, thinkers, answerer, sample_id, attempt):
        self.writers, self.predictors, self.predictor_reads, self.settings = writers, predictors, predictor_reads, settings
        self.thinkers, self.answerer = thinkers, answerer
        self.sample_id, self.attempt = sample_id, attempt
        self.text, self.sources = b"", b""
        self.speaker = TEACHER if thinkers == 2 else STUDENT
        self.switches = 0
        self.thinking_bytes = -1
        self.history = []

    def write(self):
        while True:
            status = self.turn()
            if status:
                tokens = tuple(list(v.tokens) for v in self.writers)
                return Written(self.text, self.sources, self.thinking_bytes, status, self.switches, tokens)

    def sampled(self, m):
        writer = self.writers[m]
        logits = scores(writer.model, writer.prompt + writer.tokens)
        numbers = (np.uint32(self.settings.seed), np.uint32(self.sample_id), np.int32(self.attempt))
        return int(_draw(logits, *numbers, np.int32(2 * len(writer.tokens) + m), writer.sampling))

    def label_is_inverted(self, m, t):
        """Whether the label of token t is inverted."""
        numbers = (np.uint32(self.settings.seed), np.uint32([self.sample_id]), np.int32([self.attempt]))
        key = position_keys(*numbers, np.int32([-1 - 2 * t - m]))[0]
        return float(jax.random.uniform(key)) < self.settings.label_flip_prob

    def flush(self, m):
        writer, settings = self.writers[m], self.settings
        end = self.thinking_bytes if self.thinking_bytes >= 0 else len(self.text)
        while writer.covered < end:
            left = self.text[writer.covered : end]
            if len(left) > settings.window_bytes:
                left = left[: settings.window_bytes]
                left = left[: complete(left)]
                starts, final = writer.split(left)
                until = max([s for s in starts if s <= final], default=0) or len(left)
                left = left[:until]
            writer.append(writer.encode(left))
        if self.thinking_bytes >= 0 and writer.covered == self.thinking_bytes:
            writer.tokens += writer.answer
            writer.ends += [self.thinking_bytes + len(settings.close)] * len(writer.answer)
        return len(writer.tokens) > settings.max_response_tokens

    def turn(self):
        m, settings = self.speaker, self.settings
        writer = self.writers[m]
        if self.flush(m):
            return "length"
        thinking = self.thinking_bytes < 0
        cooperative = thinking and self.thinkers == 3
        start, over = len(self.text), None
        written = self.text
        count = 0
        while True:
            token = self.sampled(m)
            if token in writer.ends_turn:
                over = "ended"
            elif token in writer.closing and thinking:
                over = "closed"
            elif writer.spell[token] is None:
                over = "broken"
            else:
                written += writer.spell[token]
                writer.tokens.append(token)
                writer.ends.append(len(written))
                count += 1
                if thinking:
                    hits = [written.find(marker, max(0, start - len(marker))) for marker in settings.markers]
                    hits = [hit for hit in hits if hit >= 0]
                    if hits:
                        over = "closed"
                        written = written[: min(hits)]
                        for other in self.writers:
                            other.cut(len(written))
                        start = min(start, len(written))
            spent = len(writer.tokens) >= settings.max_response_tokens
            full = count >= writer.step or len(written) - start >= settings.max_proposal_bytes
            if over or spent or not cooperative or (full and complete(written[start:])):
                break
        return self.finish(m, written, start, over, cooperative)

    def finish(self, m, written, start, over, cooperative):
        settings, writer = self.settings, self.writers[m]
        self.text, self.sources = self.text[:start], self.sources[:start]
        flip, v = None, self.predictor_reads[m]
        if cooperative and v is not None:
            reader = self.writers[v]
            tokens, ends = list(reader.tokens), list(reader.ends)
            if v != m:
                for token, text in reader.encode(written[reader.covered :]):
                    tokens.append(token)
                    ends.append((ends[-1] if ends else 0) + len(text))
            number = 0
            for t, end in enumerate(ends):
                if end <= start:
                    continue
                number += 1
                if number < settings.min_span_tokens:
                    continue
                style = style_follows(self.predictors[m], tokens, t, settings.half_window, settings.logit_threshold)
                if (style != self.label_is_inverted(m, t)) == (m == TEACHER):
                    flip = end
                    break
        cut = len(written)
        if cooperative:
            cut = start + self.cut(m, written[start:], None if flip is None else flip - start, over, start)
        uncovered = None
        if cooperative and v is not None and v != m and flip is None:
            uncovered = (v, written)
        writer.cut(cut)
        self.text = written[:cut]
        self.sources += bytes([m]) * (cut - start)
        if uncovered:
            self.take_over(*uncovered, cut)
        if flip is not None:
            self.speaker = 1 - m
            self.switches += 1
            over = None
        if over == "broken":
            return "control"
        if over == "ended":
            return "done" if self.thinking_bytes >= 0 else "early end"
        if over == "closed":
            return self.close()
        if len(writer.tokens) >= settings.max_response_tokens:
            return "length"
        return "repetition" if self.repeats(writer.tokens) else None

    def cut(self, m, proposal, flip, over, start):
        rule, n = self.settings.word_rule, len(proposal)
        turn = n if flip is None else flip
        whole = n if over else complete(proposal)
        if rule == "extend":
            characters = proposal[:whole].decode()
            at = 0
            for character in characters:
                if at >= max(turn, 1) and character in WHITE:
                    return at
                at += len(character.encode())
            return whole
        if rule == "discard":
            involved = self.writers[:1] if self.settings.one_vocabulary else self.writers
            possible = set(range(1, n))
            for writer in involved:
                starts, final = writer.split(proposal)
                possible &= {s for s in starts if s <= (n if over else final)}
            possible |= {n} if over else set()
        else:
            possible = {p for p in range(1, n + 1) if p == n == whole or (p < n and proposal[p] & 0xC0 != 0x80)}
            if self.settings.one_vocabulary:
                possible &= {end - start for end in self.writers[m].ends}
        before, behind = [p for p in possible if p <= turn], [p for p in possible if p > turn]
        return max(before) if before else min(behind) if behind else whole

    def take_over(self, v, written, cut):
        reader = self.writers[v]
        base = reader.covered
        starts, final = reader.split(written[base:])
        until = base + max([s for s in starts if s <= final], default=0)
        until = min(until, cut)
        if cut - until > self.settings.max_pending_bytes:
            until = cut
        for token, text in reader.encode(written[base:]):
            if reader.covered + len(text) > until:
                break
            reader.append([(token, text)])

    def close(self):
        thinking_bytes = len(self.text[-64:].rstrip(b" \t\n\x0b\x0c\r")) + max(0, len(self.text) - 64)
        self.thinking_bytes = thinking_bytes
        for writer in self.writers:
            writer.cut(thinking_bytes)
        self.text = self.text[:thinking_bytes] + self.settings.close
        self.sources = self.sources[:thinking_bytes] + bytes([TEMPLATE]) * len(self.settings.close)
        self.speaker = self.answerer

    def repeats(self, tokens):
        size, period = self.settings.repetition_window, self.settings.repetition_period
        last = tokens[-size:]
        if not size or len(tokens) < size:
            return False
        return any(last[p:] == last[:-p] for p in range(1, period + 1))
