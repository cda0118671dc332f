"""Writes Hugging Face folders that transformers loads. A folder appears complete or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from tessy_jax.errors import CheckpointError
from tessy_jax.models.hf import EVEN, ODD, PER_EXPERT, TRANSPOSED, checkpoint_name, layer_paths, parameter_paths
from tessy_jax.models.transformer import Decoder
from tessy_jax.processes import gather, is_primary
from tessy_jax.store.files import whole_folder

SHARD_BYTES = 4 << 30
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


ParameterPath = tuple[Any, ...]


class _Item(NamedTuple):
    """One tensor of the folder: its name, its size in bytes, and a function that fetches its values."""

    name: str
    nbytes: int
    fetch: Callable[[], np.ndarray]


def export(
    decoder: Decoder, folder: str | Path, *, copy_from: str | Path | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes config.json and safetensors (several with an index above shard_bytes) in the parameters' dtype.

    copy_from: a folder whose tokenizer and generation files are copied. The folder appears complete or not at all, see
    `whole_folder`. All processes call this function; process 0 writes.

    Raises:
        CheckpointError: the folder exists and is not empty, or cannot be written.
    """
    if not is_primary():
        for item in _items(decoder):
            item.fetch()
        return
    with whole_folder(Path(folder), CheckpointError) as staging:
        _write_tensors(decoder, staging, shard_bytes)
        _write_json(staging / "config.json", _config(decoder))
        for name in COPIED:
            source = None if copy_from is None else Path(copy_from) / name
            if source is not None and source.exists():
                shutil.copyfile(source, staging / name)


def _config(decoder: Decoder) -> dict[str, Any]:
    raw = json.loads(decoder.config.raw)
    for outdated in ("quantization_config", "torch_dtype"):
        raw.pop(outdated, None)
    if "num_nextn_predict_layers" in raw:
        raw["num_nextn_predict_layers"] = 0  # multi-token prediction is not loaded, so it is not written
    return raw | {"dtype": str(np.dtype(decoder.embed.dtype))}


def _write_tensors(decoder: Decoder, folder: Path, shard_bytes: int) -> None:
    shards: list[list[_Item]] = [[]]
    for item in _items(decoder):
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + item.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(item)
    index: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {item.name: item.fetch() for item in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        size = sum(item.nbytes for shard in shards for item in shard)
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})


class _Values:
    """Parameter values on the host. The last two are kept, because several tensors can come from one parameter."""

    def __init__(self, decoder: Decoder) -> None:
        self.parameters = dict(parameter_paths(nnx.state(decoder)))
        self.kept: dict[ParameterPath, np.ndarray] = {}

    def __call__(self, path: ParameterPath, layer: int | None) -> np.ndarray:
        if path not in self.kept:
            if len(self.kept) > 1:
                self.kept.clear()
            self.kept[path] = gather(self.parameters[path][...])
        values = self.kept[path]
        return values if layer is None else values[layer]

    def same(self, path: ParameterPath, layer: int | None) -> np.ndarray:
        return np.ascontiguousarray(self(path, layer))

    def transposed(self, path: ParameterPath, layer: int | None) -> np.ndarray:
        return np.ascontiguousarray(self(path, layer).T)

    def expert(self, path: ParameterPath, layer: int | None, expert: int) -> np.ndarray:
        return np.ascontiguousarray(self(path, layer)[expert].T)

    def interleaved(self, path: ParameterPath, layer: int | None, odd: ParameterPath) -> np.ndarray:
        pair = np.stack([self(path, layer), self(odd, layer)], axis=-1)
        return pair.reshape(*pair.shape[:-2], -1)


def _items(decoder: Decoder) -> Iterator[_Item]:
    """Every tensor of the folder, in an order that fetches each parameter once."""
    config, values = decoder.config, _Values(decoder)
    for path, parameter in values.parameters.items():
        names = layer_paths(path, config, decoder.stacked)
        stacked = decoder.stacked and path[0] == "layers"
        nbytes = parameter.size * np.dtype(parameter.dtype).itemsize // len(names)
        for i, name in enumerate(names):
            theirs, form = checkpoint_name(name, config.family)
            layer = i if stacked else None
            if form == PER_EXPERT:
                assert config.experts is not None
                for e in range(config.experts.count):
                    size = nbytes // config.experts.count
                    yield _Item(theirs.format(expert=e), size, partial(values.expert, path, layer, e))
            elif form == TRANSPOSED:
                yield _Item(theirs, nbytes, partial(values.transposed, path, layer))
            elif form == EVEN:  # the same tensor holds the odd half
                odd = (*path[:-1], path[-1].replace("gate", "up"))
                yield _Item(theirs, 2 * nbytes, partial(values.interleaved, path, layer, odd))
            elif form != ODD:
                yield _Item(theirs, nbytes, partial(values.same, path, layer))


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
