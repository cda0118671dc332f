"""Eight virtual CPU devices, a compile cache, and the shared material."""

import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
LONGEST = ("test_loop.py", "test_parity.py", "test_counts.py", "test_compare.py", "test_fused.py", "test_pipeline.py")
LONGEST += ("test_small_pair.py", "test_real_training.py")
QUICK = " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICK += " --xla_disable_hlo_passes=while-loop-invariant-code-motion,simplify-while-loops"
if version("jaxlib").startswith("0.10."):  # the emitters that compile faster; JAX 0.12 refuses the flag
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))  # also for child processes

import jax  # noqa: E402
import pytest  # noqa: E402

from tests import tiers  # noqa: E402

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_configure(config: pytest.Config) -> None:
    """Compiles without optimization where heavy tests are left out: most tests compile much and compute little."""
    chosen = config.getoption("markexpr")
    if "not slow" in chosen or "not heavy" in chosen:
        os.environ["XLA_FLAGS"] += QUICK


def compiling() -> str:
    """XLA flags of this process, for child processes that must write the same."""
    return QUICK if QUICK in os.environ["XLA_FLAGS"] else ""


@pytest.hookimpl(tryfirst=True)  # before the markers select
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Adds the markers of `tests/tiers.py`, and starts the longest tests first, so that no process waits at the end."""
    for item in items:
        by_hand = item.nodeid.startswith(tiers.BY_HAND)
        if by_hand or item.nodeid.startswith(tiers.SLOW):
            item.add_marker("slow")
        if by_hand:
            item.add_marker("by_hand")
    if config.args == config.getini("testpaths"):
        stale = tiers.stale([item.nodeid for item in items])
        if stale:
            raise pytest.UsageError(f"tests/tiers.py names tests that do not exist: {', '.join(stale)}; correct the entries")
    items.sort(key=lambda item: item.path.name not in LONGEST)


def _skip(reason: str) -> None:
    if os.environ.get("TESSY_REQUIRE_SHARED") == "1":
        pytest.fail(f"TESSY_REQUIRE_SHARED=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material (real prompts, tokenizers, the unpacker of real models)."""
    folder = Path(os.environ.get("TESSY_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        _skip(f"the shared folder {folder} is absent; set TESSY_SHARED")
    return folder


@pytest.fixture(scope="session")
def real_models(shared: Path) -> Path:
    """The folder that holds the two real models, unpacked once, by one of several processes."""
    import fcntl
    import subprocess
    import sys

    folder = Path(os.environ.get("TESSY_REAL_MODELS", ROOT / ".cache" / "real_models"))
    script = shared / "real_models" / "prepare.py"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((folder / name / "tokenizer.json").exists() for name in ("smollm2", "qwen-coder-0.5b")):
            done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False)
            if done.returncode:
                _skip(f"the real models cannot be unpacked: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module_only():
    """Drops compiled programs after each module: they take memory and memory maps, which are limited per process. The cache
    on disk keeps them."""
    yield
    from tessy_jax.decode import programs

    programs.forget_programs()
    jax.clear_caches()
