"""Attention to pages computes what a plain loop over tokens computes, in every implementation."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from tessy_jax.models.pages import append_attend
from tests.models.pages_oracle import Shape, attend, case, numbers

SHAPES = {
    "one token": Shape(),
    "a chunk": Shape(size=24),
    "a window and sinks": Shape(window=40, sinks=True, groups=8),
    "a chunk in a window": Shape(size=8, window=40, sinks=True),
    "sinks in full attention": Shape(size=3, sinks=True),
    "latent": Shape(groups=6, head_dim=40, latent=32),
    "a latent chunk": Shape(groups=6, head_dim=40, latent=32, size=5),
    "a later first token": Shape(first=True, size=4),
    "rows of one lane": Shape(size=8, shared=True),
    "single rows of one lane": Shape(size=1, shared=True),
    "one head per group": Shape(groups=1, kv_heads=3, size=2),
}


def check(shape, body, tolerance):
    given = case(shape)
    expected, pages = attend(**given)
    out, new = jax.jit(lambda arrays, rest: body(**arrays, **rest), static_argnums=1)(*_split(given))
    valid = np.arange(shape.size) < np.asarray(given["counts"])[:, None]
    np.testing.assert_allclose(np.asarray(out, np.float32)[valid], expected[valid], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(numbers(new, given["q"].dtype), pages)
    assert np.abs(expected[valid]).max() > 0.1


class Static(dict):
    def __hash__(self):
        return hash(tuple(self.items()))


def _split(given):
    static = {name: given[name] for name in ("heads", "ring", "layer")}
    return {name: x for name, x in given.items() if name not in static and x is not None}, Static(static)


@pytest.mark.parametrize("page", [8, 32, 128])
@pytest.mark.parametrize("name", SHAPES)
def test_plain_xla_equals_a_loop_over_tokens(name, page):
    check(replace(SHAPES[name], page=page), append_attend, 2e-6)


@pytest.mark.parametrize("name", ["one token", "a chunk"])
def test_plain_xla_in_bfloat16_equals_a_loop_over_tokens_and_copies_no_pages(name):
    shape = replace(SHAPES[name], dtype="bfloat16", page=64)
    check(shape, append_attend, 0.03)
    arrays, static = _split(case(shape))
    arrays["pages"] = jax.numpy.tile(arrays["pages"], (1, 50, 1, 1, 1))
    pages = arrays.pop("pages")
    step = jax.jit(lambda pages, arrays: append_attend(pages=pages, **arrays, **static), donate_argnums=0)
    memory = step.lower(pages, arrays).compile().memory_analysis()
    assert memory.temp_size_in_bytes < pages.nbytes / 10


@pytest.mark.parametrize("name", SHAPES)
def test_triton_equals_a_loop_over_tokens(name):
    shape = replace(SHAPES[name], head_dim=48 if "latent" in name else 32)
    check(shape, partial(append_attend, body="triton", interpret=True), 2e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_mosaic_equals_a_loop_over_tokens(name):
    shape = replace(SHAPES[name], columns=128)
    check(shape, partial(append_attend, body="mosaic", interpret=pltpu.InterpretParams()), 2e-6)
