"""The two tokenizers share only the bytes, run on the device, and encode responses in few tokens."""

import datetime
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessy_jax.mini.rows import row
from tessy_jax.mini.styles import STYLES, render
from tessy_jax.mini.tasks import FAMILIES, item, items, split_of, stream
from tessy_jax.mini.tokenizers import FORMS, build, save
from tessy_jax.records import CLOSE, OPEN
from tessy_jax.text.bridge import DeviceBridge
from tessy_jax.text.bridges import make_bridge
from tessy_jax.text.chat import HARMONY_CLOSE, HARMONY_OPEN, Chat
from tessy_jax.text.split import GPT2, O200K
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.text.vocab import read_description, read_vocabulary, same_vocabulary
from tessy_jax.train.examples import example
from tests.mini.test_styles import SPEAKERS
from tests.text.feed import encode

B, P = 64, 768
QUESTION = [{"role": "user", "content": "A 7 + 3 * 8"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    for speaker in SPEAKERS:
        save(speaker, folder / speaker)
    return {speaker: folder / speaker for speaker in SPEAKERS}


@pytest.fixture(scope="module")
def chats(folders):
    day = datetime.date(2026, 1, 2)
    tokenizers = {speaker: Tokenizer(folders[speaker], FORMS[speaker].vocab) for speaker in SPEAKERS}
    return {s: Chat(t, open=None, close=None, variables={}, system=None, date=day) for s, t in tokenizers.items()}


def content_and_vocabulary(folder, speaker):
    content = read_description(None, folder)
    return content, read_vocabulary(content, FORMS[speaker].vocab)


def texts(count):
    """Prompts, thinking and answers of both styles and all families, from the test split."""
    for family in FAMILIES:
        for task in islice(items(family, "test", 1), count):
            for speaker in SPEAKERS:
                response = render(task, speaker, stream(task.id), mixed=True)
                yield from (task.prompt, response.thinking, response.answer, f"{OPEN}{response.thinking}{CLOSE}")


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_a_tokenizer_is_the_same_every_time(folders, speaker, tmp_path):
    code = (
        f"from pathlib import Path\nfrom tessy_jax.mini.tokenizers import save\nsave({speaker!r}, Path({str(tmp_path)!r}))"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": "4", "PATH": "", "RAYON_NUM_THREADS": "1"}
    )
    for file in folders[speaker].iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_all_bytes_are_tokens_and_the_size_is_that_of_the_models(speaker):
    built = build(speaker)
    assert built.get_vocab_size() == FORMS[speaker].vocab
    vocabulary = read_vocabulary(json.loads(built.to_str()), FORMS[speaker].vocab)
    spelled = {vocabulary.bytes_of([i]) for i in range(vocabulary.size)}
    assert {bytes([i]) for i in range(256)} <= spelled
    assert vocabulary.control.sum() == len(FORMS[speaker].control)


def test_the_vocabularies_differ_in_size_split_rule_and_merges(folders):
    student, teacher = (content_and_vocabulary(folders[speaker], speaker) for speaker in SPEAKERS)
    assert not same_vocabulary(student[1], teacher[1])
    assert student[1].size != teacher[1].size
    assert student[0]["model"]["merges"] != teacher[0]["model"]["merges"]
    bridges = [make_bridge(content, vocabulary, Path("mini")) for content, vocabulary in (student, teacher)]
    assert all(isinstance(bridge, DeviceBridge) for bridge in bridges)
    assert [bridge.rule for bridge in bridges] == [GPT2, O200K]


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_the_device_agrees_with_the_library_on_text_of_the_grammar(folders, speaker):
    content, vocabulary = content_and_vocabulary(folders[speaker], speaker)
    bridge = make_bridge(content, vocabulary, folders[speaker])
    plain = type(build(speaker)).from_str(json.dumps({**content, "added_tokens": []}))
    samples = list(texts(20))
    for first in range(0, len(samples), B):
        data, counts = np.zeros((B, P), np.uint8), np.zeros(B, np.int32)
        for i, text in enumerate(samples[first : first + B]):
            data[i, : len(text)], counts[i] = np.frombuffer(text.encode(), np.uint8), len(text)
        encoding = jax.device_get(encode(bridge, data, counts, wide=128))
        for i, text in enumerate(samples[first : first + B]):
            ids = encoding.ids_BP[i, : encoding.tokens_B[i]].tolist()
            assert ids == plain.encode(text).ids
            assert vocabulary.bytes_of(ids).decode() == text


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_text_survives_encoding_and_decoding(folders, speaker):
    tokenizer = Tokenizer(folders[speaker], FORMS[speaker].vocab)

    @settings(max_examples=100)
    @given(st.one_of(st.text(), st.sampled_from(list(texts(5)))))
    def survives(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    survives()


def test_thinking_is_marked_by_tokens_of_the_student_and_by_channels_of_the_teacher(chats):
    student, teacher = chats["student"], chats["teacher"]
    assert student.rendered(QUESTION) == "<|user|>A 7 + 3 * 8<|end|><|assistant|><think>\n"
    assert teacher.rendered(QUESTION) == f"<|start|>user<|message|>A 7 + 3 * 8<|end|><|start|>assistant{HARMONY_OPEN}"
    for chat, closer, closing, end in (
        (student, CLOSE, ["</think>"], "<|end|>"),
        (teacher, HARMONY_CLOSE, ["<|end|>", "<|channel|>"], "<|return|>"),
    ):
        hf = chat._hf
        assert (chat.open_text, chat.close_text) == (OPEN, CLOSE)
        assert hf.decode(chat.close_ids) == closer
        assert chat.closing_ids == set(hf.convert_tokens_to_ids(closing))
        assert chat.end_ids == {hf.convert_tokens_to_ids(end)}
        assert chat.turn_end == [hf.convert_tokens_to_ids(end)]
        assert hf.decode(chat.prompt(QUESTION)) == chat.rendered(QUESTION)


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_earlier_answers_of_a_conversation_end_their_turns(chats, speaker):
    messages = [*QUESTION, {"role": "assistant", "content": "the answer is 4 ."}, *QUESTION]
    text = chats[speaker].rendered(messages)
    assert "the answer is 4 .<|end|>" in text
    assert "<|return|>" not in text


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_rows_become_examples_that_spell_the_response(chats, speaker):
    chat, made = chats[speaker], row(item("A", "train", 0, 5), speaker)
    tokenized = example(chat, made)
    prompt = chat.prompt(made.messages[:-1])
    assert tokenized.tokens[: len(prompt)].tolist() == prompt
    thinking, _, answer = made.content.removeprefix(OPEN).partition(CLOSE)
    rest = chat._hf.decode(tokenized.tokens[len(prompt) :])
    assert rest == thinking + chat._hf.decode(chat.close_ids) + answer + FORMS[speaker].end


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_words_of_a_speakers_style_are_single_tokens(speaker):
    built, rare = build(speaker), []
    for phrase in STYLES[speaker].phrases:
        rare += [word for word in phrase.split() if len(built.encode(f" {word}").ids) > 1 + word.isdigit()]
    assert len(rare) <= 3, rare


@pytest.mark.parametrize("writer", SPEAKERS)
@pytest.mark.parametrize("reader", SPEAKERS)
def test_responses_are_short(chats, reader, writer):
    lengths = []
    for family in FAMILIES:
        for task in islice(items(family, "validation", 0), 100):
            lengths.append(len(example(chats[reader], row(task, writer)).tokens))
    assert np.mean(lengths) < 100
    assert max(lengths) < 160


def test_merges_are_learnt_only_from_the_train_split(monkeypatch):
    seen = []
    from tessy_jax.mini import tokenizers

    monkeypatch.setattr(tokenizers, "render", lambda item, *a, **k: seen.append(item) or render(item, *a, **k))
    for speaker in SPEAKERS:
        build(speaker)
    assert len(seen) == 2 * 4 * tokenizers.ITEMS
    assert {split_of(task.prompt) for task in seen} == {"train"}
    assert not any(task.family == "Ah" for task in seen)
