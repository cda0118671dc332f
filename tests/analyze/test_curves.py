"""Courses are means over jobs, and every evaluation stands once, where it was made."""

import json
from pathlib import Path

import pytest

from tessy_jax.analyze.curves import accuracy, losses
from tessy_jax.analyze.sources import Job, Round
from tessy_jax.report import view
from tessy_jax.store import RunReader, RunStore


def trained(place, *values):
    with RunStore(str(place)) as store:
        store.save_config("training: {}\n")
        lines = [{"step": i, "loss": value, "loss_cap": None, "loss_sty": value} for i, value in enumerate(values, 1)]
        store.save_metrics("".join(json.dumps(line) + "\n" for line in lines))
    return RunReader(str(place))


def evaluated(place, share):
    with RunStore(str(place)) as store:
        store.save_config("tasks: []\n")
        store.save_summary({"domains": {"in": {"pass@1": share}, "out": {"pass@1": 1 - share}}})
    return RunReader(str(place))


def test_losses_are_means_over_jobs_with_their_deviation(tmp_path: Path):
    one, two = trained(tmp_path / "one", 4.0, 2.0), trained(tmp_path / "two", 2.0, 2.0, 1.0)
    jobs = [Job("tessy", "a", None, [Round(1, run, {}, None)]) for run in (one, two)]
    found = losses({"tessy": jobs, "other": [Job("other", "c", None, [Round(1, None, {}, None)])]})
    assert found["steps_per_point"] == 1
    assert found["curves"]["loss"] == {
        "tessy": [[1, 3.0, pytest.approx(2**0.5, abs=1e-6), 2], [2, 2.0, 0.0, 2], [3, 1.0, None, 1]]
    }
    assert list(found["curves"]) == ["loss", "loss_sty"], "losses without values are left out"


def test_the_steps_of_rounds_are_numbered_on_and_many_are_one_point(tmp_path, monkeypatch):
    monkeypatch.setattr(view, "POINTS", 2)
    rounds = [Round(1, trained(tmp_path / str(i), 4.0 - i, 2.0 - i), {}, None) for i in (0, 1)]
    found = losses({"tessy": [Job("tessy", "a", None, rounds)]})
    assert found["steps_per_point"] == 2
    assert found["curves"]["loss"]["tessy"] == [[2, 3.0, None, 1], [4, 2.0, None, 1]]


def test_epoch_0_is_the_untouched_student_and_the_end_stands_once(tmp_path):
    before, end = evaluated(tmp_path / "before", 0.2), evaluated(tmp_path / "end", 0.8)
    after = {epoch: evaluated(tmp_path / f"after-{epoch}", 0.2 + 0.1 * epoch) for epoch in (1, 2, 3)}
    fewer = {epoch: after[epoch] for epoch in (1, 2)}
    for there in (after, fewer):
        found = accuracy({"tessy": [Job("tessy", "a", before, [Round(3, None, there, end)])]})
        course = found["domains"]["in"]["tessy"]
        assert [place for place, *_ in course] == [0, 1, 2, 3]
        assert course[-1][1] == pytest.approx(0.5 if there is after else 0.8)
        assert found["domains"]["out"]["tessy"][0] == [0, 0.8, None, 1]
        assert (found["epochs"], found["ends"]) == (True, [])


def test_where_nobody_knows_how_many_epochs_a_training_had_its_end_is_marked(tmp_path):
    before, one, end = (evaluated(tmp_path / name, share) for name, share in (("b", 0.2), ("1", 0.4), ("e", 0.6)))
    rounds = [Round(None, None, {1: one}, end), Round(None, None, {}, end)]
    found = accuracy({"tessy": [Job("tessy", "a", before, rounds)]})
    assert [place for place, *_ in found["domains"]["in"]["tessy"]] == [0, 1, 2, 3]
    assert found["ends"] == [2, 3]
    assert found["epochs"]
    assert not accuracy({"tessy": [Job("tessy", "a", before, [Round(2, None, {}, end)])]})["epochs"]


def test_accuracy_is_the_mean_over_jobs(tmp_path):
    jobs = [
        Job("tessy", str(i), evaluated(tmp_path / f"b{i}", 0.5), [Round(1, None, {}, evaluated(tmp_path / f"e{i}", share))])
        for i, share in enumerate((0.6, 0.8))
    ]
    found = accuracy({"tessy": jobs})["domains"]["in"]["tessy"]
    assert found == [[0, 0.5, 0.0, 2], [1, pytest.approx(0.7), pytest.approx(0.141421, abs=1e-6), 2]]
