"""Right answers are right in every style, wrong answers in none, and spans are recovered from the text alone."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tessy_jax.mini.rows import row
from tessy_jax.mini.styles import STYLES, render
from tessy_jax.mini.tasks import ANSWER, FAMILIES, LETTERS, STEP, item, stream
from tessy_jax.mini.verify import (
    STYLE_WORDS,
    answer_of,
    answer_spans_of,
    is_right,
    spans_of,
    steps_right,
    style_spans,
)
from tests.mini.test_styles import SPEAKERS, any_item, speakers

SUM = item("A", "test", 0, 0)
words = sorted({word for style in STYLES.values() for phrase in style.phrases for word in phrase.split()})
words += ["we get", "now ;", "1 + 2 = 3 ;", "</think>", "<think>", "\n", "a", "12", "-2", "<script>", "\ud800", ";;"]
odd = st.one_of(st.text(st.characters()), st.lists(st.sampled_from(words)).map(" ".join))


@given(any_item, speakers, st.booleans(), st.integers(0, 2**40))
def test_every_rendered_response_is_right_in_all_its_steps(task, speaker, mixed, seed):
    response = render(task, speaker, stream(seed), mixed=mixed)
    assert is_right(task, f"<think>\n{response.thinking}\n</think>\n\n{response.answer}")
    assert is_right(task, response.answer)
    assert steps_right(task, response.thinking) == 1


@given(any_item, any_item, speakers, st.booleans(), st.integers(0, 2**40))
def test_the_answer_of_another_item_is_wrong(task, other, speaker, mixed, seed):
    assume(task.answer != other.answer)
    assert not is_right(task, render(other, speaker, stream(seed), mixed=mixed).answer)


@given(any_item, speakers, st.integers(0, 2**40), st.data())
def test_an_altered_answer_is_wrong(task, speaker, seed, data):
    response = render(task, speaker, stream(seed))
    given_words = task.answer.split()
    place = data.draw(st.integers(0, len(given_words) - 1))
    replaced = data.draw(st.sampled_from([*LETTERS, *map(str, range(25))]))
    assume(replaced != given_words[place])
    altered = {
        "replaced": [*given_words[:place], replaced, *given_words[place + 1 :]],
        "longer": [*given_words[:place], replaced, *given_words[place:]],
        "shorter": given_words[:place] + given_words[place + 1 :],
        "negative": [f"-{given_words[0]}", *given_words[1:]],
        "joined": [*given_words[:-1], given_words[-1] + "x"],
    }
    for way, answer in altered.items():
        text = response.answer.replace(f" {task.answer}", f" {' '.join(answer)}")
        assert not is_right(task, f"<think>\n{response.thinking}\n</think>\n\n{text}"), way


@pytest.mark.parametrize("answer", ["{}", " {} .\n", "result : {}", "so the result is {}.", "{}, okay ."])
def test_the_format_of_an_answer_does_not_matter(answer):
    assert is_right(SUM, answer.format(SUM.answer))


@pytest.mark.parametrize(
    "answer", ["", ".", "the answer is .", "-{}", "{0} {0}", "{}th", "{} maybe", "{0}<script>", "{}\ud800"]
)
def test_an_answer_with_additions_is_wrong(answer):
    assert not is_right(SUM, answer.format(SUM.answer))


def test_a_thinking_that_never_closes_has_no_answer():
    assert answer_of("<think>\nokay 2") is None
    assert not is_right(SUM, f"<think>\n{SUM.answer}")
    assert answer_of("<think>\nhmm\n</think>\n\n2 .") == "\n\n2 ."
    assert answer_of("hmm</think>3") == "3"  # a template may open the thinking
    assert not is_right(SUM, f"<think></think>{SUM.answer}</think>{SUM.answer}")


def test_no_word_that_can_be_an_answer_counts_as_style():
    assert not any(ANSWER.fullmatch(word) for word in STYLE_WORDS)


@given(any_item, st.data(), speakers, st.integers(0, 2**40))
def test_omitted_and_altered_steps_do_not_count_and_the_others_do(task, data, speaker, seed):
    kept = data.draw(st.lists(st.booleans(), min_size=len(task.steps), max_size=len(task.steps)))
    altered = [step if keep else step.replace(" ;", " 99 ;") for step, keep in zip(task.steps, kept, strict=True)]
    for steps in (altered, [step for step, keep in zip(task.steps, kept, strict=True) if keep]):
        thinking = " ".join(f"{stream(seed).choice(STYLES[speaker].connectives)} {step}" for step in steps)
        assert steps_right(task, thinking) == pytest.approx(sum(kept) / len(kept))


def test_steps_count_only_in_order_and_once():
    task = item("B", "test", 0, 1)
    backwards = " ".join(task.steps[::-1])
    assert steps_right(task, backwards) == 1 / len(task.steps)
    assert steps_right(task, task.steps[0] * 5) == 1 / len(task.steps)
    assert steps_right(task, f"{task.steps[-1]} {' '.join(task.steps)}") == 1
    assert steps_right(task, "") == 0


@given(odd, st.sampled_from(FAMILIES))
def test_no_function_raises_for_any_text(text, family):
    task = item(family, "test", 0, 2)
    assert is_right(task, text) in (True, False)
    assert 0 <= steps_right(task, text) <= 1
    for spans in (spans_of(text), answer_spans_of(text)):
        assert spans is None or "".join(text[span.start : span.end] for span in spans) == text


@given(any_item, speakers, st.booleans(), st.integers(0, 2**40))
def test_spans_are_recovered_from_the_text_alone(task, speaker, mixed, seed):
    response = render(task, speaker, stream(seed), mixed=mixed)
    assert spans_of(response.thinking) == response.thinking_spans
    assert answer_spans_of(response.answer) == response.answer_spans
    if not mixed:
        assert spans_of(response.thinking, speaker) == response.thinking_spans
        assert answer_spans_of(response.answer, speaker) == response.answer_spans
        (other,) = set(SPEAKERS) - {speaker}
        assert spans_of(response.thinking, other) is None
        assert answer_spans_of(response.answer, other) is None


@given(any_item, speakers, st.integers(0, 2**40), st.data())
def test_texts_with_wrong_steps_have_spans_too(task, speaker, seed, data):
    response = render(task, speaker, stream(seed))
    spans = [span for span in response.thinking_spans if span.kind == "capability"]
    span = data.draw(st.sampled_from(spans))
    wrong = data.draw(st.sampled_from(["7 + 3 = 99 now ;", "we get 1 * 1 = 0 ;", "at 0 we put a ;", "p no so 9 ;"]))
    text = f"{response.thinking[: span.start]} {wrong}{response.thinking[span.end :]}"
    parsed = spans_of(text, speaker)
    assert parsed is not None
    assert [p.kind for p in parsed] == [s.kind for s in response.thinking_spans]
    assert any(text[p.start : p.end] == f" {wrong}" and p.kind == "capability" for p in parsed)


@given(any_item, speakers, st.integers(0, 2**40), st.data())
def test_a_text_outside_the_grammar_has_no_spans(task, speaker, seed, data):
    thinking = render(task, speaker, stream(seed)).thinking.split(" ")
    place = data.draw(st.integers(0, len(thinking) - 1))
    kind = data.draw(st.sampled_from(["cut", "unknown", "space"]))
    if kind == "cut":
        assume(place > 0)
        text = " ".join(thinking[:place])
    elif kind == "unknown":
        text = " ".join([*thinking[:place], "zebra", *thinking[place:]])
    else:
        text = " ".join([*thinking[:place], "", *thinking[place:]])
    assert spans_of(text) is None
    assert spans_of(text + " ") is None


@given(any_item, speakers, st.integers(0, 2**40), st.data())
def test_style_in_a_window_is_that_of_the_complete_text(task, speaker, seed, data):
    response = render(task, speaker, stream(seed))
    start = data.draw(st.integers(0, len(response.thinking)))
    end = data.draw(st.integers(start, len(response.thinking)))
    everywhere = {i for first, last in style_spans(response.thinking_spans) for i in range(first, last)}
    window = style_spans(response.thinking_spans, start, end)
    assert {start + i for first, last in window for i in range(first, last)} == everywhere & set(range(start, end))
    assert style_spans(response.thinking_spans, start, None) == style_spans(
        response.thinking_spans, start, len(response.thinking)
    )


@given(any_item, speakers)
def test_a_row_is_right_and_its_exact_spans_are_those_of_the_parser(task, speaker):
    made = row(task, speaker, mixed=0.5, writers="kinds")
    assert is_right(task, made.content)
    thinking = made.content[len("<think>\n") : made.content.index("\n</think>\n\n")]
    shifted = [(s.start - 8, s.end - 8) for s in made.spans if s.phase == "think" and s.source == "student"]
    assert style_spans(spans_of(thinking)) == shifted
    assert STEP.search(thinking)
