"""The pages of lanes do what a plain list of tokens per lane would, whatever lanes do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tessy_jax.decode import prefill
from tessy_jax.decode.cache import new_cache
from tessy_jax.models.config import ModelConfig, Rope
from tessy_jax.sharding import Partitioner, make_mesh

LANES, TOKENS, PAGE, WINDOW, SLACK = 4, 40, 4, 5, 8


def config(windows):
    return ModelConfig(
        family="llama",
        vocab=8,
        layers=len(windows),
        embed=4,
        heads=1,
        kv_heads=1,
        head_dim=2,
        ffn=4,
        eps=1e-5,
        tied=False,
        rope=Rope("default", 5000.0, 2),
        windows=windows,
        sparse=(False,) * len(windows),
        max_positions=64,
        query_scale=1.0,
        labels=None,
    )


@jax.jit
def append(cache, values_BT, counts_B):
    """Reserves pages, and writes a number per token to all kinds of layers, where a pass would write keys and values."""
    cache, ok_B = cache.reserve(jnp.where(counts_B > 0, cache.lengths_B + counts_B, 0))
    counts_B = jnp.where(ok_B, counts_B, 0)
    shards = cache.free_DP.shape[0]
    own = len(counts_B) // shards
    places_BT = cache.lengths_B[:, None] + jnp.arange(values_BT.shape[1])
    valid_BT = jnp.arange(values_BT.shape[1]) < counts_B[:, None]
    kinds = []
    for pages, table, ring in zip(cache.kv.pages, cache.kv.tables, cache.kv.rings, strict=True):
        number = places_BT // PAGE
        number = number % table.shape[1] if ring else jnp.minimum(number, table.shape[1] - 1)
        each = pages.shape[1] // shards
        ids = jnp.take_along_axis(table, number, axis=1) + (jnp.arange(len(counts_B)) // own * each)[:, None]
        ids = jnp.where(valid_BT, ids, pages.shape[1])
        kinds.append(pages.at[:, ids, 0, places_BT % PAGE, 0].set(values_BT, mode="drop"))
    kv = type(cache.kv)(tuple(kinds), cache.kv.tables, cache.kv.rings, cache.kv.layers)
    return cache.filled(kv, cache.lengths_B + counts_B), ok_B


release = jax.jit(lambda cache, lane: cache.release(lane))
share = jax.jit(lambda *args: args[0].share(*args[1:]), static_argnums=4)


class Lists:
    """What the cache should hold: the tokens of each lane, the length below which it is not rolled back because others may
    share its pages, the number of pages that it owns, and the most tokens that it held since it was empty, which limits how
    far rings can be rolled back."""

    def __init__(self, windows, pool, devices, seed):
        self.partitioner = Partitioner(make_mesh({"data": devices})) if devices > 1 else Partitioner()
        options = {"slack": SLACK, "dtype": jnp.float32, "pool": pool, "page": PAGE, "partitioner": self.partitioner}
        self.cache = new_cache(config(windows), LANES, TOKENS, **options)
        self.windows, self.devices, self.rng = (
            sorted(set(windows), key=lambda w: w or 0),
            devices,
            np.random.default_rng(seed),
        )
        self.known, self.fixed, self.owned = [[] for _ in range(LANES)], [0] * LANES, [0] * LANES
        self.longest = [0] * LANES
        self.value, self.refused, self.shared, self.operations = 0, 0, 0, 0

    def shard(self, lane):
        return lane * self.devices // LANES

    def operate(self):
        kind = self.rng.choice(["append", "rollback", "share", "release"], p=[0.5, 0.2, 0.15, 0.15])
        getattr(self, kind)()
        self.operations += LANES if kind in ("append", "rollback") else 1

    def append(self):
        counts = self.rng.integers(0, SLACK + 1, LANES)
        counts = [int(min(n, TOKENS - len(lane))) for n, lane in zip(counts, self.known, strict=True)]
        values = np.zeros((LANES, SLACK), np.float32)
        for lane, n in enumerate(counts):
            values[lane, :n] = range(self.value + 1, self.value + 1 + n)
            self.value = (self.value + n) % 10_000_000
        left = np.asarray(self.cache.left_D).tolist()
        self.cache, ok_B = append(self.cache, values, np.array(counts, np.int32))
        ok_B = np.asarray(ok_B)
        wanted = [0] * self.devices
        for lane, n in enumerate(counts):
            d = self.shard(lane)
            short = max(0, -(-(len(self.known[lane]) + n) // PAGE) - self.owned[lane]) if n else 0
            wanted[d] += short
            assert ok_B[lane] == (short == 0 or wanted[d] <= left[d])
            if ok_B[lane]:
                self.known[lane] += values[lane, :n].tolist()
                self.longest[lane] = max(self.longest[lane], len(self.known[lane]))
                self.owned[lane] += short
            self.refused += not ok_B[lane]

    def rollback(self):
        keep = [
            max(fixed, self.least(lane), len(self.known[lane]) - int(n))
            for lane, (fixed, n) in enumerate(zip(self.fixed, self.few(), strict=True))
        ]
        self.known = [lane[:n] for lane, n in zip(self.known, keep, strict=True)]
        self.cache = self.cache.rollback(self.cache.lengths_B * 0 + np.array(keep, np.int32))

    def least(self, lane):
        """The fewest tokens of a lane that its rings still hold."""
        return max(0, self.longest[lane] - SLACK) if len(self.windows) > 1 else 0

    def few(self):
        return self.rng.integers(0, SLACK // 2, LANES)

    def share(self):
        source, lane = self.rng.choice(LANES, 2, replace=False).tolist()
        if self.known[lane] or self.owned[lane] or self.shard(source) != self.shard(lane):
            return
        tokens = int(self.rng.integers(self.least(source), len(self.known[source]) + 1))
        left = int(self.cache.left_D[self.shard(lane)])
        self.cache = share(self.cache, np.int32(source), np.int32(lane), np.int32(tokens), self.partitioner)
        if tokens % PAGE and not left:
            tokens = tokens // PAGE * PAGE
        self.known[lane] = self.known[source][:tokens]
        self.owned[lane] = -(-tokens // PAGE)
        self.longest[lane] = self.longest[source] if len(self.windows) > 1 else tokens
        self.fixed[source] = max(self.fixed[source], tokens // PAGE * PAGE)
        self.fixed[lane] = tokens // PAGE * PAGE
        self.shared += 1

    def release(self):
        lane = int(self.rng.integers(LANES))
        self.cache = release(self.cache, np.int32(lane))
        self.known[lane], self.owned[lane], self.fixed[lane], self.longest[lane] = [], 0, 0, 0

    def check(self):
        cache = jax.device_get(self.cache)
        P = cache.free_DP.shape[1]
        assert cache.lengths_B.tolist() == [len(lane) for lane in self.known]
        assert cache.owned_B.tolist() == self.owned
        owners = np.zeros((self.devices, P), int)
        for lane in range(LANES):
            np.add.at(owners[self.shard(lane)], cache.kv.tables[0][lane, : self.owned[lane]], 1)
        for d in range(self.devices):
            free = cache.free_DP[d, : cache.left_D[d]]
            assert len(set(free.tolist())) == len(free)
            assert (owners[d, free] == 0).all(), "a free page has an owner"
            assert len(free) + (owners[d] > 0).sum() == P, "a page was lost"
        np.testing.assert_array_equal(cache.owners_DP, np.maximum(owners, 1))
        for kind, window in enumerate(self.windows):
            pages, table = cache.kv.pages[kind], cache.kv.tables[kind]
            each = pages.shape[1] // self.devices
            for lane, tokens in enumerate(self.known):
                places = np.arange(0 if window is None else max(0, len(tokens) - window + 1), len(tokens))
                ids = table[lane, places // PAGE % table.shape[1]] + self.shard(lane) * each
                found = pages[0, ids, 0, places % PAGE, 0]
                np.testing.assert_array_equal(found, np.array(tokens, np.float32)[places])


@pytest.mark.parametrize(
    ("windows", "devices", "operations"),
    [
        ((None,), 1, 3000),
        ((WINDOW, None), 1, 3000),
        ((None, WINDOW), 2, 3000),
        pytest.param((None,), 1, 100_000, marks=pytest.mark.slow),
        pytest.param((None, WINDOW), 2, 10_000, marks=pytest.mark.slow),
    ],
)
def test_a_lane_reads_its_own_tokens_and_no_page_is_lost_whatever_lanes_append_share_roll_back_and_release(
    windows, devices, operations
):
    lists = Lists(windows, pool=2 * TOKENS, devices=devices, seed=operations)
    while lists.operations < operations:
        lists.operate()
        lists.check()
    assert lists.refused > operations // 500
    assert lists.shared > operations // 1000


def test_a_grown_pool_keeps_its_tokens_and_has_more_free_pages():
    for devices in (1, 2):
        lists = Lists((None,), pool=TOKENS, devices=devices, seed=3)
        for pages in (14, 30):
            for _ in range(40):
                lists.operate()
            left = np.asarray(lists.cache.left_D)
            before = lists.cache.free_DP.shape[1]
            lists.cache = lists.cache.grown(pages)
            assert (np.asarray(lists.cache.left_D) == left + pages - before).all()
            lists.check()


def test_a_lane_that_found_no_page_for_its_prompt_is_not_shared():
    """Such a lane reads its prompt later. Until then, its table holds pages of other lanes."""
    lists = Lists((None,), 2 * TOKENS, 1, 0)
    counts = np.array([SLACK, 2, 0, 0], np.int32)
    cache, _ = append(lists.cache, np.ones((LANES, SLACK), np.float32), counts)
    for source, tokens, shared in ((0, SLACK, SLACK), (1, 2, 2), (1, SLACK, 0), (2, SLACK, 0)):
        result = prefill.share(lists.partitioner, cache, np.int32(source), np.int32(3), np.int32(tokens))
        assert int(result.lengths_B[3]) == shared
        assert int(result.owned_B[3]) == -(-shared // PAGE)
        assert int(result.owners_DP.sum()) == result.owners_DP.size + shared // PAGE
