"""The targets of a row are the tokens that the student would write after the prompt that synthesis gives it."""

import datetime

import pytest

from tessy_jax.errors import DataError
from tessy_jax.records import CLOSE, OPEN, Row, Span
from tessy_jax.text.chat import Chat
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.train.examples import example
from tessy_jax.train.pack import NO_TARGET, TargetKind
from tests.text.test_chat import HARMONY_TEMPLATE

PIECES = [
    ("template", OPEN),
    ("student", "Okay, wait. So we "),
    ("teacher", "compute 6 × 7 = 42 with 中文 and 👍🏽"),
    ("student", ", hmm <|im_end|> right"),
    ("template", CLOSE),
    ("student", "It is **42**."),
]


def row(pieces=PIECES, spanned=True, question="What is 6 × 7?"):
    spans, at, answers = [], 0, False
    for source, text in pieces:
        spans.append(Span(source, "answer" if answers else "think", at, at + len(text)))
        answers |= text == CLOSE
        at += len(text)
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": "".join(t for _, t in pieces)})
    return Row("7/0", "7", 0, messages, tuple(spans) if spanned else (), {})


@pytest.fixture(scope="module", params=["qwen3", "gpt-oss", "deepseek-v3"])
def chat(request, shared):
    markers = {"open": OPEN, "close": CLOSE} if request.param == "deepseek-v3" else {"open": None, "close": None}
    tokenizer = Tokenizer(shared / "tokenizers" / request.param, 1 << 20)
    if request.param == "gpt-oss":
        tokenizer.hf.chat_template = HARMONY_TEMPLATE
    variables = {"reasoning_effort": "low"} if request.param == "gpt-oss" else {}
    return Chat(tokenizer, **markers, variables=variables, system=None, date=datetime.date(2026, 1, 2))


def decoded(chat, tokens):
    return chat._hf.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_the_context_is_the_prompt_of_synthesis_and_the_rest_spells_the_content(chat):
    result = example(chat, row())
    prompt = chat.prompt(row().messages[:-1])
    assert result.tokens[: len(prompt)].tolist() == prompt
    thinking = "".join(text for _, text in PIECES[1:4])
    rest = decoded(chat, result.tokens[len(prompt) :].tolist())
    assert rest == thinking + decoded(chat, chat.close_ids) + "It is **42**." + decoded(chat, chat.turn_end)
    assert result.tokens[-1] in chat.end_ids


def test_the_kind_of_a_token_is_that_of_its_first_character(chat):
    result = example(chat, row())
    start = len(chat.prompt(row().messages[:-1]))
    ids, begins = chat.text_tokens("".join(text for _, text in PIECES[1:4]))
    owners = [1 + ("student", "teacher").index(source) for source, text in PIECES[1:4] for _ in text]
    kinds = result.kinds[start:]
    assert kinds[: len(ids)].tolist() == [owners[i] for i in begins]
    close = len(ids) + len(chat.close_ids)
    assert set(kinds[len(ids) : close]) == {TargetKind.TEMPLATE}
    assert set(kinds[close : -len(chat.turn_end)]) == {TargetKind.STUDENT}
    assert set(kinds[-len(chat.turn_end) :]) == {TargetKind.TEMPLATE}
    assert {TargetKind.STUDENT, TargetKind.TEACHER, TargetKind.TEMPLATE} == set(result.kinds.tolist()) - {NO_TARGET}


def test_only_tokens_that_the_assistant_writes_are_targets(chat):
    result = example(chat, row())
    context, opening = chat.turn_start(row().messages[:-1], thinks=True)
    assert context + opening == chat.prompt(row().messages[:-1])
    assert (result.kinds[: len(context)] == NO_TARGET).all()
    assert (result.kinds[len(context) :] != NO_TARGET).all()
    assert OPEN.strip() in decoded(chat, opening) or decoded(chat, opening) == "<|channel|>analysis<|message|>"


def test_control_tokens_in_the_content_are_text(chat):
    ends = [i for i in example(chat, row()).tokens.tolist() if i in chat.end_ids]
    plain = [(source, text.replace("<|im_end|>", "end")) for source, text in PIECES]
    assert ends == [i for i in example(chat, row(plain)).tokens.tolist() if i in chat.end_ids]


def test_qwen3_renders_the_same_tokens_where_its_template_changes_nothing(shared):
    tokenizer = Tokenizer(shared / "tokenizers" / "qwen3", 1 << 20)
    chat = Chat(tokenizer, open=None, close=None, variables={}, system=None, date=datetime.date(2026, 1, 2))
    pieces = [(source, text.replace("<|im_end|>", "end")) for source, text in PIECES]
    theirs = tokenizer.hf.apply_chat_template(list(row(pieces).messages), tokenize=True, return_dict=False)
    ours = example(chat, row(pieces)).tokens.tolist()
    assert ours == list(theirs)[: len(ours)]
    assert decoded(chat, list(theirs)[len(ours) :]) == "\n"


def test_a_row_without_spans_has_the_same_targets_of_unknown_kind(chat):
    spanned, plain = example(chat, row()), example(chat, row(spanned=False))
    assert (spanned.tokens == plain.tokens).all()
    assert ((spanned.kinds == NO_TARGET) == (plain.kinds == NO_TARGET)).all()
    assert set(plain.kinds.tolist()) == {NO_TARGET, TargetKind.TEMPLATE, TargetKind.UNKNOWN}


def test_an_answer_without_thinking_follows_the_template(chat):
    result = example(chat, row([("student", "It is 42.")]))
    context, opening = chat.turn_start(row().messages[:-1], thinks=False)
    assert opening == []
    assert result.tokens[: len(context)].tolist() == context
    assert decoded(chat, result.tokens[len(context) :].tolist()) == "It is 42." + decoded(chat, chat.turn_end)


def test_thinking_that_never_closes_is_an_error(chat):
    with pytest.raises(DataError, match=r"row '7/0': opens its thinking .* never closes it"):
        example(chat, row(PIECES[:3]))


@pytest.mark.parametrize("content", [f"{OPEN}Two.{CLOSE}", "<think>Two.</think>\n ", "Two.\n</think>\n"])
def test_thinking_without_an_answer_is_an_error(chat, content):
    with pytest.raises(
        DataError, match="row '7/0': has thinking but no answer after it; leave out answers that were cut off"
    ):
        example(chat, row([("student", content)], spanned=False))


@pytest.mark.parametrize("content", ["<think>Two.</think>\n42", "Two.\n</think>\n\n42", " <think> \nTwo. </think>42"])
def test_thinking_in_other_forms_is_learnt_by_the_students_own_tokens(chat, content):
    ours, theirs = (example(chat, row([("student", text)], spanned=False)) for text in (f"{OPEN}Two.{CLOSE}42", content))
    assert (ours.tokens == theirs.tokens).all()
    assert (ours.kinds == theirs.kinds).all()


def test_spans_say_that_a_tag_in_an_answer_is_text(chat):
    pieces = [("template", OPEN), ("student", "Two."), ("template", CLOSE), ("student", "So <think> it is")]
    assert decoded(chat, example(chat, row(pieces)).tokens.tolist()).count("So <think> it is") == 1
    with pytest.raises(DataError, match="row '7/0': has '<think>' at character"):
        example(chat, row(pieces, spanned=False))
