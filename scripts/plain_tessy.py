"""Teacher and student in turns, written plainly on Hugging Face transformers: the baseline of `bench_synthesis.py`.

An implementation without an engine, optimized where that is simple:

- A batch of samples runs until all are done. In every round the student continues those samples whose turn it is by up to k
  tokens, then the teacher its own, with those that the student has just handed over.
- Nothing is encoded afresh: each model keeps a `DynamicCache` per sample. Prompts are read once, alone, without padding. A
  turn stacks the caches of the samples that take part, padded on the left, decodes on the stack, and hands out views of it:
  one copy of those caches per turn, where `DynamicCache` makes one per token. Finished and waiting samples cost nothing.
- What the other model wrote goes in at the start of a turn, in one chunk as long as the longest such text; a sample that
  lacks less is cropped by the difference and reads it again in that chunk, in place of padding.
- Generate k, then roll back: the boundary predictor reads the last 200 tokens of the response afresh, all samples in one
  pass; the span is cut at the first flip, moved back to the last word boundary that both tokenizers see, and
  `DynamicCache.crop` takes the discarded tokens out.
- The thinking closes when the marker's text appears; the student answers alone, in the same rounds, without predictors.

Simpler than the method's specification, at no cost to the baseline: the predictor's window slides instead of moving in
strides; the start of a proposal's last word counts as closed even where later text could move it (after an apostrophe); a
failed response is not tried again, and loops are not looked for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer, DynamicCache
from transformers.convert_slow_tokenizer import bytes_to_unicode

STUDENT, TEACHER = 0, 1
NAMES = ("student", "teacher")
CUTS_AT = (0, 1)
"""Labels: 0 capability, which ends a student's turn, and 1 style, which ends a teacher's."""
TEMPERATURE, TOP_K, TOP_P = 0.7, 20, 0.8
WINDOW = 200


class Side:
    """One model with its tokenizer, its boundary predictor and its counts."""

    def __init__(self, folder: Path, predictor: Path, dtype: torch.dtype, step: int, opening: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.predictor = AutoModelForTokenClassification.from_pretrained(predictor, dtype=dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.fast = self.tokenizer.backend_tokenizer
        self.step, self.opening = step, opening
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}
        self.control = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        byte = {character: value for value, character in bytes_to_unicode().items()}
        added = {i: token.content.encode() for i, token in self.tokenizer.added_tokens_decoder.items()}
        names = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        self.spell = [added[i] if i in added else bytes(byte[c] for c in name) for i, name in enumerate(names)]
        self.passes = self.lane_passes = self.predictor_passes = self.host_syncs = self.generated = self.kept = 0

    def prompt(self, text: str) -> list[int]:
        message = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return self.fast.encode(rendered + self.opening, add_special_tokens=False).ids

    def encode(self, text: bytes) -> list[tuple[int, bytes]]:
        ids = self.fast.encode(text.decode("utf-8", "replace"), add_special_tokens=False).ids
        return [(i, self.spell[i]) for i in ids]

    def word_starts(self, text: str) -> set[int]:
        """The bytes at which pre-tokens begin."""
        return {len(text[:first].encode()) for _, (first, _) in self.fast.pre_tokenizer.pre_tokenize_str(text)}

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)


@dataclass
class View:
    """A response in one model's tokens (ends: the byte where each ends), and the model's cache of prompt and response."""

    prompt: list[int]
    cache: DynamicCache
    tokens: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.tokens

    @property
    def covered(self) -> int:
        return self.ends[-1] if self.ends else 0

    def cut(self, end: int) -> None:
        """Forgets the tokens that reach beyond byte `end`, in the cache too."""
        while self.ends and self.ends[-1] > end:
            self.tokens.pop()
            self.ends.pop()
        beyond = self.cache.get_seq_length() - len(self.prompt) - len(self.tokens)
        if beyond > 0:
            self.cache.crop(-beyond)

    def catch_up(self, side: Side, text: bytes) -> None:
        if self.covered < len(text):
            for token, spelled in side.encode(text[self.covered :]):
                self.tokens.append(token)
                self.ends.append(self.covered + len(spelled))
            self.ends[-1] = len(text)  # should a tokenizer have dropped or normalized something


@dataclass(eq=False)
class Sample:
    """A response being written. status: empty while it is."""

    views: tuple[View, View]
    text: bytes = b""
    speaker: int = STUDENT
    thought: int = -1
    status: str = ""
    switches: int = 0


@dataclass(eq=False)
class Proposal:
    """The text of one turn. written: the response with the proposal; ending: empty while tokens follow, else the reason
    (ended, closed, control)."""

    sample: Sample
    start: int
    length: int
    written: bytes
    ending: str = ""
    count: int = 0

    @property
    def thinking(self) -> bool:
        return self.sample.thought < 0


@dataclass
class Writers:
    """Both sides and the settings of a run."""

    sides: tuple[Side, Side]
    close: bytes
    limit: int
    generator: torch.Generator

    def begin(self, prompt: str) -> Sample:
        """Reads the prompt, all but its last token, into both caches."""
        views = []
        for side in self.sides:
            view = View(side.prompt(prompt), side.new_cache())
            side.model(torch.tensor([view.prompt[:-1]]), past_key_values=view.cache, logits_to_keep=1)
            views.append(view)
        return Sample((views[0], views[1]))

    def turn(self, m: int, samples: Sequence[Sample]) -> None:
        """One turn of model m for all of its samples."""
        for sample in samples:
            for view, side in zip(sample.views, self.sides, strict=True):
                view.catch_up(side, sample.text)
            if len(sample.views[m].tokens) >= self.limit:
                sample.status = "length"
        fitting = [sample for sample in samples if not sample.status]
        if not fitting:
            return
        proposals = self.propose(m, fitting)
        flips = self.predict(m, [p for p in proposals if p.thinking])
        for proposal in proposals:
            self.commit(m, proposal, flips.get(proposal))

    def propose(self, m: int, samples: Sequence[Sample]) -> list[Proposal]:
        """Up to k tokens of model m for every sample; they are in the views and, all but the last, in the caches."""
        side, views = self.sides[m], [sample.views[m] for sample in samples]
        proposals = [Proposal(s, len(s.text), len(s.views[m].ids), s.text) for s in samples]
        lengths = [p.length for p in proposals]
        chunk = max(max(1, p.length - view.cache.get_seq_length()) for p, view in zip(proposals, views, strict=True))
        cache = _stack(side, views, [max(0, n - chunk) for n in lengths])
        slots = cache.get_seq_length() + chunk
        at = torch.arange(slots) - slots + torch.tensor(lengths)[:, None]
        mask, positions = (at >= 0).long(), at[:, -chunk:].clamp(min=0)
        inputs, fed = torch.tensor([([0] * chunk + view.ids)[-chunk:] for view in views]), 0
        while True:
            out = side.model(inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
            side.passes += 1
            side.lane_passes += len(views)
            drawn = _sample(out.logits[:, -1].float(), self.generator)
            tokens = drawn[:, 0].tolist()
            side.host_syncs += 1
            for p, token in zip(proposals, tokens, strict=True):
                if self.has_room(m, p):
                    self.take(m, p, token)
            if not any(self.has_room(m, p) for p in proposals):
                break
            inputs, fed = drawn, fed + 1
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(drawn)], dim=1)
        for i, view in enumerate(views):
            view.cache = _row(side, cache, i, lengths[i] + fed)
        return proposals

    def has_room(self, m: int, p: Proposal) -> bool:
        return not p.ending and p.count < self.sides[m].step and len(p.sample.views[m].tokens) < self.limit

    def take(self, m: int, p: Proposal, token: int) -> None:
        """Adds a sampled token to a proposal."""
        side, view = self.sides[m], p.sample.views[m]
        side.generated += 1
        if token in side.ends or token in side.control or token >= len(side.spell):
            p.ending = "ended" if token in side.ends else "control"
            return
        p.count += 1
        p.written += side.spell[token]
        view.tokens.append(token)
        view.ends.append(len(p.written))
        marker = self.close.strip()
        at = p.written.find(marker, max(0, p.start - len(marker))) if p.thinking else -1
        if at >= 0:
            p.ending, p.written = "closed", p.written[:at]

    def predict(self, m: int, proposals: Sequence[Proposal]) -> dict[Proposal, int | None]:
        """The end of the first token whose label ends a turn of model m, in bytes of the written text, or None, by proposal.
        The predictor reads the student's tokens."""
        if not proposals:
            return {}
        readings = []
        for p in proposals:
            view = p.sample.views[STUDENT]
            tokens, ends = list(view.tokens), list(view.ends)
            if m == TEACHER:
                for token, spelled in self.sides[STUDENT].encode(_complete_characters(p.written[p.start :])):
                    tokens.append(token)
                    ends.append((ends[-1] if ends else 0) + len(spelled))
            readings.append((tokens[-WINDOW:] or [0], ends[-WINDOW:]))
        longest = max(len(tokens) for tokens, _ in readings)
        inputs = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in readings])
        mask = torch.ones_like(inputs)  # attention is causal: padding on the right is never read
        scores = self.sides[m].predictor(inputs, attention_mask=mask, use_cache=False).logits
        labels = (scores[..., 1] > scores[..., 0]).tolist()
        self.sides[m].predictor_passes += 1
        self.sides[m].host_syncs += 1
        flips: dict[Proposal, int | None] = {}
        for p, (_, ends), row in zip(proposals, readings, labels, strict=True):
            labelled = zip(ends, row[: len(ends)], strict=True)
            cuts = (end for end, label in labelled if label == CUTS_AT[m] and p.start < end <= len(p.written))
            flips[p] = next(cuts, None)
        return flips

    def commit(self, m: int, p: Proposal, flip: int | None) -> None:
        """Appends the kept part of a proposal to the response; then the speaker or the phase may change."""
        side, sample = self.sides[m], p.sample
        start, written = min(p.start, len(p.written)), p.written
        if p.thinking:
            proposal = _complete_characters(written[start:])
            turn = len(proposal) if flip is None else flip - start
            written = written[: start + self.word_cut(proposal, turn, bool(p.ending))]
        ending = p.ending if flip is None else ""
        if ending == "closed":
            written = written.rstrip()
            sample.thought = len(written)
        sample.text = written
        for view in sample.views:
            view.cut(len(written))
        side.kept += max(0, len(sample.views[m].ids) - p.length)
        if flip is not None:
            sample.speaker = 1 - m
            sample.switches += 1
        elif ending == "closed":
            sample.text += self.close
            sample.speaker = STUDENT
        elif ending == "ended":
            side.kept += 1
            sample.status = "early end" if p.thinking else "done"
        elif ending:
            sample.status = ending
        if not sample.status and len(sample.views[m].tokens) >= self.limit:
            sample.status = "length"

    def word_cut(self, proposal: bytes, turn: int, ended: bool) -> int:
        """`discard`: the last boundary at or before `turn` where both tokenizers begin a word, else the first after it."""
        text = proposal.decode()
        possible = set.intersection(*(side.word_starts(text) for side in self.sides)) - {0}
        if ended:
            possible.add(len(proposal))
        before = [p for p in possible if p <= turn]
        return max(before) if before else min(possible, default=len(proposal))


def run(
    student_dir: Path | str,
    teacher_dir: Path | str,
    predictor_student_dir: Path | str,
    predictor_teacher_dir: Path | str,
    prompts: Sequence[str],
    *,
    open: str,
    close: str,
    max_response_tokens: int,
    student_step: int = 20,
    teacher_step: int = 20,
    seed: int = 0,
    dtype: str = "float32",
    batch: int = 8,
    deadline_s: float | None = None,
) -> dict[str, Any]:
    """Writes one response to every prompt. seconds: of reading prompts and writing, without loading; passes: of writing.

    deadline_s: after so many seconds no further turn begins, and the responses stay unfinished.
    """
    folders = ((student_dir, predictor_student_dir, student_step), (teacher_dir, predictor_teacher_dir, teacher_step))
    sides = [Side(Path(f), Path(p), getattr(torch, dtype), step, open) for f, p, step in folders]
    generator = torch.Generator().manual_seed(seed)
    writers = Writers((sides[0], sides[1]), close.encode(), max_response_tokens, generator)
    samples: list[Sample] = []
    start, reading, rounds = time.perf_counter(), 0.0, 0

    def late() -> bool:
        return deadline_s is not None and time.perf_counter() - start >= deadline_s

    with torch.inference_mode():
        for first in range(0, len(prompts), batch):
            if late():
                break
            began = time.perf_counter()
            going = [writers.begin(prompt) for prompt in prompts[first : first + batch]]
            reading += time.perf_counter() - began
            samples += going
            while going and not late():
                rounds += 1
                for m in (STUDENT, TEACHER):
                    writers.turn(m, [s for s in going if s.speaker == m and not s.status])
                going = [s for s in going if not s.status]
    seconds = time.perf_counter() - start

    def each(name: str) -> dict[str, int]:
        return {who: getattr(side, name) for who, side in zip(NAMES, sides, strict=True)}

    kept, generated = each("kept"), each("generated")
    return {
        "seconds": round(seconds, 3),
        "prefill_seconds": round(reading, 3),
        "kept_tokens": kept,
        "generated_tokens": generated,
        "discarded_tokens": {who: generated[who] - kept[who] for who in NAMES},
        "passes": each("passes"),
        "lane_passes": each("lane_passes"),
        "predictor_passes": each("predictor_passes"),
        "host_syncs": sum(each("host_syncs").values()),
        "rounds": rounds,
        "switches": sum(sample.switches for sample in samples),
        "statuses": dict(Counter(sample.status or "unfinished" for sample in samples)),
        "responses": [sample.text.decode("utf-8", "replace") for sample in samples],
    }


def _complete_characters(data: bytes) -> bytes:
    """The text up to its first byte that is not UTF-8, such as an unfinished character at its end."""
    try:
        return data.decode().encode()
    except UnicodeDecodeError as error:
        return data[: error.start]


def _stack(side: Side, views: Sequence[View], lengths: Sequence[int]) -> DynamicCache:
    """The caches of some samples, each cropped to its length, padded on the left to the longest."""
    stacked, longest = side.new_cache(), max(lengths)
    for number, layer in enumerate(stacked.layers):
        parts = [(view.cache.layers[number].keys, view.cache.layers[number].values) for view in views]
        _, heads, _, width = parts[0][0].shape
        both = parts[0][0].new_zeros(2, len(views), heads, longest, width)
        for i, (part, length) in enumerate(zip(parts, lengths, strict=True)):
            for which in range(2):
                both[which, i, :, longest - length :] = part[which][0, :, :length]
        _fill(layer, both[0], both[1])
    return stacked


def _row(side: Side, stacked: DynamicCache, i: int, length: int) -> DynamicCache:
    """The last `length` places of one row of a stack, as a view."""
    row = side.new_cache()
    for layer, source in zip(row.layers, stacked.layers, strict=True):
        _fill(layer, source.keys[i : i + 1, :, -length:], source.values[i : i + 1, :, -length:])
    return row


def _fill(layer: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Sets keys and values as `update` does, without its copy."""
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values


def _sample(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Temperature, then top-k, then top-p; one token per row, [B, 1]."""
    values, ids = logits.topk(TOP_K)
    weights = (values / TEMPERATURE).softmax(dim=-1)
    before = weights.cumsum(dim=-1) - weights
    return ids.gather(1, torch.multinomial(weights.masked_fill(before >= TOP_P, 0), 1, generator=generator))
