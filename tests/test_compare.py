"""A comparison runs the same job in variants, students and seeds, and counts what its jobs have found."""

import json
from statistics import fmean, stdev

import pytest
import yaml

from tessy_jax import cli
from tessy_jax.compare import cost_of, differences, table, tables
from tessy_jax.config import Comparison, read
from tessy_jax.errors import ConfigError
from tessy_jax.store.job_folder import Stage
from tests import several
from tests.conftest import ROOT
from tests.small_job import job


def comparison(folder, **changes):
    file = job(folder, items_each=2)
    raw = yaml.safe_load(file.read_text()) | {"variants": {"tessy": {}, "slow": {"optimizer.learning_rate": 1e-6}}}
    raw |= {"seeds": [3]} | changes
    (folder / "comparison.yaml").write_text(yaml.safe_dump(raw))
    return folder / "comparison.yaml"


def test_the_jobs_of_a_comparison_differ_only_in_the_keys_of_their_variants():
    config = read(Comparison, ROOT / "configs" / "mini_table.yaml")
    cells = list(config.cells())
    assert len(cells) == len(config.variants) * len(config.seeds) * len(config.students)
    assert len({cell.place for cell in cells}) == len(cells)
    for cell in cells:
        tasks = cell.config.evaluation.tasks
        assert {task.mini.seed for task in tasks} == {cell.seed}
        assert cell.config.seed == cell.seed
        assert cell.config.student.model == config.students[cell.student]
        same = {"seed", "student", "evaluation", "synthesis"}
        for name in type(cell.config).model_fields:
            if name not in same:
                assert getattr(cell.config, name) == getattr(config, name)
        changed = {"synthesis.recipe": cell.config.synthesis.recipe}
        assert changed == config.variants[cell.variant] or cell.variant == "tessy"
        assert cell.config.synthesis.model_copy(update={"recipe": "tessy"}) == config.synthesis


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variants": {}}, "variants"),
        ({"variants": {"a/b": {}}}, "a/b"),
        ({"variants": {"a": {"seed": 3}}}, "variants.a: seed"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({"seeds": {"student": [1, 1]}}, "seeds"),
        ({"seeds": {"other": [1]}}, "'other', which is no student"),
        ({"seeds": {"one": [1]}, "students": {"one": "a", "two": "b"}}, "none for student 'two'"),
        ({"variants": {"untouched": {}}}, "reserved for the untouched students"),
        ({"variants": {"before": {}}}, "reserved for the untouched students"),
        ({"variants": {"a": {"evaluation.synthesis.lanes": 4}}}, "the evaluation that all variants share"),
        ({"variants": {"a": {"student": {"model": "b"}}}}, "the evaluation that all variants share"),
        ({"baseline": "teacher_only"}, "'teacher_only', which is no variant; they are slow, tessy"),
    ],
)
def test_a_contradictory_comparison_is_refused(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        read(Comparison, comparison(tmp_path, **changes))


def test_a_variant_that_is_no_job_is_named_before_any_stage(tmp_path, capsys):
    file = comparison(tmp_path, variants={"good": {}, "odd": {"training.step": 3}})
    assert cli.main(["compare", str(file)]) == 2
    said = capsys.readouterr().err
    assert "variants.odd" in said
    assert "training.steps" in said
    assert not list((tmp_path / "job").glob("*/*/before/rollouts"))


def test_a_comparison_names_unreadable_input_before_it_is_saved(tmp_path, capsys):
    file = comparison(tmp_path, variants={"good": {}, "odd": {"data.path": "nowhere.jsonl"}})
    assert cli.main(["compare", str(file)]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "job" / "config.yaml").exists(), "what is put right would be refused as another comparison"


def test_every_student_may_have_its_own_seeds(tmp_path):
    config = read(Comparison, comparison(tmp_path, students={"one": "a", "two": "b"}, seeds={"two": [5], "one": [3, 4]}))
    assert [cell.place for cell in config.cells() if cell.variant == "slow"] == [
        "one/seed-3/slow",
        "one/seed-4/slow",
        "two/seed-5/slow",
    ]


def fake_job(variant, seed, **measures):
    return {"variant": variant, "student": "s", "seed": seed, "measures": measures}


def test_differences_are_those_of_jobs_with_the_same_student_and_seed():
    untouched = [fake_job("untouched", seed, score=value) for seed, value in enumerate((0.50, 0.60, 0.55))]
    better = [fake_job("better", seed, score=value, own=1.0) for seed, value in enumerate((0.60, 0.72, 0.68))]
    same = [fake_job("same", seed, score=value) for seed, value in enumerate((0.50, 0.60, 0.55))]
    found = differences([*untouched, *reversed(better), *same], "untouched")
    assert set(found) == {"better", "same"}
    assert set(found["better"]) == {"score"}, "a measure that the other lacks has no difference"
    measure = found["better"]["score"]
    values = [0.10, 0.12, 0.13]
    error = stdev(values) / 3**0.5
    assert measure["difference"] == pytest.approx(fmean(values))
    assert measure["interval"] == pytest.approx([fmean(values) - 4.302653 * error, fmean(values) + 4.302653 * error])
    t = fmean(values) / error
    assert measure["p"] == pytest.approx(1 - t / (2 + t * t) ** 0.5)  # Student's t with 2 degrees of freedom
    assert found["same"]["score"] == {"difference": 0.0, "interval": None, "p": None, "jobs": 3}


def test_differences_that_are_equal_up_to_rounding_count_as_equal():
    jobs = [fake_job("untouched", seed, score=value) for seed, value in enumerate((0.3, 0.7))]
    jobs += [fake_job("worse", seed, score=value - 0.1) for seed, value in enumerate((0.3, 0.7))]
    assert differences(jobs, "untouched")["worse"]["score"]["p"] is None


@pytest.mark.parametrize("chosen", [False, True])
def test_the_cost_of_data_is_that_of_all_passes_and_of_chosen_data_that_of_one_pass(chosen):
    first = {
        "generated_tokens": {"teacher": 50},
        "discarded_tokens": {"teacher": 0},
        "failed_tokens": {"teacher": 7},
    }
    own = {
        "generated_tokens": {"student": 30},
        "discarded_tokens": {"student": 2},
        "failed_tokens": {"student": 1},
    }
    data = {**first, "first_pass": first, "chosen": True} if chosen else {**own, "first_pass": first}
    stages = {Stage("evaluation"): 5.0, Stage("synthesis", 1): 2.0, Stage("training", 1): 3.0, Stage("evaluation", 1): 4.0}
    stages[Stage("synthesis", 2)] = 1.0
    found = cost_of([data], stages)
    assert found["generated"] == {"student": 0 if chosen else 30, "teacher": 50}
    assert (found["discarded"], found["failed"]) == ((0, 7) if chosen else (2, 8))
    assert found["seconds"] == {"data": 3.0, "training": 3.0, "all": 10.0}
    assert cost_of([data, data], stages)["generated"] == {"student": 0 if chosen else 60, "teacher": 100}


@pytest.mark.slow
def test_the_table_is_the_mean_over_the_jobs(tmp_path, capsys):
    file = comparison(tmp_path, seeds=[3, 4], baseline="slow")
    assert cli.main(["compare", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    jobs = {}
    for variant in ("tessy", "slow"):
        for seed in (3, 4):
            place = tmp_path / "job" / "student" / f"seed-{seed}" / variant / "round-1"
            jobs[variant, seed] = json.loads((place / "evaluation" / "summary.json").read_text())
            assert json.loads((place / "training" / "summary.json").read_text())["finished"]
    for variant in ("tessy", "slow"):
        values = [jobs[variant, seed]["tasks"]["sums"]["families"]["Ah"]["pass@1"] for seed in (3, 4)]
        assert found["variants"][variant]["Ah"]["mean"] == pytest.approx(fmean(values))
    same = [json.loads((tmp_path / "job" / "student" / f"seed-{s}" / "before" / "summary.json").read_text()) for s in (3, 4)]
    untouched = fmean(one["domains"]["in"]["pass@1"] for one in same)
    assert found["variants"]["untouched"]["in domain"]["mean"] == pytest.approx(untouched)
    assert cli.main(["compare", str(file)]) == 0, "a finished comparison is only counted again"
    said = capsys.readouterr().out
    assert tables(found) in said
    assert table(found) in said
    assert set(found["against"]) == {"untouched", "slow"}
    ours, theirs = ([jobs[name, seed]["domains"]["in"]["pass@1"] for seed in (3, 4)] for name in ("tessy", "slow"))
    assert found["against"]["slow"]["tessy"]["in domain"]["difference"] == pytest.approx(fmean(ours) - fmean(theirs))
    codes, said = several.ended(several.tessy("compare", file, "--set", "mesh={data: 2}", devices=1))
    assert codes == [0, 0], said
    ours, others = ([line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in said)
    assert [json.loads(line)["variants"] for line in ours] == [found["variants"]]
    assert not others, "the first of several processes speaks"
