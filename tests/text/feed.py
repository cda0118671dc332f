"""Reads texts word by word, as the decode loop does, and compares their tokens with those of the `tokenizers` library."""

import heapq
import json
import random
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from tessy_jax.text.encoding import Encoding
from tests.text.chunks import passage

NARROW, WIDE = 64, 448
ROWS = 64
"""Lanes that read a wide window at a time."""


class Read(NamedTuple):
    """ids_BY, ends_BY: ids and byte ends of the tokens, valid for the first tokens_B. sure_BK: after each piece, the tokens
    that no following text can change."""

    ids_BY: jax.Array
    ends_BY: jax.Array
    tokens_B: jax.Array
    sure_BK: jax.Array


class _Progress(NamedTuple):
    """piece_B: the piece that each lane reads. base_B: the end of its last word. sure_B: its tokens up to now that no
    following text can change. wide_B: lanes whose next word leaves the narrow window."""

    piece_B: jax.Array
    base_B: jax.Array
    sure_B: jax.Array
    wide_B: jax.Array
    read: Read


@partial(jax.jit, static_argnames=("wide",))
def read(bridge, text_BY, ends_BK, ended_BK, v_B, wide=WIDE):
    """Reads the text of each lane in pieces with these byte ends; 0 is no piece. ended_BK: a text ends there, and the rest
    is another text. Words that leave the narrow window are read in the wide one."""
    (B, Y), K = text_BY.shape, ends_BK.shape[1]
    text_BY = jnp.pad(text_BY, ((0, 0), (0, wide)))
    pieces_B = (ends_BK > 0).sum(axis=1, dtype=jnp.int32)

    def call(x, size, rows_N, now_N):
        """Reads the next words in lanes rows_N where now_N; row B is no lane."""
        own = jax.tree.map(lambda x_B: x_B.at[rows_N].get(mode="clip"), x._replace(read=None))
        tokens_N, row_N = x.read.tokens_B.at[rows_N].get(mode="clip"), jnp.minimum(rows_N, B - 1)
        k_N = jnp.minimum(own.piece_B, K - 1)
        ended_N = now_N & ended_BK[row_N, k_N]
        left_N = jnp.where(now_N, ends_BK[row_N, k_N] - own.base_B, 0)
        window_NP = text_BY[row_N[:, None], own.base_B[:, None] + jnp.arange(size)]
        words = bridge.closed(window_NP, left_N, ended_N, v_B[row_N], widest=size == wide)
        long_N = words.long_B & (size < wide)
        done_N = now_N & ~((words.more_B & (words.end_B > 0)) | long_N)
        sure_N = own.sure_B + jnp.where(own.sure_B == tokens_N, words.sure_B, 0)
        slots_NP = jnp.where(jnp.arange(size) < words.tokens_B[:, None], tokens_N[:, None] + jnp.arange(size), Y)
        after = _Progress(
            own.piece_B + done_N,
            own.base_B + words.end_B,
            jnp.where(done_N & ended_N, tokens_N + words.tokens_B, sure_N),
            jnp.where(now_N, long_N, own.wide_B),
            None,
        )
        return jax.tree.map(lambda x_B, y_N: x_B.at[rows_N].set(y_N, mode="drop"), x._replace(read=None), after)._replace(
            read=Read(
                x.read.ids_BY.at[rows_N[:, None], slots_NP].set(words.ids_BP, mode="drop"),
                x.read.ends_BY.at[rows_N[:, None], slots_NP].set(own.base_B[:, None] + words.ends_BP, mode="drop"),
                x.read.tokens_B.at[rows_N].add(words.tokens_B, mode="drop"),
                x.read.sure_BK.at[rows_N, jnp.where(done_N, k_N, K)].set(sure_N, mode="drop"),
            )
        )

    def turn(x):
        waits_B = x.piece_B < pieces_B
        narrow_B = waits_B & ~x.wide_B
        rows_N = jnp.nonzero(waits_B & x.wide_B, size=min(B, ROWS), fill_value=B)[0]
        return jax.lax.cond(
            narrow_B.any() & (rows_N[-1] == B),
            lambda: call(x, min(NARROW, wide) if bridge.narrow else wide, jnp.arange(B), narrow_B),
            lambda: call(x, wide, rows_N, rows_N < B),
        )

    zeros_B, zeros_BY, zeros_BK = (jnp.zeros((B, *n), jnp.int32) for n in ((), (Y,), (K,)))
    start = _Progress(zeros_B, zeros_B, zeros_B, zeros_B > 0, Read(zeros_BY, zeros_BY, zeros_B, zeros_BK))
    return jax.lax.while_loop(lambda x: (x.piece_B < pieces_B).any(), turn, start).read


@jax.jit
def splits(bridge, data, counts):
    """The bytes at which pre-tokens begin by the first split rule of a bridge, and the last final byte."""
    return bridge.splits(data, counts)[0]


def encode(bridge, data, counts, v_B=None, wide=None):
    """The tokens of texts [B, P] of `counts` bytes, read word by word, and the boundaries of their pre-tokens."""
    B, P = data.shape
    v_B = np.zeros(B, np.int32) if v_B is None else v_B
    found = read(bridge, data, counts[:, None], np.ones((B, 1), bool), v_B, wide or max(P, NARROW))
    return Encoding(found.ids_BY, found.ends_BY, found.tokens_B, *splits(bridge, data, counts))


def library(content):
    """The tokenizer of the library without added tokens and normalizer."""
    plain = {**content, "added_tokens": [], "post_processor": None, "normalizer": None}
    return Tokenizer.from_str(json.dumps(plain))


def pieces(rng, length, most):
    """Ends of at most `most` random pieces of a text; some pieces are single bytes. All of the text arrives before it ends:
    the last two ends are its length."""
    if rng.random() < 0.5:
        ends = sorted(rng.sample(range(1, length), min(length - 1, rng.randrange(most - 1))))
    else:
        ends, step = [rng.randrange(1, length + 1)], rng.choice([1, 4, 12, 40])
        while ends[-1] < length and len(ends) < most - 2:
            ends.append(min(length, ends[-1] + rng.randrange(1, 2 * step + 1)))
    return [*ends, length, length]


def dealt(tasks, lanes):
    """The tasks (text, ends of pieces) of each lane; all lanes have about as much to read."""
    queues, load = [[] for _ in range(lanes)], [(0, lane) for lane in range(lanes)]
    for task in sorted(tasks, key=lambda task: -len(task[1])):
        spent, lane = heapq.heappop(load)
        queues[lane].append(task)
        heapq.heappush(load, (spent + len(task[1]) + len(task[0]) // 16, lane))
    return queues


def read_all(bridge, tasks, lanes=256, wide=WIDE):
    """Reads tasks (text, ends of pieces). Returns for each task its text, ids and byte ends of its tokens, and the number of
    tokens that were sure before the text ended."""
    queues = dealt(tasks, min(lanes, len(tasks)))
    lengths = [[len(text) for text, _ in queue] for queue in queues]
    size, most = (1 << max(map(sum, rows)).bit_length() for rows in (lengths, [[len(c) for _, c in q] for q in queues]))
    text_BY, ends_BK = np.zeros((len(queues), size), np.uint8), np.zeros((len(queues), most), np.int32)
    ended_BK = np.zeros(ends_BK.shape, bool)
    for i, queue in enumerate(queues):
        starts = np.cumsum([0, *lengths[i]])
        text_BY[i, : starts[-1]] = np.frombuffer(b"".join(text for text, _ in queue), np.uint8)
        ends = [start + end for start, (_, cuts) in zip(starts, queue, strict=False) for end in cuts]
        ends_BK[i, : len(ends)] = ends
        ended_BK[i, np.cumsum([len(cuts) for _, cuts in queue]) - 1] = True
    found = jax.device_get(read(bridge, text_BY, ends_BK, ended_BK, np.zeros(len(queues), np.int32), wide))
    results = []
    for i, queue in enumerate(queues):
        ends, sure = found.ends_BY[i, : found.tokens_B[i]], found.sure_BK[i, ended_BK[i]]
        bounds = np.cumsum([0, *lengths[i]])
        first = np.searchsorted(ends, bounds, side="right")
        for j, (text, _) in enumerate(queue):
            own = slice(first[j], first[j + 1])
            results.append((text, found.ids_BY[i, own], ends[own] - bounds[j], sure[j] - first[j]))
    return results


def differing(content, bridge, count, seed, most=24, share=8192):
    """Reads `count` random texts in at most `most` random pieces, and compares their tokens with those of the library. Texts
    that are not UTF-8 are compared with the same text read in one piece. Returns the texts that differ, the number of
    tokens compared, and the largest number of words that stayed open in a UTF-8 text."""
    rng, theirs = random.Random(seed), library(content)
    spelled = np.zeros(max(content["model"]["vocab"].values()) + 1, np.int64)
    spelled[list(content["model"]["vocab"].values())] = [len(name) for name in content["model"]["vocab"]]
    wrong, tokens, still_open = [], 0, 0
    for first in range(0, count, share):
        texts = [passage(rng, long=i % 8 == 7) for i in range(min(share, count - first))]
        plain = dict.fromkeys(text for text in texts if is_text(text))
        encodings = theirs.encode_batch_fast([text.decode() for text in plain], add_special_tokens=False)
        expected = {text: np.array(found.ids, np.int64) for text, found in zip(plain, encodings, strict=True)}
        ends = {text: spelled[ids].cumsum() for text, ids in expected.items()}
        odd = [(text, [len(text)]) for text in texts if not is_text(text)]
        for text, ids, at, _ in read_all(bridge, odd):
            expected[text], ends[text] = ids, at
        for text, ids, at, sure in read_all(bridge, [(text, pieces(rng, len(text), most)) for text in texts]):
            tokens += len(ids)
            if not np.array_equal(ids, expected[text]) or not np.array_equal(at, ends[text]) or at[-1] != len(text):
                wrong.append(text)
            if text in plain:
                rest = text[at[sure - 1] if sure else 0 :].decode()
                still_open = max(still_open, len(theirs.pre_tokenizer.pre_tokenize_str(rest)))
    return wrong, tokens, still_open


def is_text(data):
    """Whether bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
