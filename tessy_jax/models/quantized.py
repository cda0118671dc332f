"""Quantised weights, dequantised while they are read: MXFP4 (GPT-OSS) and block FP8 (DeepSeek-V3).

Values equal the dequantisation of transformers: MXFP4 is rounded to bfloat16, FP8 is multiplied in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tessy_jax.errors import CheckpointError, ConfigError
from tessy_jax.models.checkpoint import FLOATS, Index, Tensor

FP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
MXFP4_GROUP = 32  # values that share one power-of-two scale
SUPPORTED = ("mxfp4", "fp8")
DEQUANTISE = f"supported are {', '.join(SUPPORTED)}; otherwise save the model dequantised"
FP8_BLOCK = (128, 128)  # for a config.json without weight_block_size


def fp8_block(raw: Mapping[str, Any]) -> tuple[int, int]:
    """The block size of block FP8 (rows, columns), from the JSON object of a config.json.

    Raises:
        ConfigError: the weights are quantised by an unsupported method.
    """
    for name in ("quantization", "compression_config"):  # of MLX, and of older compressed-tensors
        if raw.get(name):
            raise ConfigError(f"{name} {raw[name]!r} is not supported; {DEQUANTISE}")
    section = raw.get("quantization_config")
    if section is None or section == {}:
        return FP8_BLOCK
    method = section.get("quant_method") if isinstance(section, Mapping) else section
    if method not in SUPPORTED:
        raise ConfigError(f"quantization_config: quant_method {method!r} is not supported; {DEQUANTISE}")
    block = section.get("weight_block_size")
    if block is None:
        return FP8_BLOCK
    if not isinstance(block, list) or len(block) != 2 or any(type(size) is not int or size < 1 for size in block):
        raise ConfigError(f"quantization_config: weight_block_size is {block!r}, expected two positive whole numbers")
    return block[0], block[1]


def _check_dtype(tensor: Tensor, *expected: str) -> None:
    if tensor.dtype not in expected:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has dtype {tensor.dtype}, expected {' or '.join(expected)}; fetch the "
            "weights again"
        )


@dataclass(frozen=True)
class Mxfp4:
    """Expert weights [E, in, out] from blocks [E, out, groups, 16] (two values a byte, low half first) and exponents
    [E, out, groups] with a bias of 127."""

    blocks: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        experts, out, groups, _ = self.blocks.shape
        return (experts, groups * MXFP4_GROUP, out)

    def check(self) -> None:
        """Raises CheckpointError if blocks or scales are not bytes, or their shapes do not match."""
        _check_dtype(self.blocks, "U8")
        _check_dtype(self.scales, "U8")
        if len(self.blocks.shape) != 4 or self.blocks.shape[3] * 2 != MXFP4_GROUP:
            raise CheckpointError(
                f"{self.blocks.file}: tensor {self.blocks.name} has shape {self.blocks.shape}, expected MXFP4 blocks "
                f"[experts, out, groups, {MXFP4_GROUP // 2}]; fetch the weights again"
            )
        if self.scales.shape != self.blocks.shape[:3]:
            raise CheckpointError(
                f"{self.scales.file}: tensor {self.scales.name} has shape {self.scales.shape}, its blocks require "
                f"{self.blocks.shape[:3]}; fetch the weights again"
            )

    def read(self, index: Index) -> np.ndarray:
        experts, rows, columns = index
        first, last, _ = rows.indices(self.shape[1])
        groups = slice(first // MXFP4_GROUP, -(-last // MXFP4_GROUP))
        packed = self.blocks.read((experts, columns, groups, slice(None)))
        exponents = self.scales.read((experts, columns, groups)).astype(np.int32) - 127
        values = np.empty((*packed.shape[:-1], MXFP4_GROUP), np.float32)
        values[..., 0::2] = FP4_VALUES[packed & 0x0F]
        values[..., 1::2] = FP4_VALUES[packed >> 4]
        values = np.ldexp(values, exponents[..., None]).astype(ml_dtypes.bfloat16)
        flat = values.reshape(*values.shape[:2], -1)
        skip = first - groups.start * MXFP4_GROUP
        return flat[..., skip : skip + last - first].swapaxes(1, 2)


@dataclass(frozen=True)
class BlockFp8:
    """A matrix in float8 with one float32 factor per block; the last block of a dimension may be smaller."""

    weight: Tensor
    scales: Tensor
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def check(self) -> None:
        """Raises CheckpointError if the factors are not floats, or their grid does not cover the matrix."""
        _check_dtype(self.scales, *FLOATS)
        grid = tuple(-(-size // block) for size, block in zip(self.shape, self.block, strict=True))
        if self.scales.shape != grid:
            raise CheckpointError(
                f"{self.scales.file}: tensor {self.scales.name} has shape {self.scales.shape}; blocks of {self.block} over "
                f"{self.weight.name} of shape {self.shape} require {grid}; fetch the weights again"
            )

    def read(self, index: Index) -> np.ndarray:
        values = self.weight.read(index).astype(np.float32)
        factors = self.scales.read((slice(None), slice(None))).astype(np.float32)
        rows, columns = (
            np.arange(*part.indices(size)) // block for part, size, block in zip(index, self.shape, self.block, strict=True)
        )
        return values * factors[np.ix_(rows, columns)]
