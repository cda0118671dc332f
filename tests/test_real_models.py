"""Two real models continue real prompts as transformers does."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tessy_jax import cli
from tessy_jax.models import hf

NEW = 64
TIE = 1e-3
pytestmark = [pytest.mark.slow, pytest.mark.heavy]


@pytest.mark.parametrize("name", ["smollm2", "qwen-coder-0.5b"])
def test_a_real_model_continues_the_shared_prompts_as_transformers_does(name, shared, real_models, tmp_path, capsys):
    folder, prompts = real_models / name, shared / "data" / "ojbench-examples.jsonl"
    out = tmp_path / "rows.jsonl"
    options = ["--max-new-tokens", str(NEW), "--dtype", "float32", "--output", str(out)]
    assert cli.main(["generate", "--model", str(folder), "--prompts", str(prompts), *options]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = hf.load(folder)
    logits_of = jax.jit(lambda model, tokens_BT: model.logits(model(tokens_BT)[0]))
    ties = []
    for number, row in enumerate(rows):
        prompt = tokenizer(row["prompt"], return_tensors="pt")
        with torch.no_grad():
            done = theirs.generate(
                **prompt, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        start = prompt["input_ids"].shape[1]
        expected = done.sequences[0, start:].tolist()
        gaps = [float(top[0] - top[1]) for top in (torch.topk(step[0], 2).values for step in done.logits)]

        # along transformers' own continuation, our choice differs only where theirs was a tie
        ids = done.sequences[0].numpy()
        padded = np.zeros((1, 1024), int)
        padded[0, : len(ids)] = ids
        chosen = np.asarray(logits_of(ours, jnp.asarray(padded)))[0, start - 1 : len(ids) - 1].argmax(-1).tolist()
        for position, (mine, other) in enumerate(zip(chosen, expected, strict=True)):
            if mine != other:
                assert gaps[position] < TIE, f"prompt {number}, token {position}: {mine} for {other}, gap {gaps[position]}"

        # and the generated rows are equal up to such a tie, if there is one
        differs = [i for i, pair in enumerate(zip(row["token_ids"], expected, strict=False)) if pair[0] != pair[1]]
        if differs:
            assert gaps[differs[0]] < TIE, f"prompt {number}, token {differs[0]}: gap {gaps[differs[0]]}"
            ties.append((number, differs[0], gaps[differs[0]]))
        else:
            assert row["token_ids"] == expected
            assert row["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    with capsys.disabled():
        print(f"\n{name}: {len(rows) - len(ties)} of {len(rows)} continuations equal; ties (prompt, token, gap): {ties}")
