"""Questions with several choices, of which one is right: how rows hold them, and which one an answer names.

Choices are lettered A, B, …, as many as there are. An answer names, of all that stands behind the thinking, the first of
these that names a choice:

1. the contents of the last `\\boxed{…}` that closes;
2. what follows the last "answer is", "answer:" or "answer =", up to the end of its first line that is not blank;
3. the last `(C)` or `**C**`, or line that is `C` or `C)` alone;
4. the last line that is not blank, if it is a choice, or begins with `C)` or `C.`.

A piece of text names a choice by its letter, upper-case, at its beginning, or by being the choice's text. Where it is all
there is, the letter may be lower-case.

Rows hold a prompt and, where it is known, its `choices` (or `options`), a list in the prompt's order; the right answer is a
letter, the number of a choice from 0, or its text. Or they hold a `question` in place of a prompt, and either `choices`, or
a right answer and wrong ones as GPQA has them (`Correct Answer`, `Incorrect Answer 1` …, or `correct_answer` and a list
`incorrect_answers`): then the choices come in an order that depends on the row's id alone, or on the question where it has
none.
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
"""What rows are looked at for."""
ASKED = 'End with "Answer: " and the letter of the right choice.'
DRESSED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf)\s*\{|[\s*_`$(\[{\\]|(?:option|choice|letter)\b", re.IGNORECASE)
"""May stand before a letter."""
LETTER = re.compile(r"(?:[B-HJ-Z]|[AI](?! (?!because\b|since\b|as\b)[a-z]))(?![^\W_])")
"""A and I may be words."""
MARKED = re.compile(r"\((?:\\text\{)?([A-Z])\}?\)|\*\*\(?([A-Z])\)?[.:]?\*\*|^[ \t]*([A-Z])[).]?[ \t]*$", re.MULTILINE)
LISTED = re.compile(r"[*\s]*[A-Z][).]")


class Choice:
    """The choice that an answer names is the right one; see above."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`."""
        found = chosen(answer, problem.choices)
        if found is None:
            return Verdict(False, None, "no_answer")
        right = found == problem.reference
        return Verdict(right, found, "right" if right else "wrong_answer")


def chosen(answer: str, choices: tuple[str, ...]) -> str | None:
    """The letter of the choice that an answer names; None where it names none. choices: their texts; none: not known."""
    markers = list(MARKER.finditer(answer))
    behind = "" if not markers else answer[markers[-1].end() :]
    for text in (boxed(answer) or "", next((line for line in behind.splitlines() if line.strip(BEHIND)), "")):
        found = named(text, choices)
        if found is not None:
            return found
    there = _letters(choices)
    marked = [letter for match in MARKED.finditer(answer) if (letter := next(filter(None, match.groups()))) in there]
    last = final_answer(answer) or ""
    return marked[-1] if marked else named(last, choices, alone=LISTED.match(last) is None)


def named(text: str, choices: tuple[str, ...], *, alone: bool = False) -> str | None:
    """The letter of the choice that a piece of text names. alone: it holds nothing else."""
    equal = _equal(text, choices)
    if len(equal) == 1:
        return equal[0]
    at = 0
    while dress := DRESSED.match(text, at):
        at = dress.end()
    bare = not text[at + 1 :].strip(BEHIND + ")]}")
    letter = LETTER.match(text[at : at + 1].upper() if bare else text, 0 if bare else at)
    if letter is None or letter[0] not in _letters(choices) or (alone and not bare):
        return None
    return letter[0]


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The letter of the right choice, and the choices; see `tasks.Bench`.

    Raises:
        DataError: there is no right answer, or it is none of the choices.
    """
    choices = _choices(row)
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return GroundTruth(_numbered(value, choices, column), choices)
    text = text_of(row, column, needed=True)
    inside = boxed(text)
    text = text if inside is None else inside
    plain = normalised(text).strip("()").upper()
    if len(plain) == 1 and plain in _letters(choices):
        return GroundTruth(plain, choices)
    equal = _equal(text, choices)
    if equal:
        return GroundTruth(equal[0], choices)
    if plain.isascii() and plain.isdecimal() and len(plain) < 3:
        return GroundTruth(_numbered(int(plain), choices, column), choices)
    right = f"one of the {len(choices)} choices" if choices else "a letter"
    raise DataError(f"{column} is {text[:60]!r}; it should be {right}: a letter, a number from 0, or the text of a choice")


def shown(row: Any, column: str) -> Any:
    """A row with a question and choices as one with a prompt, its choices in the order of their letters; others as they are.
    column: where the right answer will be.

    Raises:
        DataError: it has a question, and no choices.
    """
    if not isinstance(row, dict) or any(row.get(form) is not None for form in FORMS):
        return row
    question = next((row[name] for name in QUESTION if row.get(name) is not None), None)
    if not isinstance(question, str):
        return row
    own = next((row[name] for name in IDS if row.get(name) is not None), None)
    choices, right = list(_choices(row)), next((row[name] for name in RIGHT if row.get(name) is not None), None)
    answer = row.get(column)
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
    told = {name: value for name, value in row.items() if name not in LISTS}
    return {**told, "id": own, "prompt": f"{question}\n\n{listed}\n\n{ASKED}", "choices": choices, column: answer}


def problems(task: Task) -> list[Problem]:
    """See `table_problems`."""
    return table_problems(task, ground_truth, columns=COLUMNS, shown=partial(shown, column=task.answer))


def _equal(text: str, choices: tuple[str, ...]) -> list[str]:
    """The letters of the choices that are this text."""
    return [letter for letter, choice in zip(LETTERS, choices, strict=False) if same(choice, text)]


def _choices(row: dict[str, Any]) -> tuple[str, ...]:
    for name in LISTS:
        if row.get(name) is not None:
            return _texts(row[name], name)
    return ()


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, dict):  # as the ARC has them: texts and labels
        value = value.get("text")
    if not isinstance(value, list) or not all(isinstance(one, str | int | float) for one in value):
        raise DataError(f"{name} is {str(value)[:60]!r}; it should be a list of texts, one for each choice")
    if not 2 <= len(value) <= len(LETTERS):
        raise DataError(f"{name} holds {len(value)} choices; it should hold 2 to {len(LETTERS)}")
    if any("\ud800" <= character <= "\udfff" for one in value for character in str(one)):
        raise DataError(f"{name} holds half of a surrogate pair, which is no text; remove it")
    return tuple(str(one) for one in value)


def _numbered(number: int, choices: tuple[str, ...], column: str) -> str:
    there = _letters(choices)
    if not 0 <= number < len(there):
        raise DataError(f"{column} is {number}; the number of a choice should be 0 to {len(there) - 1}")
    return there[number]


def _letters(choices: tuple[str, ...]) -> str:
    return LETTERS[: len(choices)] if choices else LETTERS


def _draw(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
