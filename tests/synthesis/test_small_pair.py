"""Two real models with two vocabularies write together, as the shipped configuration says."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from tessy_jax.cli import main
from tessy_jax.records import Row, validate
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
OPEN, CLOSE = "```python\n", "\n```\n\n"
ROLLOUTS = 4


def test_the_real_small_pair_writes_twenty_responses_to_the_shared_prompts(shared, real_models, tmp_path, capsys):
    models = {"student": real_models / "smollm2", "teacher": real_models / "qwen-coder-0.5b"}
    changes = [f"data.path={shared / 'data' / 'ojbench-examples.jsonl'}", f"data.rollouts={ROLLOUTS}"]
    changes += [f"output={tmp_path / 'run'}", *(f"{name}.model={folder}" for name, folder in models.items())]
    for seed, name in enumerate(models):
        script = [sys.executable, ROOT / "scripts" / "make_predictor.py", "--tokenizer", models["student"]]
        subprocess.run([*script, "--output", tmp_path / name, "--seed", str(seed), "--cuts-at", str(seed)], check=True)
        changes.append(f"boundary.{name}={tmp_path / name}")
    command = ["synthesize", str(ROOT / "configs" / "small_pair.yaml"), "--json"]
    assert main(command + [word for change in changes for word in ("--set", change)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert main(["rows", str(tmp_path / "run")]) == 0
    rows = [Row.from_json(json.loads(line)) for line in capsys.readouterr().out.splitlines()]

    prompts = [json.loads(line)["prompt"] for line in (shared / "data" / "ojbench-examples.jsonl").read_text().splitlines()]
    assert Counter(row.messages[0]["content"] for row in rows) == dict.fromkeys(prompts, ROLLOUTS), summary["run"]
    writers = Counter()
    for row in rows:
        validate(row)
        texts = [row.content[span.start : span.end] for span in row.spans]
        assert "".join(texts) == row.content
        assert row.content.encode().decode() == row.content
        told = list(zip(row.spans, texts, strict=True))
        assert told[0][1] == OPEN
        assert [text for span, text in told if span.source == "template"] == [OPEN, CLOSE]
        thinking = "".join(text for span, text in told if span.phase == "think" and span.source != "template")
        assert CLOSE.strip() not in thinking
        assert {span.source for span in row.spans if span.phase == "answer"} <= {"student", "template"}
        assert row.meta["tokens_student"] + row.meta["tokens_teacher"] <= 300 + 300
        writers.update((span.source, span.phase) for span in row.spans)
    assert writers["student", "think"] > ROLLOUTS
    assert writers["teacher", "think"] > ROLLOUTS
    assert summary["host_syncs_per_kept_token"] > 0
    assert summary["discarded_share"] <= 0.15
