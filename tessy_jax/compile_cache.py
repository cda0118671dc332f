"""JAX's persistent compilation cache, by default in the user's cache directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import jax

HITS = "/jax/compilation_cache/cache_hits"
_hits = 0


def _count(event: str, **_: str | int) -> None:
    global _hits  # noqa: PLW0603  # JAX reports cache hits only to listeners
    _hits += event == HITS


jax.monitoring.register_event_listener(_count)


def hits() -> int:
    """The number of programs that this process has loaded from the cache instead of compiling them."""
    return _hits


def user_folder() -> Path:
    """The default folder, one per user and CPU instruction set: programs for CPUs use the instructions of the machine that
    compiled them."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        instructions = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        instructions = os.uname().machine
    return base / "tessy_jax" / "programs" / hashlib.sha256(instructions.encode()).hexdigest()[:8]


def keep_programs(where: bool | str, log: Callable[[str], None]) -> None:
    """Turns the cache on. A cache that is already configured, for example by JAX_COMPILATION_CACHE_DIR, is not changed.

    where: True for `user_folder`, a local folder, or False for no cache. log: receives one line: the folder, or why there is
    no cache.
    """
    if where is False or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    folder = user_folder() if where is True else Path(where).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        log(
            f"compilation cache: off, because {folder} is not writable; set compile_cache to a writable folder to save the "
            "compilation at later starts"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    log(f"compilation cache: {folder}")
