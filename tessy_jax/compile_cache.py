"""JAX's persistent compilation cache, by default in the user's cache directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

KEEP_ALL = {
    "jax_persistent_cache_min_compile_time_secs": (1.0, 0.0),
    "jax_persistent_cache_min_entry_size_bytes": (0, -1),
}
"""For each setting: JAX's default, and the value that keeps every program. Any other value is the user's and is kept."""
MOST_BYTES = 16 << 30
"""The largest size of the user's folder in bytes; each start of a job enforces it. JAX's own limit is not used: it locks the
folder for every read, and before JAX 0.12 a killed process can block all later writes."""
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
    """Turns the cache on or off. If the folder cannot be used, the job runs without a cache.

    where: True for `user_folder`, a local folder, an address that JAX opens, or False for no cache. A folder that is already
    configured, for example by JAX_COMPILATION_CACHE_DIR, takes precedence over the first three. log: receives one line, the
    folder or the reason why it cannot be used; no line if the cache is disabled.
    """
    if where is False:
        jax.config.update("jax_enable_compilation_cache", False)
    if not _setting("jax_enable_compilation_cache"):
        return
    place = _setting("jax_compilation_cache_dir")
    if not place:
        place = where if isinstance(where, str) and "://" in where else _local_folder(where, log)
        if place is None:
            return
        jax.config.update("jax_compilation_cache_dir", place)
    for name, (default, ours) in KEEP_ALL.items():
        if _setting(name) == default:
            jax.config.update(name, ours)
    log(f"compilation cache: {place}")


def _local_folder(where: bool | str, log: Callable[[str], None]) -> str | None:
    """A writable folder, or None with a line to `log`. The user's folder is trimmed to `MOST_BYTES`."""
    shown = "the user's cache directory" if where is True else where
    try:
        folder = user_folder() if where is True else Path(str(where)).expanduser()
        shown = str(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError
        if where is True:
            _trim(folder, MOST_BYTES)
    except (OSError, RuntimeError, ValueError):  # includes a missing home directory and invalid characters
        log(
            f"compilation cache: off, because {shown} is not writable; set compile_cache to a writable folder to save the "
            "compilation at later starts"
        )
        return None
    return shown


def _trim(folder: Path, most: int) -> None:
    """Deletes the least recently used programs until the rest has at most this many bytes."""
    entries = []
    for file in folder.iterdir():
        with suppress(OSError):  # another process may have deleted the file
            status = file.stat()
            entries.append((max(status.st_atime, status.st_mtime), status.st_size, file))
    kept = 0
    for _, size, file in sorted(entries, reverse=True):
        kept += size
        if kept > most:
            with suppress(OSError):
                file.unlink()


def _setting(name: str) -> Any:
    return getattr(jax.config, name)
