"""Two real models with two vocabularies write one response, with the shipped configuration."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from tessy_jax.cli import main
from tessy_jax.records import Row, validate
from tessy_jax.store import RunReader
from tests.conftest import ROOT
from tests.synthesis.test_recipes import WHO, writers

pytestmark = [pytest.mark.slow, pytest.mark.heavy]
OPEN, CLOSE = "```python\n", "\n```\n\n"


def synthesized(folder, shared, real_models, capsys, *changes):
    """A synthesis of the shared prompts with the shipped configuration: prompts, rows, summary."""
    data = shared / "data" / "ojbench-examples.jsonl"
    models = {"student": real_models / "smollm2", "teacher": real_models / "qwen-coder-0.5b"}
    changes = [f"data.path={data}", f"output={folder / 'run'}", *changes]
    changes += [f"{name}.model={model}" for name, model in models.items()]
    for seed, name in enumerate(models):
        script = [sys.executable, ROOT / "scripts" / "make_predictor.py", "--tokenizer", models["student"]]
        subprocess.run([*script, "--output", folder / name, "--seed", str(seed), "--cuts-at", str(seed)], check=True)
        changes.append(f"boundary.{name}={folder / name}")
    command = ["synthesize", str(ROOT / "configs" / "small_pair.yaml"), "--json"]
    assert main(command + [word for change in changes for word in ("--set", change)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert main(["rows", str(folder / "run")]) == 0
    rows = [Row.from_json(json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    return [json.loads(line)["prompt"] for line in data.read_text().splitlines()], rows, summary


@pytest.mark.parametrize(("limit", "rollouts"), [(2, 1), (5, 4)])
def test_the_real_small_pair_writes_responses_to_shared_prompts(limit, rollouts, shared, real_models, tmp_path, capsys):
    changes = [f"data.limit={limit}", f"data.rollouts={rollouts}", f"synthesis.lanes={min(limit * rollouts, 8)}"]
    prompts, rows, summary = synthesized(tmp_path, shared, real_models, capsys, *changes)
    expected = dict.fromkeys(prompts[:limit], rollouts)
    assert Counter(row.messages[0]["content"] for row in rows) == expected, summary["run"]
    wrote = Counter()
    for row in rows:
        validate(row)
        texts = [row.content[span.start : span.end] for span in row.spans]
        assert "".join(texts) == row.content
        assert row.content.encode().decode() == row.content
        spans = list(zip(row.spans, texts, strict=True))
        assert spans[0][1] == OPEN
        assert [text for span, text in spans if span.source == "template"] == [OPEN, CLOSE]
        thinking = "".join(text for span, text in spans if span.phase == "think" and span.source != "template")
        assert CLOSE.strip() not in thinking
        assert {span.source for span in row.spans if span.phase == "answer"} <= {"student", "template"}
        assert row.meta["tokens_student"] + row.meta["tokens_teacher"] <= 300 + 300
        wrote.update((span.source, span.phase) for span in row.spans)
    assert wrote["student", "think"] > rollouts
    assert wrote["teacher", "think"] > rollouts
    assert summary["host_syncs_per_kept_token"] > 0
    assert summary["discarded_share"] <= 0.15


@pytest.mark.parametrize("recipe", sorted(set(WHO) - {"tessy"}))
def test_the_writers_are_those_of_every_other_recipe(recipe, shared, real_models, tmp_path, capsys):
    changes = [f"synthesis.recipe={recipe}", "synthesis.candidates=2", "synthesis.max_prompt_tokens=1400"]
    changes += ["data.limit=3", "synthesis.max_attempts=2", "synthesis.lanes=4"]
    prompts, rows, summary = synthesized(tmp_path, shared, real_models, capsys, *changes)
    assert rows, summary["run"]
    ended = {row.prompt_id for row in rows} | {failure.prompt_id for failure in RunReader(str(tmp_path / "run")).failures()}
    assert len(ended) == 3
    for row in rows:
        validate(row)
        assert "".join(row.content[span.start : span.end] for span in row.spans) == row.content
        assert (writers(row, "think"), *writers(row, "answer")) in WHO[recipe].items()
        assert [message["content"] for message in row.messages[:-1]] in [[prompt] for prompt in prompts]
        assert row.meta["recipe"] == recipe
