"""Tests of the folders and stages of a job."""

import pytest

from tessy_jax.errors import DataError
from tessy_jax.store import RunStore
from tessy_jax.store.job_folder import BEFORE_STAGE, JobFolder, Stage, dump_stages, read_stages

SECONDS = {
    Stage("predictors"): 1.5,
    BEFORE_STAGE: 2.0,
    Stage("synthesis", 1): 3.25,
    Stage("training", 1): 4.0,
    Stage("evaluation", 1): 5.0,
    Stage("evaluation", 1, 2): 6.0,
}


def test_stages_are_read_as_they_were_saved():
    entries = dump_stages(SECONDS)
    assert read_stages({"stages": entries}, "job") == SECONDS
    assert read_stages({}, "job") == {}
    assert [entry["name"] for entry in entries] == [
        "predictors",
        "before",
        "round 1: synthesis",
        "round 1: training",
        "round 1: evaluation",
        "round 1: evaluation after epoch 2",
    ]


def test_stages_without_a_kind_are_refused_with_a_remedy():
    with pytest.raises(DataError, match=r"runs/old: the stages in summary.json have no kind.*set output to a new folder"):
        read_stages({"stages": [{"name": "before", "seconds": 1.0}]}, "runs/old")


@pytest.mark.parametrize("stage", ["synthesis", "training", "evaluation"])
def test_a_round_has_started_with_any_of_its_stages(tmp_path, stage):
    job = JobFolder(str(tmp_path))
    for place in (job.round(1).evaluation, getattr(job.round(2), stage), job.round(4).synthesis, job.round(1).epoch(7)):
        with RunStore(place) as store:
            store.save_config("seed: 1\n")
    assert [number for number, _ in job.started_rounds()] == [1, 2]
    assert (job.round(1).epochs(), job.round(2).epochs()) == ([7], [])
