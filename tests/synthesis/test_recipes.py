"""Every recipe of the method has the right writers, on the miniature."""

import json
from collections import Counter

import pytest
import yaml

from tessy_jax import cli
from tessy_jax.config import Synthesize, read
from tessy_jax.records import Row
from tessy_jax.store import RunReader, RunStore
from tessy_jax.synthesis import passes
from tessy_jax.synthesis.job import responses
from tessy_jax.synthesis.prompts import with_system
from tests.small_job import job

WHO = {
    "tessy": {("student", "teacher"): "student"},
    "teacher_only": {("teacher",): "teacher"},
    "student_only": {("student",): "student"},
    "teacher_think": {("teacher",): "student"},
    "teacher_answer": {("student",): "teacher"},
    "teacher_mix": {("teacher",): "teacher", ("student",): "student"},
    "teacher_score": {("student",): "student"},
    "teacher_reference": {("student",): "student"},
}


def config_of(folder, recipe, name=None, **synthesis):
    raw = yaml.safe_load(job(folder).read_text())
    kept = {key: raw[key] for key in ("seed", "mesh", "data", "student", "teacher", "boundary")}
    raw = {**kept, "output": str(folder / (name or recipe)), "synthesis": raw["synthesis"] | {"recipe": recipe, **synthesis}}
    file = folder / f"{recipe}.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def written(file):
    assert cli.main(["synthesize", str(file)]) == 0
    reader = RunReader(yaml.safe_load(file.read_text())["output"])
    return sorted(reader.rows(), key=lambda row: row.place), list(reader.failures()), reader.summary()


def writers(row, phase):
    return tuple(sorted({span.source for span in row.spans if span.phase == phase} - {"template"}))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", WHO)
def test_the_writers_are_those_of_the_recipe(tmp_path, recipe):
    rows, failures, summary = written(
        config_of(tmp_path, recipe, max_prompt_tokens=250, candidates=3, rewrite="{prompt} {reference}")
    )
    assert len(rows) + len(failures) == 12
    assert rows
    pairs = Counter((writers(row, "think"), writers(row, "answer")) for row in rows)
    if recipe == "tessy":  # a response may be all of one kind
        assert {answer for _, answer in pairs} == {("student",)}
        assert (("student", "teacher"), ("student",)) in pairs
    else:
        assert set(pairs) == {(think, (answer,)) for think, answer in WHO[recipe].items()}
    prompts = {f"{json.loads(line)['id']}": json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").open()}
    for row in rows:
        assert Row.from_json(row.to_json()) == row
        assert row.meta["recipe"] == recipe
        assert [dict(message) for message in row.messages[:-1]] == [{"role": "user", "content": prompts[row.prompt_id]}]
        assert row.content.startswith("<think>\n")
        for name in ("student", "teacher"):
            wrote = any(span.source == name for span in row.spans)
            assert bool(row.meta[f"tokens_{name}"]) == wrote
    assert summary["run"]["responses"] == len(rows)


def test_the_candidate_that_is_most_probable_to_the_teacher_is_kept(tmp_path):
    rows, _, summary = written(config_of(tmp_path, "teacher_score", candidates=4))
    candidates = {}
    for row in RunReader(str(tmp_path / "teacher_score" / "candidates")).rows():
        candidates.setdefault((row.prompt_id, row.rollout // 4), []).append(row)
    assert sum(map(len, candidates.values())) == summary["first_pass"]["run"]["responses"] == 48
    means = _means_of_transformers(tmp_path, [row for group in candidates.values() for row in group])
    for row in rows:
        group = sorted(candidates[row.key], key=lambda candidate: candidate.rollout)
        best = max(group, key=lambda candidate: means[candidate.id])
        assert (row.content, row.spans) == (best.content, best.spans)
        assert row.meta["teacher_score"] == pytest.approx(means[best.id], abs=1e-3)
        assert (row.meta["candidates"], row.meta["candidate"]) == (4, best.rollout % 4)
        assert row.meta["candidate_tokens"] == sum(candidate.meta["tokens_student"] for candidate in group)
    assert len({row.meta["candidate"] for row in rows}) > 1


def _means_of_transformers(folder, rows):
    """The teacher's mean log-probability per token by row id, computed with transformers."""
    import datetime

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tessy_jax.synthesis.model_set import writer_spec

    section = read(Synthesize, folder / "teacher_score.yaml").teacher
    chat = writer_spec("teacher", section, datetime.date(2026, 1, 1)).chat
    tokenizer = AutoTokenizer.from_pretrained(section.model)
    model = AutoModelForCausalLM.from_pretrained(section.model, dtype=torch.float32)
    means = {}
    for row in rows:
        thought, answer = row.content.removeprefix("<think>\n").split("\n</think>\n\n")
        prompt = chat.prompt(row.messages[:-1])
        parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (thought, answer)]
        ids = [*prompt, *parts[0], *chat.close_ids, *parts[1]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = [*range(len(prompt), len(prompt) + len(parts[0])), *range(len(ids) - len(parts[1]), len(ids))]
        means[row.id] = sum(logits[at - 1, ids[at]].item() for at in own) / len(own)
    return means


def test_rewritten_prompts_are_printed_and_not_saved(tmp_path, capsys):
    file = config_of(tmp_path, "teacher_reference", max_prompt_tokens=250, rewrite="{prompt} {reference}")
    _, _, summary = written(file)
    errors = capsys.readouterr().err
    references = {row.key: row for row in RunReader(str(tmp_path / "teacher_reference" / "references")).rows()}
    first = references[min(references, key=lambda key: references[key].place)]
    answer = first.content.split("</think>\n\n")[1]
    assert f"<|user|>{first.messages[0]['content']} {answer}<|end|>" in errors
    assert summary["first_pass"]["run"]["responses"] == len(references)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["teacher_score", "teacher_reference"])
def test_both_passes_continue_after_an_interruption(tmp_path, monkeypatch, recipe):
    settings = {"max_prompt_tokens": 250, "rewrite": "{prompt} {reference}", "lanes": 4}
    monkeypatch.setattr(passes, "RESPONSES_PER_COMMIT", 5)
    uninterrupted = [row.to_json() for row in written(config_of(tmp_path, recipe, "uninterrupted", **settings))[0]]
    commit, left = RunStore.commit, dict[str, int]()

    def interrupted(store, rows, failures):
        """Ends the program, once in each pass, when its second responses have been saved."""
        commit(store, rows, failures)
        left[store.output] = left.get(store.output, 2) - bool(rows)
        if rows and left[store.output] == 0:
            raise KeyboardInterrupt

    file = config_of(tmp_path, recipe, "interrupted", **settings)
    monkeypatch.setattr(RunStore, "commit", interrupted)
    for _ in range(2):
        assert cli.main(["synthesize", str(file)]) == 1
    monkeypatch.setattr(RunStore, "commit", commit)
    assert len(list(RunReader(str(tmp_path / "interrupted")).rows())) in range(1, 12)
    continued = [row.to_json() for row in written(file)[0]]
    for row in (*uninterrupted, *continued):
        row["meta"].pop("seconds")
    assert continued == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tessy", "teacher_score"])
def test_an_isolation_message_is_saved_and_no_writer_reads_it(tmp_path, recipe):
    plain, _, _ = written(config_of(tmp_path, recipe, "plain"))
    isolated, _, _ = written(config_of(tmp_path, recipe, "isolated", isolation="You are somebody else."))
    assert [(row.content, row.spans) for row in isolated] == [(row.content, row.spans) for row in plain]
    system = {"role": "system", "content": "You are somebody else."}
    assert [list(row.messages) for row in isolated] == [[system, *row.messages] for row in plain]
    if recipe == "tessy":
        pages = [RunReader(str(tmp_path / name)).file("scores.jsonl") for name in ("plain", "isolated")]
        assert pages[0] == pages[1] is not None


def test_the_system_message_of_a_prompt_follows_the_isolation_message():
    question = {"role": "user", "content": "why?"}
    own = {"role": "system", "content": "be kind"}
    assert with_system(None, [own, question]) == [own, question]
    assert with_system("A.", [own, question]) == [{"role": "system", "content": "A.\n\nbe kind"}, question]
    assert with_system("A.", [question]) == [{"role": "system", "content": "A."}, question]


def test_two_passes_need_a_run_folder(tmp_path):
    config = read(Synthesize, config_of(tmp_path, "teacher_score"))
    with pytest.raises(Exception, match=r"two passes.*use synthesize"):
        list(responses(config))
