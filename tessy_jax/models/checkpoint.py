"""Reads safetensors folders slice by slice.

The safetensors library maps complete files, which counts every page read against the process, and its NumPy interface has no
float8. This module therefore reads the format itself: an 8-byte header length, a JSON header, the bytes of the tensors.
"""

from __future__ import annotations

import json
import logging
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from tessy_jax.errors import CheckpointError

logger = logging.getLogger(__name__)

Index = tuple[slice, ...]

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "U8": np.uint8,
    "I32": np.int32,
    "I64": np.int64,
}
FLOATS = ("F64", "F32", "F16", "BF16")
"""Those of `DTYPES` in which weights are not quantised."""
MAX_HEADER = 100 << 20
OTHER_WEIGHTS = (
    ("adapter_model.*", "the weights of an adapter: merge it into its base model"),
    ("consolidated*", "which has the tensor names of Meta's or Mistral's own code: convert the model with transformers"),
    ("*.gguf", "in the format of llama.cpp: fetch the original model"),
    ("pytorch_model*", "in PyTorch's format: save the model with transformers >= 5"),
    ("*.pth", "in PyTorch's format: save the model with transformers >= 5"),
    ("*.safetensors", "which has another name: rename it if it is the complete model, or fetch the index of the shards"),
)
"""Patterns of files that a folder may hold instead of its weights in safetensors, and the end of the message for each."""


class Source(Protocol):
    """The values of one parameter, read slice by slice."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, index: Index) -> np.ndarray:
        """The values at `index`: one slice of step 1 per dimension."""
        ...


@dataclass(frozen=True)
class Tensor:
    """One tensor in a safetensors file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self, index: Index) -> np.ndarray:
        dtype = np.dtype(DTYPES[self.dtype])
        first, last, _ = index[0].indices(self.shape[0]) if self.shape else (0, 1, 1)
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * dtype.itemsize
        size = (last - first) * row
        data = np.fromfile(self.file, np.uint8, count=size, offset=self.offset + first * row)
        if data.size != size:
            raise CheckpointError(f"{self.file}: ends inside tensor {self.name}; fetch the file again")
        rows = data.view(dtype).reshape((last - first, *self.shape[1:]) if self.shape else ())
        return rows[(slice(None), *index[1:])] if self.shape else rows


@dataclass(frozen=True)
class Transposed:
    """The last two dimensions swapped."""

    inner: Source

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.inner.shape[:-2], self.inner.shape[-1], self.inner.shape[-2])

    def read(self, index: Index) -> np.ndarray:
        return self.inner.read((*index[:-2], index[-1], index[-2])).swapaxes(-1, -2)


@dataclass(frozen=True)
class Stacked:
    """Equal tensors along a new first dimension (experts, or layers)."""

    parts: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.parts), *self.parts[0].shape)

    def read(self, index: Index) -> np.ndarray:
        return np.stack([part.read(index[1:]) for part in self.parts[index[0]]])


@dataclass(frozen=True)
class EverySecond:
    """Every second entry of the last dimension, from `offset` on (GPT-OSS interleaves gate and up)."""

    inner: Source
    offset: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.inner.shape[:-1], self.inner.shape[-1] // 2)

    def read(self, index: Index) -> np.ndarray:
        first, last, _ = index[-1].indices(self.shape[-1])
        return self.inner.read((*index[:-1], slice(2 * first, 2 * last)))[..., self.offset :: 2]


def open_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder, without its values. As in transformers, model.safetensors takes precedence over the
    shards of an index.

    Raises:
        CheckpointError: no weights, a missing or truncated file, or an index with tensors that its files do not contain.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists():
        if index.exists():
            logger.warning("%s: model.safetensors is read, not the shards of %s, as in transformers", folder, index.name)
        return _read_header(single)
    if not index.exists():
        raise CheckpointError(f"{folder}: holds neither {single.name} nor {index.name}{_other_weights(folder)}")
    try:
        file_of = json.loads(index.read_text("utf-8"))["weight_map"]
        files = sorted(set(file_of.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: is not a safetensors index ({error}); fetch the file again") from None
    if not all(isinstance(file, str) for file in files):
        raise CheckpointError(f"{index}: places tensors in {files[0]!r}, expected file names; fetch the file again")
    shards: dict[str, dict[str, Tensor]] = {}
    for file in files:
        if not (folder / file).exists():
            names = [name for name, shard in file_of.items() if shard == file]
            raise CheckpointError(
                f"{folder / file}: missing; {index.name} places {len(names)} tensors in it, first {names[0]}; "
                "fetch the missing shard"
            )
        shards[file] = _read_header(folder / file)
    tensors = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    for name, file in file_of.items():
        if name not in shards[file]:
            raise CheckpointError(f"{folder / file}: lacks tensor {name}, which {index.name} places in it; fetch both again")
        tensors[name] = shards[file][name]
    return tensors


def _other_weights(folder: Path) -> str:
    """The end of the message for a folder without weights in safetensors: what it holds instead, and the remedy."""
    for pattern, meaning in OTHER_WEIGHTS:
        for file in sorted(folder.glob(pattern)):
            return f", but {file.name}, {meaning}"
    return "; fetch the weights in the safetensors format"


def _read_header(file: Path) -> dict[str, Tensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = handle.read(8)
            if start == b"version ":
                raise CheckpointError(f"{file}: is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER
            if 8 + length > size or length > MAX_HEADER:
                raise CheckpointError(f"{file}: truncated inside its header ({size} bytes); fetch the file again")
            header = json.loads(handle.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is not a JSON object")
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: is not a safetensors file ({error}); fetch the file again") from None
    tensors, places = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            if any(type(number) is not int or number < 0 for number in (*shape, first, last)):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{file}: the header's entry of tensor {name} is damaged; fetch the file again") from None
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{file}: tensor {name} has dtype {dtype}; supported are {', '.join(DTYPES)}; save the model dequantised"
            )
        bytes_needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(DTYPES[dtype]).itemsize
        if last - first != bytes_needed:
            raise CheckpointError(
                f"{file}: tensor {name} of shape {shape} has {last - first} bytes, expected {bytes_needed}; "
                "fetch the file again"
            )
        tensors[name] = Tensor(name, file, dtype, shape, 8 + length + first)
        places.append((first, last, name))
    places.sort()
    for (_, end, name), (first, _, following) in pairwise([(0, 0, "its header"), *places]):
        if first != end:
            raise CheckpointError(
                f"{file}: tensor {following} begins at byte {first}, and {name} ends at {end}; the header is damaged; fetch "
                "the file again"
            )
    end = places[-1][1] if places else 0
    if 8 + length + end != size:
        raise CheckpointError(f"{file}: has {size} bytes, its header requires {8 + length + end}; fetch the file again")
    return tensors
