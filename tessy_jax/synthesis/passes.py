"""Recipes with two passes: the teacher chooses among candidates of the student, or the student rewrites a response of the
teacher.

The first pass is a separate synthesis with a run folder inside that of the second pass. It is saved, resumed and counted
like any other synthesis.
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

from tessy_jax.config import RECIPES, Synthesize
from tessy_jax.models import hf
from tessy_jax.processes import OnPrimary
from tessy_jax.records import Failure, Key, Row, response_id
from tessy_jax.sharding import Partitioner
from tessy_jax.store import RunReader
from tessy_jax.store.files import within
from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.synthesis.prompts import Job, with_system
from tessy_jax.synthesis.scores import Scorer, score

RESPONSES_PER_COMMIT = 32
"""Responses whose candidates are scored between two commits."""
REFERENCES_PER_MESSAGE = 1024
"""References that process 0 sends to the others in one message."""
PLACEHOLDERS = re.compile(r"\{(prompt|reference)\}")


def first_pass(config: Synthesize) -> Synthesize | None:
    """The configuration of the first pass of a synthesis; None if its recipe has one pass."""
    first = RECIPES[config.synthesis.recipe].first_pass
    if first is None:
        return None
    changes: dict[str, Any] = {"recipe": first.recipe, "isolation": None, "scored_responses": 0}
    if not first.verified:
        changes["verification"] = None
    multiplier = config.synthesis.candidates if first.candidates else 1
    return config.model_copy(
        update={
            "output": within(config.output, first.folder),
            "data": config.data.model_copy(update={"rollouts": config.data.rollouts * multiplier}),
            "synthesis": config.synthesis.model_copy(update=changes),
        }
    )


def with_references(config: Synthesize, references: str, jobs: Sequence[Job]) -> tuple[list[Job], list[Failure]]:
    """The jobs with prompts that show the reference, and a failure for each job without one. All processes call it.

    references: the run folder of the first pass.
    """
    by_key = OnPrimary(lambda: {row.key: _reference(row, config) for row in RunReader(references).rows()})
    texts: dict[Key, str | None] = {}
    for start in range(0, len(jobs), REFERENCES_PER_MESSAGE):
        keys = [(job.prompt.id, job.rollout) for job in jobs[start : start + REFERENCES_PER_MESSAGE]]
        texts.update(zip(keys, by_key.run(lambda known, keys=keys: [known.get(key) for key in keys]), strict=True))  # type: ignore[misc]
    with_text, failures = [], []
    for prompt, rollout in jobs:
        text = texts[prompt.id, rollout]
        if text is None:
            failures.append(_failure((prompt.id, rollout), "no_reference", "the teacher's response is among the failures"))
            continue
        *earlier, last = prompt.messages
        shown = [*earlier, {"role": "user", "content": _filled(config.synthesis.rewrite, last["content"], text)}]
        with_text.append(Job(replace(prompt, shown=shown), rollout))
    return with_text, failures


def chooser(config: Synthesize, partitioner: Partitioner) -> ModelSet | None:
    """The scorer of the recipe, without its weights; None if the recipe has none.

    Raises:
        ConfigError, TokenizerError: see `ModelSet`.
    """
    scorer = RECIPES[config.synthesis.recipe].scorer
    if scorer is None:
        return None
    synthesis = config.synthesis.model_copy(update={"recipe": f"{scorer}_only", "isolation": None})
    return ModelSet(config.model_copy(update={"synthesis": synthesis}), partitioner)


def choose(
    config: Synthesize, candidates: Synthesize, models: ModelSet, jobs: Sequence[Job]
) -> Iterator[tuple[list[Row], list[Failure]]]:
    """For each job, the candidate with the highest mean log-probability per token of thinking and answer under the scorer
    (the first among equals), for `RESPONSES_PER_COMMIT` jobs at a time. All processes call it.

    candidates: the configuration of the finished first pass. models: see `chooser`.
    """
    count = config.synthesis.candidates

    def read() -> dict[Key, list[bytes]]:
        groups = defaultdict(list)
        for row in RunReader(candidates.output).rows():
            groups[row.prompt_id, row.rollout // count].append(zlib.compress(json.dumps(row.to_json()).encode(), 1))
        return groups

    packed = OnPrimary(read)
    writer = models.writers[0]
    folder = hf.resolve(writer.section.model, revision=writer.section.revision)
    scorers = {
        str(writer.name): Scorer(hf.load(folder, dtype=writer.section.dtype, partitioner=models.partitioner), writer.chat)
    }
    limit = config.synthesis.max_prompt_tokens + config.synthesis.max_response_tokens
    for start in range(0, len(jobs), RESPONSES_PER_COMMIT):
        keys = [(job.prompt.id, job.rollout) for job in jobs[start : start + RESPONSES_PER_COMMIT]]

        def unpack(groups: dict[Key, list[bytes]], keys: list[Key] = keys) -> list[list[Any]]:
            return [[json.loads(zlib.decompress(data)) for data in groups.get(key, [])] for key in keys]

        groups = [sorted(map(Row.from_json, rows), key=lambda row: row.rollout) for rows in packed.run(unpack)]
        flat = [row for group in groups for row in group]
        lines = score(flat, scorers, open_text=models.open_text, close_text=models.close_text, limit=limit)
        means = {line["id"]: _mean(line[writer.name]) for line in lines}
        rows, failures = [], []
        for key, group in zip(keys, groups, strict=True):
            if group:
                rows.append(_best(config, key, group, means))
            else:
                failures.append(_failure(key, "no_candidate", f"all {count} candidates are among the failures"))
        yield rows, failures


def _best(config: Synthesize, key: Key, group: Sequence[Row], means: Mapping[str, float]) -> Row:
    best = max(group, key=lambda row: means[row.id])  # the first among equals
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
    """Fills both placeholders in one substitution, because a prompt may contain the text `{reference}`."""
    values = {"prompt": prompt, "reference": reference}
    return PLACEHOLDERS.sub(lambda match: values[match[1]], template)


def _failure(key: Key, reason: str, detail: str) -> Failure:
    return Failure(response_id(key), key[0], key[1], reason, 0, detail)
