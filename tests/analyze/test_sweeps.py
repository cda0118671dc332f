"""A sweep is of the variants that differ in one number alone; its measures are those of their jobs."""

from statistics import fmean, stdev

import pytest
import yaml

from tessy_jax.analyze.page import charts, page
from tessy_jax.analyze.sources import Job, Round
from tessy_jax.analyze.sweeps import sweeps, swept
from tessy_jax.config import Comparison, read
from tessy_jax.store import RunReader, RunStore
from tests.conftest import ROOT

VARIANTS = {
    "base": {},
    "n1": {"boundary.label_flip_prob": 0.1},
    "n4": {"boundary.label_flip_prob": 0.4},
    "half": {"boundary.threshold": 0.9},
    "s5": {"synthesis.student_step": 5, "synthesis.teacher_step": 5},
    "s9": {"synthesis.student_step": 9, "synthesis.teacher_step": 9},
    "uneven": {"synthesis.student_step": 5, "synthesis.teacher_step": 9},
    "word": {"synthesis.word_rule": "none"},
    "both": {"boundary.label_flip_prob": 0.2, "boundary.threshold": 0.9},
}


@pytest.fixture
def config(tmp_path):
    raw = yaml.safe_load((ROOT / "configs" / "mini_ablations.yaml").read_text())
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(raw | {"variants": VARIANTS, "seeds": [0, 1]}, sort_keys=False))
    return read(Comparison, tmp_path / "a.yaml")


def test_variants_that_differ_in_one_number_are_a_sweep_with_the_one_that_changes_nothing(config):
    assert swept(config) == {
        "boundary.label_flip_prob": {0.0: "base", 0.1: "n1", 0.4: "n4"},
        "synthesis.student_step & synthesis.teacher_step": {5.0: "s5", 9.0: "s9", 20.0: "base"},
    }


def test_a_sweep_shows_the_mean_over_jobs(config, tmp_path):
    shares = {"base": (0.9, 0.8), "n1": (0.7, 0.6), "n4": (0.2, 0.5)}
    jobs = []
    for variant, values in shares.items():
        for seed, value in enumerate(values):
            place = tmp_path / f"{variant}-{seed}"
            with RunStore(str(place)) as store:
                store.save_config("x")
                store.save_summary({"domains": {"in": {"pass@1": value}, "out": {"pass@1": 1.0}}})
            jobs.append(Job(variant, place.name, None, [Round(None, None, {}, RunReader(str(place)))]))
    quality = {"variants": {"base": {"pass@1": 0.99}, "n1": {"pass@1": 0.5}}}
    generated = {"base": {"kept": 90, "discarded": 10, "failed": 0}, "n1": {"kept": 0, "discarded": 0, "failed": 0}}
    found = sweeps(config, jobs, {"quality": quality, "shares": {"generated": generated}})["boundary.label_flip_prob"]
    assert found["variants"] == ["base", "n1", "n4"]
    measures = found["measures"]
    for (value, mean, off, count), values in zip(measures["in"], shares.values(), strict=True):
        assert (mean, off, count) == (pytest.approx(fmean(values)), pytest.approx(stdev(values), abs=1e-6), 2)
        assert (
            value == {"base": 0.0, "n1": 0.1, "n4": 0.4}[found["variants"][measures["in"].index([value, mean, off, count])]]
        )
    assert measures["out"] == [[0.0, 1.0, 0.0, 2], [0.1, 1.0, 0.0, 2], [0.4, 1.0, 0.0, 2]]
    assert measures["quality"] == [[0.0, 0.99, None, 1], [0.1, 0.5, None, 1]]
    assert measures["discarded"] == [[0.0, 0.1, None, 1]]


def test_a_setting_with_one_value_is_no_sweep(config, tmp_path):
    with RunStore(str(tmp_path / "one")) as store:
        store.save_config("x")
        store.save_summary({"domains": {"in": {"pass@1": 0.9}}})
    jobs = [Job("base", "one", None, [Round(None, None, {}, RunReader(str(tmp_path / "one")))])]
    assert sweeps(config, jobs, {"quality": None, "shares": None}) == {}


def test_every_sweep_is_a_figure_that_names_its_key():
    own = {"variants": ["a", "b", "c"], "measures": {"in": [[0.1, 0.5, None, 1], [0.2, 0.6, None, 1], [0.4, 0.9, None, 1]]}}
    numbers = dict.fromkeys(("texts", "words", "lengths", "shares", "quality", "likelihood", "losses", "accuracy"))
    numbers |= {"variants": ["a"], "data": {}, "missing": [], "sweeps": {"boundary.label_flip_prob": own}}
    (chart,) = charts(numbers)
    assert chart.name == "sweep_0"
    drawn = chart.files()["sweep_0.svg"].decode()
    for text in ("boundary.label_flip_prob", "0.1", "0.2", "0.4", "pass@1 in domain"):
        assert text in drawn
    assert "boundary.label_flip_prob" in page(numbers, title="t", version="0")
