"""Names of stored tensors: the variants that transformers also reads, and the messages for all others."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from tessy_jax.errors import CheckpointError
from tessy_jax.models.checkpoint import Tensor

BACKBONE, EMBED, HEAD = "model.", "model.embed_tokens.weight", "lm_head.weight"
BARE = ("embed_tokens.", "layers.", "norm.", "rotary_emb.")
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "module.": "data-parallel training",
    "base_model.model.": "PEFT",
}
KINDS = (
    (r"\.lora_|\.modules_to_save\.", "of a LoRA adapter: merge it into its base model"),
    (r"\.(qweight|qzeros|g_idx)$", "quantised by GPTQ or AWQ: save the model dequantised"),
    (r"\.(absmax|quant_map|SCB)$|\.quant_state\.", "quantised by bitsandbytes: save the model dequantised"),
    (
        r"\.(weight_packed|weight_scale(_\d)?|weight_zero_point|input_scale|activation_scale)$|_scale_inv$",
        "of a quantised model: save it dequantised",
    ),
    (r"\.(scales|biases)$", "quantised by MLX: save the model dequantised"),
)
"""Patterns in the names of unexpected tensors: what they say about the model, and the remedy."""
QUANTIZED = ("_blocks", "_scales", "_scale_inv")
COMPARED = 5000
"""Maximum number of names that are searched for the nearest one."""


def with_own_names(tensors: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """The tensors under the names of a causal LM, as in transformers: the names of a backbone saved alone lack `model.`, and
    a tied model may store its embedding as the head."""
    named = {
        BACKBONE + name if name.startswith(BARE) and BACKBONE + name not in tensors else name: tensor
        for name, tensor in tensors.items()
    }
    if tied and EMBED not in named and HEAD in named:
        named[EMBED] = named.pop(HEAD)
    return named


def check_complete(
    folder: Path, tensors: Mapping[str, Tensor], expected: Sequence[str], ignorable: Callable[[str], bool]
) -> None:
    """Checks that every expected tensor is stored, plain or quantised.

    Raises:
        CheckpointError: one is missing. If there are unexpected tensors, the message says how their names differ.
    """
    names, stored = set(expected), {_unquantized(name) for name in tensors}
    missing = [name for name in dict.fromkeys(expected) if name not in stored]
    if not missing:
        return
    first = missing[0]
    others = [name for name in tensors if _unquantized(name) not in names and not ignorable(name)]
    for wrapper, origin in WRAPPERS.items():
        wrapped = [name for name in others if wrapper in name]
        if any(_unquantized(name.replace(wrapper, "")) in names for name in wrapped):
            raise CheckpointError(
                f"{folder}: the names of {len(wrapped)} of {len(tensors)} tensors contain {wrapper}, as in {wrapped[0]}"
                f"{_kind(others)}; {origin} adds it; save the model without the wrapper, or remove {wrapper} from the names"
            )
    if others:
        near = difflib.get_close_matches(first, others[:COMPARED], 1, cutoff=0.0)[0]
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors are missing, first {first}, and {len(others)} are unexpected, nearest {near}"
            f"{_kind(others)}; the names differ from those of transformers, or config.json belongs to another model; save "
            "the model with `save_pretrained` of transformers"
        )
    hint = "the weights are incomplete, or config.json belongs to another model; fetch the folder again"
    if missing == [HEAD]:
        hint = "if the model ties its embeddings, set tie_word_embeddings to true in config.json"
    raise CheckpointError(f"{folder}: tensor {first} is missing, {len(missing)} in all; {hint}")


def check_placed(unknown: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors for which the model has no parameter.

    Raises:
        CheckpointError: there are some; names the first and its file.
    """
    if unknown:
        first = tensors[unknown[0]]
        raise CheckpointError(
            f"{first.file}: {len(unknown)} tensors are unexpected in the model of config.json, first "
            f"{first.name}{_kind(unknown)}; config.json and weights are not of the same model; fetch both again"
        )


def _unquantized(name: str) -> str:
    for suffix in QUANTIZED:
        name = name.removesuffix(suffix)
    return name


def _kind(names: Collection[str]) -> str:
    for pattern, meaning in KINDS:
        if any(re.search(pattern, name) for name in names):
            return f" ({meaning})"
    return ""
