"""Exports equal the trained model and data, and other programs read them."""

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tessy_jax.cli import main
from tests.train.test_job import config, lines, row, student, train, weights, write  # noqa: F401  (fixtures)


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].numpy()


def test_the_newest_checkpoint_becomes_the_model_of_the_run_folder_and_an_older_one_another(config, tmp_path, capsys):  # noqa: F811
    assert train(capsys, config())[0] == 0
    run = str(tmp_path / "run")
    assert main(["export", "model", run, str(tmp_path / "new")]) == 0
    assert "step 6" in capsys.readouterr().out
    assert main(["export", "model", run, str(tmp_path / "old"), "--step", "4"]) == 0
    new, old, own = (load_file(tmp_path / name / "model.safetensors") for name in ("new", "old", "run/model"))
    assert all((new[name] == own[name]).all() for name in own)
    assert any((old[name] != own[name]).any() for name in own)
    AutoTokenizer.from_pretrained(tmp_path / "new")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert main(["export", "model", str(tmp_path / "moved"), str(tmp_path / "from-moved")]) == 0
    assert not (tmp_path / "run").exists()
    (tmp_path / "moved").rename(tmp_path / "run")
    capsys.readouterr()
    assert main(["export", "model", run, str(tmp_path / "none"), "--step", "3"]) == 2
    assert "has the steps 4, 6, not 3" in capsys.readouterr().err
    assert main(["export", "adapter", run, str(tmp_path / "none")]) == 2
    assert "trained without adapters" in capsys.readouterr().err
    assert main(["export", "model", run, str(tmp_path / "new")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_an_exported_adapter_on_its_base_is_the_exported_model(config, student, tmp_path, capsys):  # noqa: F811
    assert train(capsys, config(lora={"rank": 2, "alpha": 8.0}, optimizer={"learning_rate": 0.05}))[0] == 0
    run = str(tmp_path / "run")
    assert main(["export", "adapter", run, str(tmp_path / "adapter")]) == 0
    assert main(["export", "model", run, str(tmp_path / "model")]) == 0
    base = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    tokens = list(range(3, 90))
    before = logits(base, tokens)
    ours = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32), tokens)
    theirs = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), tokens)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)
    assert np.abs(ours - before).max() > 1e-2


@pytest.mark.parametrize("source", ["file", "folder"])
def test_a_tokenized_data_set_trains_as_its_source(config, tmp_path, capsys, source):  # noqa: F811
    file = config("text")
    assert train(capsys, file)[0] == 0
    assert main(["export", "tokens", str(file), str(tmp_path / "exported")]) == 0
    assert "40 tokenized conversations" in capsys.readouterr().out
    files = sorted((tmp_path / "exported" / "data").iterdir())
    assert len(datasets.load_dataset(str(tmp_path / "exported"), split="train", cache_dir=str(tmp_path / "cache"))) == 40
    path = str(files[0]) if source == "file" else str(tmp_path / "exported")
    code, summary = train(capsys, config("tokens", data={"path": path}))
    assert code == 0, summary
    for a, b in zip(lines(tmp_path / "text"), lines(tmp_path / "tokens"), strict=True):
        assert (a["loss"], a["loss_cap"], a["tokens_by"]) == (b["loss"], b["loss_cap"], b["tokens_by"])
    from_text, from_tokens = weights(tmp_path / "text"), weights(tmp_path / "tokens")
    assert all((from_text[name] == from_tokens[name]).all() for name in from_text)


@pytest.mark.parametrize(
    ("tokenized", "message"),
    [
        ({"input_ids": [1, 2, 3], "labels": [-100, 3, -100]}, "labels[1] is 3; it should be -100, or the token at the same"),
        ({"input_ids": [1, 2], "labels": [-100]}, "one label per token"),
        ({"input_ids": [1, 2000], "labels": [-100, 2000]}, "the model has 150 tokens"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "source_ids": [0, 9]}, "source_ids range from 0 to 9"),
        ({"input_ids": [1, 2]}, "labels is missing; it should be a list of whole numbers, one per token"),
        ({"input_ids": [1, 2.5], "labels": [-100, 2]}, "input_ids[1] is 2.5; it should be a whole number"),
        ({"input_ids": [True, True], "labels": [-100, 1]}, "input_ids[0] is True; it should be"),
        ({"input_ids": ["1", "2"], "labels": [-100, 2]}, "input_ids[0] is '1'; it should be"),
        ({"input_ids": [1, [2]], "labels": [-100, 2]}, "input_ids[1] is [2]; it should be"),
        ({"input_ids": [1, 1 << 70], "labels": [-100, 2]}, f"input_ids[1] is {1 << 70}; it should be"),
        ({"input_ids": "[1, 2]", "labels": [-100, 2]}, "input_ids is '[1, 2]'; it should be a list"),
        ({"input_ids": [], "labels": []}, "has 0 input_ids and 0 labels"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "source_ids": [1]}, "has 2 input_ids and 2 labels and 1 source_ids"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "source_ids": [9, 2]}, "source_ids range from 2 to 9"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "source_ids": [1, 0]}, "source_ids[1] is 0 (no target), but labels[1]"),
        ({"input_ids": [0, 2], "labels": [-100, 2], "attention_mask": [0, 1]}, "attention_mask says that the row has"),
        ({"input_ids": [1, 2], "labels": [1, 2], "completion_mask": [0, 1]}, "completion_mask and labels differ in which"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "position_ids": [0, 0]}, "position_ids says that the row"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, "none of its 2 tokens is a target"),
    ],
)
def test_an_invalid_tokenized_row_is_refused(config, capsys, tokenized, message):  # noqa: F811
    code, output = train(capsys, config(rows=[tokenized]))
    assert code == 2
    assert message in output


@pytest.mark.parametrize("form", ["dialogs", "conversations", "prompt"])
def test_conversations_in_other_forms_train_as_messages(config, tmp_path, capsys, form):  # noqa: F811
    rows = [row(i) for i in range(40)]

    def other(messages):
        if form == "dialogs":
            return {"id_ddm": "x", "dialogs": messages}
        if form == "conversations":
            names = {"user": "human", "assistant": "gpt"}
            return {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages]}
        return {"prompt": messages[0]["content"], "completion": messages[1]["content"]}

    code, summary = train(capsys, config("messages", rows=[{"messages": r["messages"]} for r in rows]))
    assert code == 0, summary
    code, summary = train(capsys, config("other", rows=[other(r["messages"]) for r in rows]))
    assert code == 0, summary
    assert [line["loss"] for line in lines(tmp_path / "messages")] == [line["loss"] for line in lines(tmp_path / "other")]
    assert summary["targets"]["unknown"] > 0
