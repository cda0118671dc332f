"""Programs whose compiler chooses the layouts of their first argument."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

from tessy_jax.decode import programs
from tessy_jax.decode.programs import Programs
from tessy_jax.sharding import Partitioner, make_mesh


def scaled(weights, x):
    return x @ weights["a"] + weights["b"]


@pytest.fixture
def given():
    partitioner = Partitioner(make_mesh({"tensor": 2}))
    weights = {"a": np.arange(12.0).reshape(3, 4), "b": np.ones(4)}
    axes = {"a": (None, "heads"), "b": ("heads",)}
    placed = {name: jax.device_put(x, partitioner.sharding(axes[name])) for name, x in weights.items()}
    return Programs(partitioner), placed, jax.device_put(jnp.ones((2, 3)), partitioner.sharding(()))


def test_weights_move_to_the_layouts_of_a_program_and_their_old_arrays_are_freed(given, monkeypatch):
    monkeypatch.setattr(programs, "pads_to_tiles", lambda: True)
    own, weights, x = given
    expected = np.asarray(x @ weights["a"] + weights["b"])
    program = own.of("scaled", scaled, (), (weights, x), chooses_layouts=True)
    formats = {"a": Format(Layout((1, 0)), weights["a"].sharding), "b": weights["b"].format}
    monkeypatch.setattr(own, "_compiled", lambda _: SimpleNamespace(input_formats=((formats, None), {})))
    placed = own.placed(program)
    monkeypatch.undo()
    assert placed["a"].format.layout.major_to_minor == (1, 0)
    assert placed["a"].sharding == formats["a"].sharding
    assert weights["a"].is_deleted()
    assert placed["b"] is weights["b"]
    # other programs accept the chosen layouts, and their keys differ from those for other layouts
    other = own.of("scaled", scaled, (), (placed, x))
    np.testing.assert_array_equal(own.run(other), expected)
    assert other.key != own.of("scaled", scaled, (), ({"a": jnp.copy(placed["a"]), "b": placed["b"]}, x)).key


def test_a_program_that_chooses_layouts_is_compiled_once_and_takes_the_weights_that_it_placed(given, monkeypatch):
    monkeypatch.setattr(programs, "pads_to_tiles", lambda: True)
    own, weights, x = given
    expected = np.asarray(x @ weights["a"] + weights["b"])
    before = own.of("scaled", scaled, (), (weights, x), chooses_layouts=True)
    placed = own.placed(before)
    after = own.of("scaled", scaled, (), (placed, x), chooses_layouts=True)
    assert after.key == before.key
    np.testing.assert_array_equal(own.run(after), expected)
    # a program is lowered from shapes, so weights in the layouts of another program are no obstacle
    turned = placed | {"a": jax.device_put(placed["a"], Format(Layout((1, 0)), placed["a"].sharding))}
    programs.forget_programs()
    again = own.of("scaled", scaled, (), (turned, x), chooses_layouts=True)
    np.testing.assert_array_equal(
        own.run(own.of("scaled", scaled, (), (own.placed(again), x), chooses_layouts=True)), expected
    )


def test_on_other_platforms_weights_keep_their_layouts_and_nothing_is_compiled(given):
    own, weights, x = given
    program = own.of("scaled", scaled, (), (weights, x), chooses_layouts=True)
    assert not program.chooses_layouts
    assert own.placed(program) is weights
    assert own.compilations == []
