"""Loads Hugging Face folders: names, shapes and dtypes of a checkpoint to the parameters of a `Decoder`.

`WEIGHT_RULES` maps our parameter paths to checkpoint names; loading reads it forwards, `export` backwards. Tensors are read
one at a time, and only the rows (in the checkpoint's order) that a shard of this process needs.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tessy_jax.errors import CheckpointError, ConfigError
from tessy_jax.models.checkpoint import FLOATS, EverySecond, Index, Source, Stacked, Tensor, Transposed, open_checkpoint
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.hf_config import as_classifier, predicting_layers, read_config, shortened
from tessy_jax.models.labels import check_labels
from tessy_jax.models.layers import INIT_STD
from tessy_jax.models.quantized import BlockFp8, Mxfp4, fp8_block
from tessy_jax.models.tensor_names import check_complete, check_placed, with_own_names
from tessy_jax.models.transformer import Decoder, runs, stacks_to_decode
from tessy_jax.sharding import Partitioner, put

logger = logging.getLogger(__name__)

INV_FREQ = "rotary_emb.inv_freq"
SEARCHED = 1 << 22
"""The largest number of values at once that are searched for NaN and infinity. A model that has diverged has them
everywhere, and a search of all values would take as long as their reading."""
SAME, TRANSPOSED, PER_EXPERT, EVEN, ODD = "same", "transposed", "per expert", "even", "odd"


class WeightRule(NamedTuple):
    """Our path (a regular expression) → checkpoint name; form: how the checkpoint arranges the values."""

    ours: str
    theirs: str
    form: str
    families: tuple[str, ...] | None = None


LAYER = r"layers\.(\d+)\."
HF_LAYER = r"model.layers.\1."
WEIGHT_RULES = (
    WeightRule(r"embed", "model.embed_tokens.weight", SAME),
    WeightRule(r"norm\.scale", "model.norm.weight", SAME),
    WeightRule(r"head\.kernel", "lm_head.weight", TRANSPOSED),
    WeightRule(r"score\.kernel", "score.weight", TRANSPOSED),
    WeightRule(r"score\.bias", "score.bias", SAME),
    WeightRule(LAYER + r"attn_norm\.scale", HF_LAYER + "input_layernorm.weight", SAME),
    WeightRule(LAYER + r"mlp_norm\.scale", HF_LAYER + "post_attention_layernorm.weight", SAME),
    WeightRule(LAYER + r"attn\.kv_a\.kernel", HF_LAYER + "self_attn.kv_a_proj_with_mqa.weight", TRANSPOSED),
    WeightRule(LAYER + r"attn\.kv_a\.bias", HF_LAYER + "self_attn.kv_a_proj_with_mqa.bias", SAME),
    WeightRule(LAYER + r"attn\.(\w+)\.kernel", HF_LAYER + r"self_attn.\2_proj.weight", TRANSPOSED),
    WeightRule(LAYER + r"attn\.(\w+)\.bias", HF_LAYER + r"self_attn.\2_proj.bias", SAME),
    WeightRule(LAYER + r"attn\.(q_a|kv_a)_norm\.scale", HF_LAYER + r"self_attn.\2_layernorm.weight", SAME),
    WeightRule(LAYER + r"attn\.(q|k)_norm\.scale", HF_LAYER + r"self_attn.\2_norm.weight", SAME),
    WeightRule(LAYER + r"attn\.sinks", HF_LAYER + "self_attn.sinks", SAME),
    WeightRule(LAYER + r"mlp\.router\.kernel", HF_LAYER + "mlp.router.weight", TRANSPOSED, ("gpt_oss",)),
    WeightRule(LAYER + r"mlp\.router\.kernel", HF_LAYER + "mlp.gate.weight", TRANSPOSED),
    WeightRule(LAYER + r"mlp\.router\.bias", HF_LAYER + "mlp.router.bias", SAME),
    WeightRule(LAYER + r"mlp\.router\.correction", HF_LAYER + "mlp.gate.e_score_correction_bias", SAME),
    WeightRule(LAYER + r"mlp\.gate", HF_LAYER + "mlp.experts.gate_up_proj", EVEN, ("gpt_oss",)),
    WeightRule(LAYER + r"mlp\.up", HF_LAYER + "mlp.experts.gate_up_proj", ODD, ("gpt_oss",)),
    WeightRule(LAYER + r"mlp\.down", HF_LAYER + "mlp.experts.down_proj", SAME, ("gpt_oss",)),
    WeightRule(LAYER + r"mlp\.gate_bias", HF_LAYER + "mlp.experts.gate_up_proj_bias", EVEN),
    WeightRule(LAYER + r"mlp\.up_bias", HF_LAYER + "mlp.experts.gate_up_proj_bias", ODD),
    WeightRule(LAYER + r"mlp\.down_bias", HF_LAYER + "mlp.experts.down_proj_bias", SAME),
    WeightRule(LAYER + r"mlp\.(gate|up|down)", HF_LAYER + r"mlp.experts.{expert}.\2_proj.weight", PER_EXPERT),
    WeightRule(LAYER + r"mlp\.shared\.(\w+)\.kernel", HF_LAYER + r"mlp.shared_experts.\2_proj.weight", TRANSPOSED),
    WeightRule(LAYER + r"mlp\.(\w+)\.kernel", HF_LAYER + r"mlp.\2_proj.weight", TRANSPOSED),
    WeightRule(LAYER + r"mlp\.(\w+)\.bias", HF_LAYER + r"mlp.\2_proj.bias", SAME),
)


def checkpoint_name(path: str, family: str) -> tuple[str, str]:
    """The checkpoint name and the form of a parameter, e.g. `layers.0.attn.q.kernel`."""
    for rule in WEIGHT_RULES:
        match = re.fullmatch(rule.ours, path)
        if match and (rule.families is None or family in rule.families):
            return match.expand(rule.theirs), rule.form
    raise AssertionError(f"no rule for parameter {path}")


def stored_names(path: str, config: ModelConfig) -> list[str]:
    """The checkpoint names of a parameter: one, or one for each expert."""
    name, form = checkpoint_name(path, config.family)
    if form != PER_EXPERT:
        return [name]
    assert config.experts is not None
    return [name.format(expert=e) for e in range(config.experts.count)]


def parameter_paths(state: Any) -> list[tuple[tuple[Any, ...], nnx.Param]]:
    """(path, parameter) of every parameter, in a stable order."""
    return sorted(nnx.to_flat_state(state), key=lambda item: tuple(str(part).zfill(6) for part in item[0]))


def layer_paths(path: tuple[Any, ...], config: ModelConfig, stacked: bool) -> list[str]:
    """The per-layer names of a parameter: its own, or one for each layer of a stacked parameter."""
    if not stacked or path[0] != "layers":
        return [".".join(map(str, path))]
    first, count, _ = runs(config)[path[1]]
    return [".".join(map(str, ("layers", first + i, *path[2:]))) for i in range(count)]


def abstract(
    config: ModelConfig, *, dtype: Any, partitioner: Partitioner | None = None, stacked: bool | None = None
) -> Decoder:
    """The decoder with shapes instead of arrays; on a mesh the shapes have shardings. stacked: None is the form for
    decoding."""
    stacked = stacks_to_decode() if stacked is None else stacked
    decoder = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), dtype=dtype, partitioner=partitioner, stacked=stacked))
    if partitioner is None or partitioner.mesh is None:
        return decoder
    graph, state = nnx.split(decoder)
    for _, parameter in parameter_paths(state):
        sharding = partitioner.sharding(parameter.get_metadata()["axes"])
        parameter.set_value(jax.ShapeDtypeStruct(parameter.shape, parameter.dtype, sharding=sharding))
    return nnx.merge(graph, state)


def load(
    model: str | Path,
    *,
    dtype: Any = jnp.float32,
    partitioner: Partitioner | None = None,
    stacked: bool | None = None,
    classes: Sequence[str] = (),
    layers: int | None = None,
    seed: int = 0,
) -> Decoder:
    """A decoder with the weights of a Hugging Face folder or hub name, converted to dtype and placed on the partitioner's
    mesh.

    stacked: whether equal layers are stacked; None is the form for decoding. classes: replaces the head of a causal LM by a
    new token-classification head with these classes, drawn from seed; a token classifier must have these labels already.
    layers: number of layers to load, from the first (None: all). Everything is checked before the first tensor is read, so
    an error leaves nothing half-loaded.

    Raises:
        ConfigError: an unsupported config.json, or one with fewer layers.
        CheckpointError: weights are missing, damaged or unknown, or their shapes differ from the configuration's.
        ShardingError: the mesh does not divide the model.
    """
    folder = resolve(model)
    config = read_config(folder)
    partitioner = partitioner or Partitioner()
    if layers is not None:
        if layers > config.layers:
            raise ConfigError(f"{folder}: has {config.layers} layers, fewer than {layers}; ask for at most {config.layers}")
        config = shortened(config, layers)
    if classes and config.labels is None:
        config = as_classifier(config, classes)
    elif classes:
        check_labels(config, classes, folder)
    decoder = abstract(config, dtype=dtype, partitioner=partitioner, stacked=stacked)
    sources = match_checkpoint(folder, config, decoder)
    graph, state = nnx.split(decoder)
    for path, parameter in parameter_paths(state):
        if path in sources:
            name = checkpoint_name(layer_paths(path, config, decoder.stacked)[0], config.family)[0]
            value = _place(sources[path], parameter, partitioner, f"{folder}: tensor {name}")
        else:  # a new head
            drawn = INIT_STD * jax.random.normal(jax.random.key(seed), parameter.shape)
            value = put(
                (0 * drawn if path[-1] == "bias" else drawn).astype(dtype), partitioner, parameter.get_metadata()["axes"]
            )
        parameter.set_value(value)
    return nnx.merge(graph, state)


def match_checkpoint(folder: Path, config: ModelConfig, decoder: Decoder) -> dict[tuple[Any, ...], Source]:
    """The source of every parameter except those of a new head, with completeness and shapes checked."""
    tensors = with_own_names(open_checkpoint(folder), tied=config.tied)
    if config.tied:
        _check_tie(tensors)
    _compare_rotation(tensors, config)
    own = read_config(folder)
    find = _TensorReader(folder, tensors, config, own.layers)
    sources: dict[tuple[Any, ...], Source] = {}
    new_head = config.labels is not None and own.labels is None
    stored = [item for item in parameter_paths(nnx.state(decoder)) if not (new_head and item[0][0] == "score")]
    expected_names = [
        name
        for path, _ in stored
        for own_name in layer_paths(path, config, decoder.stacked)
        for name in stored_names(own_name, config)
    ]
    check_complete(folder, tensors, expected_names, find.ignorable)
    for path, parameter in stored:
        names = layer_paths(path, config, decoder.stacked)
        parts = [find(name) for name in names]
        stacked = decoder.stacked and path[0] == "layers"
        expected = tuple(parameter.shape[1:] if stacked else parameter.shape)
        for part, name in zip(parts, names, strict=True):
            if part.shape != expected:
                tensor = checkpoint_name(name, config.family)[0]
                raise CheckpointError(
                    f"{folder}: tensor {tensor} gives shape {part.shape}, config.json requires {expected}; "
                    "config.json and weights are not of the same model; fetch both again"
                )
        sources[path] = Stacked(tuple(parts)) if stacked else parts[0]
    unused = sorted(name for name in tensors if name not in find.used)
    check_placed([name for name in unused if not find.ignorable(name)], tensors)
    predicting = [name for name in unused if own.layers <= find.layer(name)]
    if predicting:
        logger.warning("%s: %d tensors of multi-token prediction are ignored, as in transformers", folder, len(predicting))
    return sources


def _check_tie(tensors: Mapping[str, Tensor]) -> None:
    """A tied model may also store its head, if it equals the embedding."""
    head, embed = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if head is None or embed is None:
        return
    everything = (slice(None), slice(None))
    if head.shape != embed.shape or not np.array_equal(head.read(everything), embed.read(everything)):
        raise CheckpointError(
            f"{head.file}: tensor lm_head.weight differs from model.embed_tokens.weight, but config.json ties them; set "
            "tie_word_embeddings to false in config.json"
        )


def _compare_rotation(tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Older checkpoints store rotary frequencies. They are ignored, as in transformers, with a warning if config.json gives
    others."""
    rope = config.rope
    for name, tensor in tensors.items():
        if not name.endswith(INV_FREQ) or rope.kind != "default" or 0 in tensor.shape:
            continue
        stored = tensor.read((slice(None),) * len(tensor.shape)).astype(np.float64).ravel()
        expected = rope.theta ** (-np.arange(0, rope.dim, 2) / rope.dim)
        if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=0.02, atol=1e-6):  # it may be rounded
            logger.warning(
                "%s: tensor %s has %d frequencies from %.3g to %.3g, and rope_theta %g of config.json, which counts, as in "
                "transformers, gives %d from 1 to %.3g; correct rope_theta if it is wrong",
                *(tensor.file, name, stored.size, stored[0], stored[-1], rope.theta, expected.size, expected[-1]),
            )
            return


class _TensorReader:
    """Maps a parameter's name to its source in a checkpoint with `layers` layers; remembers the tensors that were used."""

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor], config: ModelConfig, layers: int) -> None:
        self.folder, self.tensors, self.config, self.layers = folder, tensors, config, layers
        self.used: set[str] = set()
        raw = json.loads(config.raw)
        self.predicting_layers = predicting_layers(raw)
        self.block = fp8_block(raw)

    def __call__(self, path: str) -> Source:
        name, form = checkpoint_name(path, self.config.family)
        if form == PER_EXPERT:
            return Stacked(tuple(Transposed(self.matrix(name)) for name in stored_names(path, self.config)))
        if f"{name}_blocks" in self.tensors:
            packed = Mxfp4(self.tensor(f"{name}_blocks"), self.tensor(f"{name}_scales"))
            packed.check()
            return packed if form == SAME else EverySecond(packed, int(form == ODD))
        if form == TRANSPOSED:
            return Transposed(self.matrix(name))
        source = self.plain(name)
        return source if form == SAME else EverySecond(source, int(form == ODD))

    def tensor(self, name: str) -> Tensor:
        """A tensor of the checkpoint, of any dtype."""
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.folder}: tensor {name} is missing, so the weights are incomplete; fetch the folder again"
            )
        self.used.add(name)
        return self.tensors[name]

    def plain(self, name: str) -> Tensor:
        """A tensor of floats. Integers and float8 without scales are an unknown quantisation."""
        tensor = self.tensor(name)
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{tensor.file}: tensor {name} has dtype {tensor.dtype}, expected a float; save the model dequantised"
            )
        return tensor

    def matrix(self, name: str) -> Source:
        """A weight matrix, dequantised where it is block FP8."""
        tensor = self.tensor(name)
        if len(tensor.shape) != 2:
            raise CheckpointError(f"{tensor.file}: tensor {name} has shape {tensor.shape}, expected a matrix")
        if tensor.dtype != "F8_E4M3":
            return self.plain(name)
        if f"{name}_scale_inv" not in self.tensors:
            raise CheckpointError(
                f"{tensor.file}: tensor {name} is in FP8 without a tensor {name}_scale_inv of its factors, so in a form "
                "that is not supported; save the model dequantised"
            )
        source = BlockFp8(tensor, self.tensor(f"{name}_scale_inv"), self.block)
        source.check()
        return source

    @staticmethod
    def layer(name: str) -> int:
        """The layer number of a tensor; -1 outside the layers."""
        match = re.match(r"model\.layers\.(\d+)\.", name)
        return int(match[1]) if match else -1

    def ignorable(self, name: str) -> bool:
        """Whether a tensor needs no parameter: as in transformers, rotary tables, a tied or replaced head, and DeepSeek's
        multi-token prediction; also layers that are not requested."""
        if self.config.layers <= self.layer(name) < self.layers + self.predicting_layers:
            return True
        no_head = self.config.tied or self.config.labels is not None
        return name.endswith(INV_FREQ) or (name == "lm_head.weight" and no_head)


def _place(source: Source, parameter: nnx.Param, partitioner: Partitioner, name: str) -> jax.Array:
    """The values on the mesh. name: named in the message.

    Raises:
        CheckpointError: a small parameter has values that are not numbers.
    """
    shape, dtype = tuple(parameter.shape), np.dtype(parameter.dtype)
    sharding = partitioner.sharding(parameter.get_metadata()["axes"])

    def read(index: Index) -> np.ndarray:
        values = np.ascontiguousarray(source.read(index)).astype(dtype, copy=False)
        if values.size <= SEARCHED and not np.isfinite(values).all():
            raise CheckpointError(
                f"{name} (or the same of another layer) has values that are NaN or infinite as {dtype}; the model has "
                "diverged in its training, or the file is damaged; give other weights"
            )
        return values

    if sharding is None:
        return jnp.asarray(read((slice(None),) * len(shape)))
    shards: dict[str, np.ndarray] = {}  # replicas share one read

    def shard(index: Index | None) -> np.ndarray:
        assert index is not None
        if str(index) not in shards:
            shards[str(index)] = read(index)
        return shards[str(index)]

    return jax.make_array_from_callback(shape, sharding, shard, dtype=dtype)


def resolve(
    model: str | Path, fetch: Callable[..., str] | None = None, weights: bool = True, revision: str | None = None
) -> Path:
    """The folder of a model: a local path unchanged, or a hub name downloaded into the hub's cache.

    weights=False fetches only the small files. fetch: default `huggingface_hub.snapshot_download`. revision: branch, tag or
    commit on the hub.

    Raises:
        ConfigError: the folder does not exist, and the hub has no such model or is unreachable.
    """
    path = Path(model).expanduser()
    if path.is_dir() or path.suffix == ".json":
        return path
    name = str(model)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ConfigError(f"{name}: no such folder; give a Hugging Face model folder or a hub name like Qwen/Qwen3-8B")
    if fetch is None:
        from huggingface_hub import snapshot_download

        fetch = snapshot_download
    patterns = ["*.json", "*.jinja", "*.txt", "tokenizer.model"] + (["*.safetensors"] if weights else [])
    try:
        # subfolders hold other formats
        return Path(fetch(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except Exception as error:  # the hub client and its transport raise many types
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"{name}: no such folder, and the hub raised {type(error).__name__} ({reason[0] if reason else ''}); check the "
            "name and the network, or give a local folder"
        ) from error
