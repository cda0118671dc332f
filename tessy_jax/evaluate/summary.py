"""The measures of an evaluation: per task, per family of a task, and over all tasks in and out of the domain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, get_args

from tessy_jax.config.evaluation import Domain, Task
from tessy_jax.evaluate.pass_at_k import Count, mean_pass_at, pass_at_1
from tessy_jax.evaluate.tasks import Problem, Verdict

DIGITS = 6


@dataclass(frozen=True)
class VerifiedResponse:
    """A response to a problem with its verdict. failed: the response is a failure and counts as wrong; `verdict.why` is the
    reason. tokens: of the complete response; None if it failed."""

    problem: Problem
    rollout: int
    verdict: Verdict
    failed: bool
    tokens: int | None

    def to_json(self) -> dict[str, Any]:
        """The response's line in verdicts.jsonl."""
        graders = {"graders": dict(self.verdict.graders), "test": self.verdict.test} if self.verdict.graders else {}
        return {
            "id": f"{self.problem.id}/{self.rollout}",
            "prompt_id": self.problem.id,
            "rollout": self.rollout,
            "task": self.problem.task,
            "family": self.problem.family,
            "right": self.verdict.right,
            "answer": self.verdict.answer,
            "reference": self.problem.reference,
            "reason": self.verdict.why,
            **graders,
        }


def measures(verified: Sequence[VerifiedResponse], confidence: float) -> dict[str, Any]:
    """The measures of one or more responses.

    pass@1, interval: see `pass_at_k`. pass@k: k is each power of two up to the smallest number of samples of a problem, and
    this number. mean_tokens: mean over the responses that did not fail; null if all failed. failures: counts of failed
    responses by reason. wrong: counts of the other wrong responses by reason. Both count as wrong in every measure. graders:
    right, pass@1 and interval by grader, if there are several.
    """
    counts = _counts(verified)
    graders = {name: None for response in verified for name in response.verdict.graders}
    min_samples = min(count.samples for count in counts)
    mean, low, high = pass_at_1(counts, confidence)
    tokens = [response.tokens for response in verified if response.tokens is not None]
    ks = sorted({1 << i for i in range(min_samples.bit_length())} | {min_samples})
    return {
        "problems": len(counts),
        "samples": len(verified),
        "right": sum(response.verdict.right for response in verified),
        "pass@1": round(mean, DIGITS),
        "interval": [round(low, DIGITS), round(high, DIGITS)],
        "pass@k": {str(k): round(mean_pass_at(k, counts), DIGITS) for k in ks},
        "mean_tokens": round(fmean(tokens), 2) if tokens else None,
        "failures": _reasons(response for response in verified if response.failed),
        "wrong": _reasons(response for response in verified if not response.failed and not response.verdict.right),
        **({"graders": {name: _by_grader(verified, name, confidence) for name in graders}} if graders else {}),
    }


def summarize(
    tasks: Sequence[Task], verified: Sequence[VerifiedResponse], confidence: float, notes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Measures of every task, of its families, and of all tasks in and out of the domain; over several tasks, all problems
    have the same weight. notes: descriptions of verifiers, by task."""
    by_task: dict[str, Any] = {}
    for task in tasks:
        own = [response for response in verified if response.problem.task == task.name]
        families = sorted({response.problem.family for response in own if response.problem.family is not None})
        by_task[task.name] = {
            "domain": task.domain,
            "verifier": task.verifier,
            **({"verifier_note": notes[task.name]} if notes and task.name in notes else {}),
            **measures(own, confidence),
            "families": {
                name: measures([response for response in own if response.problem.family == name], confidence)
                for name in families
            },
        }
    domains = {}
    for domain in get_args(Domain):
        names = {task.name for task in tasks if task.domain == domain}
        if names:
            domains[domain] = measures([response for response in verified if response.problem.task in names], confidence)
    return {"confidence": confidence, "tasks": by_task, "domains": domains}


def _by_grader(verified: Sequence[VerifiedResponse], grader: str, confidence: float) -> dict[str, Any]:
    """The measures by one grader. A response without a verdict of this grader counts with its own verdict."""
    counts = _counts(verified, grader)
    mean, low, high = pass_at_1(counts, confidence)
    interval = [round(low, DIGITS), round(high, DIGITS)]
    return {"right": sum(count.right for count in counts), "pass@1": round(mean, DIGITS), "interval": interval}


def _counts(verified: Iterable[VerifiedResponse], grader: str | None = None) -> list[Count]:
    """The samples and right samples of each problem."""
    samples: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for response in verified:
        samples[response.problem.id] += 1
        verdict = response.verdict
        right[response.problem.id] += verdict.right if grader is None else verdict.graders.get(grader, verdict.right)
    return [Count(samples[problem], right[problem]) for problem in samples]


def _reasons(verified: Iterable[VerifiedResponse]) -> dict[str, int]:
    return dict(sorted(Counter(response.verdict.why for response in verified).items()))
