"""A run folder keeps every committed row exactly once, whenever the process dies, on paths and object stores."""

import itertools
import os
import random
import subprocess
import sys
import time
import uuid

import pytest

from tessy_jax.errors import ConfigError, DataError
from tessy_jax.records import Failure, Row, Span
from tessy_jax.store import RunReader, RunStore, run
from tessy_jax.store.files import RemoteFiles


def response(number, size=20, rollout=0):
    text = f"{number}: " + "é\u2028" * (size // 2)
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": text})
    return Row(
        f"p{number}/{rollout}", f"p{number}", rollout, messages, (Span("student", "think", 0, len(text)),), {"n": number}
    )


def failure(number, attempts=1, rollout=0):
    return Failure(f"p{number}/{rollout}", f"p{number}", rollout, "length", attempts)


def part_files(store):
    return sorted(store._files.sizes("responses"))


@pytest.fixture(params=["path", "object store"])
def output(request, tmp_path):
    return str(tmp_path / "run") if request.param == "path" else f"memory://{uuid.uuid4().hex}/run"


@pytest.fixture
def many_merges(monkeypatch):
    monkeypatch.setattr(run, "FEW", 3)
    monkeypatch.setattr(run, "SMALL", 2000)


def test_committed_rows_read_back_in_order_also_after_reopening(output):
    with RunStore(output) as store:
        store.save_config("output: x\n")
        store.commit([response(0), response(1)], [failure(2)])
        store.commit([response(3)])
        assert store.finished() == {("p0", 0), ("p1", 0), ("p3", 0)}
    for opened in (RunReader(output), RunStore(output)):
        assert list(opened.rows()) == [response(0), response(1), response(3)]
        assert list(opened.failures()) == [failure(2)]
        assert opened.finished() == {("p0", 0), ("p1", 0), ("p3", 0)}
        assert opened.failed() == {("p2", 0)}
        assert opened.config().endswith("\noutput: x\n")


def test_a_key_keeps_its_first_response_and_a_response_replaces_failures(output):
    with RunStore(output) as store:
        store.commit([response(0), response(0, 40)], [failure(0, 9), failure(1, 2), failure(1, 1), failure(2)])
        store.commit([response(0, 60)], [failure(1, 3), failure(1, 2)])
        store.commit([response(2), response(0, rollout=1)])
        for opened in (store, RunReader(output)):
            assert list(opened.rows()) == [response(0), response(2), response(0, rollout=1)]
            assert list(opened.failures()) == [failure(1, 3)]
            assert opened.failed() == {("p1", 0)}


def test_a_commit_with_an_invalid_row_keeps_nothing_and_an_empty_one_writes_nothing(output):
    with RunStore(output) as store:
        with pytest.raises(DataError):
            store.commit([response(0), Row("", "p", 0, (), (), {})])
        store.commit([])
        assert not part_files(store)
        assert store.finished() == set()


@pytest.mark.usefixtures("many_merges")
def test_merging_keeps_every_row_and_their_order_and_leaves_few_files(output):
    sizes = random.Random(0)
    with RunStore(output) as store:
        for number in range(120):
            store.commit([response(number, sizes.choice([10, 100, 2500]))])
            assert len(store._parts) == len(part_files(store))
        assert [row.id for row in RunReader(output).rows()] == [f"p{i}/0" for i in range(120)]
        store.compact()
        small = [part.size < run.SMALL for part in store._parts]
        assert not any(a and b for a, b in itertools.pairwise(small))
        assert [row.id for row in RunReader(output).rows()] == [f"p{i}/0" for i in range(120)]


def test_80_000_small_commits_leave_few_files_and_rewrite_each_byte_a_few_times(monkeypatch):
    written = 0

    def counting_put(name, data, *, new=False):
        nonlocal written
        written += len(data)
        contents[name] = data

    store = RunStore(f"memory://{uuid.uuid4().hex}")
    contents = {}
    monkeypatch.setattr(store._files, "put", counting_put)
    monkeypatch.setattr(store._files, "get", contents.__getitem__)
    monkeypatch.setattr(store._files, "delete", contents.pop)
    monkeypatch.setattr(run, "validate", lambda row: None)
    row = response(0)
    for number in range(80_000):
        object.__setattr__(row, "prompt_id", f"p{number}")
        store.commit([row])
        assert len(contents) <= 100
    assert written < 12 * sum(map(len, contents.values()))
    assert sum(data.count(b"\n") for data in contents.values()) == 80_000


class Killed(BaseException):
    """Stands for the end of the process."""


class DiesAt:
    """Files of which the n-th change is the last: it happens or not, and nothing after it."""

    def __init__(self, files, n, happens):
        self.files, self.left, self.happens = files, n, happens

    def __getattr__(self, name):
        method = getattr(self.files, name)
        if name not in ("put", "delete"):
            return method

        def change(*args, **kwargs):
            self.left -= 1
            if self.left < 0 or (self.left == 0 and not self.happens):
                raise Killed
            method(*args, **kwargs)
            if self.left == 0:
                raise Killed

        return change


@pytest.mark.usefixtures("many_merges")
@pytest.mark.parametrize("happens", [False, True])
@pytest.mark.parametrize("place", ["path", "object store"])
def test_a_crash_between_any_two_changes_loses_and_duplicates_nothing(place, happens, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for n in itertools.count(1):
        output = str(tmp_path / f"{n}") if place == "path" else f"memory://{uuid.uuid4().hex}"
        store = RunStore(output)
        store._files = DiesAt(store._files, n, happens)
        returned, snapshot, died = [], None, False
        try:
            store.save_config("output: x\n")
            for number in range(14):
                store.commit([response(number, 300 if number % 3 else 2500)], [failure(number + 100)])
                returned.append(f"p{number}/0")
                store.save_snapshot(b"snapshot %d" % number)
                snapshot = number
            store.compact()
        except Killed:
            died = True
        store._files.files.stop()
        reader = RunReader(output) if returned else None
        with RunStore(output) as again:
            for opened in filter(None, (reader, again, RunReader(output) if returned else None)):
                ids = [row.id for row in opened.rows()]
                assert ids[: len(returned)] == returned
                assert len(ids) == len(set(ids)) <= len(returned) + 1
                failures = [f.id for f in opened.failures()]
                assert failures[: len(returned)] == [f"p{i + 100}/0" for i in range(len(returned))]
            kept = again.load_snapshot()
            assert snapshot is None or int(kept.split()[1]) in (snapshot, snapshot + 1)
            ends = [part.end for part in again._parts]
            assert ends == sorted(set(ends)), "parts that a merge replaced are gone"
            again.commit([response(50)])
            assert ("p50", 0) in RunReader(output).finished()
        if not died:
            break
    assert n > 40


WORKER = """
import sys
from tessy_jax.store import RunStore, run
from tests.test_store import failure, response
run.FEW, run.SMALL = 3, 4000
with RunStore(sys.argv[1]) as store:
    store.save_config("output: x\\n")
    number = 0
    while True:
        number += 1
        if (f"p{number}", 0) in store.finished():
            continue
        store.commit([response(number, number % 7 * 100), response(number, 10, 1)], [failure(number, rollout=2)])
        print(f"p{number}/0 p{number}/1", flush=True)
        if number % 5 == 0:
            store.save_snapshot(b"%d" % number)
            print(f"snapshot {number}", flush=True)
"""


def test_every_counted_response_survives_kill_9_at_any_instant_exactly_once(tmp_path):
    output = str(tmp_path / "run")
    moments = random.Random(7)
    counted, snapshot = [], 0
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", WORKER, output], stdout=subprocess.PIPE, text=True)
        first = process.stdout.readline()
        time.sleep(moments.uniform(0, 0.25))
        process.kill()
        lines = [line for line in (first + process.stdout.read()).split("\n")[:-1] if line]
        process.wait()
        assert lines, "the worker printed nothing"
        for line in lines:
            if line.startswith("snapshot"):
                snapshot = int(line.split()[1])
            else:
                counted += line.split()
        reader = RunReader(output)
        ids = [row.id for row in reader.rows()]
        assert len(ids) == len(set(ids))
        assert set(counted) <= set(ids)
        failures = [f.id for f in reader.failures()]
        assert len(failures) == len(set(failures)) == len(ids) // 2
        assert int(reader.load_snapshot() or 0) >= snapshot
    assert len(counted) == len(set(counted)) > 100
    with RunStore(output) as store:
        store.compact()
        assert {row.id for row in store.rows()} >= set(counted)
        assert len(part_files(store)) < 20
        assert not list((tmp_path / "run" / "responses").glob(".*"))


def test_one_process_writes_at_a_time_and_kill_9_releases_its_lock(tmp_path):
    output = str(tmp_path / "run")
    process = subprocess.Popen([sys.executable, "-c", WORKER, output], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    with pytest.raises(ConfigError, match=f"process {process.pid} is writing this run; wait for it"):
        RunStore(output)
    assert RunReader(output).finished(), "reading needs no lock"
    process.kill()
    process.wait()
    process.stdout.close()
    with RunStore(output), pytest.raises(ConfigError, match=f"process {os.getpid()} is writing"):
        RunStore(output)


def test_a_second_writer_of_an_object_store_is_refused_and_overwrites_nothing():
    output = f"memory://{uuid.uuid4().hex}"
    first, second = RunStore(output), RunStore(output)
    first.commit([response(1)])
    with pytest.raises(ConfigError, match="another process has written it meanwhile"):
        second.commit([response(2)])
    assert [row.id for row in RunReader(output).rows()] == ["p1/0"]


def test_a_put_repeated_after_a_lost_answer_is_no_conflict():
    files = RemoteFiles(f"memory://{uuid.uuid4().hex}")
    files.start()
    files.put("a", b"1", new=True)
    files.put("a", b"1", new=True)
    with pytest.raises(ConfigError):
        files.put("a", b"2", new=True)
    files.put("a", b"2")
    assert files.get("a") == b"2"


@pytest.mark.usefixtures("many_merges")
def test_a_reader_sees_every_row_once_while_parts_are_merged(output):
    with RunStore(output) as store:
        for number in range(3):
            store.commit([response(number)])
        assert len(part_files(store)) == 3
        rows = RunReader(output).rows()
        seen = [next(rows).id]
        for number in range(3, 40):
            store.commit([response(number)])
        seen += [row.id for row in rows]
    assert len(seen) == len(set(seen))
    assert set(seen) >= {f"p{i}/0" for i in range(3)}


def test_torn_lines_and_foreign_files_are_ignored(output):
    with RunStore(output) as store:
        store.save_config("")
        store.commit([response(0)])
        store.commit([response(1)])
        name = store._parts[-1].name
        content = store._files.get(name)
        store._files.put(name, content + content.replace(b"p1", b"p2")[:-30])
        store._files.put("responses/part-1.jsonl.tmp", b"{")
        store._files.put(f"responses/part-{7:020}-1.jsonl", b"")
        for opened in (store, RunReader(output)):
            assert [row.id for row in opened.rows()] == ["p0/0", "p1/0"]
    with RunStore(output) as store:
        store.commit([response(2)])
        store.compact()
        assert [row.id for row in store.rows()] == ["p0/0", "p1/0", "p2/0"]
        assert store._parts[-1].end == 9


def test_the_previous_snapshot_replaces_a_torn_one(output):
    with RunStore(output) as store:
        assert store.load_snapshot() is None
        for number in range(4):
            store.save_snapshot(os.urandom(100) + b"%d" % number)
        assert store.load_snapshot().endswith(b"3")
        newest = sorted(store._files.sizes("snapshots"))[-1]
        assert len(store._files.sizes("snapshots")) == 2
        content = store._files.get(f"snapshots/{newest}")
        for torn in (content[:-1], content[:20], b"", content[:50] + bytes([content[50] ^ 1]) + content[51:]):
            store._files.put(f"snapshots/{newest}", torn)
            assert RunReader(output).load_snapshot().endswith(b"2")
        store.clear_snapshots()
        assert store.load_snapshot() is None
        store.save_snapshot(b"")
        assert store.load_snapshot() == b""


def test_config_and_summary_are_replaced_and_a_torn_summary_is_ignored(output):
    with RunStore(output) as store:
        assert store.config() is None
        assert store.summary() is None
        for text in ("a: 1\n", "b: é\n"):
            store.save_config(text)
            store.save_summary({"config": text})
            assert RunReader(output).config().split("\n", 1)[1] == text
            assert RunReader(output).summary() == {"config": text}
        store.save_config(store.config())
        assert store.config().count("tessy_jax") == 1
        store._files.put("summary.json", b'{"a')
        assert store.summary() is None


def test_a_folder_with_other_files_is_not_changed(tmp_path):
    (tmp_path / "config.yaml").write_text("model: mine\n")
    (tmp_path / "data.bin").write_text("precious")
    before = sorted(tmp_path.iterdir())
    for kind in (RunStore, RunReader):
        with pytest.raises(ConfigError, match=r"no run of tessy_jax|is not a run folder"):
            kind(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ConfigError, match="a file; name a folder"):
        RunStore(str(tmp_path / "data.bin"))
    with pytest.raises(ConfigError, match="is not a run folder"):
        RunReader(str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()
    (tmp_path / "other" / "responses").mkdir(parents=True)
    (tmp_path / "other" / "responses" / "letter.txt").write_text("Dear …")
    with pytest.raises(ConfigError, match=r"holds 'responses/letter.txt' but no run"):
        RunStore(str(tmp_path / "other"))


def test_a_folder_of_a_start_that_was_killed_at_once_opens_again(output):
    RunStore(output).close()
    with RunStore(output) as store:
        store.commit([response(0)])


def test_an_address_with_an_unknown_protocol_is_refused():
    with pytest.raises(ConfigError, match=r"nosuch://x/y: cannot be opened .*Protocol not known"):
        RunStore("nosuch://x/y")


def test_a_folder_without_free_space_is_refused_when_it_is_opened(tmp_path):
    code = "import resource, sys\nfrom tessy_jax.store import RunStore\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\nRunStore(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert "DataError" in done.stderr
    assert "cannot be written (File too large); free some space" in done.stderr
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/run: is in or is a file"):
        RunStore(str(tmp_path / "file" / "run"))


def test_a_failed_commit_keeps_committed_rows_and_the_next_commit_succeeds(tmp_path, monkeypatch):
    store = RunStore(str(tmp_path / "run"))
    store.commit([response(0)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(DataError, match=r"No space left on device.*what was committed is kept"):
            store.commit([response(1)])
    assert store.finished() == {("p0", 0)}
    store.commit([response(1), response(2)])
    assert [row.id for row in store.rows()] == ["p0/0", "p1/0", "p2/0"]
    assert not list((tmp_path / "run" / "responses").glob(".*"))
    store.close()
    with pytest.raises(AssertionError, match="between start and stop only"):
        store.commit([response(3)])


def test_opening_a_store_on_a_path_does_not_load_jax_or_fsspec(tmp_path):
    code = "import sys, tessy_jax.store\ntessy_jax.store.RunStore('file://' + sys.argv[1] + '/run')\n"
    code += "print({'jax', 'fsspec', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert (tmp_path / "run" / ".lock").exists()


def test_a_run_folder_that_holds_no_responses_has_no_empty_folders(tmp_path):
    with RunStore(str(tmp_path / "run")) as store:
        store.save_config("output: run\n")
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_dir()] == []
