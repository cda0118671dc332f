"""The pool of an engine is as large as memory allows, beside the weights and all other caches."""

import jax
import pytest

from tessy_jax.decode import pool
from tests.decode.world import World, engine, model, spelled


def held(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(("megabytes", "limited"), [(1, "least"), (7, "memory"), (4096, "tokens")])
def test_weights_rings_and_pool_take_at_most_their_share_of_memory(megabytes, limited, monkeypatch):
    memory = megabytes * 1_000_000
    monkeypatch.setattr(pool.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory * jax.local_device_count()}.get)
    writers = [model(i, len(spelled(kind)), head_dim=32, window=40) for i, kind in enumerate(("student", "teacher"))]
    machine = engine(World(pool=None), 8, writers=writers)
    least, tokens = (
        machine.tokens,
        machine.size * -(-(machine.tokens - 2 * World().window_bytes) // machine.page) * machine.page,
    )
    if limited == "least":
        assert machine.pool == -(-least // machine.page) * machine.page
        return
    kv = [(c.kv, p.kv) for c, p in zip(machine.lanes.caches, machine.lanes.predictors, strict=True)]
    taken = held((machine.weights, [[x.pages for x in of] for of in kv]))
    assert taken <= pool.SHARE * memory
    if limited == "tokens":
        assert machine.pool == tokens
        return
    assert least < machine.pool < tokens
    one_page = sum(x.pages[0].nbytes // x.pages[0].shape[1] for x, _ in kv)
    assert taken + one_page > pool.SHARE * memory
