"""Tests of targets: parsing, extras, environments and devices."""

import pytest

from tessy_jax.errors import ConfigError
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
    ],
)
def test_a_target_has_a_platform_a_number_of_devices_and_their_memory(text, platform, devices, memory):
    target = parse_target(text)
    assert (target.platform, target.devices, target.memory) == (platform, devices, memory)


@pytest.mark.parametrize("text", ["", "h100:0", "tpu", "v5e", "v5e:4", "v9:2x2", "0xv6e:2x4", "v6e:0x4", "cpu:", "H100:8"])
def test_an_unknown_target_is_refused_with_the_known_ones(text):
    with pytest.raises(ConfigError, match=r"is unknown; a target is cpu, a GPU \(a100, b200, h100, h200\)"):
        parse_target(text)


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


def test_a_mesh_larger_than_the_target_is_refused_with_the_remedy():
    with pytest.raises(
        ConfigError, match=r"target cpu:2: has 2 of the 8 devices of the mesh {tensor: 4, data: 2}; give a larger target"
    ):
        target_mesh_devices(parse_target("cpu:2"), {"tensor": 4, "data": 2})
