"""Recipes of two passes: the teacher chooses among what the student wrote, or writes what the student then rewrites.

The first pass is a synthesis of its own, in a run folder within that of the second; it is saved, resumed and counted as any
other is.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tessy_jax.config import Synthesize
from tessy_jax.models import hf
from tessy_jax.processes import on_primary
from tessy_jax.records import Failure, Key, Row, response_id
from tessy_jax.sharding import Partitioner
from tessy_jax.store import RunReader
from tessy_jax.store.files import within
from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.synthesis.prompts import Job, with_system
from tessy_jax.synthesis.recipes import RECIPES
from tessy_jax.synthesis.scores import Scorer, score

PLACES = {"teacher_score": "candidates", "teacher_reference": "references"}
"""By recipe, the folder of its first pass within the run folder."""
AT_ONCE = 32  # responses whose candidates are scored between two commits
TOLD_AT_ONCE = 1024  # references that the first process sends to the others in one message
PARTS = re.compile(r"\{(prompt|reference)\}")


def first_pass(config: Synthesize) -> Synthesize | None:
    """The first pass of a synthesis; None where there is but one."""
    name = RECIPES[config.synthesis.recipe].first_pass
    if name is None:
        return None
    several = config.synthesis.recipe == "teacher_score"
    changes: dict[str, Any] = {"recipe": name, "isolation": None, "scored_responses": 0}
    if not several:  # what is judged is the student's own response
        changes["verification"] = None
    synthesis = config.synthesis.model_copy(update=changes)
    times = config.synthesis.candidates if several else 1
    return config.model_copy(
        update={
            "output": within(config.output, PLACES[config.synthesis.recipe]),
            "data": config.data.model_copy(update={"rollouts": config.data.rollouts * times}),
            "synthesis": synthesis,
        }
    )


def with_references(config: Synthesize, references: str, wanted: Sequence[Job]) -> tuple[list[Job], list[Failure]]:
    """The jobs with prompts that show the teacher's response, and those that have none as failures. references: the run
    folder of the first pass."""

    own: dict[Key, str] = {}  # of the first process

    def read() -> None:
        own.update((row.key, _reference(row, config)) for row in RunReader(references).rows())

    on_primary(read)
    told: dict[Key, str | None] = {}
    for start in range(0, len(wanted), TOLD_AT_ONCE):
        keys = [(job.prompt.id, job.rollout) for job in wanted[start : start + TOLD_AT_ONCE]]
        told.update(zip(keys, on_primary(lambda keys=keys: [own.get(key) for key in keys]), strict=True))  # type: ignore[misc]
    jobs, failures = [], []
    for prompt, rollout in wanted:
        text = told[prompt.id, rollout]
        if text is None:
            failures.append(_failure((prompt.id, rollout), "no_reference", "the teacher's response is among the failures"))
            continue
        *earlier, last = prompt.messages
        shown = [*earlier, {"role": "user", "content": _filled(config.synthesis.rewrite, last["content"], text)}]
        jobs.append(Job(replace(prompt, shown=shown), rollout))
    return jobs, failures


def chooser(config: Synthesize, partitioner: Partitioner) -> ModelSet | None:
    """The teacher that chooses, without its weights; None where none does.

    Raises:
        ConfigError, TokenizerError: see `Cast`.
    """
    if config.synthesis.recipe != "teacher_score":
        return None
    synthesis = config.synthesis.model_copy(update={"recipe": "teacher_only", "isolation": None})
    return ModelSet(config.model_copy(update={"synthesis": synthesis}), partitioner)


def choose(
    config: Synthesize, candidates: Synthesize, models: ModelSet, wanted: Sequence[Job]
) -> Iterator[tuple[list[Row], list[Failure]]]:
    """Of every response the candidate that the teacher finds most probable: the mean log-probability of a token of thinking
    and answer is the highest, the first of equals. A few responses at a time; all processes ask for them together.

    candidates: the first pass, which is over. cast: see `chooser`.
    """
    count = config.synthesis.candidates

    def groups() -> dict[Key, list[bytes]]:
        held = defaultdict(list)
        for row in RunReader(candidates.output).rows():
            held[row.prompt_id, row.rollout // count].append(zlib.compress(json.dumps(row.to_json()).encode(), 1))
        return held

    held: list[dict[Key, list[bytes]]] = []
    on_primary(lambda: held.append(groups()))
    writer = models.writers[0]
    folder = hf.resolve(writer.section.model, revision=writer.section.revision)
    scorers = {"teacher": Scorer(hf.load(folder, dtype=writer.section.dtype, partitioner=models.partitioner), writer.chat)}
    limit = config.synthesis.max_prompt_tokens + config.synthesis.max_response_tokens
    for start in range(0, len(wanted), AT_ONCE):
        keys = [(job.prompt.id, job.rollout) for job in wanted[start : start + AT_ONCE]]

        def some(keys: list[Key] = keys) -> list[list[Any]]:
            return [[json.loads(zlib.decompress(data)) for data in held[0].get(key, [])] for key in keys]

        found = [sorted(map(Row.from_json, rows), key=lambda row: row.rollout) for rows in on_primary(some)]
        flat = [row for rows in found for row in rows]
        lines = score(flat, scorers, open_text=models.open_text, close_text=models.close_text, limit=limit)
        means = {line["id"]: _mean(line["teacher"]) for line in lines}
        rows, failures = [], []
        for key, group in zip(keys, found, strict=True):
            if group:
                rows.append(_best(config, key, group, means))
            else:
                failures.append(_failure(key, "no_candidate", f"all {count} candidates are among the failures"))
        yield rows, failures


def _best(config: Synthesize, key: Key, group: Sequence[Row], means: Mapping[str, float]) -> Row:
    best = max(group, key=lambda row: means[row.id])  # the first of equals
    tokens = sum(int(row.meta["tokens_student"] or 0) for row in group)
    meta = {
        **best.meta,
        "recipe": config.synthesis.recipe,
        "candidates": len(group),
        "candidate": best.rollout % config.synthesis.candidates,
        "candidate_tokens": tokens,
        "teacher_score": round(means[best.id], 6) if math.isfinite(means[best.id]) else None,
    }
    messages = tuple(with_system(config.synthesis.isolation, best.messages))
    return replace(best, id=response_id(key), prompt_id=key[0], rollout=key[1], messages=messages, meta=meta)


def _mean(scores: Sequence[tuple[int, int, float]]) -> float:
    return sum(value for _, _, value in scores) / len(scores) if scores else -math.inf


def _reference(row: Row, config: Synthesize) -> str:
    answer = "".join(row.content[span.start : span.end] for span in row.spans if span.phase == "answer").strip()
    return answer if answer and config.synthesis.reference == "answer" else row.content


def _filled(template: str, prompt: str, reference: str) -> str:
    """Both at once: a prompt may hold the words `{reference}` itself."""
    values = {"prompt": prompt, "reference": reference}
    return PARTS.sub(lambda match: values[match[1]], template)


def _failure(key: Key, reason: str, detail: str) -> Failure:
    return Failure(response_id(key), key[0], key[1], reason, 0, detail)
