"""A comparison runs the same job in variants, students and seeds, and counts what its jobs have found."""

import json
from statistics import fmean

import pytest
import yaml

from tessy_jax import cli
from tessy_jax.compare import table
from tessy_jax.config import Comparison, read
from tessy_jax.errors import ConfigError
from tests import several
from tests.conftest import ROOT
from tests.small_job import job


def comparison(folder, **changes):
    file = job(folder)
    raw = yaml.safe_load(file.read_text()) | {"variants": {"tessy": {}, "slow": {"optimizer.learning_rate": 1e-6}}}
    raw |= {"seeds": [3]} | changes
    (folder / "comparison.yaml").write_text(yaml.safe_dump(raw))
    return folder / "comparison.yaml"


def test_the_jobs_of_a_comparison_differ_in_nothing_but_what_is_named():
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
    ],
)
def test_a_comparison_that_cannot_be_meant_is_refused(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        read(Comparison, comparison(tmp_path, **changes))


def test_a_variant_that_is_no_job_is_named_before_any_stage(tmp_path, capsys):
    file = comparison(tmp_path, variants={"good": {}, "odd": {"training.step": 3}})
    assert cli.main(["compare", str(file)]) == 2
    said = capsys.readouterr().err
    assert "variants.odd" in said
    assert "training.steps" in said
    assert not list((tmp_path / "job").glob("*/*/before/rollouts"))


def test_what_a_job_cannot_read_is_said_before_the_comparison_is_saved(tmp_path, capsys):
    file = comparison(tmp_path, variants={"good": {}, "odd": {"data.path": "nowhere.jsonl"}})
    assert cli.main(["compare", str(file)]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "job" / "config.yaml").exists(), "what is put right would be refused as another comparison"


@pytest.mark.slow
def test_the_table_is_the_mean_of_what_the_jobs_have_found(tmp_path, capsys):
    file = comparison(tmp_path, seeds=[3, 4])
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
    assert table(found) in capsys.readouterr().out
    codes, said = several.ended(several.tessy("compare", file, "--set", "mesh={data: 2}", devices=1))
    assert codes == [0, 0], said
    ours, others = ([line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in said)
    assert [json.loads(line)["variants"] for line in ours] == [found["variants"]]
    assert not others, "the first of several processes speaks"
