"""Counts over a data set are those that one counts by hand."""

import numpy as np

from tessy_jax.analyze.data import lengths, read, shares
from tessy_jax.analyze.sources import Source
from tessy_jax.config import Data
from tessy_jax.records import Failure, Row, Span
from tessy_jax.store import RunReader

from .fake_comparison import write


def row(number, thinking, answer, **tokens):
    content = f"<think>\n{thinking}\n</think>\n\n{answer}"
    ends = [("template", "think", 8), ("student", "think", 8 + len(thinking)), ("template", "think", 19 + len(thinking))]
    ends.append(("teacher", "answer", len(content)))
    starts = [0, *(end for _, _, end in ends)]
    spans = tuple(Span(source, phase, start, end) for (source, phase, end), start in zip(ends, starts, strict=False))
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": content})
    return Row(f"p{number // 2}/{number % 2}", f"p{number // 2}", number % 2, messages, spans, {"index": number, **tokens})


ROWS = [
    row(0, "so we see", "it is 3", tokens_student=5, tokens_teacher=3),
    row(1, "so", "3", tokens_student=2, tokens_teacher=1),
    row(2, "hmm\nokay", "4", tokens_student=4),
]


def source_of(place, variant="tessy", rows=ROWS, **summary):
    write(place, rows, [Failure("f/0", "f", 0, "length", 3)], **summary)
    return Source(variant, "here", RunReader(str(place)), Data(path="prompts.jsonl"), None, None)


def test_a_data_set_is_counted_and_its_first_responses_are_kept(tmp_path):
    found = read(source_of(tmp_path / "run"), 2, lambda row: row.content.endswith("3"))
    assert [row.id for row in found.first] == ["p0/0", "p0/1"]
    assert (found.responses, found.failures) == (3, 1)
    assert sorted(found.lengths["tokens"]) == [3, 4, 8]
    assert sorted(found.lengths["words"]) == [2, 3, 6], "what opens and closes the thinking is no word"
    assert found.tokens == {"student": 11, "teacher": 4}
    assert found.right == {"p0": (2, 2), "p1": (0, 1)}
    assert found.uses == {"kept": 75, "discarded": 20, "failed": 5}


def test_variants_are_counted_over_all_their_data_sets(tmp_path):
    one, two = (read(source_of(tmp_path / name), 1, None) for name in ("one", "two"))
    found = lengths({"tessy": [one, two], "other": [one]})
    values = [8, 3, 4]
    assert found["tokens"]["other"]["mean"] == 5
    assert found["tokens"]["other"]["quantiles"] == [round(q, 4) for q in np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])]
    assert found["tokens"]["tessy"]["quantiles"][2] == 4
    assert shares({"tessy": [one, two], "other": [one]}) == {
        "kept": {"tessy": {"student": 22, "teacher": 8}, "other": {"student": 11, "teacher": 4}},
        "generated": {
            "tessy": {"kept": 150, "discarded": 40, "failed": 10},
            "other": {"kept": 75, "discarded": 20, "failed": 5},
        },
    }


def test_of_a_summary_without_counts_of_generated_tokens_none_are_made_up(tmp_path):
    empty = dict.fromkeys(("generated_tokens", "discarded_tokens", "failed_tokens"), None)
    assert not any(read(source_of(tmp_path / "run", **empty), 1, None).uses.values())
