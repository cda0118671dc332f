"""Names of stored tensors: the forms that transformers reads too, and why the names of a folder are none of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from tessy_jax.errors import CheckpointError
from tessy_jax.models.checkpoint import Tensor

BACKBONE, EMBED, HEAD = "model.", "model.embed_tokens.weight", "lm_head.weight"
HEADS = ("lm_head.", "score.")
QUANTIZED = ("_blocks", "_scales", "_scale_inv")
COMPARED = 5000
"""The largest number of names among which the nearest one is looked for."""


def with_own_names(tensors: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """The tensors under the names of a causal LM, as transformers finds them: a backbone saved alone has no `model.` before
    its names, and a tied model may store its one matrix as the head."""
    named = dict(tensors)
    if not any(name.startswith(BACKBONE) for name in named) and any(BACKBONE + name == EMBED for name in named):
        named = {name if name.startswith(HEADS) else BACKBONE + name: tensor for name, tensor in named.items()}
    if tied and EMBED not in named and HEAD in named:
        named[EMBED] = named.pop(HEAD)
    return named


def check_complete(
    folder: Path, tensors: Mapping[str, Tensor], expected: Sequence[str], ignorable: Callable[[str], bool]
) -> None:
    """Checks that every expected tensor is stored, as it is or quantised.

    Raises:
        CheckpointError: one is missing. If others are left over, the message says how their names differ.
    """
    wanted, stored = set(expected), {_unquantized(name) for name in tensors}
    missing = [name for name in expected if name not in stored]
    if not missing:
        return
    first = missing[0]
    others = [name for name in tensors if _unquantized(name) not in wanted and not ignorable(name)]
    for prefix in sorted({name.removesuffix(first) for name in others if name.endswith(first)}):
        if all(name.startswith(prefix) for name in tensors):
            wrapper = " (torch.compile adds it)" if prefix == "_orig_mod." else ""
            raise CheckpointError(
                f"{folder}: the names of all {len(tensors)} tensors begin with {prefix}{wrapper}, as in {prefix}{first}; "
                "save the model inside its wrapper, or remove the prefix from the names"
            )
    if others:
        near = difflib.get_close_matches(first, others[:COMPARED], 1, cutoff=0.0)[0]
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors are missing, first {first}, and {len(others)} have no place, nearest {near}"
            f"{_kind(others)}; the weights are named otherwise or are of another model than config.json; save the model "
            "with save_pretrained of transformers"
        )
    hint = "the weights are incomplete, or config.json is of another model; fetch the folder again"
    if missing == [HEAD]:
        hint = "if the model ties its embeddings, set tie_word_embeddings in config.json"
    raise CheckpointError(f"{folder}: tensor {first} is missing, {len(missing)} in all; {hint}")


def check_placed(unknown: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors for which the model has no parameter.

    Raises:
        CheckpointError: there are some; names the first and its file.
    """
    if unknown:
        raise CheckpointError(
            f"{tensors[unknown[0]].file}: {len(unknown)} tensors have no place in the model of config.json, first "
            f"{unknown[0]}{_kind(unknown)}; config.json and weights are not of the same model; fetch both again"
        )


def _unquantized(name: str) -> str:
    for suffix in QUANTIZED:
        name = name.removesuffix(suffix)
    return name


def _kind(names: Collection[str]) -> str:
    if any(".lora_" in name for name in names):
        return " (of a LoRA adapter: merge it into its base model)"
    return ""
