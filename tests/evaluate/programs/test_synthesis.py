"""Programs that a synthesis writes are verified by the tests in the rows of its prompts."""

import json

import pytest

from tessy_jax.config import Data, Programs, Verification
from tessy_jax.errors import DataError
from tessy_jax.evaluate.programs.verifier import task_kind
from tessy_jax.evaluate.verification import response_verifiers
from tessy_jax.records import Row, Span
from tessy_jax.synthesis.job import prompts_of
from tessy_jax.synthesis.verification import open_verification

VERIFICATION = Verification(verifier="programs", wrong="keep", programs=Programs(seconds=2.0))
TASK_KINDS = {"programs": task_kind(unsafe=True)}


def response(prompt, program):
    content = f"<think>\nlet me see\n</think>\n\n```python\n{program}\n```"
    messages = (*prompt.messages, {"role": "assistant", "content": content})
    end = content.index("```")
    spans = (Span("student", "think", 0, end), Span("student", "answer", end, len(content)))
    return Row(f"{prompt.id}/0", prompt.id, 0, messages, spans, {"finish_reason": "stop"})


def test_a_program_is_kept_with_the_verdict_of_the_tests_of_its_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    tests = [{"input": "2", "output": "4"}, {"input": "5", "output": "10"}]
    file.write_text(json.dumps({"id": "double", "prompt": "Double it.", "tests": tests}) + "\n")
    with open_verification(VERIFICATION, response_verifiers(TASK_KINDS)) as verifier:
        (prompt,) = prompts_of(Data(path=str(file)), verifier).prompts
        programs = ("print(2 * int(input()))", "print(4)")
        right, wrong = verifier.verify([(prompt, response(prompt, program)) for program in programs])
    assert (right.verdict, right.row.meta["verified"]) == ("right", True)
    assert (wrong.verdict, wrong.row.meta["verified"]) == ("wrong_answer", False)


def test_an_expected_output_beyond_the_limit_of_the_output_stops_the_job_and_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "p", "tests": [{"input": "", "output": "1" * ((1 << 20) + 1)}]}) + "\n")
    limited = VERIFICATION.model_copy(update={"programs": Programs(output=1)})
    with (
        open_verification(limited, response_verifiers(TASK_KINDS)) as verifier,
        pytest.raises(DataError, match=r"rows.jsonl:1: test 0 expects an output of 1,048,577 bytes.*set programs.output"),
    ):
        prompts_of(Data(path=str(file)), verifier)


def test_a_row_without_tests_stops_the_job_and_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": "double", "prompt": "Double it."}) + "\n")
    with (
        open_verification(VERIFICATION, response_verifiers(TASK_KINDS)) as verifier,
        pytest.raises(DataError, match=r"rows.jsonl:1: has no tests"),
    ):
        prompts_of(Data(path=str(file)), verifier)
