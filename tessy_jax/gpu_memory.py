"""The share of a GPU's memory that jobs allocate and plans assume. This module does not import JAX."""

from __future__ import annotations

import os

GPU_MEMORY_SHARE = 0.95
"""JAX's default is 0.75. The rest is for CUDA, its libraries and collectives."""
VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""The environment variables that set the share. The second is deprecated; JAX refuses both together."""


def claim_gpu_memory() -> None:
    """Lets JAX allocate `GPU_MEMORY_SHARE` of each GPU, unless the user has set a share. Call it before the first use of a
    device."""
    if not any(os.environ.get(name) for name in VARIABLES):
        os.environ[VARIABLES[0]] = str(GPU_MEMORY_SHARE)
