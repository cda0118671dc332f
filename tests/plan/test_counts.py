"""The programs of the miniature, compiled for a TPU that is not there, launch, move and copy no more than they do today.

The bounds are counts, which are the same on every machine. A change that raises one should say why; a change that lowers one
should lower the bound.
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
        config = reconcile(read_any(ROOT / "configs" / "mini.yaml", ["mesh={data: 2, tensor: 2}"]), None)
        (target,) = plan_job(config, ["v5e:2x2"], ["loop", "train"], layers=1)["targets"]
    assert "error" not in target
    return {program["program"]: program for program in target["programs"]}


@pytest.mark.parametrize(
    ("side", "part", "kernels", "host_reads", "collectives"),
    [(0, "step", 1000, 50, 38), (0, "hand-over", 1300, 72, 70), (1, "step", 1000, 50, 38), (1, "hand-over", 1360, 80, 70)],
)
def test_a_step_and_a_hand_over_launch_at_most_so_many_kernels(programs, side, part, kernels, host_reads, collectives):
    (found,) = (step for step in programs["loop"]["steps"] if (step["side"], step["part"]) == (side, part))
    assert 50 < found["kernels"] <= kernels
    assert found["host_reads"] <= host_reads
    assert 0 < sum(move["count"] for move in found["collectives"].values()) <= collectives


def test_collectives_and_large_copies_of_the_loop_are_at_most_so_many(programs):
    assert 0 < sum(move["count"] for move in programs["loop"]["collectives"]) <= 155
    assert sum(move["count"] for move in programs["loop"]["copies"]) <= 265


def test_a_training_step_reduces_its_gradients_and_copies_nothing_large(programs):
    kinds = {move["operation"] for move in programs["train"]["collectives"]}
    assert kinds == {"all-reduce"}
    assert programs["train"]["copies"] == []
    assert programs["train"]["kernels"] <= 355
    assert sum(move["count"] for move in programs["train"]["collectives"]) <= 12
