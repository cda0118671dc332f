"""Shipped models are trained on the train split alone, pass their gates, and agree with their evaluation.json."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tessy_jax.config.evaluation import Task
from tessy_jax.mini import build
from tessy_jax.mini.build import GATE, STAGES, measured, passes, pretraining, traces
from tessy_jax.mini.evaluation import problems
from tessy_jax.mini.styles import STYLES
from tessy_jax.mini.tasks import HARD, split_of
from tessy_jax.models import hf
from tests.conftest import ROOT

SHIPPED = ROOT / "tessy_jax" / "mini" / "checkpoints"
MODELS = ("teacher", "student-0", "student-1", "student-2")
FAMILIES = ["Ae", "Ah", "B", "C", "D"]


def evaluated(split, seeds):
    """Prompts of evaluations."""
    for seed in seeds:
        mini = {"families": FAMILIES, "items": 300, "split": split, "seed": seed}
        task = Task.model_validate({"name": "all", "mini": mini, "verifier": "mini"})
        yield from (problem.messages[0]["content"] for problem in problems(task))


def trained_on():
    """Prompts of all training data, a part of each stage."""
    for speaker, stages in STAGES.items():
        for number, stage in enumerate(stages):
            for seed in (number * 1000, number * 1000 + 1):
                yield from (
                    row.messages[0]["content"] for row in pretraining(speaker, dataclasses.replace(stage, items=200), seed)
                )
    for speaker in STYLES:
        yield from (row.messages[0]["content"] for row in traces(speaker))
    for line in (ROOT / "configs" / "mini_prompts.jsonl").read_text().splitlines():
        yield json.loads(line)["prompt"]


def test_no_prompt_of_an_evaluation_is_in_the_training_data():
    seen = set(trained_on())
    assert len(seen) > 4000
    assert {split_of(prompt) for prompt in seen} == {"train"}
    for split in ("validation", "test"):
        questions = set(evaluated(split, range(3)))
        assert {split_of(prompt) for prompt in questions} == {split}
        assert not seen & questions


def test_a_students_pretraining_has_no_multiplier_that_it_should_learn_later():
    hard = {f"* {d}" for d in HARD}
    for stage in STAGES["student"]:
        for row in pretraining("student", dataclasses.replace(stage, items=200), 0):
            assert not any(word in row.content or word in row.messages[0]["content"] for word in hard)


def test_shipped_checkpoints_are_small_and_their_evaluation_passes_the_gate():
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 8_000_000
    report = json.loads((SHIPPED / "evaluation.json").read_text())
    assert sorted(report["models"]) == sorted(MODELS)
    for name, pass_at_1 in report["models"].items():
        assert passes(name.partition("-")[0], pass_at_1), name
    assert json.loads(json.dumps(GATE)) == report["settings"]["gate"]
    assert [dataclasses.asdict(stage) for stage in STAGES["student"]] == report["settings"]["stages"]["student"]
    for scores in report["predictors"].values():
        assert scores["style_f1"] >= 0.98
        assert scores["cuts"]["exact"] >= 0.95


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_gives_the_logits_of_transformers(name):
    ids = np.random.default_rng(0).integers(0, 400, (2, 100))
    theirs = AutoModelForCausalLM.from_pretrained(SHIPPED / name, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    ours = hf.load(SHIPPED / name, dtype="float32")
    hidden, _ = ours(jnp.asarray(ids))
    np.testing.assert_allclose(np.asarray(ours.logits(hidden)), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_passes_its_gate_again(name, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PROBLEMS", 200)
    speaker = name.partition("-")[0]
    pass_at_1 = measured(speaker, SHIPPED / name, tmp_path)
    for family, (low, high) in GATE[speaker].items():
        noise = 0.04  # with 200 problems
        assert low - noise <= pass_at_1[family] <= high + noise, (family, pass_at_1)
