"""The floating-point operations of a training step, and the peak of the devices; their ratio is the MFU.

The count covers the model only (Chowdhery et al. 2022, appendix B), without recomputation by rematerialisation and without
padding.
"""

from __future__ import annotations

import jax
import numpy as np
from numpy.typing import NDArray

from tessy_jax.models.config import ModelConfig
from tessy_jax.models.plan import plan

PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU7x": 2307e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}
"""Dense bfloat16 operations per second and device, as stated by the manufacturers, by part of the device's name. The first
match counts."""


def active_parameters(config: ModelConfig) -> int:
    """The number of parameters that take part in the computation of one token."""
    return int(plan(config, dtype="bfloat16", slack=0)["parameters"]["active"])


def step_flops(config: ModelConfig, active: int, lengths: NDArray[np.int64], *, frozen: bool = False) -> float:
    """The operations of a forward and backward pass over documents of these lengths. active: see `active_parameters`.
    frozen: the model's own weights get no gradient."""
    n = lengths.astype(np.float64)
    per_token = (4 if frozen else 6) * active
    latent = config.latent
    heads = config.heads * (latent.nope_dim + latent.rope_dim + latent.v_dim if latent else 2 * config.head_dim)
    pairs = sum(_attended_pairs(n, window) for window in config.windows)
    return float(per_token * n.sum() + 3 * 2 * heads * pairs)


def _attended_pairs(n: NDArray[np.float64], window: int | None) -> float:
    """The number of pairs of a query and a key that it attends to, in a causal layer. n: lengths of documents."""
    w = n if window is None else np.minimum(n, window)
    return float((w * n - w * w / 2).sum())


def peak_flops(dtype: str, devices: int) -> float | None:
    """The peak operations per second of this many devices; None if it is unknown or `dtype` is not bfloat16."""
    device = jax.devices()[0]
    if dtype != "bfloat16":
        return None
    peak = next((peak for name, peak in PEAKS.items() if name in device.device_kind), None)
    return None if peak is None else peak * devices
