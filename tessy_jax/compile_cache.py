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
"""Settings with JAX's default and the value that keeps every program. Other values are the user's and stay."""
MOST_BYTES = 16 << 30
"""The most bytes of the user's folder at the start of a job. JAX's own limit locks the folder for every read, and before JAX
0.12 a killed process can end all writes to it."""
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
    """Turns the cache on or off. A problem with the folder turns it off and never ends the job.

    where: True for `user_folder`, a local folder, an address that JAX opens, or False for no cache. A folder that is already
    configured, for example by JAX_COMPILATION_CACHE_DIR, takes precedence over the first three. log: receives one line: the
    folder, or why there is no cache.
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
    """A writable folder; None, after a line to `log`, if there is none. The user's folder is trimmed."""
    shown = "the user's cache directory" if where is True else where
    try:
        folder = user_folder() if where is True else Path(str(where)).expanduser()
        shown = str(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError
        if where is True:
            _trim(folder, MOST_BYTES)
    except (OSError, RuntimeError, ValueError):  # also no home directory, and characters that no path has
        log(
            f"compilation cache: off, because {shown} is not writable; set compile_cache to a writable folder to save the "
            "compilation at later starts"
        )
        return None
    return shown


def _trim(folder: Path, most: int) -> None:
    """Deletes the programs whose last use is the longest ago, until the rest has at most this many bytes."""
    entries = []
    for file in folder.iterdir():
        with suppress(OSError):  # another process has deleted it
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
