"""Multiple-choice questions with one right choice: the format of rows, and the choice that an answer names.

Choices have the letters A, B, …. The choice of an answer is taken from the text after the thinking. It is the one that the
first of these names:

1. the contents of the last `\\boxed{…}` that closes;
2. the first non-blank line after the last "answer is", "answer:" or "answer =";
3. the first non-blank line after the last "option is", "choice:", "answer must be" or the like;
4. the last line, if it starts with "C because" or the like;
5. the last `(C)`, `**C**` or "C is correct", or the last line that is only `C` or `C)`;
6. the last non-blank line, if it is a choice, perhaps after a word such as "therefore", or starts with `C)` or `C.`.

Rejected choices ("not A", "(A) is wrong") do not count. If 1, 2 or 3 has several letters ("B and C"), the answer names no
choice.
A piece of text names a choice if it starts with its upper-case letter or if it equals the choice's text. A text that is only
a letter may be lower-case.

A row holds a prompt and, if they are known, its `choices` (or `options`), a list in the prompt's order; the right answer is
the label that the row gives to a choice, a letter, the index of a choice from 0, or its text. Choices with labels have the
form of ARC (`{"text": […], "label": […]}`), of MedQA (`{"A": …, "B": …}`), or are objects with
`label` and `text` (`id` and `content`, `key` and `value`).
Alternatively, a row holds a `question` instead of a prompt, and either `choices`, or a right answer and wrong answers as in
GPQA (`Correct Answer`, `Incorrect Answer 1` …, or `correct_answer` and a list `incorrect_answers`). In the latter case the
order of the choices depends only on the row's id, or on the question if there is no id.
"""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction
from functools import lru_cache, partial
from string import ascii_uppercase
from typing import Any

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import DataError
from tessy_jax.evaluate.extraction import MARKER, behind, boxed, final_answer, first_line
from tessy_jax.evaluate.readings import BEHIND, LAYOUT, LONG, SPACE, compared, normalised, plain
from tessy_jax.evaluate.references import accepted, value_of
from tessy_jax.evaluate.tasks import GroundTruth, Problem, Verdict, table_problems, text_of
from tessy_jax.store.messages import encodable
from tessy_jax.synthesis.prompts import FORMS

LETTERS = ascii_uppercase
LISTS = ("choices", "options")
LABELS, TEXTS = ("label", "key", "id", "letter"), ("text", "value", "content")
"""Names of the label and of the text in a choice that is an object."""
QUESTION, RIGHT, WRONG = ("question", "Question"), ("correct_answer", "Correct Answer"), "incorrect_answers"
WRONG_ONES = tuple(f"{name}{number}" for name in ("incorrect_answer_", "Incorrect Answer ") for number in range(1, 10))
IDS = ("id", "Record ID")
COLUMNS = (*LISTS, *QUESTION, *RIGHT, WRONG, *WRONG_ONES, *IDS)
"""Columns that are read from rows."""
INSTRUCTION = 'End with "Answer: " and the letter of the right choice.'
LETTER_PREFIX = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mathsf)\s*\{|[\s*_`$(\[{\\\"'<]|(?:option|choice|letter)\b", re.IGNORECASE
)
"""Text that may precede a letter."""
LETTER = re.compile(r"(?:[B-HJ-Z]|[AI](?! (?!because\b|since\b|as\b)[a-z]))(?![^\W_])")
"""A letter that names a choice; A and I may be words instead."""
MARKED = re.compile(
    r"\((?:\\text\{)?([A-Z])\}?\)|\*\*\(?([A-Z])\)?[.:]?\*\*|^[ \t]*([A-Z])[).]?[ \t]*$"
    r"|(?<![^\W_])([A-Z])\)?\*{0,2}[ \t]+(?:is|must be)[ \t]+(?:the[ \t]+)?(?:correct|right|best|answer)\b",
    re.MULTILINE,
)
OPTION = re.compile(
    r"\b(?:option|choice)\**\s*(?:is\b\s*:?|:)|\banswer\s+(?:must|should|has\s+to)\s+be\b|选(?:项|择)?\s*[:是]?(?=\s*\(?[A-Z])",
    re.IGNORECASE,
)
ITEM = r"\(?\*{0,2}[A-Z]\*{0,2}\)?"
ITEMS = rf"{ITEM}(?:(?:,?\s*(?:and|or|nor|through|to|\.\.\.|-)\s*|,\s*){ITEM}){{0,9}}"
REJECTED = re.compile(
    r"(?:\b(?i:not|(?:is|ca|could|wo|would)n't(?:\s+be)?|cannot\s+be|never|rather\s+than|instead\s+of|rul(?:e|es|ed|ing)\s+out"
    r"|(?:eliminat|exclud|reject|discard)\w*|except(?:\s+for)?|(?:all|anything|everything)\s+but|neither|nor|none\s+of)|不是)"
    rf"\s*(?:option\s+|choice\s+)?{ITEMS}(?![^\W_])(?:,?\s+but\b(?:\s+rather\b)?)?"
    rf"|(?<![^\W_]){ITEMS}\s+(?:(?:is|are|was|were)\s+(?:all\s+|both\s+|clearly\s+)?(?:wrong|incorrect|false|not|ruled\s+out"
    r"|eliminated|impossible)|(?:all\s+)?looks?\s+wrong|(?:is|are|ca|could|wo|would)n't|cannot|can\s+not)\b"
)
"""A choice that the text rejects."""
BECAUSE = re.compile(r"[*\s(]*(?:option |choice )?([A-Z])[)*.]*,?\s+(?:because|since|as)\b", re.IGNORECASE)
SEVERAL = re.compile(
    r"[\s*_)\]}$\"'>]*(?:,\s*(?:and|or|but)\b|and\b|or\b|but\b|[,;+&/]|\\text\s*\{\s*(?:and|or)\s*\})"
    r"(?:\s+(?:also|maybe|possibly|perhaps)\b)?"
    r"(?:\\text\s*\{|[\s*_($\[{\"'<])*(?:option\s+|choice\s+)?(?=[A-Z](?![^\W_]))"
)
"""Text between two letters of an answer that names both."""
BETWEEN = re.compile(r"[\s*$]*(?:,|;|\+|&|/|and|or|nor|,\s*(?:and|or))[\s*$]*(?:option\s+|choice\s+)?")
"""Text between two marked letters of an answer that names both."""
CORRECTION = re.compile(r"[?.!,;]\s*(?:no|wait|actually|correction)\b[,.:!]?\s*(?:it is|it's)?\s*", re.IGNORECASE)
"""Text before a choice that replaces the one before."""
ENCLOSED = re.compile(r"(.*?)[\s,]*(?:\(([A-Z])\)|,\s*(?:option|choice)\s+([A-Z]))[\s.*_$]*", re.DOTALL)
"""The text of a choice with its letter behind it."""
CONCLUDING = re.compile(
    r"[*\s,;.]*(?:therefore|thus|so|hence|finally|it is|it's|i (?:choose|pick|select))\b[,:]?\s*", re.IGNORECASE
)
SMALL = re.compile(r"([a-z])\)\s+\S")
ARTICLE = re.compile(r"(?:the|an?) ")
LISTED = re.compile(r"[*\s]*[A-Z][).]")


class Choice:
    """Verifies that the answer names the right choice; see the module docstring."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`."""
        letter = chosen(answer, problem.choices)
        if letter is None:
            return Verdict(False, None, "no_answer")
        right = letter == problem.reference
        return Verdict(right, letter, "right" if right else "wrong_answer")


def chosen(answer: str, choices: tuple[str, ...]) -> str | None:
    """The letter of the choice that an answer names, or None. choices: their texts; empty if they are not known."""
    answer = REJECTED.sub("", SPACE.sub(" ", LAYOUT.sub("", plain(answer))))
    letters = _letters(choices)
    stated = (first_line(behind(answer, marker) or "") for marker in (MARKER, OPTION))
    for text in filter(None, (boxed(answer), *stated)):
        correction = list(CORRECTION.finditer(text))[-1:]
        named_letters = (_named(text[correction[0].end() :], choices) if correction else "") or _named(text, choices)
        if named_letters:
            return named_letters[0] if len(named_letters) == 1 else None
    last = final_answer(answer) or ""
    reason = BECAUSE.match(last)
    if reason and reason[1] in letters:
        return reason[1]
    marked = [match for match in MARKED.finditer(answer) if _marked(match) in letters]
    if marked:
        before = answer[marked[-2].end() : marked[-1].start()] if len(marked) > 1 else ""
        several = BETWEEN.fullmatch(before) and _marked(marked[-1]) != _marked(marked[-2])
        return None if several else _marked(marked[-1])
    at = 0
    while concluding := CONCLUDING.match(last, at):
        at = concluding.end()
    named_letters = _named(last[at:], choices, only=LISTED.match(last, at) is None)
    return named_letters if len(named_letters) == 1 else None


def _marked(match: re.Match[str]) -> str:
    """The letter of a match of `MARKED`."""
    return next(filter(None, match.groups()))


def _named(text: str, choices: tuple[str, ...], *, only: bool = False) -> str:
    """The letters of the choices that a piece of text names: none, one, or two if it names several.

    only: the letter must be the complete text.
    """
    letters = _equal(text, choices)
    if len(letters) == 1:
        return letters[0]
    enclosed = ENCLOSED.fullmatch(text) if len(text) < LONG else None
    if enclosed is not None and (equal_letters := _equal(enclosed[1], choices)):
        letter_behind = enclosed[2] or enclosed[3]
        return letter_behind if letter_behind in equal_letters else letter_behind + equal_letters[0]
    at = 0
    while prefix := LETTER_PREFIX.match(text, at):
        at = prefix.end()
    bare = not text[at + 1 :].strip(BEHIND + ")]}'>")
    small = SMALL.match(text, at)
    letter = LETTER.match(text[at : at + 1].upper() if bare or small else text, 0 if bare or small else at)
    if letter is None or letter[0] not in _letters(choices) or (only and not bare):
        return ""
    others = _equal(text[at + 1 :].strip(BEHIND + ")]}(-–— "), choices)
    if others and letter[0] not in others:
        return letter[0] + others[0]
    between = SEVERAL.match(text, at + 1)
    other = LETTER.match(text, between.end()) if between else None
    return letter[0] + (other[0] if other and other[0] in _letters(choices) and other[0] != letter[0] else "")


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The letter of the right choice, and the choices; see `tasks.GroundTruthReader`.

    Raises:
        DataError: there is no right answer, it is not one of the choices, or the labels in the prompt are not letters.
    """
    texts, labels = _choices(row)
    if labels and labels != tuple(LETTERS[: len(labels)]):
        raise DataError(
            f"has a prompt, and its choices have the labels {', '.join(labels)}, but answers name letters; give a "
            "`question` instead of the prompt, so that letters label the choices, or use the labels A, B, …"
        )
    truth = GroundTruth(_right_letter(row, column, texts, labels), texts)
    return accepted(truth, Choice().verify, column, "choice")


def _right_letter(row: dict[str, Any], column: str, choices: tuple[str, ...], labels: tuple[str, ...]) -> str:
    """The letter of the right choice. labels: of the choices, in their order; empty if the row gives none."""
    value = row.get(column)
    text = text_of(row, column, needed=True)
    if not _equal(text, choices):
        text = value_of(text, column)
    bare = normalised(text).strip("()").upper()
    labelled = [letter for letter, label in zip(LETTERS, labels, strict=False) if label == bare]
    if labelled:
        return labelled[0]
    other_labels = bool(labels) and labels != tuple(LETTERS[: len(labels)])
    if isinstance(value, int) and not other_labels:
        return _numbered(value, choices, column)
    if not other_labels and len(bare) == 1 and bare in _letters(choices):
        return bare
    letters = _equal(text, choices)
    if len(letters) > 1:
        raise DataError(
            f"{column} is {text[:60]!r}, which is the text of choices {' and '.join(letters)}; give the letter of one"
        )
    if letters:
        return letters[0]
    if not other_labels and bare.isascii() and bare.isdecimal() and len(bare) < 3:
        return _numbered(int(bare), choices, column)
    right = f"one of the {len(choices)} choices" if choices else "a letter"
    forms = f"a label ({', '.join(labels)})" if other_labels else "a letter, a number from 0,"
    raise DataError(f"{column} is {text[:60]!r}; it should be {right}: {forms} or the text of a choice")


def shown(row: Any, column: str) -> Any:
    """Converts a row with a question and choices to a row with a prompt, with the choices in the order of their letters;
    returns other rows unchanged. column: the column of the result that holds the right answer.

    Raises:
        DataError: the row has a question and no choices.
    """
    if not isinstance(row, dict) or any(row.get(form) is not None for form in FORMS):
        return row
    question = next((row[name] for name in QUESTION if row.get(name) is not None), None)
    if not isinstance(question, str):
        return row
    own = next((row[name] for name in IDS if row.get(name) is not None), None)
    texts, labels = _choices(row)
    choices, right = list(texts), next((row[name] for name in RIGHT if row.get(name) is not None), None)
    answer = _right_letter(row, column, texts, labels) if labels else row.get(column)
    if not choices and right is not None:
        wrong = row.get(WRONG) or [row[name] for name in WRONG_ONES if row.get(name) is not None]
        key = question if own is None else own
        if not isinstance(wrong, list):
            raise DataError(f"{WRONG} is a {type(wrong).__name__}; it should be a list of texts")
        choices = sorted(_texts([right, *wrong], "the answers"), key=lambda choice: _draw(f"{key}\0{choice}"))
        answer = right
    if len(choices) < 2:
        raise DataError(
            "has a question and no choices; it should have a list `choices`, or `Correct Answer` and `Incorrect Answer 1` …"
        )
    listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    others = {name: value for name, value in row.items() if name not in LISTS}
    return {**others, "id": own, "prompt": f"{question}\n\n{listed}\n\n{INSTRUCTION}", "choices": choices, column: answer}


def problems(task: Task) -> list[Problem]:
    """See `table_problems`."""
    return table_problems(task, ground_truth, columns=COLUMNS, shown=partial(shown, column=task.answer))


def _equal(text: str, choices: tuple[str, ...]) -> list[str]:
    """The letters of the choices that equal a text; if there are none, of those that equal it without an article."""
    for named, own in zip(_letters_by_form(choices), _form(text), strict=True):
        if own in named:
            return named[own]
    return []


@lru_cache(maxsize=256)
def _letters_by_form(choices: tuple[str, ...]) -> tuple[dict[Fraction | str, list[str]], dict[Fraction | str, list[str]]]:
    """The letters of the choices by the forms of their texts: with their articles, and without."""
    forms: tuple[dict[Fraction | str, list[str]], dict[Fraction | str, list[str]]] = ({}, {})
    for letter, choice in zip(LETTERS, choices, strict=False):
        for named, form in zip(forms, _form(choice), strict=True):
            named.setdefault(form, []).append(letter)
    return forms


def _form(text: str) -> tuple[Fraction | str, Fraction | str]:
    """What is compared of a text, with its article and without: its value, or else its normalised text."""
    whole, value = compared(text)
    article = ARTICLE.match(whole)
    rest, value_of_rest = compared(whole[article.end() :]) if article else (whole, value)
    return whole if value is None else value, rest if value_of_rest is None else value_of_rest


def _choices(row: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of the choices, and their labels in the same order, in upper case; both empty without choices."""
    name = next((name for name in LISTS if row.get(name) is not None), None)
    if name is None:
        return (), ()
    value, labels = row[name], None
    if isinstance(value, dict):  # a column of a table may hold null for labels of other rows
        value = {key: held for key, held in value.items() if held is not None}
    if isinstance(value, dict) and all(isinstance(held, list) for held in value.values()):  # the form of ARC
        value, labels = _side_by_side(value, name)
    elif isinstance(value, dict):  # the form of MedQA: texts by label
        labels, value = list(value), list(value.values())
    elif isinstance(value, list) and value and all(isinstance(choice, dict) for choice in value):  # an object per choice
        value, labels = _objects(value, name)
    texts = _texts(value, name)
    if labels is None:
        return texts, ()
    label_texts = [str(label).strip().upper() for label in labels] if isinstance(labels, list) else []
    if len(label_texts) != len(texts) or len(set(label_texts)) != len(texts) or "" in label_texts:
        raise DataError(f"{name} has the labels {str(labels)[:60]}; it should have a different label for each choice")
    return texts, tuple(label_texts)


def _side_by_side(lists: dict[str, list[Any]], name: str) -> tuple[list[Any], list[Any] | None]:
    """The texts of choices in lists by name, and their labels, if there are any.

    Raises:
        DataError: there are other lists.
    """
    label, text = (next((key for key in known if key in lists), None) for known in (LABELS, TEXTS))
    if text is None or set(lists) - {label, text}:
        raise DataError(
            f"{name} is {str(lists)[:60]}; it should have a list of texts (`{'`, `'.join(TEXTS)}`), and may have a list of "
            f"labels (`{'`, `'.join(LABELS)}`), and nothing else"
        )
    return lists[text], None if label is None else lists[label]


def _objects(objects: list[dict[str, Any]], name: str) -> tuple[list[Any], list[Any] | None]:
    """The texts of choices that are objects, and their labels, if they have any.

    Raises:
        DataError: an object has no text, or other keys than the others.
    """
    keys = sorted({key for choice in objects for key in choice if choice[key] is not None})
    label, text = (next((key for key in known if key in keys), None) for known in (LABELS, TEXTS))
    expected = [key for key in (label, text) if key is not None]
    bad = next((choice for choice in objects if text is None or any(choice.get(key) is None for key in expected)), None)
    if text is None or bad is not None or len(keys) > len(expected):
        example = objects[0] if bad is None else bad
        raise DataError(
            f"{name} holds the choice {str(example)[:60]}; each should have a text (`{'`, `'.join(TEXTS)}`), and may have a "
            f"label (`{'`, `'.join(LABELS)}`), and nothing else, under the same names"
        )
    return [choice[text] for choice in objects], None if label is None else [choice[label] for choice in objects]


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(choice, str | int | float) for choice in value):
        raise DataError(f"{name} is {str(value)[:60]!r}; it should be a list of texts, one for each choice")
    if not 2 <= len(value) <= len(LETTERS):
        raise DataError(f"{name} holds {len(value)} choices; it should hold 2 to {len(LETTERS)}")
    encodable("".join(map(str, value)), name)
    return tuple(str(choice) for choice in value)


def _numbered(number: int, choices: tuple[str, ...], column: str) -> str:
    letters = _letters(choices)
    if not 0 <= number < len(letters):
        raise DataError(f"{column} is {number}; the number of a choice should be 0 to {len(letters) - 1}")
    return letters[number]


def _letters(choices: tuple[str, ...]) -> str:
    return LETTERS[: len(choices)] if choices else LETTERS


def _draw(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
