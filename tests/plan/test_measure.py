"""Tests of the bytes of a planned program, and of the number of lanes or rows that fit."""

import pytest

from tessy_jax.plan.measure import _fit
from tessy_jax.plan.programs import Planned
from tessy_jax.plan.targets import parse_target

V5E = parse_target("v5e:1x1")


def program(rows, row_bytes, multiple=8):
    return Planned("loop", None, rows, 4096, row_bytes, 1, 1, {}, multiple)


def used(rows, *, row_bytes, temporaries, weights=4_000_000_000):
    """The bytes of a program whose temporaries are proportional to its rows."""
    return {
        "arguments": weights + rows * row_bytes,
        "outputs": rows * row_bytes,
        "aliased": rows * row_bytes,
        "temporaries": rows * temporaries,
        "code": 0,
    }


@pytest.mark.parametrize("row_bytes", [0, 100_000_000])
@pytest.mark.parametrize("rows", [16, 64, 512])
def test_the_number_of_rows_that_fit_includes_arguments_and_temporaries(rows, row_bytes):
    sizes = {"row_bytes": row_bytes, "temporaries": 50_000_000}
    number = _fit(program(rows, {4096: row_bytes}), V5E, used(rows, **sizes))["rows_that_fit"][4096]
    assert number % 8 == 0
    for other, fits in ((number, True), (number + 8, False)):
        assert _fit(program(other, {4096: row_bytes}), V5E, used(other, **sizes))["fits"] == fits


def test_a_program_that_does_not_limit_the_lanes_has_no_number_of_rows_that_fit():
    record = _fit(program(16, {}), V5E, used(16, row_bytes=1, temporaries=1))
    assert record["fits"]
    assert "rows_that_fit" not in record


def test_a_gpu_program_fits_if_it_fits_into_the_memory_that_jobs_allocate():
    h100 = parse_target("h100:1")
    for size, fits in ((h100.usable, True), (h100.usable + 1, False)):
        found = used(0, row_bytes=0, temporaries=0, weights=size)
        assert _fit(program(8, {}), h100, found)["fits"] == fits
