"""The programs of a job: the functions that the job runs, with shapes instead of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tessy_jax.config import Evaluate, Pipeline, Synthesize, Train
from tessy_jax.decode.engine import Engine
from tessy_jax.evaluate.job import synthesis_config as rollouts_config
from tessy_jax.models import hf
from tessy_jax.models.layers import LoraParam
from tessy_jax.pipeline import evaluation_config, synthesis_config, training_config
from tessy_jax.plan.models import PlannedModels, Published
from tessy_jax.program import Program
from tessy_jax.sharding import Partitioner, put, zeros
from tessy_jax.store.job_folder import BEFORE_STAGE, JobFolder
from tessy_jax.text.host_bridge import HostBridge
from tessy_jax.train.examples import KINDS
from tessy_jax.train.fit import check_rows
from tessy_jax.train.lora import add_lora
from tessy_jax.train.optimizer import build
from tessy_jax.train.pack import Batch
from tessy_jax.train.step import State, jit_step

SHORT = 8192  # tokens of a shorter lane, for which reports also show how many lanes fit
PROGRAMS = ("loop", "fill", "train", "evaluate")
"""loop: the decode loop of a synthesis. fill: the prefill of each model. train: a training step. evaluate: the decode loop
of an evaluation."""


@dataclass(frozen=True)
class Planned:
    """A program to compile, and facts for its report. All bytes are bytes on one device.

    rows: number of lanes, or of rows of a batch; a multiple of `multiple`. tokens: of each lane or row. row_bytes: bytes
    that one more lane or row adds to the arguments, by its tokens; empty for a prefill, because the decode loop limits the
    lanes.
    cache_bytes: the smallest array of a layer's cache; 0 for a training step. weight_bytes: the largest weight of a layer.
    Reports show copies of at least the smaller of these two sizes. parts: bytes of the program's arguments by part.
    lanes_key: configuration key of the number of lanes; empty for a training step. pool_key: key of the
    size of the caches, if it depends on the lanes (`auto`). writers: the name of each side; empty for
    a training step. hears: whether the predictor of each side reads the other side's tokens. host_text: writers whose
    tokenizer runs in a host callback.
    """

    name: str
    program: Program
    rows: int
    tokens: int
    row_bytes: dict[int, int]
    cache_bytes: int
    weight_bytes: int
    parts: dict[str, int]
    multiple: int
    lanes_key: str = ""
    pool_key: str = ""
    writers: tuple[str, ...] = ()
    hears: tuple[bool, ...] = ()
    host_text: tuple[str, ...] = ()


def planned(config: Any, names: tuple[str, ...], partitioner: Partitioner, published: Published) -> Iterator[Planned]:
    """The programs of a configuration with these names. Names that the configuration lacks are ignored.

    Raises:
        TessyError: a model or tokenizer cannot be read or is refused, or the mesh does not divide the sizes of a model.
    """
    if {"loop", "fill"} & set(names) and (synthesis := _synthesis(config)) is not None:
        yield from _decode(synthesis, [n for n in names if n in ("loop", "fill")], partitioner, published)
    if "train" in names and (training := _training(config)) is not None:
        yield _train(training, partitioner, published)
    if "evaluate" in names and (evaluation := _evaluation(config)) is not None:
        key = "evaluation.synthesis.lanes" if isinstance(config, Pipeline) else "synthesis.lanes"
        yield from _decode(rollouts_config(evaluation), ["evaluate"], partitioner, published, key)


def programs_of(config: Any) -> tuple[str, ...]:
    """The names of the programs of a configuration; empty for kinds that `tessy plan` does not support."""
    if isinstance(config, Pipeline):
        return PROGRAMS
    of_kind: dict[Any, tuple[str, ...]] = {Synthesize: ("loop", "fill"), Train: ("train",), Evaluate: ("evaluate",)}
    return of_kind.get(type(config), ())


def _decode(
    config: Synthesize, names: list[str], partitioner: Partitioner, published: Published, lanes_key: str = "synthesis.lanes"
) -> Iterator[Planned]:
    models = PlannedModels(config, partitioner, published)
    engine = models.engine()
    facts: dict[str, Any] = {
        "rows": engine.size,
        "tokens": min(models.tokens, engine.pool // engine.size),
        "cache_bytes": min(
            _device_bytes(x) // x.shape[0] for cache in engine.lanes.caches for x in cache.kv.pages if x.size
        ),
        "weight_bytes": min(_layer_weight(model) for model in engine.weights.writers),
        "multiple": partitioner.num_shards("lanes"),
        "lanes_key": lanes_key,
        "pool_key": lanes_key.replace("lanes", "cache_tokens") if config.synthesis.lanes == "auto" else "",
        "writers": models.names,
        "hears": tuple(v is not None and v != m for m, v in enumerate(models.loop_config.predictor_reads)),
    }
    weights = [(f"{v.name}'s weights", _bytes_of(w)) for v, w in zip(models.writers, engine.weights.writers, strict=True)]
    for name in names:
        if name == "fill":
            for m, writer in enumerate(models.writers):
                known = engine.lanes.tokens.ids_MBS, engine.lanes.tokens.known_MB
                parts = dict([weights[m], ("caches", _bytes_of((engine.lanes.caches[m], known)))])
                yield Planned(f"fill {writer.name}", engine.prefill(m), row_bytes={}, parts=parts, **facts)
        else:
            parts = dict(weights) | {
                "predictors' weights": _bytes_of(engine.weights.predictors),
                "caches": _bytes_of(engine.lanes),
            }
            row_bytes = {facts["tokens"]: _lane_bytes(engine)}
            if facts["tokens"] > SHORT:
                row_bytes = {SHORT: _lane_bytes(models.engine(pool=SHORT * engine.size))} | row_bytes
            host = [v.name for v, b in zip(models.writers, models.bridges, strict=True) if isinstance(b, HostBridge)]
            yield Planned(name, engine.loop(), row_bytes=row_bytes, parts=parts, **facts, host_text=tuple(host))


def _lane_bytes(engine: Engine) -> int:
    """Bytes that a lane adds to each device."""
    return sum(_device_bytes(x) for x in jax.tree.leaves(engine.lanes) if x.ndim) // engine.size


def _train(config: Train, partitioner: Partitioner, published: Published) -> Planned:
    training = config.training
    rows = check_rows(partitioner, training)
    shape = published.shape(published.resolve(config.student.model))
    dtype = training.dtype if config.lora else training.weights_dtype
    model = hf.abstract(shape, dtype=dtype, partitioner=partitioner, stacked=True)
    if config.lora:
        add_lora(model, config.lora, config.seed)
    graph, params, frozen = nnx.split(model, LoraParam if config.lora else nnx.Param, ...)
    optimizer = build(config.optimizer, training.steps or 1000)
    state = State(params, _optimizer_state(optimizer, params, partitioner), put(np.int32(0), partitioner, ()))
    number = training.batch_size // rows
    part = [
        zeros((number, rows, training.max_seq_len), dtype, partitioner, (None, "lanes", None))
        for dtype in (jnp.int32, jnp.int32, jnp.int32, jnp.uint8)
    ]
    weights_C = put(np.zeros(len(KINDS), np.float32), partitioner, (None,))
    step = jit_step(graph, optimizer, training, state, partitioner.sharding(()))
    return Planned(
        name="train",
        program=Program("train", step, (state, frozen, Batch(*part), weights_C)),
        rows=rows,
        tokens=training.max_seq_len,
        row_bytes={training.max_seq_len: 0},  # a batch is small
        cache_bytes=0,
        weight_bytes=_layer_weight(nnx.state(model)),
        parts={
            "weights": _bytes_of(params) + _bytes_of(frozen),
            "optimizer": _bytes_of(state.optimizer),
        },
        multiple=partitioner.num_shards("lanes"),
    )


def _optimizer_state(optimizer: optax.GradientTransformation, params: Any, partitioner: Partitioner) -> Any:
    """The shapes of an optimizer's state. Arrays of parameters are sharded like these; others are replicated."""

    def like(x: Any, parameter: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parameter.sharding)

    def replicated(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=partitioner.sharding((None,) * len(x.shape)))

    state = jax.eval_shape(optimizer.init, params)
    return optax.tree.map_params(optimizer, like, state, params, transform_non_params=replicated)


def _synthesis(config: Any) -> Synthesize | None:
    if isinstance(config, Pipeline):
        missing: dict[Any, Any] = dict.fromkeys(
            config.missing, "" if config.predictors is None else config.predictors.predictor.backbone
        )
        return synthesis_config(config, 1, config.student.model, config.boundary.model_copy(update=missing))
    return config if isinstance(config, Synthesize) else None


def _training(config: Any) -> Train | None:
    if isinstance(config, Pipeline):
        return training_config(config, 1, config.student.model)
    return config if isinstance(config, Train) else None


def _evaluation(config: Any) -> Evaluate | None:
    if isinstance(config, Pipeline):
        return evaluation_config(config, BEFORE_STAGE, JobFolder(config.output).before, config.student.model)
    return config if isinstance(config, Evaluate) else None


def _device_bytes(x: Any) -> int:
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize


def _bytes_of(tree: Any) -> int:
    return sum(_device_bytes(x) for x in jax.tree.leaves(tree))


def _layer_weight(model: Any) -> int:
    """Bytes on one device of a layer's largest weight."""
    sizes = []
    for path, parameter in hf.parameter_paths(model):
        if path[0] == "layers":
            stacked = parameter.shape[0] if parameter.get_metadata()["axes"][0] == "layers" else 1
            sizes.append(_device_bytes(parameter.get_value()) // stacked)
    return max(sizes)
