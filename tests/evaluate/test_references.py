"""A right answer is the value that its row means, its own verifier accepts it, and any other row is refused by name."""

import contextlib
import json
import time

import pytest

from tessy_jax.config.evaluation import Task
from tessy_jax.config.programs import Programs
from tessy_jax.errors import DataError
from tessy_jax.evaluate.job import TASK_KINDS
from tessy_jax.evaluate.tasks import Problem

ANIMALS = {"choices": ["red fox", "blue whale", "1/2", "an ant"]}


def truth(answer, verifier="exact", **columns):
    return TASK_KINDS[verifier].ground_truth({"answer": answer, **columns}, "answer", "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24", "24"),
        (24, "24"),
        ("Half of 48 is <<48/2=24>>24 clips.\nShe has 24.\n#### 24", "24"),
        ("She has 24 left. #### 24", "24"),
        ("So it is $\\boxed{24}$.", "24"),
        ("We want $x = \\fbox{24}$ here.", "24"),
        ("First\n$$\\boxed{24}$$\nor, as we saw, $\\boxed{24.0}$.", "24"),
        ("It is \\boxed{24}.\n#### 24\nThe answer is: 24", "24"),
        ("Half of 48.\nThe answer is: 24", "24"),
        ("Half of 48.\n**Answer:** 24.", "24"),
        ("A: 24", "24"),
        ("A:24", "24"),
        ("Answer: 24", "24"),
        ("#### 1,234", "1,234"),
        ("#### $18", "$18"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\begin{pmatrix}\n1 \\\\ 2\n\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("A: B", "B"),
        ("A:B", "A:B"),
        ("New York", "New York"),
    ],
)
@pytest.mark.parametrize("verifier", ["exact", "boxed"])
def test_the_right_answer_of_a_solution_is_its_value(text, value, verifier):
    assert truth(text, verifier).reference == value


@pytest.mark.parametrize(
    ("reference", "response"),
    [("#### 1,234", "1234"), ("#### $18", "The answer is \\$18."), ("A: 24", "It is \\boxed{24}"), ("\\boxed{1/2}", "0.5")],
)
def test_a_response_is_compared_with_the_value_of_a_solution(reference, response):
    with TASK_KINDS["exact"].verifier(Programs()) as verifier:
        assert verifier.verify(Problem("a/1", "a", None, [], *truth(reference)), response).right


@pytest.mark.parametrize(
    ("verifier", "text", "value"),
    [
        ("integer", "Thus.\n#### 24", "24"),
        ("integer", "A: 024", "24"),
        ("integer", "#### $18", "18"),
        ("integer", "We get \\boxed{7} ways.", "7"),
        ("choice", "Thus.\n#### B", "B"),
        ("choice", "So \\boxed{\\text{blue whale}}.", "B"),
        ("choice", "The answer is (B)", "B"),
        ("choice", "blue whale", "B"),
    ],
)
def test_every_verifier_of_values_reads_solutions(verifier, text, value):
    assert truth(text, verifier, **(ANIMALS if verifier == "choice" else {})).reference == value


@pytest.mark.parametrize("verifier", ["exact", "boxed", "integer", "choice"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("It is \\boxed{2} or \\boxed{3}.", "holds two final answers, '2' and '3'"),
        ("#### 24\nor\n#### 25", "holds two final answers, '24' and '25'"),
        ("It is \\boxed{2}.\n#### 3", "holds two final answers, '2' and '3'"),
        ("The answer is 2.\nThe answer is 3.", "holds two final answers"),
        ("It is \\boxed 2", "a .boxed without a pair of braces"),
        ("It is \\boxed{2", "a .boxed without a pair of braces"),
        ("Half of 48.\n####", "no final answer where it marks one"),
        ("It is \\boxed{}", "no final answer where it marks one"),
        ("Half of 48 is 24.\nShe has 24 left.", "a text of 2 lines that marks no final answer"),
    ],
)
def test_a_right_answer_that_is_ambiguous_is_refused_with_the_remedy(verifier, text, message):
    with pytest.raises(DataError, match=message):
        truth(text, verifier, **(ANIMALS if verifier == "choice" else {}))


@pytest.mark.parametrize(
    ("verifier", "text", "choices", "read"),
    [
        ("exact", "}", (), "in the response"),
        ("exact", "a } b", (), "reads 'a'"),
        ("exact", "a\\", (), "exact reads"),
        ("boxed", "\\frac{1}{2", (), "reads nothing"),
        ("boxed", "1} + {2", (), "reads '1'"),
        ("choice", "A", ("B", "A"), "choice reads 'B'"),
    ],
)
def test_a_right_answer_that_its_own_verifier_rejects_is_refused_with_what_is_read(verifier, text, choices, read):
    with pytest.raises(DataError, match=f"which no response can match: .*{read}"):
        truth(text, verifier, choices=list(choices) or None)


def test_a_text_that_two_choices_share_is_refused_as_the_right_answer():
    with pytest.raises(DataError, match="text of choices A and C; give the letter of one"):
        truth("ant", "choice", choices=["ant", "bee", "Ant"])


def test_the_row_is_named_before_any_work(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i}?", "answer": "}" if i == 3 else "1"}) + "\n" for i in range(5)))
    with pytest.raises(DataError, match=r"rows\.jsonl:4: answer is '}'"):
        TASK_KINDS["exact"].problems(Task(name="a", path=str(file), verifier="exact"))


@pytest.mark.parametrize("verifier", ["exact", "boxed", "integer", "choice"])
def test_a_thousand_right_answers_are_checked_in_less_than_two_seconds_of_processor_time(verifier):
    started = time.process_time()
    for number in range(1000):
        choices = {"choices": ["red fox", "blue whale", f"1/{number + 1}", "an ant"]} if verifier == "choice" else {}
        truth("B" if choices else f"Half of {number}.\n#### {number}", verifier, **choices)
    assert time.process_time() - started < 2  # at least ten times what it takes


PIECES = [
    *(
        "0",
        "1,",
        "1 ",
        " ",
        "\\",
        "{",
        "}",
        ",",
        "is ",
        "answer is ",
        "not but ",
        "(A), ",
        "A or ",
        "*",
        "$",
        "1=",
        "\\boxed{",
    ),
    *("\\boxed{1} or ", "\\boxed ", "\\frac{", "\\frac{1}{", "\\sqrt[", "\\sqrt{", "^{", "√(", "½", "万", "答案是", "#### "),
    *(
        "so, ",
        "C because ",
        "option is ",
        "between 1 and ",
        "1 is wrong ",
        "A is wrong ",
        ". No ",
        "1 1/2 ",
        "<answer>",
        "\n",
    ),
]
STARTS = [
    "\\sqrt",
    "\\frac",
    "not A",
    "between",
    "12 is",
    "step",
    "C because",
    "option",
    "(A",
    "1 =",
    "A and",
    "12 (",
    "答え",
]


@pytest.mark.slow
@pytest.mark.parametrize("verifier", ["exact", "boxed", "integer", "choice"])
def test_a_text_of_a_hundred_thousand_characters_is_read_in_seconds_whatever_it_repeats(verifier):
    choices = tuple(ANIMALS["choices"]) if verifier == "choice" else ()
    problem = Problem("a/1", "a", None, [], "C" if choices else "12", choices)
    with TASK_KINDS[verifier].verifier(Programs()) as opened:
        repeated = [piece * (100_000 // len(piece)) for piece in PIECES]
        repeated += [start + piece * 100_000 + "x" for start in STARTS for piece in (" ", "1", "*")]
        for text in (form.format(body) for body in repeated for form in ("{}", "The answer is {}1", "\\boxed{{{}}}")):
            started = time.process_time()
            opened.verify(problem, text)
            with contextlib.suppress(DataError):
                truth(text, verifier)
            assert time.process_time() - started < 10, text[:40]  # quadratic time would be minutes
