"""Scores are the log-probabilities that transformers computes for the tokens of a response."""

import datetime
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tessy_jax.config.sections import Model
from tessy_jax.models import hf
from tessy_jax.records import Row, Span
from tessy_jax.sharding import Partitioner
from tessy_jax.synthesis import scores
from tessy_jax.synthesis.model_set import writer_spec
from tessy_jax.synthesis.scores import Scorer, first_rows, score, score_lines
from tests.synthesis.tiny_pair import CLOSE, build

OPEN = "<think>\n"
TEXTS = {"open_text": OPEN, "close_text": CLOSE}


def row_of(thinking, answer, number=0, closes=True):
    content = OPEN + thinking + (CLOSE + answer) * closes
    messages = ({"role": "user", "content": f"add {number} and 7"}, {"role": "assistant", "content": content})
    spans = (Span("student", "think", 0, len(content)),)
    return Row(f"{number}/0", str(number), 0, messages, spans, {"index": number})


ROWS = [
    row_of("wait, so we need to add 12 and 7.  then\n\n the sum", "is 19. x = 3 * (a+b)", 3),
    row_of("okay", "now", 1),
    row_of("let me check it again. " * 20, "hence 19", 2),
    row_of("it does not end", "", 4, closes=False),
    row_of("", "at once", 5),
    row_of("no answer", "", 6),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pair"))


def scorers_of(pair, partitioner=None):
    scorers = {}
    for name in ("student", "teacher"):
        section = Model.model_validate({"model": pair[name], "dtype": "float32", "thinking": {"open": OPEN, "close": CLOSE}})
        chat = writer_spec(name, section, datetime.date(2026, 1, 2)).chat
        scorers[name] = Scorer(hf.load(pair[name], dtype="float32", partitioner=partitioner or Partitioner()), chat)
    return scorers


def by_hand(folder, row):
    """(text, log-probability) of each token, computed with transformers and tokenized piece by piece."""
    fast, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    context = fast.apply_chat_template(list(row.messages[:-1]), add_generation_prompt=True, tokenize=False) + OPEN
    thinking, closed, answer = row.content.removeprefix(OPEN).partition(CLOSE)
    pieces = [(context, False), (thinking, True), (closed, False), (answer, True)]
    ids, scored = [], []
    for text, counts in pieces:
        own = fast(text, add_special_tokens=False)["input_ids"]
        ids += own
        scored += [counts] * len(own)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    values = torch.log_softmax(logits, -1)[:-1].gather(-1, torch.tensor(ids)[1:, None])[:, 0]
    return [(fast.decode([i]), float(v)) for i, v, counts in zip(ids[1:], values, scored[1:], strict=True) if counts]


def test_scores_equal_those_of_transformers_for_the_same_tokens(pair):
    lines = score(ROWS, scorers_of(pair), **TEXTS)
    assert [line["id"] for line in lines] == [row.id for row in ROWS]
    for name in ("student", "teacher"):
        for line, row in zip(lines, ROWS, strict=True):
            expected = by_hand(pair[name], row)
            assert [row.content[start:end] for start, end, _ in line[name]] == [text for text, _ in expected]
            values = [value for _, _, value in line[name]]
            np.testing.assert_allclose(values, [value for _, value in expected], atol=2e-3)


def test_scored_tokens_tile_the_thinking_and_the_answer(pair):
    for line, row in zip(score(ROWS, scorers_of(pair), **TEXTS), ROWS, strict=True):
        closes = row.content.find(CLOSE)
        expected = set(range(len(OPEN), len(row.content))) - set(range(closes, closes + len(CLOSE)) if closes >= 0 else ())
        for name in ("student", "teacher"):
            assert [i for start, end, _ in line[name] for i in range(start, end)] == sorted(expected)


def test_neighbours_and_padding_change_nothing(pair):
    scorers = scorers_of(pair)
    scored_at_once = score(ROWS, scorers, **TEXTS)
    for line, row in zip(scored_at_once, ROWS, strict=True):
        (alone,) = score([row], scorers, **TEXTS)
        for name in ("student", "teacher"):
            np.testing.assert_allclose(np.array(alone[name]), np.array(line[name]), atol=2e-4)


def test_a_mesh_gives_the_same_scores(pair):
    plain = score(ROWS, scorers_of(pair), **TEXTS)
    meshed = score(ROWS[:3], scorers_of({**pair}, Partitioner.of({"data": 2, "fsdp": 2})), **TEXTS)
    for plain_line, meshed_line in zip(plain, meshed, strict=False):
        np.testing.assert_allclose(np.array(plain_line["student"]), np.array(meshed_line["student"]), atol=5e-4)


def test_a_long_row_is_scored_up_to_the_limit(pair):
    scorers = scorers_of(pair)
    complete, cut = (score(ROWS[2:3], scorers, **TEXTS, limit=limit)[0] for limit in (scores.LIMIT, 60))
    prompt = len(scorers["student"].chat.prompt(ROWS[2].messages[:-1]))
    assert len(cut["student"]) == 60 - prompt < len(complete["student"])
    np.testing.assert_allclose(np.array(cut["student"]), np.array(complete["student"])[: 60 - prompt], atol=2e-4)
    assert score(ROWS[2:3], scorers, **TEXTS, limit=5)[0] == {"id": "2/0", "student": [], "teacher": []}


def test_rows_of_similar_length_share_a_program(pair, monkeypatch):
    sizes = []
    real = scores._scored
    monkeypatch.setattr(scores, "_scored", lambda *args: sizes.append(args[2].shape) or real(*args))  # runs when traced
    scorers = scorers_of(pair)
    scores._program.cache_clear()
    for _ in range(2):  # the second time, all programs are cached
        score([*ROWS, row_of("so " * 300, "19", 5)], {"student": scorers["student"]}, **TEXTS)
    scores._program.cache_clear()
    assert sizes == [(1, 256), (1, 768)]


def test_the_first_rows_in_the_order_of_the_input_are_scored_and_each_is_a_line_of_json(pair):
    scorers = scorers_of(pair)
    rows = [row_of("okay", "now", number) for number in (11, 3, 2, 9, 1, 7, 5, 4, 0, 12)]
    writers = [SimpleNamespace(name=name, chat=scorer.chat) for name, scorer in scorers.items()]
    config = SimpleNamespace(synthesis=SimpleNamespace(isolation=None))
    models = SimpleNamespace(writers=writers, config=config, **TEXTS)
    decoders = [scorer.model for scorer in scorers.values()]
    lines = score_lines(models, decoders, first_rows(iter(rows), 8)).splitlines()
    scored = [json.loads(line) for line in lines]
    assert [line["id"] for line in scored] == [f"{number}/0" for number in (0, 1, 2, 3, 4, 5, 7, 9)]
    assert all(sorted(line) == ["id", "student", "teacher"] for line in scored)
    assert score_lines(models, decoders, first_rows([], 8)) == ""


def test_the_last_of_several_tokens_of_a_character_owns_it():
    chat = SimpleNamespace(prompt=lambda messages: [7], close_ids=[8], text_tokens=lambda text: ([1, 2, 3], [0, 1, 1]))
    row = row_of("a數", "", closes=False)
    reading = scores._reading(chat, row, OPEN, CLOSE, 100)
    assert reading.tokens == [7, 1, 2, 3]
    assert reading.places == [(1, 8, 9), (2, 9, 9), (3, 9, 10)]
