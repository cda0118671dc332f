"""What an evaluation found, counted: per task, per family of a task, and for all tasks in and out of the domain."""

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
    """A response to a problem. failed: it came to nothing (then `verdict.why` says how), and is wrong. tokens: of the whole
    response; None where it failed."""

    problem: Problem
    rollout: int
    verdict: Verdict
    failed: bool
    tokens: int | None

    def to_json(self) -> dict[str, Any]:
        """The line of verdicts.jsonl."""
        several = {"graders": dict(self.verdict.graders), "test": self.verdict.test} if self.verdict.graders else {}
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
            **several,
        }


def measures(judged: Sequence[VerifiedResponse], confidence: float) -> dict[str, Any]:
    """What some responses are worth; at least one.

    pass@1 and its interval: see `pass_at_k`. pass@k: for the powers of two up to the samples of every problem, and for
    these. mean_tokens: of the responses that did not fail; null where all did. failures: of responses that came to nothing,
    and wrong: of the others that are not right, how many for which reason. Both count as wrong in every figure. graders:
    where there are several, right, pass@1 and its interval by each.
    """
    counts = _counts(judged)
    graders = {name: None for one in judged for name in one.verdict.graders}
    least = min(count.samples for count in counts)
    mean, low, high = pass_at_1(counts, confidence)
    tokens = [one.tokens for one in judged if one.tokens is not None]
    ks = sorted({1 << i for i in range(least.bit_length())} | {least})
    return {
        "problems": len(counts),
        "samples": len(judged),
        "right": sum(one.verdict.right for one in judged),
        "pass@1": round(mean, DIGITS),
        "interval": [round(low, DIGITS), round(high, DIGITS)],
        "pass@k": {str(k): round(mean_pass_at(k, counts), DIGITS) for k in ks},
        "mean_tokens": round(fmean(tokens), 2) if tokens else None,
        "failures": _reasons(one for one in judged if one.failed),
        "wrong": _reasons(one for one in judged if not one.failed and not one.verdict.right),
        **({"graders": {name: _by_grader(judged, name, confidence) for name in graders}} if graders else {}),
    }


def summarize(
    tasks: Sequence[Task], judged: Sequence[VerifiedResponse], confidence: float, notes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Measures of every task, of its families where it has any, and of the tasks in and out of the domain: there, every
    problem counts alike, whichever task it is of. notes: by task, how its verifier judged, where it says."""
    found: dict[str, Any] = {}
    for task in tasks:
        own = [one for one in judged if one.problem.task == task.name]
        families = sorted({one.problem.family for one in own if one.problem.family is not None})
        found[task.name] = {
            "domain": task.domain,
            "verifier": task.verifier,
            **({"judged": notes[task.name]} if notes and task.name in notes else {}),
            **measures(own, confidence),
            "families": {
                name: measures([one for one in own if one.problem.family == name], confidence) for name in families
            },
        }
    domains = {}
    for domain in get_args(Domain):
        names = {task.name for task in tasks if task.domain == domain}
        if names:
            domains[domain] = measures([one for one in judged if one.problem.task in names], confidence)
    return {"confidence": confidence, "tasks": found, "domains": domains}


def _by_grader(judged: Sequence[VerifiedResponse], grader: str, confidence: float) -> dict[str, Any]:
    """What a grader alone says. Where a response has no verdict of its own from it, the verdict counts."""
    counts = _counts(judged, grader)
    mean, low, high = pass_at_1(counts, confidence)
    interval = [round(low, DIGITS), round(high, DIGITS)]
    return {"right": sum(count.right for count in counts), "pass@1": round(mean, DIGITS), "interval": interval}


def _counts(judged: Iterable[VerifiedResponse], grader: str | None = None) -> list[Count]:
    """Per problem."""
    samples: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for one in judged:
        samples[one.problem.id] += 1
        said = one.verdict.right if grader is None else one.verdict.graders.get(grader, one.verdict.right)
        right[one.problem.id] += said
    return [Count(samples[problem], right[problem]) for problem in samples]


def _reasons(judged: Iterable[VerifiedResponse]) -> dict[str, int]:
    return dict(sorted(Counter(one.verdict.why for one in judged).items()))
