"""Tests of loading a run: missing stages, object stores and untrusted text."""

import json
import re

import fsspec
import pytest

from tessy_jax.report.load_run import run_page
from tessy_jax.report.page import visible
from tessy_jax.store import RunReader, RunStore

from .fake_run import build
from .parsed import parse, tables
from .test_page import HOSTILE
from .test_run_page import HEADINGS, rows_of, section

TEXTS = [text for text in HOSTILE if "\ud800" not in text]  # rows reject lone surrogates


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return parse(run_page(build(tmp_path_factory.mktemp("runs") / "plain")))


@pytest.mark.parametrize(
    "missing",
    [
        {"teacher": False},
        {"before": False},
        {"failures": False, "scores": False, "evaluation_file": False},
        {"summary": False},
        {"steps": 0},
        {"steps": 1},
        {"rounds": 0},
        {"rounds": 0, "before": False, "summary": False},
    ],
    ids=str,
)
def test_missing_stages_are_left_out(tmp_path, missing):
    run = build(tmp_path / "run", prompts=10, **missing) if missing.get("steps", 1) else _without_steps(tmp_path / "run")
    page = parse(run_page(run))
    assert [node.text for node in page.all("h2")] == HEADINGS
    assert "not finished" in page.one(marked="subtitle").text or missing.get("summary", True)
    if missing == {"teacher": False}:
        assert {node.classes[1] for node in page.all(marked="span")} == {"student", "template"}
        assert "capability" not in {node.text for node in page.all("text")}
        assert "its own responses" in page.one(marked="subtitle").text
    if missing == {"before": False}:
        assert tables(page)["pass@1 and its confidence interval"][0][:-1] == ["", "problems", "after round 1"]
        assert "needs two finished evaluations" in section(page, "Before and after").text


def _without_steps(output):
    run = build(output, prompts=10)
    with RunStore(f"{run}/round-1/training") as store:
        store.files.delete("metrics.jsonl")
        store.files.delete("summary.json")
    return run


def test_a_run_whose_stages_have_no_kind_gives_the_same_page(tmp_path):
    run = build(tmp_path / "run", prompts=6, problems=12)
    page = run_page(run)
    with RunStore(run) as store:
        summary = store.summary()
        store.save_summary(
            summary | {"stages": [{name: s[name] for name in ("name", "seconds")} for s in summary["stages"]]}
        )
    assert run_page(run) == page


@pytest.mark.parametrize("part", ["synthesis", "training", "evaluation"])
def test_the_finished_stages_of_an_unfinished_round_are_shown(tmp_path, part):
    run = build(tmp_path / "run", prompts=6, problems=12, summary=False)
    for name in ("synthesis", "training", "evaluation"):
        if name != part:
            (tmp_path / "run" / "round-1" / name).rename(tmp_path / name)
    (tmp_path / "run" / "round-1" / part / "summary.json").unlink()
    page = parse(run_page(run))
    assert [node.text for node in page.all("h2")] == HEADINGS
    assert "before" in tables(page)["pass@1 and its confidence interval"][0]
    assert bool(list(page.all(marked="written"))) == (part == "synthesis")


def test_the_page_is_independent_of_commit_order_and_open_writers(tmp_path):
    runs = [build(tmp_path / name / "run") for name in "ab"]
    with RunStore(runs[1]), RunStore(f"{runs[1]}/round-1/synthesis") as store:
        first = run_page(runs[0])
        assert run_page(runs[0]) == first == run_page(runs[1])
        rows = list(store.rows())
    with RunStore(str(tmp_path / "again")) as store:
        store.save_config("recipe: tessy\n")
        for row in rows[::-1]:
            store.commit([row])
        store.commit([], list(RunReader(f"{runs[0]}/round-1/synthesis").failures()))
        store.compact()
    for name in ("summary.json", "scores.jsonl"):
        (tmp_path / "again" / name).write_bytes((tmp_path / "a/run/round-1/synthesis" / name).read_bytes())
    (tmp_path / "b/run/round-1/synthesis").rename(tmp_path / "old")
    (tmp_path / "again").rename(tmp_path / "b/run/round-1/synthesis")
    assert run_page(runs[1]) == first


def test_a_run_on_an_object_store_gives_the_same_page_as_on_disk(tmp_path):
    run = build(tmp_path / "stored", prompts=6, problems=12)
    memory = fsspec.filesystem("memory")
    for file in (tmp_path / "stored").rglob("*"):
        if file.is_file():
            memory.pipe_file(f"/bucket/stored/{file.relative_to(tmp_path / 'stored')}", file.read_bytes())
    try:
        assert run_page("memory://bucket/stored") == run_page(run)
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("text", TEXTS)
def test_hostile_text_of_models_stays_text(tmp_path, page, text):
    run = build(tmp_path / "run", prompts=6, problems=8, text=text)
    html = run_page(run)
    hostile = parse(html)
    assert visible(html) == html
    assert {node.tag for node in hostile.all()} <= {node.tag for node in page.all()}
    assert len(list(hostile.all("script"))) == 1
    for node in hostile.all():
        assert not [name for name in node.attributes if name.startswith("on") or name in ("src", "href", "srcdoc")] or (
            node.tag == "a" and re.fullmatch(r"#section-\d+", node.attributes["href"])
        )
        style = node.attributes.get("style", "")
        assert re.fullmatch(r"[-a-z: .;%0-9(),#]*", style), style
    for box, row in zip(hostile.all(marked="written"), rows_of(run, "round-1/synthesis"), strict=True):
        assert box.text == visible(row.content)
    assert visible(text.rstrip("/").rpartition("/")[2]) in hostile.one(marked="subtitle").text
    families = {row[0] for row in tables(hostile)["pass@1 and its confidence interval"]}
    assert {visible(text) + name for name in ("Ae", "Ah", "B")} <= families
    articles = list(section(hostile, "Before and after").all("article"))
    assert articles
    for article in articles:
        assert visible(text) in article.one("h4").text
        assert article.one(marked="prompt").text == visible(text)
        assert {node.text for node in article.all(marked="thinking")} <= {visible(text * n) for n in range(1, 30)}


def test_the_page_has_a_section_for_a_saved_plan(tmp_path):
    run = build(tmp_path / "run", prompts=6, problems=12)
    step = {"side": 1, "writer": "teacher", "part": "step", "kernels": 1738}
    program = {
        "program": "loop",
        "seconds": {"trace": 3.0, "lower": 2.0, "compile": 95.0},
        "device_bytes": 60 << 30,
        "fits": True,
        "rows_that_fit": {"8192": 31, "40960": 6},
        "steps": [step, step | {"part": "hand-over", "kernels": 1082}],
        "collectives": [{"operation": "all-reduce", "shape": "f32[8]", "count": 72, "bytes": 2304}],
    }
    failed = {"program": "train", "error": "Ran out of memory"}
    target = {"target": "h100:8", "programs": [program, failed], "notes": []}
    with RunStore(run) as store:
        store.files.put(
            "plan.json", json.dumps({"targets": [target, target | {"programs": [], "error": "stopped"}]}).encode()
        )
    page = parse(run_page(run))
    assert [node.text for node in page.all("h2")] == [*HEADINGS, "Plan"]
    rows = tables(page)["Programs"]
    assert rows[1] == [
        "h100:8",
        "loop",
        "100 s",
        "60.00 GiB",
        "31 of 8,192 tokens, 6 of 40,960 tokens",
        "teacher 1,738",
        "72",
    ]
    assert rows[2][:3] == ["h100:8", "train", "Ran out of memory"]
    assert rows[3][:3] == ["h100:8", "–", "stopped"]
