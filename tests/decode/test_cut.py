"""Tests of where a proposal is cut."""

import jax
import numpy as np

from tessy_jax.decode.cut import complete_chars
from tessy_jax.text.characters import lengths
from tessy_jax.text.encoding import Shown

BYTES = np.array([0x41, 0x20, 0x80, 0xBF, 0xC3, 0xE2, 0xF0, 0xFF], np.uint8)


def test_a_character_is_unfinished_where_it_is_to_the_tokenizer():
    rng = np.random.default_rng(0)
    bytes_BP = BYTES[rng.integers(0, len(BYTES), (20_000, 7))]
    counts_B = rng.integers(0, 8, len(bytes_BP)).astype(np.int32)
    whole_B = Shown.of(lengths(bytes_BP, counts_B), counts_B).whole_B
    assert (whole_B < counts_B).sum() > 1_000
    np.testing.assert_array_equal(jax.jit(complete_chars)(bytes_BP, counts_B), whole_B)
