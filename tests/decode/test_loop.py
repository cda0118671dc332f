"""The engine writes what the method says, token for token, and a response depends on nothing around it."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tessy_jax.decode import programs, tokenize
from tessy_jax.decode.batch import Room
from tessy_jax.decode.engine import Engine
from tessy_jax.decode.lane_ops import Report
from tessy_jax.decode.state import EMPTY, RUNNING, STUDENT, TEACHER, TEMPLATE
from tessy_jax.models.restack import restack
from tessy_jax.sharding import Partitioner, make_mesh, parse_mesh
from tests.decode.world import CLOSE, Job, World, by_engine, by_oracle, engine, model, parts, spelled

ONE = ("student", "student")
GREEDY = (0.0, 1.0, 0, 0.0)
JOBS = [Job(i, lengths=(3 + 9 * (i % 4), 2 + 13 * (i % 3))) for i in range(6)]
GREEDY_JOBS = [*JOBS[:2], JOBS[5], Job(33, thinkers=1), Job(38)]
ALONE = [Job(20, thinkers=1), Job(21, thinkers=2), Job(22, thinkers=2, answerer=1), Job(23, answerer=1)]
WORLDS = {
    "two vocabularies, discard, online": World(),
    "two vocabularies, discard, rollback": World(online=False, min_span_tokens=2),
    "two vocabularies, extend, online": World(word_rule="extend", steps=(3, 5), window_bytes=320, predictor_tokens=(4,)),
    "two vocabularies, extend, rollback": World(word_rule="extend", steps=(3, 5), online=False, predictor_reads=(1, 1)),
    "two vocabularies, none, online": World(word_rule="none", predictor_reads=(0, 1)),
    "one vocabulary, none, online": World(ONE, "none", predictor_reads=(0, 1)),
    "one vocabulary, none, rollback": World(ONE, "none", predictor_reads=(0, 1), online=False),
    "one vocabulary, discard, online": World(ONE, "discard", predictor_reads=(0, 1)),
    "one vocabulary, extend, online": World(ONE, "extend", predictor_reads=(0, 1)),
}


@pytest.mark.parametrize(
    "name",  # all but the first compile for long and are left to the long run
    [pytest.param(name, marks=pytest.mark.slow if i else ()) for i, name in enumerate(WORLDS)],
)
def test_the_engine_and_the_plain_method_agree_token_for_token(name):
    """135 responses over all worlds, sampled and greedy; the next test says how they end."""
    for sampling, jobs in ((World.sampling, [*JOBS, *ALONE]), (GREEDY, GREEDY_JOBS)):
        world = replace(WORLDS[name], sampling=sampling)
        results = by_engine(world, jobs)
        for job in jobs:
            expected = by_oracle(world, job)
            assert results[job.sample] == expected, (name, job)


@pytest.mark.slow
def test_a_word_that_does_not_fit_into_the_narrow_window_is_read_in_the_widest(monkeypatch):
    monkeypatch.setattr(tokenize, "NARROW", 8)
    world = World(window_bytes=384)
    results = by_engine(world, JOBS[:4])
    assert results == {job.sample: by_oracle(world, job) for job in JOBS[:4]}
    longest = max(len(word) for text, *_ in results.values() for word in text.split())
    assert longest > 2 * tokenize.NARROW


@pytest.mark.parametrize("online", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_labels_are_inverted_where_the_oracle_inverts_them(online):
    world = World(label_flip_prob=0.2, online=online)
    results = by_engine(world, JOBS[:4])
    assert results == {job.sample: by_oracle(world, job) for job in JOBS[:4]}
    assert results != by_engine(replace(world, label_flip_prob=0.0), JOBS[:4])


def test_every_kind_of_end_is_among_them():
    results = {**by_engine(World(), [*JOBS, *ALONE])}
    greedy = by_engine(World(sampling=GREEDY), GREEDY_JOBS)
    statuses = Counter(status for *_, status, _ in [*results.values(), *greedy.values()])
    assert set(statuses) == {"done", "length", "repetition", "early end", "control"}, statuses
    closed = [results[job.sample] for job in JOBS if results[job.sample][2] > 0]
    assert {sources[thinking_bytes - 1] for _, sources, thinking_bytes, *_ in closed} == {STUDENT, TEACHER}


@pytest.fixture(scope="module")
def alone():
    return by_engine(World(), JOBS, lanes=3)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 8])
def test_a_response_does_not_depend_on_the_number_of_lanes(alone, lanes):
    assert by_engine(World(), JOBS, lanes=lanes) == alone


def test_a_response_does_not_depend_on_order_and_refills(alone):
    assert by_engine(World(), JOBS[::-1], lanes=3) == alone
    assert by_engine(World(), [JOBS[4], *ALONE, JOBS[1]], lanes=3)[1] == alone[1]


@pytest.mark.parametrize("handover", [0.01, 1.0])
def test_a_response_does_not_depend_on_when_turns_end(alone, handover):
    assert by_engine(World(handover=handover, rounds_per_dispatch=3), JOBS, lanes=3) == alone


@pytest.mark.parametrize(
    "room",
    [
        Room(2, 3, 5, 4),
        pytest.param(Room(3, 1, 3, 128), marks=pytest.mark.slow),
        pytest.param(Room(1, 4, 2, 128), marks=pytest.mark.slow),
    ],
)
def test_a_response_does_not_depend_on_how_many_lanes_a_pass_has_room_for(alone, room):
    machine = engine(World(room=room), 6)
    assert by_engine(World(), JOBS, lanes=6, built=machine) == alone


@pytest.mark.slow
def test_most_rows_of_a_pass_hold_tokens_if_there_are_more_lanes_than_rows():
    machine = engine(World(room=Room(2, 1, 2, 128)), 12)
    by_engine(World(), [Job(i) for i in range(40)], lanes=12, built=machine)
    rows, passes = machine.totals.rows.sum(), machine.totals.passes.sum()
    assert rows >= 0.85 * 2 * passes


@pytest.mark.parametrize(
    ("page", "mesh"), [(8, None), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((32, None), (8, "data=2")))]
)
def test_a_response_depends_neither_on_the_page_size_nor_on_a_pool_in_which_lanes_are_parked(page, mesh, monkeypatch):
    parks, park = [], Engine._park

    def counted(self, lane, parked=True):
        parks.append((lane, parked))
        park(self, lane, parked)

    shards = 2 if mesh else 1
    jobs = [Job(i, (60, 55)) for i in range(60, 60 + 14 * shards)]
    expected = by_engine(World(), jobs)
    monkeypatch.setattr(Engine, "_park", counted)
    machine = engine(World(page=page, pool=1), 12 * shards, **(on_mesh(mesh) if mesh else {}))
    assert by_engine(World(), jobs, lanes=12 * shards, built=machine) == expected
    waited = [lane for lane, parked in parks if parked]
    assert len(waited) > 3
    assert 2 * len(waited) == len(parks)
    assert len(set(machine._shard_B[waited])) == shards
    for cache in machine.lanes.caches:
        assert int(cache.left_D.sum()) == cache.free_DP.size, "pages were lost"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two vocabularies, discard, online", "two vocabularies, extend, online"])
def test_a_response_does_not_depend_on_the_boundary_mode(name):
    world = replace(WORLDS[name], seed=77)
    jobs = [Job(100 + i) for i in range(12)]
    assert by_engine(world, jobs) == by_engine(replace(world, online=False), jobs)


@pytest.mark.slow
def test_a_prompt_that_a_lane_has_read_is_copied_and_a_response_does_not_depend_on_that():
    world = World(longest_prompt=210)
    sizes = (150, 203)
    whole, beginning = [Job(i, sizes, like=50) for i in (50, 51, 52, 53)], Job(54, sizes, like=50, own=10)
    other, short = Job(55, sizes), Job(56, (150, 120), like=50, own=5)
    machine = engine(world, 3)
    in_batch = by_engine(world, [*whole, beginning, other, short], built=machine)
    assert machine.totals.shared.tolist() == [3 * 149 + 128 + 128, 3 * 202 + 128]
    assert (machine.totals.shared + machine.totals.prefilled).tolist() == [6 * 149 + 149, 6 * 202 + 119]
    for job in (*whole, beginning, other, short):
        assert by_engine(world, [job])[job.sample] == in_batch[job.sample], job


@pytest.mark.slow
def test_a_layer_that_forgets_its_beginning_shares_a_prompt_only_before_anything_is_written():
    writers = [model(1 + m, len(spelled(kind)), sharp=2.5, window=16) for m, kind in enumerate(("student", "teacher"))]
    jobs = [Job(i, (20, 30), like=50) for i in (50, 51, 52)]
    machine = engine(World(), 2, writers=writers)
    in_batch = by_engine(World(), jobs, lanes=2, built=machine)
    assert machine.totals.shared.tolist() == [19, 29]
    for job in jobs:
        assert by_engine(World(), [job], writers=writers)[job.sample] == in_batch[job.sample]


def test_a_response_continues_unchanged_after_extract_and_insert(alone):
    assert by_engine(World(rounds_per_dispatch=1), JOBS, lanes=3, restart_every=2) == alone


def on_mesh(mesh):
    """The models of the world and their predictors on a mesh."""
    partitioner = Partitioner(make_mesh(parse_mesh(mesh)))

    def placed(source):
        graph, state = nnx.split(source)
        axes = {path: v.get_metadata()["axes"] for path, v in state.flat_state()}
        twin = model(0, source.config.vocab, source.config.labels)
        twin.partitioner = partitioner
        for _, part in nnx.iter_graph(twin):
            if hasattr(part, "partitioner"):
                part.partitioner = partitioner
        graph, template = nnx.split(twin)
        flat = {}
        for path, variable in state.flat_state():
            flat[path] = variable.replace(jax.device_put(variable[...], partitioner.sharding(axes[path])))
        return nnx.merge(graph, type(template).from_flat_path(flat))

    writers, predictors = parts(("student", "teacher"), (0, 0))
    return {
        "writers": [placed(w) for w in writers],
        "predictors": [placed(j) for j in predictors],
        "partitioner": partitioner,
    }


def test_a_response_does_not_depend_on_the_number_of_devices(alone):
    assert by_engine(World(), JOBS, lanes=4, **on_mesh("data=2,fsdp=2,tensor=2")) == alone


def test_a_response_does_not_depend_on_stacked_layers_or_layouts_that_the_compiler_chooses(alone, monkeypatch):
    monkeypatch.setattr(programs, "pads_to_tiles", lambda: True)

    def stacked(source):
        graph, state = nnx.split(source)
        return restack(nnx.merge(graph, jax.tree.map(jnp.copy, state)), stacked=True)

    writers, predictors = parts(("student", "teacher"), (0, 0))
    options = {"writers": [stacked(w) for w in writers], "predictors": [stacked(j) for j in predictors]}
    built = engine(World(), 3, **options)
    assert [c.name for c in built.compilations] == ["loop"]  # the first to be compiled, since it decides the layouts
    assert by_engine(World(), JOBS, lanes=3, built=built) == alone


def test_no_token_is_discarded_with_one_vocabulary_online_and_no_word_rule():
    machine = engine(World(ONE, "none", predictor_reads=(0, 1)), 3)
    by_engine(World(ONE, "none", predictor_reads=(0, 1)), JOBS, built=machine)
    for lane in range(3):
        assert [int(tokens_B[lane]) for tokens_B in machine.lanes.scalars.discarded] == [0, 0]
    assert machine.totals.sampled.sum() > 100


def test_a_template_span_separates_thinking_and_answer():
    results = by_engine(World(), [*JOBS, *ALONE])
    closed = [r for r in results.values() if r[2] >= 0]
    assert closed
    for text, sources, thinking_bytes, *_ in closed:
        assert text[thinking_bytes : thinking_bytes + len(CLOSE)] == CLOSE
        assert set(sources[thinking_bytes : thinking_bytes + len(CLOSE)]) == {TEMPLATE}
        assert TEMPLATE not in sources[:thinking_bytes]
        assert len(sources) == len(text)


@pytest.mark.parametrize(("left", "taken"), [(20, []), (60, [1, 2])])
def test_no_parked_lane_comes_back_before_one_that_has_waited_longer_on_its_shard(left, taken, monkeypatch):
    machine, came = engine(World(page=8, pool=1), 4), []
    status_B, known_MB = np.array([RUNNING, RUNNING, RUNNING, EMPTY]), np.array([[40, 300, 20, 0]] * 2)
    seen = Report(status_B, None, None, known_MB, None, np.full((2, 1), left))
    monkeypatch.setattr(machine, "_parked", [1, 2])
    monkeypatch.setattr(machine, "_report", lambda: seen)
    monkeypatch.setattr(machine, "_park", lambda lane, parks: came.append((lane, parks)))
    machine._take_back()
    assert came == [(lane, False) for lane in taken]


def test_the_caches_are_updated_in_place():
    """Nothing as large as one layer's pages is held beside the caches while both models write. (The heads are wide, so that
    scores, one number per token and head, are small beside pages.)"""
    writers = [model(i, len(spelled(kind)), head_dim=64) for i, kind in enumerate(("student", "teacher"))]
    machine = engine(World(pool=3 * 4096), 3, writers=writers)
    pages = min(x.nbytes // x.shape[0] for cache in machine.lanes.caches for x in cache.kv.pages)
    machine.insert(0, JOBS[0].state(World()))
    machine.run()
    (loop,) = [c for c in machine.compilations if c.name == "loop"]
    assert loop.temporary_bytes < pages


def test_tokens_beyond_the_vocabulary_are_never_seen():
    machine = engine(World(), 3)
    by_engine(World(), JOBS, built=machine)
    for tokens_BS, kind in zip(machine.lanes.tokens.ids_MBS, ("student", "teacher"), strict=True):
        tokens = np.asarray(tokens_BS)
        assert tokens.min() >= 0
        assert tokens.max() < len(spelled(kind))
