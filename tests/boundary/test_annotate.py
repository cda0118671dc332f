"""Annotation survives a kill at any instant, does not repeat committed batches, and never changes a corrected file."""

import json
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter

import pytest

from tessy_jax.boundary import endpoint
from tessy_jax.boundary.annotate import annotate, make_annotator
from tessy_jax.boundary.endpoint import Endpoint
from tessy_jax.boundary.rules import Rules
from tessy_jax.boundary.spans import Dropped, locate, parse_reply_spans, read_annotations
from tessy_jax.config import Model
from tessy_jax.config.predictors import Predictors
from tessy_jax.errors import DataError
from tessy_jax.records import Row
from tessy_jax.store.files import open_files
from tests.boundary.server import serving

NAME, DROPPED = "annotations/student.jsonl", "annotations/student-dropped.jsonl"


def row(i, thinking="wait, so x = 1. Hmm, then y = 2. Okay, let me check that. z = 3 "):
    content = f"<think>\n{thinking}{i}\n</think>\n\n42"
    return Row(f"p{i}/0", f"p{i}", 0, ({"role": "user", "content": "?"}, {"role": "assistant", "content": content}), (), {})


ROWS = [row(i) for i in range(20)]


class Scripted:
    """Annotates by a rule or with given replies, of which None is a failure; counts requests, and raises KeyboardInterrupt
    after `dies_after` batches."""

    name, at_once = "scripted", 4

    def __init__(self, replies=None, dies_after=None):
        self.replies, self.remaining, self.requested = replies or {}, dies_after, Counter()

    def __call__(self, config):
        return self

    def annotate(self, segments):
        if self.remaining == 0:
            raise KeyboardInterrupt
        self.remaining = None if self.remaining is None else self.remaining - 1
        self.requested.update(s.id for s in segments)
        return [self.outcome(s) for s in segments]

    def outcome(self, segment):
        reply = self.replies.get(segment.id, '["so"]' if " so " in segment.text else f'["{segment.text[:3]}"]')
        return Dropped(segment, "failed", "no server") if reply is None else parse_reply_spans(segment, reply, self.name)


@pytest.fixture(params=["path", "object store"])
def output(request, tmp_path):
    return str(tmp_path / "run") if request.param == "path" else f"memory://{uuid.uuid4().hex}/run"


@pytest.fixture
def opened(output):
    files = open_files(output)
    files.start()
    yield files
    files.stop()


def config(output, **annotator):
    return Predictors(
        output=output,
        traces={"student": "unused"},
        segments={"words": 5, "per_trace": 3},
        annotator={"min_share": 0.5, **annotator},
    )


def run(opened, output, annotator, rows=ROWS, **settings):
    messages = []
    return annotate(config(output, **settings), "student", rows, opened, messages.append, annotator=annotator)


def kept(opened):
    return read_annotations(opened.get(NAME), "a.jsonl").kept


def test_annotations_are_in_the_order_of_the_segments_and_the_parts_are_deleted(opened, output):
    counts = run(opened, output, Scripted())
    assert counts == {
        "traces": 20,
        "without_thinking": 0,
        "segments": 60,
        "kept": 60,
        "unparsable": 0,
        "unmatched": 0,
        "empty": 0,
        "truncated": 0,
        "reasoning": 0,
        "refused": 0,
        "failed": 0,
    }
    assert [a.segment.id for a in kept(opened)] == [f"p{i}/0#{n}" for i in range(20) for n in range(3)]
    assert not any(name.startswith("part") for name in opened.sizes("annotations/student"))
    for a in kept(opened):
        assert locate(a.segment.text, [a.segment.text[s:e] for s, e in a.spans])[1] is None


def test_dropped_segments_are_counted_and_saved_with_their_reply(opened, output):
    replies = {"p0/0#0": "what?", "p0/0#1": '["not there"]', "p1/0#0": "[]", "p1/0#1": ""}
    counts = run(opened, output, Scripted(replies))
    assert {name: counts[name] for name in ("kept", "unparsable", "unmatched", "empty")} == {
        "kept": 56,
        "unparsable": 1,
        "unmatched": 1,
        "empty": 2,
    }
    lines = [json.loads(line) for line in opened.get(DROPPED).splitlines()]
    assert [(d["id"], d["outcome"]) for d in lines] == [
        ("p0/0#0", "unparsable"),
        ("p0/0#1", "unmatched"),
        ("p1/0#0", "empty"),
        ("p1/0#1", "empty"),
    ]
    assert lines[1]["detail"] == """'not there' of ["not there"]"""


@pytest.mark.parametrize("batches", [0, 1, 7, 14])
def test_a_killed_process_loses_only_the_batch_in_flight_and_nothing_is_repeated(opened, output, batches):
    dying = Scripted(dies_after=batches)
    with pytest.raises(KeyboardInterrupt):
        run(opened, output, dying)
    assert sum(dying.requested.values()) == 4 * batches
    again = Scripted()
    assert run(opened, output, again)["kept"] == 60
    assert not dying.requested & again.requested
    assert set(dying.requested) | set(again.requested) == {a.segment.id for a in kept(opened)}


@pytest.mark.parametrize("operation", ["put", "delete"])
@pytest.mark.parametrize("failing", [None, "p3/0#1"])
def test_an_interruption_at_any_write_or_deletion_loses_nothing(opened, output, operation, failing, monkeypatch):
    replies = {"p2/0#2": "[]", **({failing: None} if failing else {})}
    real = getattr(opened, operation)
    requested = Counter()
    finished = False
    for step in range(100):
        remaining = step

        def interrupted(*args, **kwargs):
            nonlocal remaining
            if remaining == 0:
                raise KeyboardInterrupt
            remaining -= 1
            return real(*args, **kwargs)

        monkeypatch.setattr(opened, operation, interrupted)
        annotator = Scripted(replies)
        try:
            counts = run(opened, output, annotator)
            finished = True
        except KeyboardInterrupt:
            pass
        monkeypatch.setattr(opened, operation, real)
        requested += annotator.requested
        if finished:
            break
    assert finished
    assert (counts["segments"], counts["empty"], counts["failed"]) == (60, 1, int(bool(failing)))
    assert [a.segment.id for a in kept(opened)] == [
        f"p{i}/0#{n}" for i in range(20) for n in range(3) if f"p{i}/0#{n}" not in replies
    ]
    lost = 4 * step if operation == "put" else 0  # a batch that was not committed
    assert sum(n - 1 for name, n in requested.items() if name != failing) <= lost


@pytest.mark.slow
def test_kill_9_during_annotation_loses_nothing(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(sys.path[0])!r})
from pathlib import Path
from tests.boundary.test_annotate import Scripted, ROWS, config
from tessy_jax.boundary.annotate import annotate
from tessy_jax.store.files import open_files
class Slow(Scripted):
    def annotate(self, segments):
        time.sleep(0.05)
        print(*[s.id for s in segments], flush=True)
        return super().annotate(segments)
files = open_files(sys.argv[1])
files.start()
print("started", flush=True)
print(annotate(config(sys.argv[1]), "student", ROWS, files, annotator=Slow())["kept"], "kept", flush=True)
"""
    requested = []
    for kills in range(20):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        lines = []
        for line in process.stdout:
            lines.append(line.split())
            if len(lines) == 6 and kills < 3:
                time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        process.wait()
        requested += [name for line in lines if line[0].startswith("p") for name in line]
        if lines[-1][-1] == "kept":
            break
    assert lines[-1] == ["60", "kept"]
    assert len(requested) - len(set(requested)) <= 4 * kills
    annotations = read_annotations((tmp_path / NAME).read_bytes(), "a").kept
    assert [a.segment.id for a in annotations] == [f"p{i}/0#{n}" for i in range(20) for n in range(3)]


def test_a_finished_file_is_counted_and_keeps_its_corrections(opened, output):
    run(opened, output, Scripted({"p0/0#0": "[]"}))
    lines = opened.get(NAME).decode().splitlines()
    first = json.loads(lines[0])
    first |= {"spans": [], "annotator": "me"}
    corrected = "\n\n".join([json.dumps(first, indent=None, separators=(",", ":")), *lines[2:]]).encode()
    opened.put(NAME, corrected)
    counts = run(opened, output, Scripted(dies_after=0))
    assert (counts["kept"], counts["empty"], counts["segments"]) == (58, 1, 59)
    assert opened.get(NAME) == corrected


def test_a_finished_file_that_is_no_longer_valid_is_refused_with_its_line(opened, output):
    run(opened, output, Scripted())
    opened.put(NAME, opened.get(NAME) + b"{}\n")
    with pytest.raises(DataError, match=rf"{output}/{NAME}:61: the annotation lacks"):
        run(opened, output, Scripted())


def test_failed_segments_are_retried_by_the_next_start_and_appended(opened, output):
    assert run(opened, output, Scripted({"p3/0#1": None, "p4/0#0": None, "p5/0#0": "[]"}))["failed"] == 2
    before = opened.get(NAME).replace(b"scripted", b"me", 1).rstrip()
    opened.put(NAME, before)
    second = Scripted({"p4/0#0": None})
    counts = run(opened, output, second)
    assert (counts["kept"], counts["failed"], counts["empty"]) == (58, 1, 1)
    assert set(second.requested) == {"p3/0#1", "p4/0#0"}
    assert opened.get(NAME).startswith(before + b"\n")
    third = Scripted()
    assert run(opened, output, third)["kept"] == 59
    assert set(third.requested) == {"p4/0#0"}
    assert [a.segment.id for a in kept(opened)[-2:]] == ["p3/0#1", "p4/0#0"]
    assert [json.loads(line)["id"] for line in opened.get(DROPPED).splitlines()] == ["p5/0#0"]


def test_a_dropped_segment_with_a_manual_annotation_counts_once(opened, output):
    run(opened, output, Scripted({"p3/0#1": None, "p5/0#0": "[]"}))
    moved = [json.loads(line) for line in opened.get(DROPPED).splitlines()]
    lines = [
        json.dumps({k: d[k] for k in d if k not in ("outcome", "detail")} | {"spans": [], "annotator": "me"}) for d in moved
    ]
    opened.put(NAME, opened.get(NAME) + "\n".join(lines).encode())
    annotator = Scripted()
    counts = run(opened, output, annotator)
    assert (counts["kept"], counts["segments"], counts["failed"], counts["empty"]) == (60, 60, 0, 0)
    assert not annotator.requested


def test_too_few_annotations_are_refused_with_counts_and_the_next_start_continues(opened, output):
    none = dict.fromkeys(f"p{i}/0#{n}" for i in range(20) for n in range(2))
    with pytest.raises(DataError, match=r"of 60 segments: 20 kept, 0 unparsable, .*, 40 failed; .*min_share = 0.5") as error:
        run(opened, output, Scripted(none))
    assert DROPPED in str(error.value)
    assert NAME.rpartition("/")[2] not in opened.sizes("annotations")
    second = Scripted()
    assert run(opened, output, second)["kept"] == 60
    assert set(second.requested) == set(none)


def test_a_batch_without_any_reply_stops_the_command_and_the_next_start_continues(opened, output):
    down = Scripted(dict.fromkeys((f"p{i}/0#{n}" for i in range(4, 20) for n in range(3)), None))
    with pytest.raises(DataError, match=r"all 4 segments of a batch failed \(no server\); so far 12 kept, .* 4 failed"):
        run(opened, output, down)
    assert len(down.requested) == 16
    second = Scripted()
    assert run(opened, output, second)["kept"] == 60
    assert len(second.requested) == 48


def test_an_annotator_without_any_annotation_stops_the_command_even_with_min_share_0(opened, output):
    everything = {f"p{i}/0#{n}": "nothing" for i in range(20) for n in range(3)}
    with pytest.raises(DataError, match="0 kept, 60 unparsable"):
        run(opened, output, Scripted(everything), min_share=0.0)


def test_traces_without_thinking_are_counted_and_too_many_are_refused_before_any_work(opened, output):
    without = [Row(f"q{i}/0", f"q{i}", 0, ({"role": "assistant", "content": "42"},), (), {}) for i in range(2)]
    with pytest.raises(DataError, match=r"2 of 4 traces of the student have thinking, less than annotator.min_share = 0.6"):
        run(opened, output, Scripted(dies_after=0), [*ROWS[:2], *without], min_share=0.6)
    with pytest.raises(DataError, match="0 of 2 traces of the student have thinking"):
        run(opened, output, Scripted(dies_after=0), without, min_share=0.0)
    assert run(opened, output, Scripted(), [*ROWS, *without])["without_thinking"] == 2


def test_parts_of_other_traces_are_refused(opened, output):
    with pytest.raises(KeyboardInterrupt):
        run(opened, output, Scripted(dies_after=2))
    with pytest.raises(DataError, match="differs from that of the traces, which have changed"):
        run(opened, output, Scripted(), [row(i, "quite another thing that is thought of here ") for i in range(20)])


def test_a_truncated_line_of_a_part_is_annotated_again(opened, output):
    with pytest.raises(KeyboardInterrupt):
        run(opened, output, Scripted(dies_after=2))
    part = "annotations/student/part-00001.jsonl"
    opened.put(part, opened.get(part)[:-30])
    again = Scripted()
    assert run(opened, output, again)["kept"] == 60
    assert len(again.requested) == 60 - 7


def test_the_thinking_is_found_by_the_speakers_own_markers(opened, output):
    thinking = {"open": "```\n", "close": "\n```"}
    own = config(output).model_copy(update={"student": Model(model="m", thinking=thinking)})
    rows = [Row("p/0", "p", 0, ({"role": "assistant", "content": "```\nwait, so x\n``` 42"},), (), {})]
    assert annotate(own, "student", rows, opened, annotator=Scripted())["kept"] == 1
    assert [a.segment.text for a in kept(opened)] == ["wait, so x\n```"]


def test_the_rules_annotate_by_default_and_keep_everything(opened, output):
    counts = annotate(config(output), "student", ROWS, opened)
    assert counts["kept"] == 60
    assert any(a.spans for a in kept(opened))
    assert {a.annotator for a in kept(opened)} == {"rules"}


def test_after_an_outage_the_next_start_requests_the_remaining_segments(opened, output, monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    broken = True

    def answer(excerpt, _):
        return 500 if broken and len(server.requests) > 45 else json.dumps([excerpt.split()[0]])

    with serving(answer) as server:
        settings = {"kind": "endpoint", "url": server.url, "name": "m", "retries": 0, "concurrency": 2}
        first = annotate(config(output, **settings), "student", ROWS, opened)
        assert first["kept"] + first["failed"] == 60
        assert first["failed"] > 0
        done, broken = len(server.requests), False
        assert annotate(config(output, **settings), "student", ROWS, opened)["kept"] == 60
        assert len(server.requests) - done == first["failed"]


def test_the_configuration_selects_the_annotator(tmp_path):
    assert isinstance(make_annotator(config("x")), Rules)
    assert isinstance(make_annotator(config("x", kind="endpoint", url="http://a", name="m")), Endpoint)
