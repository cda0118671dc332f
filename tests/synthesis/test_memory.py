"""`synthesis.lanes: auto` takes the lanes whose weights and caches memory holds."""

import pytest

from tessy_jax.config import reconcile
from tessy_jax.decode.pool import SHARE
from tessy_jax.plan.job import read_any
from tessy_jax.plan.models import PlannedModels, Published
from tessy_jax.sharding import Partitioner, plan_mesh
from tessy_jax.synthesis.memory import MOST_LANES, UNKNOWN_MEMORY_LANES, memory
from tests.conftest import ROOT
from tests.plan.test_programs import unreachable

CONFIGS, GB = ROOT / "configs", 10**9
HALF = 8192 + 32768 // 2 + 22
"""The longest prompt of this configuration, half its longest response, and a proposal."""


@pytest.fixture
def models_of(monkeypatch):
    def build(limit, *changes, mesh=None):
        monkeypatch.setattr("tessy_jax.models.hf.resolve", unreachable)
        monkeypatch.setattr("tessy_jax.synthesis.memory.device_memory", lambda: limit)
        sizes = ["synthesis.max_prompt_tokens=8192", "synthesis.max_response_tokens=32768", "synthesis.lanes=auto"]
        config = reconcile(read_any(CONFIGS / "gpt-oss-20b_qwen3-8b_h100.yaml", [*sizes, *changes]), None)
        partitioner = Partitioner(plan_mesh(mesh)) if mesh else Partitioner()
        return PlannedModels(config.model_copy(update={"mesh": mesh}), partitioner, Published(CONFIGS / "models"))

    return build


@pytest.mark.parametrize(
    ("limit", "mesh", "prompt", "response"),
    [
        (141 * GB, None, 8192, 32768),
        (400 * GB, None, 8192, 32768),
        (141 * GB, {"data": 2, "tensor": 4}, 8192, 32768),
        (97 * GB, None, 1030, 2140),
    ],
)
def test_one_lane_more_would_not_fit(models_of, limit, mesh, prompt, response):
    models = models_of(
        limit, f"synthesis.max_prompt_tokens={prompt}", f"synthesis.max_response_tokens={response}", mesh=mesh
    )
    half = prompt + response // 2 + 22
    shards = models.partitioner.num_shards("lanes")
    assert shards < models.lanes < MOST_LANES * shards
    assert models.lanes % shards == 0
    assert models.pool == max(models.lanes * half, shards * models.longest)
    assert memory(models)[0] <= SHARE * limit
    models.lanes, models.pool = models.lanes + shards, models.pool + shards * half
    assert memory(models)[0] > SHARE * limit


def test_there_is_a_lane_with_a_complete_response_on_each_shard_even_if_it_does_not_fit(models_of):
    models = models_of(1 * GB)
    assert (models.lanes, models.pool) == (1, models.longest)
    models = models_of(1 * GB, mesh={"data": 4})
    assert (models.lanes, models.pool) == (4, 4 * models.longest)


def test_the_number_of_lanes_has_a_limit_on_each_shard(models_of):
    assert models_of(10_000 * GB).lanes == MOST_LANES
    assert models_of(10_000 * GB, mesh={"data": 2}).lanes == 2 * MOST_LANES


def test_there_are_no_more_lanes_than_the_set_pool_or_the_responses_need(models_of):
    models = models_of(10_000 * GB, f"synthesis.cache_tokens={10 * HALF + 100}")
    assert (models.lanes, models.pool) == (10, 10 * HALF + 100)
    models.limit_lanes(2)
    assert (models.lanes, models.pool) == (2, 10 * HALF + 100)
    models = models_of(10_000 * GB, mesh={"data": 4})
    models.limit_lanes(9)
    assert (models.lanes, models.pool) == (12, 12 * models.longest)


def test_devices_that_do_not_report_their_memory_have_a_fixed_number_of_lanes(models_of):
    models = models_of(None, mesh={"data": 3})
    assert (models.lanes, models.pool) == (-(-UNKNOWN_MEMORY_LANES // 3) * 3, None)
