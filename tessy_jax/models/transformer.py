"""The decoder: one definition of a layer, run in two forms.

`stacked=False` keeps parameters per layer and unrolls the layers.
`stacked=True` keeps equal layers as one block whose parameters have a leading layer axis, and scans over it, so that compile
time does not grow with depth. Both compute the same function. Training always stacks layers; decoding does so only on TPUs.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.backend import backend
from tessy_jax.models.attention import Attention, AttentionContext, LatentAttention
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.layers import Linear, Mlp, RMSNorm, matmul, rope_cos_sin, weight
from tessy_jax.models.moe import Moe
from tessy_jax.models.pages import LayerPages, PagedKV, Rows
from tessy_jax.sharding import Partitioner

REMAT: dict[str, Any] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""Checkpoint policies: a scanned layer saves everything, its matrix products, or only its input for the gradient."""

FULL_ATTENTION = 1 << 30  # a window longer than any sequence, for full attention in a scan over different windows


class Block(nnx.Module):
    """One layer: attention and feed-forward, each after a norm and with a residual connection."""

    def __init__(self, config: ModelConfig, sparse: bool, partitioner: Partitioner, rngs: nnx.Rngs, dtype: Any) -> None:
        attention = LatentAttention if config.latent else Attention
        self.attn_norm = RMSNorm(config.embed, config.eps, dtype)
        self.attn = attention(config, partitioner, rngs, dtype)
        self.mlp_norm = RMSNorm(config.embed, config.eps, dtype)
        self.mlp = Moe(config, partitioner, rngs, dtype) if sparse else Mlp(config, config.ffn, partitioner, rngs, dtype)
        self.partitioner = partitioner

    def __call__(
        self,
        x_BTD: jax.Array,
        context: AttentionContext,
        window: int | jax.Array | None,
        cache: PagedKV | None = None,
        layer: LayerPages | None = None,
    ) -> tuple[jax.Array, PagedKV | None]:
        y, cache = self.attn(self.attn_norm(x_BTD), context, window, cache, layer)
        x_BTD = self.partitioner.constrain(x_BTD + y, "lanes", None, None)
        x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return self.partitioner.constrain(x_BTD, "lanes", None, None), cache


class Decoder(nnx.Module):
    """A decoder-only transformer with a causal-LM or a token-classification head.

    rngs seeds random parameters, which `hf.load` replaces by those of a checkpoint. dtype applies to parameters and
    activations.

    Raises:
        ShardingError: the mesh does not divide a dimension.
    """

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        *,
        dtype: Any = jnp.float32,
        partitioner: Partitioner | None = None,
        stacked: bool = False,
    ) -> None:
        partitioner = partitioner or Partitioner()
        check_layout(config, partitioner)
        self.embed = weight(rngs, (config.vocab, config.embed), ("vocab", "embed"), dtype)
        if stacked:
            blocks = [_stacked_block(config, sparse, count, partitioner, rngs, dtype) for _, count, sparse in runs(config)]
        else:
            blocks = [Block(config, sparse, partitioner, rngs, dtype) for sparse in config.sparse]
        self.layers = nnx.List(blocks)
        self.norm = RMSNorm(config.embed, config.eps, dtype)
        if config.labels is not None:
            self.score = Linear(rngs, (config.embed, config.labels), ("embed", None), dtype, bias=True)
        elif not config.tied:
            self.head = Linear(rngs, (config.embed, config.vocab), ("embed", "vocab"), dtype)
        self.config = config
        self.partitioner = partitioner
        self.stacked = stacked

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        segments_BT: jax.Array | None = None,
        cache: PagedKV | None = None,
        rows: Rows | None = None,
        remat: str = "none",
    ) -> tuple[jax.Array, PagedKV | None]:
        """Hidden states [B, T, D] after the last norm, and the cache including these tokens.

        Without a cache, `segments_BT` numbers the documents packed into a row from 1 (0 is padding; default: one document);
        attention and positions stay within a document. With a cache, `rows` says where the tokens go; if they are packed,
        tokens are [D, u], and hidden states have one axis more. remat: a key of REMAT, for the gradient of stacked layers.
        """
        config, packing = self.config, None if rows is None else rows.packing
        if rows is None:
            segments_BT = jnp.ones(tokens_BT.shape, jnp.int32) if segments_BT is None else segments_BT
            positions_BT = segment_positions(segments_BT)
        else:
            positions_BT = rows.positions(tokens_BT.shape[1] if packing is None else packing.index_RT.shape[1])
        rope = rope_cos_sin(config.rope, positions_BT if packing is None else packing.pack(positions_BT))
        context = AttentionContext(positions_BT, rope, segments_BT, rows)

        table_VD = self.embed[...]
        if cache is None:  # gather complete rows once, instead of each token's row in pieces
            table_VD = self.partitioner.constrain(table_VD, "vocab", None)
        x_BTD = jnp.take(table_VD, tokens_BT, axis=0)
        x_BTD = self.partitioner.constrain(x_BTD, "lanes", None, None)
        if not self.stacked:
            for i, block in enumerate(self.layers):
                x_BTD, cache = block(x_BTD, context, config.windows[i], cache, None if cache is None else cache.layers[i])
            return self.norm(x_BTD), cache

        for (first, count, _), block in zip(runs(config), self.layers, strict=True):
            windows = config.windows[first : first + count]
            if cache is None:
                x_BTD = _scan(block, x_BTD, context, windows, REMAT[remat])
            else:
                x_BTD, cache = _scan_cached(block, x_BTD, context, windows, cache, cache.layers[first : first + count])
        return self.norm(x_BTD), cache

    @jax.named_scope("logits")
    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Logits in float32: [B, T, V] of a causal LM, [B, T, C] of a token classifier."""
        if self.config.labels is not None:
            return self.score(hidden_BTD).astype(jnp.float32)
        kernel, contract = (self.embed[...], 1) if self.config.tied else (self.head.kernel[...], 0)
        logits_BTV = matmul(hidden_BTD, kernel, contract, dtype=jnp.float32)
        return self.partitioner.constrain(logits_BTV, "lanes", None, "vocab")


def check_layout(config: ModelConfig, partitioner: Partitioner) -> None:
    """Raises ShardingError if the mesh does not divide the model."""
    partitioner.check(
        {"heads": (config.heads, "num_attention_heads"), "vocab": (config.vocab, "vocab_size")}
        | {"embed": (config.embed, "hidden_size")}
    )
    if config.latent is None:
        partitioner.check({"kv_heads": (config.kv_heads, "num_key_value_heads")})
    if not all(config.sparse):
        partitioner.check({"ffn": (config.ffn, "intermediate_size")})
    if config.experts:
        partitioner.check({"experts": (config.experts.count, "the number of experts")})
        partitioner.check({"ffn": (config.experts.ffn, "the experts' intermediate size")})
        partitioner.check({"ffn": (config.experts.shared_ffn, "the shared experts' intermediate size")})


def segment_positions(segments_BT: jax.Array) -> jax.Array:
    """Positions [B, T] that start at 0 in every run of equal segment numbers."""
    index = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
    starts = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def runs(config: ModelConfig) -> list[tuple[int, int, bool]]:
    """Runs of consecutive layers whose parameters have equal shapes, as (first layer, count, sparse)."""
    result, first = [], 0
    for sparse, group in groupby(config.sparse):
        count = len(list(group))
        result.append((first, count, sparse))
        first += count
    return result


def stacks_to_decode() -> bool:
    """Whether decoding on the current platform uses stacked layers. On TPUs, a layer's parameters are read in place from the
    stack; on other platforms, they would be copied."""
    return backend().platform == "tpu"


def _scan(
    block: Block, x_BTD: jax.Array, context: AttentionContext, windows: tuple[int | None, ...], policy: Any
) -> jax.Array:
    graph, state = nnx.split(block)
    same = len(set(windows)) == 1
    window_L = None if same else jnp.asarray([FULL_ATTENTION if w is None else w for w in windows], jnp.int32)

    def body(x: jax.Array, layer: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
        params, window = layer
        y, _ = nnx.merge(graph, params)(x, context, windows[0] if same else window)
        return y, None

    layer = body if policy is None else jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(layer, x_BTD, (state, window_L))[0]


def _scan_cached(
    block: Block,
    x_BTD: jax.Array,
    context: AttentionContext,
    windows: tuple[int | None, ...],
    cache: PagedKV,
    layers: tuple[LayerPages, ...],
) -> tuple[jax.Array, PagedKV]:
    """Runs stacked layers with a cache. Each iteration runs one period of layers (see `period`), because a layer's window
    must be static. A layer's parameters are read in place from the stack."""
    graph, state = nnx.split(block)
    size = period(windows)
    whole, rest = divmod(len(windows), size)

    def body(n: int | jax.Array, carry: tuple[jax.Array, PagedKV], count: int = size) -> tuple[jax.Array, PagedKV]:
        x, kv = carry
        for i in range(count):
            params = jax.tree.map(partial(jax.lax.dynamic_index_in_dim, index=n * size + i, keepdims=False), state)
            kind, number = layers[i]
            each = layers[size + i].number - number if size + i < len(layers) else 0
            x, new = nnx.merge(graph, params)(x, context, windows[i], kv, LayerPages(kind, number + n * each))
            assert new is not None
            kv = new
        return x, kv

    with jax.named_scope(f"layers_x{whole}"):  # `plan` reads the number of iterations
        carry = jax.lax.fori_loop(0, whole, body, (x_BTD, cache))
    return body(whole, carry, rest)


def period(windows: tuple[int | None, ...]) -> int:
    """The smallest number of layers after which windows repeat."""
    return next(n for n in range(1, len(windows) + 1) if windows[n:] == windows[:-n])


def _stacked_block(
    config: ModelConfig, sparse: bool, count: int, partitioner: Partitioner, rngs: nnx.Rngs, dtype: Any
) -> Block:
    def init(key: jax.Array) -> Any:
        return nnx.state(Block(config, sparse, partitioner, nnx.Rngs(params=key), dtype))

    state = jax.vmap(init)(jax.random.split(rngs.params(), count))
    block = nnx.eval_shape(lambda: Block(config, sparse, partitioner, nnx.Rngs(0), dtype))
    nnx.update(block, state)
    for _, variable in nnx.iter_graph(block):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(axes=("layers", *variable.get_metadata()["axes"]))
    return block
