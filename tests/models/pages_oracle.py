"""Attention to pages in NumPy, token by token, and random cases for it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tessy_jax.models.pages import Heads, stored_dtype


@dataclass(frozen=True)
class Shape:
    """The shape of a case. size: tokens per row. latent: if not 0, K is 1 and values are the first `latent` columns of the
    keys. first: rows do not see the first tokens of their lanes. shared: several rows of one lane, one after another.
    columns: C, if padded."""

    kv_heads: int = 2
    groups: int = 4
    head_dim: int = 16
    size: int = 1
    window: int | None = None
    sinks: bool = False
    latent: int = 0
    page: int = 32
    first: bool = False
    shared: bool = False
    columns: int | None = None
    dtype: str = "float32"


def case(shape, seed=0):
    """Arguments of `append_attend` with random pages and lengths."""
    rng = np.random.default_rng(seed)
    K, G, H, T = (1 if shape.latent else shape.kv_heads), shape.groups, shape.head_dim, shape.size
    width = H if shape.latent else 2 * H
    C, B, L, N = shape.columns or width, 4, 2, 640 // shape.page
    values = (0, shape.latent) if shape.latent else (H, 2 * H)
    ring = shape.window is not None or shape.first
    P = B * N + 3

    def normal(*size):
        return jnp.asarray(rng.standard_normal(size), shape.dtype)

    new = np.array(normal(B, K, T, C), np.float32)
    new[..., width:] = 0
    pages = np.array(normal(L, P, K, shape.page, C), np.float32)
    pages[..., width:] = 0
    starts = np.array([0, 37, 150, 300 if ring else 200], np.int32)
    counts = np.array([T, max(1, T - 3), T, 0 if T == 1 else min(3, T)], np.int32)
    lanes = None
    if shape.shared:  # rows 1 and 2 continue row 0 in its lane
        lanes = np.array([2, 2, 2, 0], np.int32)
        counts = np.array([T, T, max(1, T - 3), 0 if T == 1 else min(3, T)], np.int32)
        starts = np.array([37, 37 + T, 37 + 2 * T, 5], np.int32)
    N = 512 // shape.page if ring else N
    return {
        "q": normal(B, T, K, G, H),
        "new": jnp.asarray(new, shape.dtype),
        "pages": stored(jnp.asarray(pages, shape.dtype)),
        "layer": 1,
        "table": jnp.asarray(rng.permutation(P)[: B * N].reshape(B, N), jnp.int32),
        "starts": jnp.asarray(starts),
        "counts": jnp.asarray(counts),
        "heads": Heads((0, H), values, shape.window, H**-0.5, latent=bool(shape.latent)),
        "ring": ring,
        "lanes": None if lanes is None else jnp.asarray(lanes),
        "first": jnp.maximum(jnp.asarray(starts) - 100, 0) if shape.first else None,
        "sinks": normal(K, G) if shape.sinks else None,
    }


def stored(pages):
    """The pages as this platform stores them."""
    dtype = stored_dtype(pages.dtype)
    return pages if dtype == pages.dtype else jax.lax.bitcast_convert_type(pages, dtype)


def numbers(pages, dtype):
    """The numbers in pages."""
    return np.array(jax.lax.bitcast_convert_type(pages, dtype) if pages.dtype == jnp.uint16 else pages, np.float32)


def attend(*, q, new, pages, layer, table, starts, counts, heads, ring, lanes=None, first=None, sinks=None):
    """What `append_attend` returns, in float32. Outputs of invalid tokens are zero."""
    q, new, pages = np.array(q, np.float32), np.array(new, np.float32), numbers(pages, q.dtype)
    table, starts, counts = (np.array(x) for x in (table, starts, counts))
    R, T, K, G, _ = q.shape
    page, N = pages.shape[3], table.shape[1]
    out = np.zeros((R, T, K, G, heads.values[1] - heads.values[0]), np.float32)
    for r in range(R):
        table_N = table[r if lanes is None else int(lanes[r])]

        def at(place, table_N=table_N):
            number = place // page
            return layer, table_N[number % N if ring else number], slice(None), place % page

        for t in range(counts[r]):
            pages[at(starts[r] + t)] = new[r, :, t]
        for t in range(counts[r]):
            place = starts[r] + t
            oldest = 0 if first is None else int(first[r])
            if heads.window is not None:
                oldest = max(oldest, place - heads.window + 1)
            seen = np.stack([pages[at(p)] for p in range(oldest, place + 1)], axis=1)  # [K, S, C]
            for k in range(K):
                for g in range(G):
                    scores = seen[k][:, slice(*heads.keys)] @ q[r, t, k, g] * heads.scale
                    top = scores.max() if sinks is None else max(scores.max(), float(sinks[k, g]))
                    weights = np.exp(scores - top)
                    total = weights.sum() + (0 if sinks is None else np.exp(float(sinks[k, g]) - top))
                    out[r, t, k, g] = weights @ seen[k][:, slice(*heads.values)] / total
    return out, pages
