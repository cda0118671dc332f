"""Parts of the page of a run: how much each model has written, what was written in vain, and how long the spans are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tessy_jax.config.sections import Writer
from tessy_jax.records import SOURCES
from tessy_jax.report.figures import Bars, Colour, bar_chart
from tessy_jax.report.page import Beside, Figure, Section, Table, count, fragment, percent
from tessy_jax.report.view import Round

WRITERS: dict[Writer, Colour] = {"student": "orange", "teacher": "blue"}
USES = ("kept", "discarded", "failed")
NOTHING = "–"


def shares(rounds: Sequence[Round]) -> Section:
    """Who wrote how much: tokens, and text."""
    bars = []
    for one in rounds:
        if one.tally is None:
            continue
        text = {source: one.tally.characters[source] for source in SOURCES}
        bars += [
            _bar(f"{one.name}: tokens", {name: one.tally.tokens[name] for name in WRITERS}),
            _bar(f"{one.name}: characters of the responses", {name: n for name, n in text.items() if n or name in WRITERS}),
        ]
    heading = "Who wrote how much"
    if not bars:
        return Section(heading, "No responses have been written.")
    lead = (
        "Tokens are each model's own, and those that were kept; characters are of the text that stands in the responses, in "
        "which neither model wrote what opens and closes the thinking."
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
    """What was generated in vain, and how busy the devices were."""
    done = [(one, one.synthesis) for one in rounds if one.synthesis is not None]
    heading = "Waste and throughput"
    if not done:
        return Section(heading, "No synthesis is finished.")
    lead = (
        "A token is generated once and then kept; or discarded, as a turn was cut in front of it; or failed, as the whole "
        "attempt came to nothing."
    )
    bars = [
        _bar(f"{one.name}: the {name}'s tokens", {use: found[f"{use}_tokens"][name] for use in USES})
        for one, found in done
        for name in found["generated_tokens"]
    ]
    interrupted = [one.name for one, found in done if one.tally is not None and found["responses"] < one.tally.responses]
    note = ""
    if interrupted:
        note = f"Of {' and '.join(interrupted)} they are of the last start alone, which went on where another had stopped."
    reasons = _reasons(done)
    tables = Beside([_measures(done), *([reasons] if reasons else [])])
    return Section(heading, lead, [_bars("Generated tokens", bars, note), tables])


def _measures(done: Sequence[tuple[Round, Mapping[str, Any]]]) -> Table:
    """A column per round."""
    found = [summary for _, summary in done]

    def row(name: str, show: Any) -> list[str]:
        return [name, *(show(summary) for summary in found)]

    rows = [
        ["responses", *(count(one.tally.responses) if one.tally else NOTHING for one, _ in done)],
        ["failed for good", *(count(sum(one.failures.values())) for one, _ in done)],
        row("tokens discarded, of all generated", lambda s: percent(s["discarded_share"])),
    ]
    for name in WRITERS:
        if any(name in summary["occupancy"] for summary in found):
            rows.append(
                row(f"occupancy, {name}", lambda s, n=name: percent(s["occupancy"][n]) if n in s["occupancy"] else NOTHING)
            )
    if any(summary.get("verdicts") for summary in found):
        rows.append(row("answers that were right, of all judged", lambda s: _right(s.get("verdicts", {}))))
    rows += [
        row("lanes", lambda s: count(s["lanes"])),
        row("kept tokens per second", lambda s: f"{s['kept_tokens_per_second']:,.1f}"),
        row("seconds of writing", lambda s: f"{s['seconds_running']:,.1f}"),
        row("seconds of compiling", lambda s: f"{s['compile_seconds']:,.1f}"),
        row("switches between the models", lambda s: count(s["switches"])),
        row("waits for the device per kept token", lambda s: f"{s['host_syncs_per_kept_token']:.4f}"),
    ]
    note = "Occupancy: the share of a model's lanes that sampled a token in its forward passes."
    return Table("Measures of the synthesis", ["", *(one.name for one, _ in done)], rows, note)


def _right(verdicts: Mapping[str, int]) -> str:
    judged = sum(verdicts.values())
    return percent(verdicts.get("right", 0) / judged) if judged else NOTHING


def _reasons(done: Sequence[tuple[Round, Mapping[str, Any]]]) -> Table | None:
    """Per reason: attempts that were made again, and responses that failed for good."""
    names = sorted({reason for one, summary in done for reason in (*one.failures, *summary["retries"])})
    if not names:
        return None
    rows = [
        [
            name.replace("_", " "),
            *(count(n) for one, summary in done for n in (summary["retries"].get(name, 0), one.failures.get(name, 0))),
        ]
        for name in names
    ]
    columns = ["", *(f"{one.name}: {what}" for one, _ in done for what in ("tried again", "failed for good"))]
    return Table("Why attempts came to nothing", columns, rows)


def lengths(rounds: Sequence[Round]) -> Section:
    """Histograms of the spans of thinking, one per round and writer."""
    heading = "How long the spans are"
    tallies = [(one, one.tally) for one in rounds if one.tally is not None]
    found = [(one, name, tally) for one, tally in tallies for name in WRITERS if tally.lengths[name]]
    if not found:
        return Section(heading, "There are no spans of thinking.")
    last = max(_place(length) for _, name, tally in found for length in tally.lengths[name])
    histograms = [(one, name, _shares(tally.lengths[name])) for one, name, tally in found]
    highest = max(max(parts.values()) for _, _, parts in histograms)
    ticks = {float(place): _short(1 << place) for place in range(last + 1) if place % (1 + last // 9) == 0}
    figures: defaultdict[int, list[Figure]] = defaultdict(list)
    for (one, name, parts), (_, _, tally) in zip(histograms, found, strict=True):
        places = range(last + 1)
        image = bar_chart(
            [Bars(f"the {name}'s spans", places, [100 * parts.get(place, 0.0) for place in places], WRITERS[name])],
            label=f"Spans of the {name} by their length, {one.name}",
            x_label="characters, at least",
            y_label="% of spans",
            width=0.92,
            ticks=ticks,
            y_range=(0, 105 * highest),
        )
        title = f"{one.name.capitalize()}: the {name}"
        figures[one.number].append(Figure(title, image, _described(tally.lengths[name])))
    lead = (
        "A span is what one model wrote until the other went on, here in characters. Each bar holds the lengths from its "
        "number up to twice as many. Spans of the thinking alone: the answer is a single span."
    )
    return Section(heading, lead, [Beside(own) for own in figures.values()])


def _place(length: int) -> int:
    """The bar of a length: 1, 2–3, 4–7, …"""
    return length.bit_length() - 1


def _shares(lengths: Mapping[int, int]) -> dict[int, float]:
    """The share of spans in each bar that has any."""
    found: Counter[int] = Counter()
    for length, n in lengths.items():
        found[_place(length)] += n
    return {place: n / found.total() for place, n in found.items()}


def _described(lengths: Mapping[int, int]) -> str:
    total = sum(lengths.values())
    mean = sum(length * n for length, n in lengths.items()) / total
    left, median = (total + 1) // 2, 0
    for length in sorted(lengths):
        left, median = left - lengths[length], length
        if left <= 0:
            break
    return f"{count(total)} spans; half of them have at most {count(median)} characters, their mean is {mean:.1f}."


def _short(number: int) -> str:
    return str(number) if number < 1024 else f"{number >> 10}k"
