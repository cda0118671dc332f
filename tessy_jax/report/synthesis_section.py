"""Sections of the run page: shares of the writers, wasted tokens and throughput, and span lengths."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tessy_jax.config.recipes import Writer
from tessy_jax.records import SOURCES
from tessy_jax.report.figures import Bars, Colour, bar_chart
from tessy_jax.report.page import Figure, Section, SideBySide, Table, count, fragment, percent
from tessy_jax.report.view import Round

WRITERS: dict[Writer, Colour] = {"student": "orange", "teacher": "blue"}
USES = ("kept", "discarded", "failed")
NOTHING = "–"


def shares(rounds: Sequence[Round]) -> Section:
    """Returns the section with each writer's share of tokens and characters."""
    bars = []
    for round_ in rounds:
        if round_.tally is None:
            continue
        text = {source: round_.tally.characters[source] for source in SOURCES}
        bars += [
            _bar(f"{round_.name}: tokens", {name: round_.tally.tokens[name] for name in WRITERS}),
            _bar(
                f"{round_.name}: characters of the responses", {name: n for name, n in text.items() if n or name in WRITERS}
            ),
        ]
    heading = "Shares of the writers"
    if not bars:
        return Section(heading, "No responses have been written.")
    lead = (
        "Tokens are the kept tokens of each model, counted in its own vocabulary. Characters are those of the responses; "
        "the template opens and closes the thinking."
    )
    return Section(heading, lead, [_bars("Shares of student and teacher", bars)])


def _bar(name: str, parts: Mapping[str, int]) -> dict[str, Any]:
    total = max(sum(parts.values()), 1)
    shown = [
        {"name": part, "count": count(n), "share": percent(n / total), "width": round(100 * n / total, 3)}
        for part, n in parts.items()
    ]
    return {"name": name, "parts": shown}


def _bars(title: str, bars: Sequence[Mapping[str, Any]], note: str = "") -> Markup:
    return fragment("shares.html", title=title, bars=bars, note=note)


def waste(rounds: Sequence[Round]) -> Section:
    """Returns the section on wasted tokens, occupancy and throughput."""
    done = [(round_, round_.synthesis) for round_ in rounds if round_.synthesis is not None]
    heading = "Waste and throughput"
    if not done:
        return Section(heading, "No synthesis is finished.")
    lead = "A generated token is kept, discarded because a turn was cut before it, or failed because its attempt failed."
    bars = [
        _bar(f"{round_.name}: the {name}'s tokens", {use: summary[f"{use}_tokens"][name] for use in USES})
        for round_, summary in done
        for name in summary["generated_tokens"]
    ]
    interrupted = [
        round_.name for round_, summary in done if round_.tally is not None and summary["responses"] < round_.tally.responses
    ]
    note = ""
    if interrupted:
        note = f"{' and '.join(interrupted).capitalize()}: counts of the last start of an interrupted synthesis only."
    reasons = _reasons(done)
    tables = SideBySide([_measures(done), *([reasons] if reasons else [])])
    return Section(heading, lead, [_bars("Generated tokens", bars, note), tables])


def _measures(done: Sequence[tuple[Round, Mapping[str, Any]]]) -> Table:
    """Returns the measures with one column per round."""
    summaries = [summary for _, summary in done]

    def row(name: str, show: Any) -> list[str]:
        return [name, *(show(summary) for summary in summaries)]

    rows = [
        ["responses", *(count(round_.tally.responses) if round_.tally else NOTHING for round_, _ in done)],
        ["failed", *(count(sum(round_.failures.values())) for round_, _ in done)],
        row("discarded tokens, of all generated", lambda s: percent(s["discarded_share"])),
    ]
    for name in WRITERS:
        if any(name in summary["occupancy"] for summary in summaries):
            rows.append(
                row(f"occupancy, {name}", lambda s, n=name: percent(s["occupancy"][n]) if n in s["occupancy"] else NOTHING)
            )
    if any(summary.get("verdicts") for summary in summaries):
        rows.append(row("right answers, of all verified", lambda s: _right(s.get("verdicts", {}))))
    rows += [
        row("lanes", lambda s: count(s["lanes"])),
        row("kept tokens per second", lambda s: f"{s['kept_tokens_per_second']:,.1f}"),
        row("seconds of decoding", lambda s: f"{s['seconds_running']:,.1f}"),
        row("seconds of compilation", lambda s: f"{s['compile_seconds']:,.1f}"),
        row("hand-overs", lambda s: count(s["switches"])),
        row("host syncs per kept token", lambda s: f"{s['host_syncs_per_kept_token']:.4f}"),
    ]
    note = "Occupancy: the share of a model's lanes that sampled a token in its forward passes."
    return Table("Measures of the synthesis", ["", *(round_.name for round_, _ in done)], rows, note)


def _right(verdicts: Mapping[str, int]) -> str:
    verified = sum(verdicts.values())
    return percent(verdicts.get("right", 0) / verified) if verified else NOTHING


def _reasons(done: Sequence[tuple[Round, Mapping[str, Any]]]) -> Table | None:
    """Returns retried attempts and failed responses by reason; None if there are none."""
    names = sorted({reason for round_, summary in done for reason in (*round_.failures, *summary["retries"])})
    if not names:
        return None
    rows = [
        [
            name.replace("_", " "),
            *(count(n) for round_, summary in done for n in (summary["retries"].get(name, 0), round_.failures.get(name, 0))),
        ]
        for name in names
    ]
    columns = ["", *(f"{round_.name}: {what}" for round_, _ in done for what in ("retried", "failed"))]
    return Table("Failure reasons", columns, rows)


def lengths(rounds: Sequence[Round]) -> Section:
    """Returns the section with a histogram of thinking span lengths per round and writer."""
    heading = "Span lengths"
    tallies = [(round_, round_.tally) for round_ in rounds if round_.tally is not None]
    groups = [(round_, name, tally) for round_, tally in tallies for name in WRITERS if tally.lengths[name]]
    if not groups:
        return Section(heading, "There are no thinking spans.")
    last = max(_place(length) for _, name, tally in groups for length in tally.lengths[name])
    histograms = [(round_, name, _shares(tally.lengths[name])) for round_, name, tally in groups]
    highest = max(max(parts.values()) for _, _, parts in histograms)
    ticks = {float(place): _short(1 << place) for place in range(last + 1) if place % (1 + last // 9) == 0}
    figures: defaultdict[int, list[Figure]] = defaultdict(list)
    for (round_, name, parts), (_, _, tally) in zip(histograms, groups, strict=True):
        places = range(last + 1)
        image = bar_chart(
            [Bars(f"the {name}'s spans", places, [100 * parts.get(place, 0.0) for place in places], WRITERS[name])],
            label=f"Spans of the {name} by length, {round_.name}",
            x_label="characters, at least",
            y_label="% of spans",
            width=0.92,
            ticks=ticks,
            y_range=(0, 105 * highest),
        )
        title = f"{round_.name.capitalize()}: the {name}"
        figures[round_.number].append(Figure(title, image, _described(tally.lengths[name])))
    lead = (
        "A span is a run of text by one writer. Lengths are in characters; each bar counts the lengths from its label up "
        "to twice that. Only thinking spans are counted, because the answer is a single span."
    )
    return Section(heading, lead, [SideBySide(own) for own in figures.values()])


def _place(length: int) -> int:
    """Returns the bar index of a length: 1, 2–3, 4–7, …"""
    return length.bit_length() - 1


def _shares(lengths: Mapping[int, int]) -> dict[int, float]:
    """Returns the share of spans in each non-empty bar."""
    counts: Counter[int] = Counter()
    for length, n in lengths.items():
        counts[_place(length)] += n
    return {place: n / counts.total() for place, n in counts.items()}


def _described(lengths: Mapping[int, int]) -> str:
    total = sum(lengths.values())
    mean = sum(length * n for length, n in lengths.items()) / total
    left, median = (total + 1) // 2, 0
    for length in sorted(lengths):
        left, median = left - lengths[length], length
        if left <= 0:
            break
    return f"{count(total)} spans; median {count(median)} characters, mean {mean:.1f}."


def _short(number: int) -> str:
    return str(number) if number < 1024 else f"{number >> 10}k"
