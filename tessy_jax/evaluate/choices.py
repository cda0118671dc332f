"""Multiple-choice questions with one right choice: the format of rows, and the choice that an answer names.

Choices have the letters A, B, …. The choice of an answer is taken from the text after the thinking. It is the one that the
first of these names:

1. the contents of the last `\\boxed{…}` that closes;
2. the first non-blank line after the last "answer is", "answer:" or "answer =";
3. the last `(C)` or `**C**`, or the last line that is only `C` or `C)`;
4. the last non-blank line, if it is a choice, or starts with `C)` or `C.`.

A piece of text names a choice if it starts with its upper-case letter or if it equals the choice's text. A text that is only
a letter may be lower-case.

A row holds a prompt and, if they are known, its `choices` (or `options`), a list in the prompt's order; the right answer is
the label that the row gives to a choice, a letter, the index of a choice from 0, or its text. Choices with labels have the
form of ARC (`{"text": […], "label": […]}`), of MedQA (`{"A": …, "B": …}`), or are objects with `label` and `text`.
Alternatively, a row holds a `question` instead of a prompt, and either `choices`, or a right answer and wrong answers as in
GPQA (`Correct Answer`, `Incorrect Answer 1` …, or `correct_answer` and a list `incorrect_answers`). In the latter case the
order of the choices depends only on the row's id, or on the question if there is no id.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from string import ascii_uppercase
from typing import Any

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import DataError
from tessy_jax.evaluate.answers import BEHIND, MARKER, boxed, final_answer, normalised, same
from tessy_jax.evaluate.tasks import GroundTruth, Problem, Verdict, table_problems, text_of
from tessy_jax.synthesis.prompts import FORMS

LETTERS = ascii_uppercase
LISTS = ("choices", "options")
QUESTION, RIGHT, WRONG = ("question", "Question"), ("correct_answer", "Correct Answer"), "incorrect_answers"
WRONG_ONES = tuple(f"{name}{number}" for name in ("incorrect_answer_", "Incorrect Answer ") for number in range(1, 10))
IDS = ("id", "Record ID")
COLUMNS = (*LISTS, *QUESTION, *RIGHT, WRONG, *WRONG_ONES, *IDS)
"""Columns that are read from rows."""
INSTRUCTION = 'End with "Answer: " and the letter of the right choice.'
LETTER_PREFIX = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mathsf)\s*\{|[\s*_`$(\[{\\]|(?:option|choice|letter)\b", re.IGNORECASE
)
"""Text that may precede a letter."""
LETTER = re.compile(r"(?:[B-HJ-Z]|[AI](?! (?!because\b|since\b|as\b)[a-z]))(?![^\W_])")
"""A letter that names a choice; A and I may be words instead."""
MARKED = re.compile(r"\((?:\\text\{)?([A-Z])\}?\)|\*\*\(?([A-Z])\)?[.:]?\*\*|^[ \t]*([A-Z])[).]?[ \t]*$", re.MULTILINE)
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
    markers = list(MARKER.finditer(answer))
    behind = "" if not markers else answer[markers[-1].end() :]
    for text in (boxed(answer) or "", next((line for line in behind.splitlines() if line.strip(BEHIND)), "")):
        named_letter = named(text, choices)
        if named_letter is not None:
            return named_letter
    letters = _letters(choices)
    marked = [letter for match in MARKED.finditer(answer) if (letter := next(filter(None, match.groups()))) in letters]
    last = final_answer(answer) or ""
    return marked[-1] if marked else named(last, choices, only=LISTED.match(last) is None)


def named(text: str, choices: tuple[str, ...], *, only: bool = False) -> str | None:
    """The letter of the choice that a piece of text names, or None.

    only: the letter must be the complete text.
    """
    equal = _equal(text, choices)
    if len(equal) == 1:
        return equal[0]
    at = 0
    while prefix := LETTER_PREFIX.match(text, at):
        at = prefix.end()
    bare = not text[at + 1 :].strip(BEHIND + ")]}")
    letter = LETTER.match(text[at : at + 1].upper() if bare else text, 0 if bare else at)
    if letter is None or letter[0] not in _letters(choices) or (only and not bare):
        return None
    return letter[0]


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The letter of the right choice, and the choices; see `tasks.GroundTruthReader`.

    Raises:
        DataError: there is no right answer, it is not one of the choices, or the prompt shows other labels than letters.
    """
    texts, labels = _choices(row)
    if labels and labels != tuple(LETTERS[: len(labels)]):
        raise DataError(
            f"has a prompt, and its choices have the labels {', '.join(labels)}, while answers name letters; give a "
            "`question` instead of the prompt, which then shows the choices with letters, or use the labels A, B, …"
        )
    return GroundTruth(_right_letter(row, column, texts, labels), texts)


def _right_letter(row: dict[str, Any], column: str, choices: tuple[str, ...], labels: tuple[str, ...]) -> str:
    """The letter of the right choice. labels: of the choices, in their order; empty if the row gives none."""
    value = row.get(column)
    text = text_of(row, column, needed=True)
    inside = boxed(text)
    text = text if inside is None else inside
    plain = normalised(text).strip("()").upper()
    labelled = [letter for letter, label in zip(LETTERS, labels, strict=False) if label == plain]
    if labelled:
        return labelled[0]
    other_labels = bool(labels) and labels != tuple(LETTERS[: len(labels)])
    if isinstance(value, int) and not other_labels:
        return _numbered(value, choices, column)
    if not other_labels and len(plain) == 1 and plain in _letters(choices):
        return plain
    equal = _equal(text, choices)
    if equal:
        return equal[0]
    if not other_labels and plain.isascii() and plain.isdecimal() and len(plain) < 3:
        return _numbered(int(plain), choices, column)
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
    """The letters of the choices that equal a text."""
    return [letter for letter, choice in zip(LETTERS, choices, strict=False) if same(choice, text)]


def _choices(row: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of the choices, and their labels in the same order, in upper case; both empty without choices."""
    name = next((name for name in LISTS if row.get(name) is not None), None)
    if name is None:
        return (), ()
    value, labels = row[name], None
    if isinstance(value, dict) and "text" in value:  # the form of ARC: texts and labels
        value, labels = value["text"], value.get("label")
    elif isinstance(
        value, dict
    ):  # the form of MedQA: texts by label; a column of a table may hold null for labels of others
        labels, value = [label for label in value if value[label] is not None], [v for v in value.values() if v is not None]
    elif isinstance(value, list) and value and all(isinstance(choice, dict) for choice in value):  # an object per choice
        labels = [choice.get("label", choice.get("key")) for choice in value]
        labels = None if all(label is None for label in labels) else labels
        value = [choice.get("text", choice.get("value")) for choice in value]
    texts = _texts(value, name)
    if labels is None:
        return texts, ()
    label_texts = [str(label).strip().upper() for label in labels] if isinstance(labels, list) else []
    if len(label_texts) != len(texts) or len(set(label_texts)) != len(texts) or "" in label_texts:
        raise DataError(f"{name} has the labels {str(labels)[:60]}; it should have one for each choice, all different")
    return texts, tuple(label_texts)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(choice, str | int | float) for choice in value):
        raise DataError(f"{name} is {str(value)[:60]!r}; it should be a list of texts, one for each choice")
    if not 2 <= len(value) <= len(LETTERS):
        raise DataError(f"{name} holds {len(value)} choices; it should hold 2 to {len(LETTERS)}")
    if any("\ud800" <= character <= "\udfff" for choice in value for character in str(choice)):
        raise DataError(f"{name} holds half of a surrogate pair, which is no text; remove it")
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
