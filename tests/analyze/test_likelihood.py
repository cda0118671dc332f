"""The likelihood of a kind of token is the mean over those tokens, and each student is loaded once."""

from collections import defaultdict
from itertools import islice

import pytest

from tessy_jax.analyze import likelihood as module
from tessy_jax.analyze.data import read
from tessy_jax.analyze.likelihood import add, likelihoods, share
from tessy_jax.analyze.sources import Source
from tessy_jax.config import Data, Model
from tessy_jax.config.analysis import Likelihood
from tessy_jax.mini.rows import row as response
from tessy_jax.mini.tasks import items
from tessy_jax.store import RunReader
from tests.small_job import MODELS

from .fake_comparison import write
from .test_data import ROWS

STUDENT = Model(model=str(MODELS / "student-0"), dtype="float32")


def test_a_token_counts_for_the_span_in_which_it_begins():
    sums = defaultdict(lambda: [0.0, 0])
    row = ROWS[0]  # 8 characters of template, "so we see", 11 of template, "it is 3"
    add(sums, [row, row], [[(8, 10, -1.0), (10, 13, -2.0), (16, 30, -4.0), (29, 31, -8.0)], []])
    assert sums == {("student", "think"): [-7.0, 3], ("teacher", "answer"): [-8.0, 1]}


def test_jobs_share_the_number_of_rows_read_of_a_variant():
    assert [share(64, jobs) for jobs in (1, 3, 100)] == [64, 22, 1]


@pytest.fixture
def sets(tmp_path):
    def of(variant, speaker, writers, student=STUDENT):
        place = tmp_path / f"{variant}-{speaker}"
        write(place, [response(item, speaker, writers=writers) for item in islice(items("A", "train", 3), 5)])
        return read(Source(variant, variant, RunReader(str(place)), Data(path="p"), student, "2026-01-02"), 4, None)

    return {
        "tessy": [of("tessy", "student", "kinds")],
        "teacher_only": [of("teacher_only", "teacher", "speaker")],
        "unknown": [of("unknown", "teacher", "speaker", None)],
    }


def test_the_student_finds_its_own_words_more_probable_and_is_loaded_once(sets, monkeypatch):
    loaded, real = [], module.hf.load
    monkeypatch.setattr(module.hf, "load", lambda *args, **options: loaded.append(args) or real(*args, **options))
    read_rows, scored = [], module.score
    monkeypatch.setattr(
        module, "score", lambda rows, *args, **options: read_rows.append(rows) or scored(rows, *args, **options)
    )
    found = likelihoods(sets, Likelihood(responses=3), {})
    assert len(loaded) == 1
    assert [[row.id for row in rows] for rows in read_rows] == [
        [row.id for row in one[0].first[:3]] for one in sets.values()
    ][:2]
    assert list(found) == ["tessy", "teacher_only"], "data without a student is not scored"
    assert found["tessy"]["think"]["student"]["nll"] < found["teacher_only"]["think"]["teacher"]["nll"]
    assert found["teacher_only"]["think"]["student"] is None
    parts = [own for phase in ("think", "answer") for own in found["tessy"][phase].values() if own]
    whole = found["tessy"]["all"]
    assert whole["tokens"] == sum(own["tokens"] for own in parts) > 0
    assert whole["nll"] == pytest.approx(sum(own["nll"] * own["tokens"] for own in parts) / whole["tokens"], abs=1e-4)


def test_what_lies_beyond_the_limit_does_not_count(sets):
    found = likelihoods({"tessy": sets["tessy"]}, Likelihood(responses=1, tokens=30), {})
    assert 0 < found["tessy"]["all"]["tokens"] < 30
