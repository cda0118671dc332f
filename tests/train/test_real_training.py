"""Fine-tuning a real model gives the losses of torch and transformers."""

import datetime
import json
from itertools import islice

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tessy_jax.cli import main
from tessy_jax.config import Train, read
from tessy_jax.models import hf
from tessy_jax.train.data import BatchPlan
from tessy_jax.train.job import examples
from tessy_jax.train.pack import NO_TARGET

pytestmark = [pytest.mark.slow, pytest.mark.heavy]
RATE, DECAY = 2e-5, 0.01


def answer(prompt):
    words = prompt.split()
    return f"Let me restate that. {' '.join(words[:20])} … and so on; {len(words)} words in all."


@pytest.mark.parametrize("steps", [5, 20])
def test_the_first_losses_of_smollm2_are_those_of_torch(steps, shared, real_models, tmp_path):
    prompts = [json.loads(line)["prompt"] for line in (shared / "data" / "ojbench-examples.jsonl").read_text().splitlines()]
    pieces = [" ".join(p.split()[i : i + 25]) for p in prompts for i in range(0, len(p.split()), 25)]
    rows = [{"prompt": f"Restate: {piece}", "completion": answer(piece)} for piece in pieces]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {
        "output": str(tmp_path / "run"),
        "date": "2026-01-02",
        "student": {"model": str(real_models / "smollm2"), "thinking": {"open": "<think>\n", "close": "\n</think>\n\n"}},
        "data": {"path": str(tmp_path / "rows.jsonl")},
        "optimizer": {"learning_rate": RATE, "schedule": "constant", "warmup": 0, "options": {"weight_decay": DECAY}},
        "training": {
            "steps": steps,
            "max_seq_len": 256,
            "batch_size": 2,
            "micro_batch_size": 1,
            "dtype": "float32",
            "save_every": 1000,
        },
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(raw))
    config = read(Train, file)
    assert datetime.date.fromisoformat(config.date)
    data, _ = examples(config, hf.resolve(config.student.model))
    plan = BatchPlan(data, 256, 2, config.seed)

    model = AutoModelForCausalLM.from_pretrained(real_models / "smollm2", dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, eps=1e-8)
    theirs = []
    for rows_of_step in islice((batch for epoch in range(9) for batch in plan.epoch(epoch)), steps):
        batch_examples = [data[i] for row in rows_of_step for i in row]
        count = sum(int((example.kinds[1:] != NO_TARGET).sum()) for example in batch_examples)
        optimizer.zero_grad()
        total = 0.0
        for example in batch_examples:  # without packing
            ids = torch.from_numpy(example.tokens).long()
            losses = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
            loss = losses[torch.from_numpy(example.kinds[1:] != NO_TARGET)].sum() / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        theirs.append(total)

    assert main(["train", str(file)]) == 0
    ours = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(ours) == steps
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3, list(zip(ours, theirs, strict=True))
    assert ours[-1] < ours[0] - 0.1
