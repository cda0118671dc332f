"""The figures and the report page of an analysis, built from its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tessy_jax.analyze.charts import Chart, Curve, Dots, Look, boxes, curves, dots, looks, matrix, scatter, stacks
from tessy_jax.report.figures import Colour
from tessy_jax.report.page import Figure, Page, Section, SideBySide, Table, count, percent, render
from tessy_jax.report.results import DOMAINS

Numbers = Mapping[str, Any]
Part = tuple[Chart, str, str]
"""A chart, its title and its note."""

WRITERS: dict[str, Colour] = {"student": "orange", "teacher": "blue"}
USES: dict[str, Colour] = {"kept": "green", "discarded": "purple", "failed": "red"}
KINDS = {
    ("think", "student"): ("student's, thinking", Look("orange", "o")),
    ("think", "teacher"): ("teacher's, thinking", Look("blue", "s")),
    ("answer", "student"): ("student's, answer", Look("orange", "o", filled=False)),
    ("answer", "teacher"): ("teacher's, answer", Look("blue", "s", filled=False)),
    ("all", ""): ("all tokens", Look("ink", "D")),
}
"""Label and look of each token kind of the likelihood chart, by phase and writer."""
LOSSES = {"loss": "all targets", "loss_cap": "capability tokens", "loss_sty": "style tokens"}
SWEPT = {
    "in": ("pass@1 in domain", Look("blue", "o")),
    "out": ("pass@1 out of domain", Look("orange", "s", (0, (5, 2)))),
    "quality": ("right in the data", Look("green", "^", (0, (1, 1.4)))),
    "discarded": ("tokens discarded", Look("purple", "D", (0, (7, 2, 1.4, 2)))),
}
"""Label and look of each measure of a sweep."""
WORD_ROW = 0.155
"""Height of a word's row in inches."""
NOTHING = "–"


def charts(numbers: Numbers) -> list[Chart]:
    """Returns the figures for which numbers exist."""
    return [chart for topic in TOPICS for chart, _, _ in TOPICS[topic][2](numbers)]


def page(numbers: Numbers, *, title: str, version: str) -> str:
    """Returns the page as HTML; equal arguments give equal bytes. version: of this package."""
    sections = [_data(numbers)]
    for topic, (heading, lead, parts) in TOPICS.items():
        gaps = [text for about, text in numbers["missing"] if about == topic]
        figures = [Figure(name, chart.inline(), note) for chart, name, note in parts(numbers)]
        paragraph = " ".join([lead, *gaps]) if figures else " ".join(gaps)
        rows = [figures[i : i + 2] for i in range(0, len(figures), 2)]  # three would be small
        pieces: list[SideBySide | Table] = [*map(SideBySide, rows), *_tables(topic, numbers)]
        if paragraph or pieces:
            sections.append(Section(heading, paragraph, pieces))
    variants = len(numbers["variants"])
    subtitle = f"{variants} variant{'s' * (variants != 1)}; figures of the paper in brackets; tessy_jax {version}"
    return render(Page(title, subtitle, sections))


def _data(numbers: Numbers) -> Section:
    """Returns the section with the analysed data and the gaps."""
    rows = [
        [
            name,
            count(counts["data_sets"]),
            count(counts["responses"]),
            count(counts["failures"]),
            count(counts["sampled"]),
        ]
        for name, counts in numbers["data"].items()
    ]
    table = Table(
        "Data sets",
        ["variant", "data sets", "responses", "failed", "sampled"],
        rows,
        "Counts are sums over the data sets of a variant, which differ by student and seed. Failed responses are not part "
        "of the data. The map, the similarities and the words use the sampled responses, which are the first ones.",
    )
    missing = dict.fromkeys(text for _, text in numbers["missing"])
    lead = "Missing: " + " ".join(missing) if missing else "The analysis is complete."
    return Section("Analysed data", lead, [table])


def _tables(topic: str, numbers: Numbers) -> list[Table]:
    analysis = numbers[topic]
    if topic == "quality" and analysis:
        rows = [
            [
                name,
                percent(own["pass@1"]),
                f"{percent(own['interval'][0])} to {percent(own['interval'][1])}",
                *(count(own[key]) for key in ("prompts", "responses", "right")),
            ]
            for name, own in analysis["variants"].items()
        ]
        return [Table("pass@1 of the data", ["", "pass@1", "interval", "prompts", "responses", "right"], rows)]
    if topic == "likelihood" and analysis:
        rows = [[name, *(_nll(_of(own, *kind)) for kind in KINDS)] for name, own in analysis.items()]
        columns = ["", *(text for text, _ in KINDS.values())]
        return [Table("Negative log-likelihood in nats per token", columns, rows, "In brackets: number of tokens.")]
    return []


def _of(likelihood: Mapping[str, Any], phase: str, writer: str) -> Mapping[str, Any] | None:
    """Returns the measure of one kind of tokens; None if there are none. writer: empty for both."""
    analysis = likelihood[phase]
    return analysis[writer] if writer else analysis


def _nll(measure: Mapping[str, Any] | None) -> str:
    return NOTHING if measure is None else f"{measure['nll']:.3f} ({count(measure['tokens'])})"


def _texts(numbers: Numbers) -> list[Part]:
    analysis, parts = numbers["texts"], []
    if analysis and analysis["map"]:
        own = analysis["map"]
        first, second = (
            f"{name} component, {percent(share)}" for name, share in zip(("first", "second"), own["explained"], strict=True)
        )
        label = "Responses in the plane of the principal components of their TF-IDF vectors, by variant"
        chart = scatter("map", label, own["points"], own["centroids"], (first, second))
        note = f"Small markers: responses; large markers: centroids of the variants. {count(own['words'])} distinct words."
        parts.append((chart, "Map of the thinking (Fig. 8)", note))
    if analysis and analysis["similarity"]:
        own = analysis["similarity"]
        chart = matrix("similarity", "Mean cosine similarity of variants", own["variants"], own["matrix"])
        note = "Mean over all pairs of distinct responses, one of each variant. The diagonal is within a variant."
        parts.append((chart, "Mean cosine similarity (Fig. 14)", note))
    return parts


def _words(numbers: Numbers) -> list[Part]:
    analysis = numbers["words"]
    if not analysis:
        return []
    styles = looks(list(numbers["variants"]))
    groups = [Dots(name, rates, styles[name]) for name, rates in analysis["per_thousand"].items()]
    chart = dots("words", "Frequent words by variant", "occurrences per 1000 words", analysis["words"], groups, row=WORD_ROW)
    return [(chart, "Frequent words of the thinking (Fig. 16)", "Words that are frequent in at least one variant.")]


def _lengths(numbers: Numbers) -> list[Part]:
    analysis, parts = numbers["lengths"], []
    if not analysis:
        return []
    units = {"tokens": "tokens of the writer's vocabulary", "words": "words separated by white space"}
    for unit, x_label in units.items():
        rows = {name: (own["quantiles"], own["mean"]) for name, own in analysis[unit].items()}
        chart = boxes(f"lengths_{unit}", f"Lengths of responses in {unit}, by variant", x_label, rows)
        note = "Box: quartiles with the median; whiskers: 5 % to 95 %; marker: mean."
        parts.append((chart, f"Lengths in {unit} (Fig. 12)", note))
    return parts


def _shares(numbers: Numbers) -> list[Part]:
    analysis = numbers["shares"]
    if not analysis:
        return []
    kept = stacks("tokens", "Shares of student and teacher in the kept tokens, by variant", WRITERS, analysis["kept"])
    parts: list[Part] = [(kept, "Tokens by writer (Fig. 17)", "Kept tokens, counted in the writer's vocabulary.")]
    if any(sum(own.values()) for own in analysis["generated"].values()):
        label = "Generated tokens by use and variant"
        chart = stacks("waste", label, USES, analysis["generated"])
        note = (
            "Discarded: a turn was cut before them; failed: their attempt failed. For an interrupted synthesis, the counts "
            "are those of its last start."
        )
        parts.append((chart, "Generated tokens by use", note))
    return parts


def _quality(numbers: Numbers) -> list[Part]:
    analysis = numbers["quality"]
    if not analysis:
        return []
    own = analysis["variants"]
    values = [100 * measures["pass@1"] for measures in own.values()]
    ranges = [(100 * measures["interval"][0], 100 * measures["interval"][1]) for measures in own.values()]
    group = Dots("pass@1", values, Look("blue", "o"), ranges)
    label = "pass@1 of the responses of the data, by variant"
    chart = dots("quality", label, "pass@1, %", list(own), [group], legend=False)
    note = f"Lines: {100 * analysis['confidence']:g} % confidence intervals. A prompt counts once per job."
    return [(chart, "Right answers in the data (Fig. 6)", note)]


def _likelihood(numbers: Numbers) -> list[Part]:
    analysis = numbers["likelihood"]
    if not analysis:
        return []
    groups = [
        Dots(text, [None if measure is None else measure["nll"] for measure in measures], look)
        for kind, (text, look) in KINDS.items()
        if any(measures := [_of(own, *kind) for own in analysis.values()])
    ]
    label = "Mean negative log-likelihood of tokens under the untouched student, by variant, writer and phase"
    chart = dots("likelihood", label, "nats per token of the student", list(analysis), groups)
    note = "Lower values are more probable under the untouched student."
    return [(chart, "Negative log-likelihood under the untouched student", note)]


def _losses(numbers: Numbers) -> list[Part]:
    analysis = numbers["losses"]
    if not analysis:
        return []
    styles = looks(list(numbers["variants"]))
    note = "Lines: means over students and seeds; bands: one standard deviation. Variants without such tokens have no line."
    note += f" Each point is the mean over {analysis['steps_per_point']} steps." if analysis["steps_per_point"] > 1 else ""
    parts = []
    for loss, own in analysis["curves"].items():
        chart = curves(loss, f"{LOSSES[loss]}: loss by step and variant", "step", "loss", _lines(own), styles)
        parts.append((chart, f"Loss on {LOSSES[loss]} (Fig. 15)", note))
    return parts


def _accuracy(numbers: Numbers) -> list[Part]:
    analysis = numbers["accuracy"]
    if not analysis:
        return []
    styles, parts = looks(list(numbers["variants"])), []
    for domain, own in analysis["domains"].items():
        places = sorted({place for course in own.values() for place, *_ in course})
        ticks = (
            {place: "end" if place in analysis["ends"] else f"{place:g}" for place in places} if analysis["ends"] else None
        )
        name = DOMAINS.get(domain, domain)
        x_label, label = "epoch (0: the untouched student)", f"pass@1 {name} by epoch and variant"
        lines = _lines(own, 100)
        chart = curves(f"accuracy_{domain}", label, x_label, "pass@1, %", lines, styles, markers=True, ticks=ticks)
        note = "Lines: means over students and seeds; bands: one standard deviation."
        parts.append((chart, f"Accuracy {name} (Fig. 11)", note))
    return parts


def _sweeps(numbers: Numbers) -> list[Part]:
    parts = []
    for number, (key, own) in enumerate(numbers["sweeps"].items()):
        measures = {SWEPT[name][0]: courses for name, courses in own["measures"].items()}
        styles = {text: look for text, look in SWEPT.values() if text in measures}
        values = [value for value, *_ in next(iter(measures.values()))]
        ticks = {float(place): f"{value:g}" for place, value in enumerate(values)}
        places = {value: place for place, value in enumerate(values)}
        lines = [
            Curve(
                name,
                [float(places[value]) for value, *_ in course if value in places],
                [100 * mean for value, mean, *_ in course if value in places],
                [None if off is None else 100 * off for value, _, off, _ in course if value in places],
            )
            for name, course in measures.items()
        ]
        label = f"Measures of students and data by {key}"
        chart = curves(f"sweep_{number}", label, key, "%", lines, styles, markers=True, ticks=ticks)
        note = "Values are equally spaced. Lines: means over students and seeds; bands: one standard deviation."
        parts.append((chart, key, note))
    return parts


def _lines(courses: Mapping[str, Sequence[Sequence[float | None]]], scale: float = 1) -> list[Curve]:
    def scaled(value: float | None) -> float | None:
        return None if value is None else scale * value

    return [
        Curve(
            name, [p or 0.0 for p, *_ in own], [scaled(mean) for _, mean, *_ in own], [scaled(off) for _, _, off, _ in own]
        )
        for name, own in courses.items()
    ]


TOPICS: dict[str, tuple[str, str, Callable[[Numbers], list[Part]]]] = {
    "texts": (
        "Similarity of variants",
        "A response is represented by the bag of words of its thinking, weighted by TF-IDF.",
        _texts,
    ),
    "words": ("Words", "", _words),
    "lengths": ("Lengths", "Text of the models, without the template that opens and closes the thinking.", _lengths),
    "shares": ("Tokens", "", _shares),
    "quality": ("Quality of the data", "A verifier checks the answer of every response of the data.", _quality),
    "likelihood": (
        "Likelihood under the student",
        "Negative log-likelihood of the data under the untouched student: mean over tokens, by writer and phase.",
        _likelihood,
    ),
    "losses": ("Training", "Targets of the teacher count as capability, those of the student as style.", _losses),
    "accuracy": ("Accuracy by epoch", "", _accuracy),
    "sweeps": ("Sweeps", "Variants that differ in a single number of the configuration.", _sweeps),
}
"""Heading, lead and figures of each topic, by its key in the numbers."""
