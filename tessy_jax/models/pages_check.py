"""Whether a kernel of attention to pages agrees with plain XLA on the device at hand.

The installed runtime or driver compiles the kernels, and the project's tests do not cover every version. Each kernel is
therefore checked before its first use: once per shape, it computes a small random case, which plain XLA computes as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from tessy_jax.models.pages import Heads

logger = logging.getLogger(__name__)

TOLERANCE = 0.05  # values are about 1; the weights of the tokens are rounded to 16 bits
LONGEST = 4096  # the most tokens of a window that the check fills; its longest lane has about a page more

Attend = Callable[..., tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Case:
    """What a kernel is compiled for. The sizes T, K, G, H, page and C are those of `append_attend`."""

    body: str
    times: int
    kv_heads: int
    groups: int
    head_dim: int
    columns: int
    page: int
    dtype: jnp.dtype[Any]
    heads: Heads
    ring: bool
    sinks: bool

    def __str__(self) -> str:
        of = f"{self.kv_heads} key/value heads, {self.groups} queries per head, head dim {self.head_dim}"
        window = "no window" if self.heads.window is None else f"window {self.heads.window}"
        return f"{of}, {window}, {self.times} tokens per row, pages of {self.page} tokens in {self.dtype}"


def agrees(case: Case, append_attend: Attend, interpret: Any = False) -> bool:
    """Whether the kernel agrees with plain XLA. If not, a warning names the kernel and the shape, once.

    This also works while a program is traced: the case is computed in another thread, which traces nothing.
    """
    return _agrees(case, append_attend, interpret)


@cache
def _agrees(case: Case, append_attend: Attend, interpret: Any) -> bool:
    with ThreadPoolExecutor(1) as pool:
        fault = pool.submit(_fault, case, append_attend, interpret).result()
    if fault:
        logger.warning(
            "the %s kernel of attention to pages is not used for %s: %s; plain XLA runs instead, which is slower. Please "
            "report this with the device (%s) and the version of jaxlib (%s)",
            case.body,
            case,
            fault,
            jax.local_devices()[0].device_kind,
            version("jaxlib"),
        )
    return not fault


def _fault(case: Case, append_attend: Attend, interpret: Any) -> str:
    """What is wrong with the kernel, or ""."""
    arrays, counts = _arrays(case)
    rest = {"heads": case.heads, "ring": case.ring, "layer": 1}
    expected, pages = jax.jit(partial(append_attend, body="xla", **rest))(**arrays)
    try:
        out, new = jax.jit(partial(append_attend, body=case.body, interpret=interpret, **rest))(**arrays)
        out, new = np.asarray(out, np.float32), np.asarray(new[1], np.float32)
    except Exception as error:  # the compiler's and the device's errors have no common class
        return f"it fails ({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__})"
    valid = np.arange(case.times) < counts[:, None]
    differs = np.abs(out[valid] - np.asarray(expected, np.float32)[valid]).max()
    if not differs <= TOLERANCE:
        return f"its results differ by up to {differs:.2g} from those of plain XLA"
    if not np.array_equal(new, np.asarray(pages[1], np.float32), equal_nan=True):
        return "it writes other keys and values than plain XLA"
    return ""


def _arrays(case: Case) -> tuple[dict[str, jax.Array], np.ndarray]:
    """Three rows, each of one lane: after nothing, after a part of a page, and after more than the window. Pages hold NaN
    where nothing was written. Scores are far apart, so that single tokens decide."""
    rng = np.random.default_rng(0)
    T, K, page, C = case.times, case.kv_heads, case.page, case.columns
    starts = np.array([0, page // 2 + 1, min(case.heads.window or 0, LONGEST) + page + 3], np.int32)
    counts = np.array([T, max(1, T - 1), T], np.int32)
    B, N = len(starts), -(-int(starts.max() + T) // page) + 1
    table = rng.permutation(B * N).astype(np.int32).reshape(B, N)
    used = max(case.heads.keys[1], case.heads.values[1])

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    pages = np.full((2, B * N, K, page, C), np.nan, np.float32)
    for lane, start in enumerate(starts):
        places = np.arange(start)
        pages[1, table[lane, places // page], :, places % page, :used] = normal(start, K, used)
        pages[1, table[lane, places // page], :, places % page, used:] = 0
    new = normal(B, K, T, C)
    new[..., used:] = 0
    arrays = {
        "q": 4 * normal(B, T, K, case.groups, case.head_dim),
        "new": new,
        "pages": pages,
    }
    placed = {name: jnp.asarray(x, case.dtype) for name, x in arrays.items()}
    if case.sinks:
        placed["sinks"] = jnp.asarray(normal(K, case.groups))
    return placed | {"table": jnp.asarray(table), "starts": jnp.asarray(starts), "counts": jnp.asarray(counts)}, counts
