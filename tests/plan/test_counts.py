"""Bounds on the kernel launches, collectives and copies of the miniature's programs, compiled for an absent TPU.

Counts do not depend on the machine that compiles. Give a reason for raising a bound. If a count falls, lower its bound.
A step includes the choice of the side whose turn it is, with its reductions over all lanes, and `measure.MERGES` iterations
of the tokenizer's merges. It also forms the rows of the pass: which lanes take part, and the packed indices of their tokens.
The barrier in `Attention` keeps XLA from copying weights into a layout for heads; each side copies its queries instead.
"""

import importlib.util

import pytest

from tessy_jax.config import reconcile
from tessy_jax.plan.job import plan_job, read_any
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the extra plan-tpu)"),
]


@pytest.fixture(scope="module")
def programs():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("XLA_FLAGS")  # those of the tests turn passes off for TPUs, too
        config = reconcile(read_any(ROOT / "configs" / "mini.yaml", ["mesh={data: 2, tensor: 2}"]), None)
        (target,) = plan_job(config, ["v5e:2x2"], ["loop", "train"], layers=1)["targets"]
    assert "error" not in target
    return {program["program"]: program for program in target["programs"]}


@pytest.mark.parametrize(
    ("side", "part", "kernels", "host_reads", "collectives"),
    [(0, "step", 1252, 24, 49), (0, "hand-over", 2026, 51, 40), (1, "step", 1248, 24, 49), (1, "hand-over", 2016, 51, 40)],
)
def test_launches_of_a_step_and_a_hand_over_stay_within_their_bounds(programs, side, part, kernels, host_reads, collectives):
    (found,) = (step for step in programs["loop"]["steps"] if (step["side"], step["part"]) == (side, part))
    assert 50 < found["kernels"] <= kernels
    assert found["host_reads"] <= host_reads
    assert 0 < sum(move["count"] for move in found["collectives"].values()) <= collectives


def test_collectives_and_large_copies_of_the_loop_stay_within_their_bounds(programs):
    assert 0 < sum(move["count"] for move in programs["loop"]["collectives"]) <= 74
    assert sum(move["count"] for move in programs["loop"]["copies"]) <= 161
    pages = [move for move in programs["loop"]["copies"] if move["shape"].endswith(",128,128]")]
    assert not pages, "the cache is updated in place"


def test_a_training_step_has_only_all_reduces_and_no_large_copies(programs):
    kinds = {move["operation"] for move in programs["train"]["collectives"]}
    assert kinds == {"all-reduce"}
    assert programs["train"]["copies"] == []
    assert programs["train"]["kernels"] <= 355
    assert sum(move["count"] for move in programs["train"]["collectives"]) <= 12
