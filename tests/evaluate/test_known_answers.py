"""Every verifier says of answers of real models what a person would: at least 100 per verifier, of which 40 are hard.

`answers/<verifier>.txt` holds one answer per line: `+` (right) or `-` (wrong), `!` if it is hard, the right answer, `|`, and
the answer, with ⏎ for line breaks.
"""

from pathlib import Path

import pytest

from tessy_jax.config.programs import Programs
from tessy_jax.evaluate.job import TASK_KINDS
from tessy_jax.evaluate.tasks import Problem

TABLES = Path(__file__).parent / "answers"
CHOICES = ("red fox", "blue whale", "1/2", "an ant")


@pytest.mark.parametrize("verifier", ["exact", "boxed", "choice", "integer"])
def test_verifiers_agree_with_people_on_known_answers(verifier):
    lines = (TABLES / f"{verifier}.txt").read_text("utf-8").splitlines()
    assert len(set(lines)) == len(lines) >= 100
    assert sum(line[1] == "!" for line in lines) >= 40
    wrong = []
    with TASK_KINDS[verifier].verifier(Programs()) as opened:
        for line in lines:
            reference, _, answer = line[2:].strip().partition(" | ")
            choices = CHOICES if verifier == "choice" else ()
            row = {"answer": reference, **({"choices": list(choices)} if choices else {})}
            truth = TASK_KINDS[verifier].ground_truth(row, "answer", "t/1")
            problem = Problem("t/1", "t", None, [{"role": "user", "content": "?"}], *truth)
            verdict = opened.verify(problem, answer.replace("⏎", "\n"))
            if verdict.right != (line[0] == "+"):
                wrong.append(f"{line}: {verdict.why}, read as {verdict.answer!r}")
    assert not wrong, "\n".join(wrong)
