"""Keys of version 0.1 and their names today. An old key is refused with the new name."""

from __future__ import annotations

RENAMED: dict[tuple[str, str], str] = {
    ("training", "tokens"): "max_seq_len",
    ("training", "rows"): "batch_size",
    ("training", "rows_at_once"): "micro_batch_size",
    ("training", "evaluate_every"): "eval_every",
    ("training", "spike"): "loss_spike_factor",
    ("optimizer", "clip"): "max_grad_norm",
    ("optimizer", "end"): "min_lr_ratio",
    ("boundary", "noise"): "label_flip_prob",
    ("synthesis", "scored"): "scored_responses",
    ("synthesis", "rounds"): "rounds_per_dispatch",
    ("data", "too_long"): "on_overlength",
    ("evaluation", "too_long"): "on_overlength",
    ("evaluation", "every"): "every_epochs",
    ("", "too_long"): "on_overlength",
}
"""(section, old key) → new key; the section is the last name before the key, "" at the top level."""


ANYWHERE = {old: new for (_, old), new in RENAMED.items()}
"""Old key → new key, in whatever section."""


def new_name(key: str) -> str | None:
    """The dotted key that replaces `key`, e.g. training.tokens → training.max_seq_len; None if `key` was not renamed."""
    parent, _, name = key.rpartition(".")
    new = RENAMED.get((parent.rpartition(".")[2], name))
    if new is None:
        return None
    return f"{parent}.{new}" if parent else new
