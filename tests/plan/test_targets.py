"""Tests of targets: parsing, extras, environments and devices."""

import os

import pytest

from tessy_jax.errors import ConfigError
from tessy_jax.gpu_memory import VARIABLES, claim_gpu_memory
from tessy_jax.plan.targets import check_extras, environment, parse_target, target_mesh_devices

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "platform", "devices", "memory"),
    [
        ("cpu", "cpu", 1, None),
        ("cpu:8", "cpu", 8, None),
        ("h100:8", "cuda", 8, 84942979072),
        ("b200:1", "cuda", 1, 191514017792),
        ("a100", "cuda", 1, 85093842944),
        ("v5e:4x4", "tpu", 16, 16 * GIB),
        ("v5p:2x2x1", "tpu", 4, 95 * GIB),
        ("2xv6e:2x4", "tpu", 16, 32 * GIB),
        ("tpu7x:2x2x1", "tpu", 8, 96 * GIB),
        ("v4:2x2x1", "tpu", 8, 16 * GIB),
    ],
)
def test_a_target_has_a_platform_a_number_of_devices_and_their_memory(text, platform, devices, memory):
    target = parse_target(text)
    assert (target.platform, target.devices, target.memory) == (platform, devices, memory)


@pytest.mark.parametrize(
    "text", ["", "h100:0", "tpu", "v5e", "v5e:4", "v9:2x2", "0xv6e:2x4", "v6e:0x4", "cpu:", "H100:8", "cpu:٣"]
)
def test_an_unknown_target_is_refused_with_the_known_ones(text):
    with pytest.raises(ConfigError, match=r"is unknown; a target is cpu, a GPU \(a100, b200, h100, h200\)"):
        parse_target(text)


@pytest.mark.parametrize(
    "text", ["cpu:65537", "h100:" + "9" * 5000, "v5e:256x257", f"{'9' * 5000}xv5e:2x2", "4xv4:128x128x1"]
)
def test_a_target_with_too_many_devices_is_refused_with_the_limit(text):
    with pytest.raises(ConfigError, match="has more than 65,536 devices; give fewer"):
        parse_target(text)


def test_programs_may_use_all_memory_of_a_tpu_and_the_share_of_a_gpu_that_jobs_allocate(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    claim_gpu_memory()
    share = float(os.environ["XLA_CLIENT_MEM_FRACTION"])
    assert parse_target("h200:1").usable == int(parse_target("h200:1").memory * share)
    assert parse_target("v5e:1x1").usable == 16 * GIB
    assert parse_target("cpu").usable is None


@pytest.mark.parametrize("name", VARIABLES)
def test_a_memory_share_set_by_the_user_is_kept(name, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "0.5")
    claim_gpu_memory()
    assert {variable: os.environ[variable] for variable in VARIABLES if variable in os.environ} == {name: "0.5"}


def test_the_error_names_a_missing_package_and_its_extra(monkeypatch):
    monkeypatch.setattr("tessy_jax.plan.targets._installed", lambda name: False)
    check_extras(parse_target("cpu:8"))
    with pytest.raises(ConfigError, match=r"target v5e:4x4: libtpu is not installed; .*tessy_jax\[plan-tpu\]"):
        check_extras(parse_target("v5e:4x4"))
    with pytest.raises(ConfigError, match=r"target h100:8: jax_cuda12_plugin is not installed; .*tessy_jax\[plan-gpu\]"):
        check_extras(parse_target("h100:8"))


def test_a_compiling_process_has_the_cpu_devices_of_its_target_and_no_accelerator(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_force_host_platform_device_count=2")
    variables = environment(parse_target("cpu:4"))
    assert variables["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=4"
    assert variables["JAX_PLATFORMS"] == "cpu"
    assert variables["JAX_ENABLE_COMPILATION_CACHE"] == "false"


def test_a_mesh_larger_than_the_target_is_refused_with_the_remedy():
    with pytest.raises(
        ConfigError, match=r"target cpu:2: has 2 of the 8 devices of the mesh {tensor: 4, data: 2}; give a larger target"
    ):
        target_mesh_devices(parse_target("cpu:2"), {"tensor": 4, "data": 2})
