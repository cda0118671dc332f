"""The summary of a synthesis: counts, cost, and measures that do not depend on the machine."""

from __future__ import annotations

import platform
from typing import Any

import flax
import numpy as np
import transformers

from tessy_jax.processes import provenance
from tessy_jax.store import RunStore
from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.synthesis.scheduler import Scheduler
from tessy_jax.text.host_bridge import HostBridge


def summarize(models: ModelSet, scheduler: Scheduler, store: RunStore, *, seconds: float) -> dict[str, Any]:
    """The summary as a dict. `run` counts the complete run folder; everything else counts this start.

    A generated token is kept, discarded, or failed (kept in an attempt that failed). Per kept token: lane_passes (forward
    passes of one lane; at least 1), host_syncs, bridged (tokens from bridges). occupancy: share of the rows
    of a model's passes that held tokens. verdicts: counts by
    verdict of finished responses, if they are verified; in `run`, of kept responses. seconds_running: without loading and
    compilation.
    """
    tally, totals, names = scheduler.tally, scheduler.engine.totals, models.names
    lanes = scheduler.engine.size
    kept = np.maximum(tally.kept, 1)
    total_kept = max(int(tally.kept.sum()), 1)
    calls = sum(bridge.library.calls for bridge in models.bridges if isinstance(bridge, HostBridge))

    def each(values: np.ndarray) -> dict[str, Any]:
        return {name: values[m].item() for m, name in enumerate(names)}

    return {
        "run": run_counts(store),
        "responses": tally.responses,
        "failures": dict(tally.failures),
        "retries": dict(tally.retries),
        "verdicts": dict(tally.verdicts),
        "switches": tally.switches,
        "kept_tokens": each(tally.kept),
        "generated_tokens": each(tally.generated),
        "discarded_tokens": each(tally.discarded),
        "failed_tokens": each(tally.failed),
        "discarded_share": round(float(tally.discarded.sum()) / max(int(tally.generated.sum()), 1), 6),
        "passes": each(totals.passes),
        "lane_passes": each(totals.sampled),
        "lane_passes_per_kept_token": each(np.round(totals.sampled / kept, 4)),
        "occupancy": each(np.round(totals.rows / np.maximum(totals.passes * scheduler.engine.rows, 1), 4)),
        "caught_up_tokens": each(totals.caught_up),
        "prefilled_tokens": each(totals.prefilled),
        "shared_prompt_tokens": each(totals.shared),
        "predictor_passes": each(totals.predictor_passes),
        "bridged_tokens_per_kept_token": round(float(totals.bridged.sum()) / total_kept, 4),
        "rounds": totals.rounds,
        "host_syncs": totals.host_syncs + calls,
        "host_syncs_per_kept_token": round((totals.host_syncs + calls) / total_kept, 6),
        "lanes": lanes,
        "one_vocabulary": models.one_vocabulary,
        "compilations": [c._asdict() for c in scheduler.engine.compilations],
        "compile_seconds": round(scheduler.compile_seconds, 3),
        "seconds": round(seconds, 3),
        "seconds_running": round(scheduler.running_seconds, 3),
        "kept_tokens_per_second": round(float(tally.kept.sum()) / max(scheduler.running_seconds, 1e-9), 3),
        **provenance(flax=flax.__version__, transformers=transformers.__version__, python=platform.python_version()),
    }


def run_counts(store: RunStore) -> dict[str, Any]:
    """Counts of the rows and failures in the run folder, over all starts."""
    count, tokens = 0, dict.fromkeys(("tokens_student", "tokens_teacher", "tokens_discarded"), 0)
    verdicts: dict[str, int] = {}
    for row in store.rows():
        count += 1
        for name in tokens:
            tokens[name] += int(row.meta[name] or 0)
        if "verdict" in row.meta:
            verdict = str(row.meta["verdict"])
            verdicts[verdict] = verdicts.get(verdict, 0) + 1
    reasons: dict[str, int] = {}
    for failure in store.failures():
        reasons[failure.reason] = reasons.get(failure.reason, 0) + 1
    return {"responses": count, "failures": reasons, "verdicts": verdicts, **tokens}
