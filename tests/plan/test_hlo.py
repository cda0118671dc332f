"""Tests of parsing optimized HLO: kernel launches, collectives and copies."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tessy_jax.plan.hlo import Module, collectives, large_copies, launches
from tessy_jax.sharding import make_mesh

TEXT = """\
HloModule jit_f, entry_computation_layout={()->f32[8]{0}}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %m = f32[8]{0} multiply(%p, %p)
}

%copied (p: bf16[4,1024]) -> bf16[1024,4] {
  %p = bf16[4,1024]{1,0} parameter(0)
  ROOT %t = bf16[1024,4]{1,0} transpose(%p), dimensions={1,0}
}

%few (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  ROOT %a = f32[8]{0} fusion(%q), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/side0/step/few/mul"}
}

%many (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  %a = f32[8]{0} fusion(%q), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/side0/step/many/mul"}
  ROOT %b = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/side0/step/many/mul"}
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %w = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/loop/mul"}
  %r = f32[8]{0} all-reduce(%w), to_apply=%fused, metadata={op_name="jit(f)/loop/psum"}
  %c = f32[8]{0} conditional(%x, %r, %r), branch_computations={%few, %many}
  ROOT %o = (s32[], f32[8]{0}) tuple(%x, %c)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  ROOT %k = pred[] fusion(%s), kind=kLoop, calls=%fused
}

ENTRY %main () -> f32[8] {
  %zero = f32[8]{0} constant({...})
  %start = (s32[], f32[8]{0}) tuple(%zero, %zero)
  %known = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %open = (s32[], f32[8]{0}) while(%known), condition=%condition, body=%body
  %big = bf16[1024,4]{1,0} fusion(%zero), kind=kLoop, calls=%copied
  ROOT %end = f32[8]{0} get-tuple-element(%open), index=1
}
"""


def test_a_loop_counts_its_trip_count_and_a_conditional_its_largest_branch():
    module = Module.parse(TEXT)
    counted = launches(module, module.entry)
    body = 1 + 1 + 2  # a fusion, the collective, and the two fusions of the branch `many`
    assert counted.total == (3 + 1) * body + 2 + 1, "and the condition of the open loop twice, and the copy"
    assert counted.host_reads == (3 + 1) * 1 + 2, "one branch per iteration, and the condition of the open loop"


def test_a_loop_without_a_trip_count_counts_the_iterations_given_for_its_scope():
    text = TEXT.replace(
        "condition=%condition, body=%body\n", 'condition=%condition, body=%body, metadata={op_name="a/merges/while"}\n'
    )
    module = Module.parse(text)
    counted = launches(module, module.entry, iterations={"merges": 5})
    assert counted.total == (3 + 5) * 4 + 6 + 1, "its condition runs once more than its body"
    assert counted.host_reads == 3 + 5 + 6


def test_skipped_scopes_are_not_counted_and_the_other_branch_is():
    module = Module.parse(TEXT)
    counted = launches(module, "body", skip=lambda scopes: "many" in scopes, group=lambda scopes: scopes[-2])
    assert counted.kernels == {"loop": 2, "few": 1}


def test_collectives_are_counted_by_operation_and_bytes():
    (move,) = collectives(Module.parse(TEXT))
    assert move == ("all-reduce", "f32[8]", 2, 64), "once in each loop"


def test_a_fusion_that_only_copies_is_a_copy_and_small_copies_are_ignored():
    module = Module.parse(TEXT)
    assert large_copies(module, 8192) == [("fusion", "bf16[1024,4]", 1, 8192)]
    assert large_copies(module, 8193) == []


def test_a_text_without_an_entry_computation_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        Module.parse("HloModule empty\n")


def test_the_hlo_text_of_the_installed_jax_is_parsed():
    mesh = make_mesh({"tensor": 8})
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "tensor")))

    def f(x):
        def body(carry):
            i, y = carry
            with jax.named_scope("product"):
                return i + 1, jnp.tanh(y @ y.T)

        return jax.lax.while_loop(lambda carry: carry[1].sum() > 0, body, (0, x))

    module = Module.parse(jax.jit(f).lower(x).compile().as_text())
    (loop,) = (i for i in module.computations[module.entry] if i.operation == "while")
    counted = launches(module, loop.attribute("body"), group=lambda scopes: str("product" in scopes))
    assert counted.kernels["True"] >= 2, "the dot and the tanh are in their scope"
    assert any(move.bytes >= 64 * 64 * 4 / 8 for move in collectives(module, loop.attribute("body")))
