"""A kernel that disagrees with plain XLA on the device at hand is named once and not used."""

import logging
from argparse import Namespace
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from tessy_jax.backend import Backend, kernels_enabled, tracing_for, use_kernels
from tessy_jax.cli import finish
from tessy_jax.config import Pipeline
from tessy_jax.models import pages, pages_check, pages_gpu
from tessy_jax.models.pages import Heads, append_attend
from tessy_jax.models.pages_check import Case, agrees
from tessy_jax.sharding import make_mesh
from tests.conftest import ROOT
from tests.models.pages_oracle import Shape, attend, case

FULL = Heads((0, 32), (32, 64), None, 32**-0.5)
CASES = {
    "full": Case("triton", 1, 2, 4, 32, 64, 32, jnp.dtype("float32"), FULL, False, False),
    "window": Case("triton", 3, 1, 8, 32, 64, 16, jnp.dtype("float32"), FULL._replace(window=24), True, True),
    "latent": Case(
        "triton", 5, 1, 6, 48, 48, 32, jnp.dtype("float32"), Heads((0, 48), (0, 32), None, 0.2, latent=True), False, False
    ),
}


@pytest.fixture(autouse=True)
def forgotten():
    pages_check._agrees.cache_clear()
    yield
    pages_check._agrees.cache_clear()


@pytest.mark.parametrize("name", CASES)
def test_triton_agrees_with_plain_xla(name):
    assert agrees(CASES[name], append_attend, interpret=True)


@pytest.mark.parametrize("name", CASES)
def test_mosaic_agrees_with_plain_xla(name):
    given = replace(CASES[name], body="mosaic", columns=128)
    assert agrees(given, append_attend, interpret=pltpu.InterpretParams())


def wrong(fault):
    """`append_attend` with a fault in its kernel."""

    def faulty(*, body, q, pages, counts, heads, **rest):
        if body == "triton" and fault == "failure":
            raise ValueError("the compiler gave up\nat line 3")
        if body == "triton" and fault == "window":
            heads = heads._replace(window=heads.window - 1)
        if body == "triton" and fault == "scale":
            heads = heads._replace(scale=heads.scale * 1.1)
        out, new = append_attend(body="xla", q=q, pages=pages, counts=counts, heads=heads, **rest | {"interpret": False})
        if body == "triton" and fault == "nan":
            out = out.at[2, 0].set(jnp.nan)
        if body == "triton" and fault == "one head":
            out = out.at[:, :, :, 3].set(out[:, :, :, 2])
        if body == "triton" and fault == "pages":
            new = new.at[rest["layer"], rest["table"][1, 0], 0, pages.shape[3] // 2 + 1, 0].add(1)
        return out, new

    return faulty


@pytest.mark.parametrize("fault", ["failure", "window", "scale", "nan", "one head", "pages"])
def test_a_fault_is_found_and_named_once(fault, caplog):
    kernel = wrong(fault)
    with caplog.at_level(logging.WARNING):
        assert not agrees(CASES["window"], kernel)
        assert not agrees(CASES["window"], kernel)
    (message,) = (record.getMessage() for record in caplog.records)
    assert all(text in message for text in ("triton", "window 24", "plain XLA"))
    expected = {"failure": "the compiler gave up", "pages": "writes other keys and values"}
    assert expected.get(fault, "differ by up to") in message
    assert agrees(CASES["window"], wrong(None))


@pytest.fixture
def called(monkeypatch):
    """The platform has a Triton kernel, which adds `called[0]` to its results; the further items are its calls."""
    found, kernel = [0.0], pages_gpu.attend

    def attend_gpu(*args, **options):
        found.append(args[0].shape)
        return kernel(*args, **options | {"interpret": True}) + found[0]

    monkeypatch.setattr(pages_gpu, "attend", attend_gpu)
    monkeypatch.setattr(pages, "chosen_body", lambda heads, pages: "triton")
    return found


@pytest.mark.parametrize("fault", [0.0, 0.5])
def test_plain_xla_runs_in_place_of_a_kernel_that_fails_its_check_also_in_a_traced_program(fault, called):
    given = case(Shape(head_dim=32, size=2))
    called[0] = fault
    expected, _ = attend(**given)
    arrays = {name: x for name, x in given.items() if isinstance(x, jax.Array)}
    rest = {"heads": given["heads"], "ring": given["ring"], "layer": given["layer"]}
    mesh = make_mesh({"data": 2})
    specs = {name: PartitionSpec("data") for name in arrays if name != "pages"} | {"pages": PartitionSpec()}

    def one_shard(arrays):
        return append_attend(**arrays, **rest)[0]

    arrays["lanes"] = jnp.array([0, 1, 0, 1], jnp.int32)  # numbered within the shard
    specs["lanes"] = PartitionSpec("data")
    sharded = jax.shard_map(one_shard, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec("data"), check_vma=False)
    out = np.asarray(jax.jit(sharded)(arrays))
    valid = np.arange(2) < np.asarray(given["counts"])[:, None]
    np.testing.assert_allclose(out[valid], expected[valid], rtol=0, atol=2e-6)
    checked, *others = called[1:]
    assert checked[0] == 3, "the rows of the check"
    assert [shape[0] for shape in others] == ([] if fault else [2])


def test_nothing_is_checked_for_a_planned_target(called):
    given = case(Shape(head_dim=32))
    arrays = {name: x for name, x in given.items() if isinstance(x, jax.Array)}
    rest = {"heads": given["heads"], "ring": given["ring"], "layer": given["layer"]}
    with tracing_for(Backend("cuda", 9.0)):
        jax.eval_shape(partial(append_attend, **rest), **arrays)
    assert [shape[0] for shape in called[1:]] == [4]


@pytest.mark.parametrize("enabled", [True, False])
def test_plain_xla_runs_on_every_platform_if_kernels_are_turned_off(enabled):
    given = case(Shape(head_dim=32, dtype="bfloat16"))
    arrays = {name: x for name, x in given.items() if isinstance(x, jax.Array)}
    arrays["pages"] = jax.ShapeDtypeStruct((*given["pages"].shape[:3], 128, 128), jnp.bfloat16)
    rest = {"heads": given["heads"], "ring": given["ring"], "layer": given["layer"]}
    use_kernels(enabled)
    try:
        for platform in ("cuda", "tpu"):
            with tracing_for(Backend(platform, 9.0)):
                program = str(jax.make_jaxpr(partial(append_attend, **rest))(**arrays))
            assert ("pallas_call" in program) == enabled
    finally:
        use_kernels(True)


@pytest.mark.parametrize("value", ["auto", "xla"])
def test_a_command_turns_kernels_on_or_off_as_its_configuration_says(value):
    args = Namespace(config=ROOT / "configs" / "mini.yaml", set=[f"kernels={value}"], distributed=False, json=True)
    use_kernels(value != "auto")
    try:
        summary = finish(args, Pipeline, lambda config, **_: {"kernels": kernels_enabled()}, None)
    finally:
        use_kernels(True)
    assert summary == {"kernels": value == "auto"}
