"""The alternating generation written plainly on Hugging Face transformers: the baseline of bench_synthesis.py.

A batch of samples shares one padded DynamicCache per model. In its turn a model first takes in, as one chunk, what was
committed since its last turn, then writes up to k tokens for the whole batch; the proposals are judged by one forward pass of
the predictor over the last `window` tokens, cut at the last word boundary that is closed in both vocabularies, and the cache
is cropped back to where the chunk ended. No text is encoded twice in whole; samples that are done wait for the last one.
"""

import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, DynamicCache, PreTrainedTokenizerFast


class Side:
    """One model with the batch's cache; pending: committed tokens per sample that are not in it."""

    def __init__(self, folder, dtype, prompts, batch_messages):
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        template = folder / "chat_template.jinja"
        self.tokenizer.chat_template = template.read_text() if template.exists() else config["chat_template"]
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        eos = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        self.eos = set(eos) if isinstance(eos, list) else {eos}
        self.passes = 0
        self.start(prompts, batch_messages)

    def start(self, opening, batch_messages):
        self.cache = DynamicCache()
        self.mask = torch.zeros(len(batch_messages), 0, dtype=torch.long)
        self.pending = []
        for messages in batch_messages:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + opening
            self.pending.append(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def feed(self, rows):
        """Feeds a list of tokens per sample; the scores after each sample's last token."""
        width = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        new = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        before = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, new], 1)
        positions = (before + new.cumsum(1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.passes += 1
        return out.logits[:, -1].float()

    def rewind(self, columns):
        self.cache.crop(columns)
        self.mask = self.mask[:, :columns]


def draw(scores, temperature=0.7, top_p=0.8, top_k=20):
    values, index = torch.topk(scores / temperature, top_k, dim=-1)
    probabilities = torch.softmax(values, -1)
    probabilities[probabilities.cumsum(-1) - probabilities >= top_p] = 0
    return index.gather(1, torch.multinomial(probabilities, 1))[:, 0].tolist()


def closed(tokenizers, text):
    """Positions at which a new pre-token begins in every vocabulary, whatever follows (the last one may still vanish)."""
    starts = [[a for _, (a, _) in t.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)] for t in tokenizers]
    return set.intersection(*({*s[:-1]} for s in starts)) - {0} if text else set()


@torch.inference_mode()
def run(
    folders,
    predictors,
    prompts,
    *,
    opening,
    marker,
    closing,
    limit,
    steps=(20, 20),
    seed=0,
    dtype=torch.float32,
    window=200,
    most_seconds=None,
):
    """Writes one batch. folders, predictors, steps: of student and teacher. Returns counts, seconds and texts; the clock runs
    from the first prompt token on. most_seconds ends it early, with what has been committed until then."""
    torch.manual_seed(seed)
    batch = [[{"role": "user", "content": prompt}] for prompt in prompts]
    sides = [Side(Path(folder), dtype, opening, batch) for folder in folders]
    judges = [AutoModelForTokenClassification.from_pretrained(p, dtype=dtype).eval() for p in predictors]
    tokenizers = [side.tokenizer for side in sides]
    n = len(prompts)
    texts, speaker, answering, done = [""] * n, [0] * n, [False] * n, [False] * n
    count = [0] * n  # student tokens of the response, and its text in student tokens for the predictors
    known = [[] for _ in range(n)]
    generated, kept = [0, 0], [0, 0]
    start = time.perf_counter()
    while not all(done) and (most_seconds is None or time.perf_counter() - start < most_seconds):
        for m, side in enumerate(sides):
            mine = [i for i in range(n) if not done[i] and speaker[i] == m]
            if not mine:
                continue
            scores = side.feed([side.pending[i] if i in mine else [] for i in range(n)])
            for i in mine:
                side.pending[i] = []
            columns = side.mask.shape[1]
            written, over = [[] for _ in range(n)], [False] * n
            for k in range(steps[m]):
                if k:
                    scores = side.feed([written[i][-1:] if i in mine and not over[i] else [] for i in range(n)])
                for i, token in zip(range(n), draw(scores), strict=True):
                    if i not in mine or over[i]:
                        continue
                    generated[m] += 1
                    written[i].append(token)
                    over[i] = token in side.eos or (not answering[i] and marker in side.tokenizer.decode(written[i]))
                if all(over[i] for i in mine):
                    break
            side.rewind(columns)
            flips = judge(judges[m], m, tokenizers, known, written, [i for i in mine if not answering[i]], window)
            for i in mine:
                ended = written[i][-1] in side.eos
                tokens = written[i][:-1] if ended else written[i]
                text = side.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
                cut, turn = len(text), False
                if not answering[i]:
                    place = text.find(marker)
                    text = text[:place] if place >= 0 else text
                    cut = len(text)
                    if flips.get(i) is not None and flips[i] <= len(text):
                        cut, turn = flips[i], True
                    if turn or not (ended or place >= 0):
                        fits = [p for p in closed(tokenizers, text) if p <= cut]
                        behind = [p for p in closed(tokenizers, text) if p > cut]
                        cut = max(fits) if fits else min(behind) if behind else len(text)
                piece = text[:cut]
                spelled = 0
                for token in tokens:
                    spelled += len(side.tokenizer.decode([token], clean_up_tokenization_spaces=False))
                    kept[m] += spelled <= cut
                texts[i] += piece
                student = tokenizers[0](piece, add_special_tokens=False)["input_ids"]
                known[i] += student
                count[i] += len(student)
                sides[0].pending[i] += student
                if not answering[i]:
                    sides[1].pending[i] += tokenizers[1](piece, add_special_tokens=False)["input_ids"]
                    if not turn and not ended and place >= 0:
                        answering[i], speaker[i] = True, 0
                        texts[i] += closing
                        sides[0].pending[i] += tokenizers[0](closing, add_special_tokens=False)["input_ids"]
                if turn:
                    speaker[i] = 1 - m
                elif ended:
                    done[i] = True
                if count[i] >= limit:
                    done[i] = True
                if not piece and not done[i] and not sides[speaker[i]].pending[i]:
                    done[i] = True  # nothing came and nothing is to be fed: it would stand still
    seconds = time.perf_counter() - start
    passes = [side.passes for side in sides]
    return {"seconds": seconds, "generated": generated, "kept": kept, "passes": passes, "texts": texts}


def judge(model, m, tokenizers, known, written, rows, window):
    """Per sample, the first character of the proposal at which the other kind begins, or None."""
    if not rows:
        return {}
    texts = {i: tokenizers[m].decode(written[i], clean_up_tokenization_spaces=False) for i in rows}
    proposals = {i: tokenizers[0](texts[i], add_special_tokens=False)["input_ids"] for i in rows}
    read = {i: (known[i] + proposals[i])[-window:] for i in rows}
    width = max(len(ids) for ids in read.values())
    ids = torch.tensor([read[i] + [0] * (width - len(read[i])) for i in rows])
    mask = torch.tensor([[1] * len(read[i]) + [0] * (width - len(read[i])) for i in rows])
    style = model(input_ids=ids, attention_mask=mask).logits.diff(dim=-1)[..., 0] > 0
    flips = {}
    for row, i in enumerate(rows):
        first = len(read[i]) - len(proposals[i])
        place, flips[i] = 0, None
        for j, token in enumerate(proposals[i]):
            place += len(tokenizers[0].decode([token], clean_up_tokenization_spaces=False))
            if first + j >= 0 and bool(style[row, first + j]) == (m == 1):
                flips[i] = place
                break
    return flips
