"""Feeds texts in random pieces to the incremental tokenizer, and compares closed prefixes with the `tokenizers` library."""

import json
import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from tests.text.chunks import passage

NARROW, WIDE = 64, 448


@partial(jax.jit, static_argnames=("wide",))
def fed(bridge, text_BY, written_BK, wide=WIDE):
    """The ids and byte ends of the tokens of all closed words after each lane has received its text up to written_BK in K
    pieces, their number, and the end of the last closed word. The wide window serves words that leave the narrow one."""
    B, Y = text_BY.shape
    text_BY = jnp.pad(text_BY, ((0, 0), (0, wide)))

    def advance(state, size, rows_N, counts_N):
        """The state after a call for some lanes; a row of B is no lane."""
        base_B, ids_BY, ends_BY, known_B = state
        base_N, known_N = base_B.at[rows_N].get(mode="clip"), known_B.at[rows_N].get(mode="clip")
        text_NY = text_BY.at[rows_N].get(mode="clip")
        words = bridge.closed(jnp.take_along_axis(text_NY, base_N[:, None] + jnp.arange(size), axis=1), counts_N)
        at_P = jnp.arange(size)
        slots_NP = jnp.where(at_P < words.tokens_B[:, None], known_N[:, None] + at_P, Y)
        ids_BY = ids_BY.at[rows_N[:, None], slots_NP].set(words.ids_BP, mode="drop")
        ends_BY = ends_BY.at[rows_N[:, None], slots_NP].set(base_N[:, None] + words.ends_BP, mode="drop")
        base_B, known_B = (x.at[rows_N].add(y, mode="drop") for x, y in ((base_B, words.end_B), (known_B, words.tokens_B)))
        return (base_B, ids_BY, ends_BY, known_B), words

    def turn(carry):
        k, state = carry
        left_B = written_BK[:, jnp.minimum(k, written_BK.shape[1] - 1)] - state[0]
        state, words = advance(state, NARROW, jnp.arange(B), left_B)

        def widen(state):
            rows_N = jnp.nonzero(words.long_B, size=min(B, 64), fill_value=B)[0]
            state, wider = advance(state, wide, rows_N, jnp.where(rows_N < B, left_B.at[rows_N].get(mode="clip"), 0))
            return state, (wider.words_B > 0).any()

        state, again = jax.lax.cond(words.long_B.any(), widen, lambda state: (state, jnp.bool_(False)), state)
        return jnp.where(words.more_B.any() | again, k, k + 1), state

    zeros_BY = jnp.zeros((B, Y), jnp.int32)
    state = jnp.zeros(B, jnp.int32), zeros_BY, zeros_BY, jnp.zeros(B, jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0] < written_BK.shape[1], turn, (jnp.int32(0), state))[1]


def library(content):
    """The tokenizer of the library without added tokens and normalizer."""
    plain = {**content, "added_tokens": [], "post_processor": None, "normalizer": None}
    return Tokenizer.from_str(json.dumps(plain))


def pieces(rng, length, most):
    """Random ends of pieces of a text, at most `most`; some pieces are single bytes."""
    ends, step = [], rng.choice([1, 4, 12, 40])
    while (ends[-1] if ends else 0) < length and len(ends) < most - 1:
        ends.append(min(length, (ends[-1] if ends else 0) + rng.randrange(1, 2 * step + 1)))
    return ends + [length] * (most - len(ends))


def differing(content, bridge, count, seed, lanes=256, draw=passage, size=440, wide=WIDE):
    """Compares `count` random texts. Returns those that differ, how many tokens were compared, and the largest number of
    words that stayed open in a text that is UTF-8."""
    rng, theirs = random.Random(seed), library(content)
    encode = jax.jit(lambda bridge, data, counts: bridge.encode(data, counts))
    spelled = {i: len(name) for name, i in content["model"]["vocab"].items()}
    wrong, tokens, still_open = [], 0, 0
    for batch in range(-(-count // lanes)):
        texts = [draw(rng, long=batch % 8 == 7) for _ in range(lanes)]  # long words take time, in all lanes
        data, counts = np.zeros((lanes, size), np.uint8), np.array([len(text) for text in texts], np.int32)
        for row, text in zip(data, texts, strict=True):
            row[: len(text)] = np.frombuffer(text, np.uint8)
        written = np.array([pieces(rng, len(text), 24) for text in texts], np.int32)
        base, ids, ends, known = jax.device_get(fed(bridge, data, written, wide))
        whole = jax.device_get(encode(bridge, data, counts)) if any(not _is_text(text) for text in texts) else None
        for i, text in enumerate(texts):
            if _is_text(text):
                theirs_i = theirs.encode(text.decode(), add_special_tokens=False).ids
                theirs_ends = np.cumsum([spelled[t] for t in theirs_i])
                words = theirs.pre_tokenizer.pre_tokenize_str(text[base[i] :].decode())
                still_open = max(still_open, len(words))
            else:
                theirs_i = whole.ids_BP[i, : whole.tokens_B[i]].tolist()
                theirs_ends = whole.ends_BP[i, : whole.tokens_B[i]]
            closed = int(np.searchsorted(theirs_ends, base[i], side="right"))
            tokens += closed
            agrees = ids[i, : known[i]].tolist() == theirs_i[:closed] and np.array_equal(
                ends[i, : known[i]], theirs_ends[:closed]
            )
            if not agrees or (closed and theirs_ends[closed - 1] != base[i]):
                wrong.append(text)
    return wrong, tokens, still_open


def _is_text(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
