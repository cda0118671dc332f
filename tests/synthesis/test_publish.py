"""Responses published as a data set are the responses."""

import datasets
import pytest

from tessy_jax.cli import main
from tessy_jax.records import Row, Span
from tessy_jax.store import RunStore


def row(number, **meta):
    content = f"<think>\nso {number}\n</think>\n\nit is 中{number}"
    cut = content.index("it is")
    messages = ({"role": "user", "content": f"what is {number}?"}, {"role": "assistant", "content": content})
    spans = (Span("template", "think", 0, 8), Span("student", "think", 8, cut), Span("student", "answer", cut, len(content)))
    values = {"index": number, "recipe": "tessy", "tokens_student": 7, "tokens_teacher": 3, **meta}
    return Row(f"{number}/0", str(number), 0, messages, spans, values)


@pytest.fixture
def run(tmp_path):
    def make(rows):
        with RunStore(str(tmp_path / "run")) as store:
            store.commit(rows)
        return str(tmp_path / "run")

    return make


def test_the_data_set_holds_every_row_in_the_order_of_the_input(run, tmp_path, capsys):
    rows = [row(i, seconds=i if i % 2 else i / 2, student_nll=None if i else 1.5, teacher=None) for i in range(30)]
    source = run(rows[::-1])
    assert main(["export", "data", source, str(tmp_path / "out")]) == 0
    assert "30 responses" in capsys.readouterr().out
    published = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [Row.from_json(dict(published_row)) for published_row in published] == rows
    card = (tmp_path / "out" / "README.md").read_text()
    assert "30 responses to 30 prompts" in card
    assert "| student | 210 (70.0% of the kept ones) |" in card


def test_several_files_are_numbered_as_the_hub_numbers_them(run, tmp_path, monkeypatch):
    from tessy_jax.store import parquet

    monkeypatch.setattr(parquet, "FILE_BYTES", 1)
    monkeypatch.setattr(parquet, "AT_ONCE", 10)
    assert main(["export", "data", run([row(i) for i in range(30)]), str(tmp_path / "out")]) == 0
    names = sorted(file.name for file in (tmp_path / "out" / "data").iterdir())
    assert names == [f"train-{i:05}-of-00003.parquet" for i in range(3)]
    published = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [published_row["meta"]["index"] for published_row in published] == list(range(30))


def test_a_folder_without_responses_or_with_mixed_types_is_refused_and_leaves_nothing(run, tmp_path, capsys):
    assert main(["export", "data", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    source = run([row(0, teacher="a"), row(1, teacher=3)])
    assert main(["export", "data", source, str(tmp_path / "out")]) == 2
    assert "use one type" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
