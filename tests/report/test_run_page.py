"""Tests of the run page: it shows the data of the run folder, and text of models as text."""

import json
import re
from collections import Counter
from statistics import fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.config.evaluation import Task
from tessy_jax.evaluate.pass_at_k import Count, pass_at_1
from tessy_jax.evaluate.summary import VerifiedResponse, summarize
from tessy_jax.evaluate.tasks import Problem, Verdict
from tessy_jax.records import Row, Span
from tessy_jax.report.compared import clipped
from tessy_jax.report.load_run import _rounds, run_page
from tessy_jax.report.page import size
from tessy_jax.report.results import as_text, change, points
from tessy_jax.report.run_page import duration
from tessy_jax.report.span_section import HEAD, TAIL
from tessy_jax.report.view import POINTS, Evaluation, Tally, reduced
from tessy_jax.store import RunReader, RunStore

from .fake_run import build
from .parsed import parse, tables

HEADINGS = [
    "Results",
    "Training",
    "Shares of the writers",
    "Waste and throughput",
    "Span lengths",
    "Responses by span",
    "Before and after",
    "Time and memory",
]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return build(tmp_path_factory.mktemp("runs") / "two", rounds=2, predictors=True)


@pytest.fixture(scope="module")
def page(two):
    return parse(run_page(two))


def summary_of(run, place):
    return RunReader(f"{run}/{place}").summary()


def rows_of(run, place):
    return sorted(RunReader(f"{run}/{place}").rows(), key=lambda row: row.meta.get("index", 0))


def section(page, heading):
    (matching,) = [node for node in page.all("section") if node.one("h2").text == heading]
    return matching


def shown(share):
    return f"{100 * share:.1f} %"


def test_order_of_sections(page):
    assert [node.text for node in page.all("h2")] == HEADINGS


def test_results_match_the_summaries(two, page):
    table = tables(page)["pass@1 and its confidence interval"]
    assert table[0][:-1] == ["", "problems", "before", "after round 1", "change", "after round 2", "change"]
    summaries = [summary_of(two, place) for place in ("before", "round-1/evaluation", "round-2/evaluation")]
    expected = [[s["domains"][name] for s in summaries] for name in ("in", "out")]
    for name, task in summaries[0]["tasks"].items():
        expected.append([s["tasks"][name] for s in summaries])
        expected += [[s["tasks"][name]["families"][family] for s in summaries] for family in task["families"]]
    labels = ["in domain", "out of domain", "sums", "Ae", "Ah", "letters", "B"]
    assert [row[0] for row in table[1:]] == labels
    for row, measures in zip(table[1:], expected, strict=True):
        cells = [f"{shown(m['pass@1'])} {100 * m['interval'][0]:.1f}–{100 * m['interval'][1]:.1f}" for m in measures]
        assert [row[2], row[3], row[5]] == cells
        assert row[1] == str(measures[0]["problems"])
        for cell, after in zip((row[4], row[6]), measures[1:], strict=True):
            one = change(measures[0], after)
            assert points(after["pass@1"] - measures[0]["pass@1"]) in cell
            assert cell.endswith("beyond the noise" if one.low > 0 or one.high < 0 else "within the noise")


def measure(samples, right):
    mean, low, high = pass_at_1([Count(1, int(i < right)) for i in range(samples)])
    return {"pass@1": mean, "interval": [low, high]}


def test_a_change_is_beyond_the_noise_exactly_if_its_interval_excludes_zero():
    # Newcombe 1998, table II, method 10: 56/70 and 48/80, 9/10 and 3/10, 10/10 and 0/20
    for (a, n), (b, m), low, high in (
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((0, 20), (10, 10), 0.6791, 1.0),
    ):
        difference = change(measure(n, a), measure(m, b))
        assert (difference.low, difference.high) == pytest.approx((low, high), abs=2e-4)
        assert difference.beyond
    assert not change(measure(20, 10), measure(20, 13)).beyond
    assert change(measure(2000, 1300), measure(2000, 1000)).beyond
    assert (points(0.0004), points(-0.0004), points(0.0123), points(-0.2)) == ("0.0", "0.0", "+1.2", "−20.0")


def test_the_lead_says_whether_a_change_is_noise(two, page):
    lead = section(page, "Results").one(marked="lead").text
    before, after = summary_of(two, "before")["domains"], summary_of(two, "round-2/evaluation")["domains"]
    for name, where in (("in", "In domain"), ("out", "Out of domain")):
        beyond = change(before[name], after[name]).beyond
        words = "beyond the noise of both" if beyond else "within the noise of both, no evidence of a change"
        numbers = f"{shown(before[name]['pass@1'])} before and {shown(after[name]['pass@1'])} after round 2"
        assert f"{where}, pass@1 is {numbers}: {points(change(before[name], after[name]).value)} points, {words}." in lead


def test_shares_of_tokens_and_characters(two, page):
    bars = list(section(page, "Shares of the writers").all(marked="share"))
    assert len(bars) == 4
    for number in (1, 2):
        run = summary_of(two, f"round-{number}/synthesis")["run"]
        tokens, text = bars[2 * number - 2 : 2 * number]
        total = run["tokens_student"] + run["tokens_teacher"]
        assert [item.text.split() for item in tokens.all("li")] == [
            [name, *shown(run[f"tokens_{name}"] / total).split(), f"({run[f'tokens_{name}']:,})"]
            for name in ("student", "teacher")
        ]
        counts = Counter()
        for row in rows_of(two, f"round-{number}/synthesis"):
            counts.update({s.source: 0 for s in row.spans})
            for s in row.spans:
                counts[s.source] += s.end - s.start
        assert {item.text.split()[0]: item.text.split()[-1] for item in text.all("li")} == {
            name: f"({n:,})" for name, n in counts.items()
        }
        widths = [
            float(node.attributes["style"].removeprefix("width:").rstrip("%")) for node in text.one(marked="bar").all()
        ]
        assert sum(widths) == pytest.approx(100, abs=0.01)


def test_waste_and_failure_reasons_match_the_summaries(two, page):
    part = section(page, "Waste and throughput")
    measures = {row[0]: row[1:] for row in tables(part)["Measures of the synthesis"]}
    summaries = [summary_of(two, f"round-{number}/synthesis") for number in (1, 2)]
    assert measures["responses"] == [str(s["run"]["responses"]) for s in summaries]
    assert measures["failed"] == ["3", "3"]
    assert measures["discarded tokens, of all generated"] == [shown(s["discarded_share"]) for s in summaries]
    assert measures["right answers, of all verified"] == [shown(0.75)] * 2
    assert measures["occupancy, teacher"] == [shown(s["occupancy"]["teacher"]) for s in summaries]
    assert measures["kept tokens per second"] == ["1,234.6", "1,234.6"]
    reasons = {row[0]: row[1:] for row in tables(part)["Failure reasons"][1:]}
    assert reasons == {"early end": ["1", "0"] * 2, "length": ["5", "2"] * 2, "repetition": ["0", "1"] * 2}
    bars = [[item.text for item in bar.all("li")] for bar in part.all(marked="share")]
    assert len(bars) == 4
    for use, text in zip(("kept", "discarded", "failed"), bars[1], strict=True):
        assert f"({summaries[0][f'{use}_tokens']['teacher']:,})" in text


def test_training_shows_losses_and_statistics(two, page):
    part = section(page, "Training")
    assert len(list(part.all("svg"))) == 2
    for svg in part.all("svg"):
        assert {"all targets", "capability", "style", "evaluation"} <= {node.text for node in svg.all("text")}
    by_name = {row[0]: row[1:] for row in tables(part)["Training statistics"]}
    summaries = [summary_of(two, f"round-{number}/training") for number in (1, 2)]
    assert by_name["steps"] == ["400", "400"]
    assert by_name["last loss"] == [f"{s['loss']:.4f}" for s in summaries]
    assert by_name["last evaluation loss"] == [f"{s['evaluation_loss']:.4f}" for s in summaries]
    assert by_name["targets, teacher"] == ["9,000", "9,000"]
    assert by_name["examples truncated"] == ["1", "1"]
    assert by_name["tokens per second, median"] == [f"{median(5000 + step % 7 for step in range(1, 401)):,.0f}"] * 2


def test_accuracy_after_epochs_is_plotted_from_start_to_end_of_the_round(two, tmp_path):
    run = build(tmp_path / "run", rounds=2, epochs=(1, 3))
    part = section(parse(run_page(run)), "Training")
    curves = [node for node in part.all("figure") if "after epochs" in node.one("h3").text]
    assert [node.one("h3").text for node in curves] == [f"pass@1 after epochs, round {number}" for number in (1, 2)]
    assert all({"in domain", "out of domain"} <= {node.text for node in curve.all("text")} for curve in curves)
    places = {1: ["before", *(f"round-1/{name}" for name in ("epochs/001", "epochs/003", "evaluation"))]}
    places[2] = ["round-1/evaluation", *(f"round-2/{name}" for name in ("epochs/001", "epochs/003", "evaluation"))]
    for one in _rounds(run):
        by_epoch = [summary_of(run, place)["domains"] for place in places[one.number]]
        for domain in ("in", "out"):
            assert one.accuracy[domain] == list(
                zip((0, 100, 300, 400), (measures[domain]["pass@1"] for measures in by_epoch), strict=True)
            )
    assert all(one.accuracy == {} for one in _rounds(two))


def test_each_grader_of_a_task_has_a_row():
    task = Task(name="programs", path="rows.jsonl", verifier="programs")

    def judged(compat):
        problems = [Problem(f"programs/{i}", "programs", None, [], "") for i in range(len(compat))]
        verdicts = [Verdict(i == 0, "x", "right", {"strict": i == 0, "compat": one}) for i, one in enumerate(compat)]
        return [VerifiedResponse(problem, 0, verdict, False, 9) for problem, verdict in zip(problems, verdicts, strict=True)]

    compats = ([True, False, False, False], [True, True, True, False])
    before, after = (summarize([task], judged(compat), 0.95) for compat in compats)
    lines = as_text([Evaluation("before", before), Evaluation("after", after)]).splitlines()
    assert [line.split("(")[0].split() for line in lines[2:5]] == [
        ["programs", "25.0", "%"],
        ["graded", "strict", "25.0", "%"],
        ["graded", "compat", "25.0", "%"],
    ]
    assert "75.0 %" in lines[4]
    assert "75.0 %" not in lines[3]


def test_spans_of_each_writer_are_counted_in_each_round(two, page):
    figures = list(section(page, "Span lengths").all("figure"))
    assert [node.one("h3").text for node in figures] == [
        f"Round {number}: the {name}" for number in (1, 2) for name in ("student", "teacher")
    ]
    for figure, (number, name) in zip(figures, [(n, w) for n in (1, 2) for w in ("student", "teacher")], strict=True):
        lengths = [
            s.end - s.start
            for row in rows_of(two, f"round-{number}/synthesis")
            for s in row.spans
            if s.source == name and s.phase == "think"
        ]
        assert figure.one("figcaption").text.startswith(f"{len(lengths)} spans; median ")
        assert f", mean {fmean(lengths):.1f}." in figure.one("figcaption").text


def test_the_first_responses_are_shown_span_by_span(two, page):
    boxes = list(section(page, "Responses by span").all(marked="written"))
    rows = [row for number in (1, 2) for row in rows_of(two, f"round-{number}/synthesis")[:8]]
    assert len(boxes) == len(rows) == 16
    for box, row in zip(boxes, rows, strict=True):
        assert box.text == row.content
        spans = list(box.all("span"))
        assert [node.classes[1] for node in spans] == [s.source for s in row.spans]
        assert [node.text for node in spans] == [row.content[s.start : s.end] for s in row.spans]
        assert sum("first-of-answer" in node.classes for node in spans) == 1


def test_a_tooltip_shows_writer_turn_and_log_probabilities(two, page):
    row = rows_of(two, "round-1/synthesis")[2]
    box = list(section(page, "Responses by span").all(marked="written"))[2]
    lines = RunReader(f"{two}/round-1/synthesis").file("scores.jsonl").splitlines()
    scores = next(line for line in map(json.loads, lines) if line["id"] == row.id)
    turns, turn = sum(s.source != "template" for s in row.spans), 0
    for node, span in zip(box.all("span"), row.spans, strict=True):
        hint = node.attributes["title"]
        assert hint.startswith(span.source)
        if span.source == "template":
            continue
        turn += 1
        assert f"turn {turn} of {turns}, " in hint
        for name in ("student", "teacher"):
            values = [value for start, _, value in scores[name] if span.start <= start < span.end]
            assert f"{name}: {fmean(values):.2f} over {len(values)} token".replace("-", "−") in hint


def test_verdicts_before_and_after_match_the_evaluations(two, page):
    def verdicts(place):
        return [json.loads(line) for line in RunReader(f"{two}/{place}").file("verdicts.jsonl").splitlines()]

    stages = {"before": "before", "after round 1": "round-1/evaluation", "after round 2": "round-2/evaluation"}
    by_stage = {name: {line["id"]: line for line in verdicts(place)} for name, place in stages.items()}
    part = section(page, "Before and after")
    counts = Counter(
        (line["task"], by_stage["before"][own]["right"], line["right"]) for own, line in by_stage["after round 2"].items()
    )
    pairs = [(False, True), (True, False), (True, True), (False, False)]
    assert tables(part)["Verdicts before and after round 2"][1:] == [
        [domain, *(str(counts[task, *pair]) for pair in pairs)]
        for domain, task in (("in domain", "sums"), ("out of domain", "letters"))
    ]
    articles = list(part.all("article"))
    facts = [article.one(marked="facts").text for article in articles]
    for domain in ("in domain", "out of domain"):
        kinds = Counter(fact.rpartition(" · ")[2] for fact in facts if domain in fact)
        assert kinds == {"wrong, then right": 2, "right, then wrong": 2, "right both times": 1, "wrong both times": 1}
    for article in articles:
        own = article.one("h4").text
        sides = list(article.all(marked="side"))
        assert [side.one("h5").parts[0].strip() for side in sides] == list(stages)
        for side, name in zip(sides, stages, strict=True):
            line = by_stage[name][own]
            verdict = side.one(marked="verdict")
            assert verdict.classes == ["verdict", "right" if line["right"] else "wrong"]
            assert verdict.text[0] == ("✓" if line["right"] else "✗")
            assert any(side.all(marked="final")) == (line["reason"] != "length")


def test_times_and_memory_match_the_summary(two, page):
    by_caption = tables(section(page, "Time and memory"))
    stages = RunReader(two).summary()["stages"]
    assert [row[:2] for row in by_caption["Time"][1:-1]] == [[s["name"], duration(s["seconds"])] for s in stages]
    assert by_caption["Time"][-1] == ["total", duration(sum(s["seconds"] for s in stages)), "100.0 %"]
    assert ["peak memory, host", "3.00 GiB"] in by_caption["Memory and devices"]
    assert not any("device" in row[0] and "GiB" in row[1] for row in by_caption["Memory and devices"])
    assert "0.912 (student), 0.877 (teacher)" in section(page, "Time and memory").text
    assert [duration(s) for s in (0, 59.94, 59.96, 245, 7980)] == ["0.0 s", "59.9 s", "1 min 0 s", "4 min 5 s", "2 h 13 min"]
    assert size(5 << 20) == "5.0 MiB"


def test_a_page_makes_no_requests_and_allows_only_its_script(two):
    html = run_page(two)
    assert not re.search(r"https?:|url\(|@import|\bsrc=|xlink", html)
    policies = [node.attributes.get("content", "") for node in parse(html).all("meta")]
    expected = r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[^' ]+'"
    assert any(re.fullmatch(expected, policy) for policy in policies)


def long_row(length):
    content = "<think>\n" + "".join(f"{i:07} " for i in range(length // 8)) + "the end"
    spans = [Span("template", "think", 0, 8)]
    spans += [
        Span(("student", "teacher")[i % 2], "think", 8 + 100 * i, 108 + 100 * i) for i in range((len(content) - 8) // 100)
    ]
    spans += [Span("student", "answer", spans[-1].end, len(content))]
    messages = ({"role": "user", "content": "count"}, {"role": "assistant", "content": content})
    return Row("long/0", "long", 0, messages, tuple(spans), {"index": 0})


@pytest.mark.parametrize("length", [HEAD + TAIL - 100, HEAD + TAIL + 400, 200_000])
def test_the_middle_of_a_long_response_is_replaced_by_a_marker(tmp_path, length):
    row = long_row(length)
    with RunStore(str(tmp_path / "run")) as store, RunStore(str(tmp_path / "run/round-1/synthesis")) as inner:
        store.save_config("rounds: 1\n")
        inner.commit([row])
    box = parse(run_page(str(tmp_path / "run"))).one(marked="written")
    if len(row.content) <= HEAD + TAIL:
        assert box.text == row.content
        return
    (gap,) = [node for node in box.all("span") if "gap" in node.classes]
    left_out = len(row.content) - HEAD - TAIL
    assert gap.text == f"\n[… {left_out:,} characters left out …]\n"
    assert box.text == row.content[:HEAD] + gap.text + row.content[-TAIL:]


@given(st.text(max_size=60), st.integers(3, 40))
def test_clipped_text_keeps_both_ends(text, most):
    text_shown = clipped(text, most)
    assert text_shown == text or (
        len(text) > most and text_shown.startswith(text[: 2 * most // 3]) and text_shown.endswith(text[-(most // 3) :])
    )


@given(st.integers(0, 3000))
def test_reduced_curves_have_few_points_and_keep_the_means(steps):
    lines = [{"step": i + 1, "loss": float(i), "loss_cap": None if i % 2 else 1.0} for i in range(steps)]
    steps_per_point, points = reduced(iter(lines), ("loss", "loss_cap", "loss_sty"), steps)
    assert len(points) <= POINTS
    assert len(points) == -(-steps // steps_per_point)
    for i, point in enumerate(points):
        group = lines[i * steps_per_point : (i + 1) * steps_per_point]
        assert point["step"] == group[-1]["step"]
        assert point["loss"] == pytest.approx(fmean(line["loss"] for line in group))
        assert point["loss_sty"] is None


def test_the_size_of_a_tally_does_not_grow_with_the_rows(two):
    rows = rows_of(two, "round-1/synthesis")
    once, often = Tally(), Tally()
    for row in rows:
        once.add(row)
    for row in rows * 50:
        often.add(row)
    assert often.responses == 50 * once.responses
    assert often.lengths.keys() == once.lengths.keys()
    assert all(often.lengths[name].keys() == once.lengths[name].keys() for name in once.lengths)
