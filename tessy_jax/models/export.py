"""Hugging Face folders out: a folder that transformers loads, whole or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from tessy_jax.errors import CheckpointError
from tessy_jax.models.hf import EVEN, ODD, PER_EXPERT, TRANSPOSED, checkpoint_name, layer_paths, parameter_paths
from tessy_jax.models.transformer import Decoder

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


class _Item(NamedTuple):
    """One tensor of the folder: its name, size, and the function that fetches its values."""

    name: str
    nbytes: int
    fetch: Callable[[], np.ndarray]


def export(decoder: Decoder, folder: str | Path, *, copy_from: str | Path | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config.json and safetensors (several with an index above shard_bytes) in the parameters' dtype.

    copy_from: a folder whose tokenizer and generation files come along. The folder appears by one rename after every byte
    is on disk; a killed export leaves nothing under its name. With several processes all call this, the first writes.

    Raises:
        CheckpointError: the folder exists and is not empty, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not empty; name a new folder or remove it")
    writes = jax.process_index() == 0
    partial = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    try:
        if writes:
            folder.parent.mkdir(parents=True, exist_ok=True)
            for left_over in folder.parent.glob(f".{folder.name}.*.partial"):
                shutil.rmtree(left_over)
            partial.mkdir()
        _write_tensors(decoder, partial, shard_bytes, writes)
        if writes:
            _write_json(partial / "config.json", _config(decoder))
            for name in COPIED:
                source = None if copy_from is None else Path(copy_from) / name
                if source is not None and source.exists():
                    shutil.copyfile(source, partial / name)
            for file in (*partial.iterdir(), partial):
                _sync(file)
            partial.rename(folder)
            _sync(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: cannot be written ({error})") from error


def _config(decoder: Decoder) -> dict[str, Any]:
    raw = json.loads(decoder.config.raw)
    for outdated in ("quantization_config", "torch_dtype"):
        raw.pop(outdated, None)
    return raw | {"dtype": str(np.dtype(decoder.embed.dtype))}


def _write_tensors(decoder: Decoder, folder: Path, shard_bytes: int, writes: bool) -> None:
    shards: list[list[_Item]] = [[]]
    for item in _items(decoder):
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + item.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(item)
    index: dict[str, str] = {}
    for i, shard in enumerate(shards):
        one = len(shards) == 1
        file = "model.safetensors" if one else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {item.name: item.fetch() for item in shard}
        if writes:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    if writes and len(shards) > 1:
        size = sum(item.nbytes for shard in shards for item in shard)
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})


def _items(decoder: Decoder) -> Iterator[_Item]:
    """Every tensor of the folder, in an order that fetches each parameter once."""
    config = decoder.config
    parameters = dict(parameter_paths(nnx.state(decoder)))
    last: dict[Any, np.ndarray] = {}

    def host(path: tuple[Any, ...]) -> np.ndarray:
        if path not in last:
            if len(last) > 1:
                last.clear()
            x = parameters[path][...]
            whole = x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
            last[path] = np.asarray(whole)
        return last[path]

    for path, parameter in parameters.items():
        names = layer_paths(path, config, decoder.stacked)
        stacked = decoder.stacked and path[0] == "layers"
        nbytes = parameter.size * np.dtype(parameter.dtype).itemsize // len(names)
        for i, name in enumerate(names):
            theirs, form = checkpoint_name(name, config.family)

            def one(path: tuple[Any, ...] = path, i: int = i, stacked: bool = stacked) -> np.ndarray:
                return host(path)[i] if stacked else host(path)

            if form == PER_EXPERT:
                assert config.experts is not None
                for e in range(config.experts.count):
                    yield _Item(
                        theirs.format(expert=e),
                        nbytes // config.experts.count,
                        lambda one=one, e=e: np.ascontiguousarray(one()[e].T),
                    )
            elif form == TRANSPOSED:
                yield _Item(theirs, nbytes, lambda one=one: np.ascontiguousarray(one().T))
            elif form == EVEN:
                odd = (*path[:-1], path[-1].replace("gate", "up"))
                other = lambda odd=odd, i=i, stacked=stacked: host(odd)[i] if stacked else host(odd)  # noqa: E731
                yield _Item(theirs, 2 * nbytes, lambda one=one, other=other: _interleaved(one(), other()))
            elif form != ODD:
                yield _Item(theirs, nbytes, lambda one=one: np.ascontiguousarray(one()))


def _interleaved(even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    return np.stack([even, odd], axis=-1).reshape(*even.shape[:-1], -1)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
