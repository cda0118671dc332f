"""The memory of a synthesis: bytes of weights and caches, and the lanes that fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessy_jax.decode.engine import CACHE_SLACK, PREDICTOR_SLACK, margin
from tessy_jax.decode.pool import SHARE, device_memory, ring_bytes, token_bytes
from tessy_jax.decode.predictor_window import ROWS
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.pages import PAGE, page_count
from tessy_jax.models.plan import plan

if TYPE_CHECKING:
    from tessy_jax.synthesis.model_set import ModelSet

GIB = 1 << 30

MOST_LANES = 256
"""The most lanes that `auto` takes on each shard of the lanes. More lanes add little speed: a pass is then limited by
arithmetic, no longer by reading weights."""
UNKNOWN_MEMORY_LANES = 32
"""The lanes that `auto` takes if a device does not report its memory."""


def memory(models: ModelSet) -> tuple[int, list[str]]:
    """Bytes of weights and caches on one device, and lines that show them by model."""
    held = "" if models.pool is None else f", caches of {models.pool} tokens per model"
    lines, total = [f"memory per device, {models.lanes} lanes of up to {models.tokens} tokens{held}:"], 0
    caches = _caches(models, models.lanes, models.pool)
    for (name, weights), cache in zip(_weights(models), caches, strict=True):
        total += weights + cache
        lines.append(f"  {name:<20} weights {weights / GIB:8.2f} GiB   caches {cache / GIB:8.2f} GiB")
    return total, [*lines, f"  {'total':<20} {total / GIB:.2f} GiB, plus temporary arrays of the programs"]


def fitting_lanes(models: ModelSet) -> tuple[int, int | None]:
    """The number of lanes that fit into memory, and the tokens that the cache of each writer then holds; None for the
    default of `Engine`.

    On average, a response in progress has half its final length, so the cache holds the longest prompt and half the longest
    response for each lane, and at least one response of full length on each shard of the lanes. The engine parks lanes if
    the cache is full. Each shard has at least one lane, even if it does not fit, and at most `MOST_LANES`. If
    `synthesis.cache_tokens` is set, the cache keeps that size, and the lanes are at most those that it holds in this way.
    """
    synthesis, shards, limit = models.config.synthesis, models.partitioner.num_shards("lanes"), device_memory()
    if limit is None:
        return -(-UNKNOWN_MEMORY_LANES // shards) * shards, synthesis.cache_tokens
    half, most = _context(models) - synthesis.max_response_tokens // 2, MOST_LANES
    if synthesis.cache_tokens is not None:
        most = min(most, synthesis.cache_tokens // (shards * half))
    left = SHARE * limit - sum(size for _, size in _weights(models))

    def pool(each: int) -> int:
        return synthesis.cache_tokens or shards * max(each * half, models.longest)

    def fits(each: int) -> bool:
        return sum(_caches(models, each * shards, pool(each))) <= left

    each = next((each for each in range(most, 1, -1) if fits(each)), 1)
    return each * shards, pool(each)


def _weights(models: ModelSet) -> list[tuple[str, int]]:
    """Names of the writers and of their predictors, and the bytes of their weights on one device."""
    boundary, mesh = models.config.boundary, models.config.mesh
    found: list[tuple[str, ModelConfig, str]] = [(w.name, w.config, w.section.dtype) for w in models.writers]
    predictors = zip(models.names, models.predictors, strict=True)
    found += [(f"{name}'s predictor", p.config, boundary.dtype) for name, p in predictors if p is not None]
    lanes = models.partitioner.num_shards("lanes")
    weights = (plan(config, dtype=dtype, mesh=mesh, lanes=lanes, slack=CACHE_SLACK)["weights"] for _, config, dtype in found)
    return [(name, sizes["bytes_per_device"]) for (name, *_), sizes in zip(found, weights, strict=True)]


def _caches(models: ModelSet, lanes: int, pool: int | None) -> list[int]:
    """The bytes of the cache of each writer and of each predictor on one device, in the order of `_weights`."""
    shards, boundary, sizes = models.partitioner.num_shards("lanes"), models.config.boundary, []
    each = lanes // shards
    pages = each * page_count(_context(models))
    if pool is not None:
        pages = max(pool // shards // PAGE, page_count(models.longest))
    for writer in models.writers:
        config, dtype = writer.config, writer.section.dtype
        full = token_bytes(config, config.windows.count(None), dtype, models.partitioner)
        rings = ring_bytes(config, dtype, models.partitioner, tokens=models.longest, slack=CACHE_SLACK)
        sizes.append(PAGE * pages * full + each * rings)
    for predictor in models.predictors:
        if predictor is not None:
            size = token_bytes(predictor.config, predictor.config.layers, boundary.dtype, models.partitioner)
            sizes.append(PAGE * ROWS * each * page_count(boundary.window + PREDICTOR_SLACK) * size)
    return sizes


def _context(models: ModelSet) -> int:
    """The most tokens of a lane: prompt, response and proposal."""
    return models.tokens + margin(max(models.steps))
