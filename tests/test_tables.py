"""Tables: every form of a file and every compression gives the same rows; what is no table is refused by name."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import DataError
from tessy_jax.evaluate import choices
from tessy_jax.evaluate.tasks import table_problems
from tessy_jax.records import Row, Span
from tessy_jax.store import RunStore
from tessy_jax.store.tables import table_rows
from tessy_jax.synthesis.generate import read_prompts
from tessy_jax.synthesis.prompts import read
from tessy_jax.train.data import row_of, rows_at

datasets.disable_progress_bars()
TEXTS = ["Is 1,5 one number?", 'He said "no".', "two\nlines\u2028and\r\nmore", "007", "NA", "½ é"]
ROWS = [{"id": f"0{i}", "prompt": text, "answer": "1.50"} for i, text in enumerate(TEXTS)]


def rows(path, split="train", limit=None, columns=("id", "prompt", "answer"), **options):
    return list(table_rows(str(path), split, limit, columns, **options))


def contents(path, **options):
    return [row for _, row in rows(path, **options)]


def written(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def delimited(delimiter=",", **options):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter, **options)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


FORMS = {
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "a.ndjson": "".join("\n" + json.dumps(row, ensure_ascii=False) + "\r\n" for row in ROWS),
    "a.json": json.dumps(ROWS),
    "b.json": "\ufeff\n" + json.dumps(ROWS, indent=2, ensure_ascii=False) + "\n",
    "lines.json": "".join(json.dumps(row) + "\n" for row in ROWS),
    "array.jsonl": "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]\n",
    "no_suffix": json.dumps(ROWS, indent=1),
    "a.csv": delimited(),
    "B.CSV": "\ufeff" + delimited(quoting=csv.QUOTE_ALL),
    "a.tsv": delimited("\t", lineterminator="\n"),
}


def zstd_or_lz4(codec):
    def compress(data):
        out = io.BytesIO()
        with pa.CompressedOutputStream(pa.PythonFile(out, mode="w"), codec) as stream:
            stream.write(data)
            stream.flush()
            out.flush()
            stream.close()
        return out.getvalue()

    return compress


def zipped(data, name="folder/a"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_file_gives_the_same_rows(name, tmp_path):
    assert contents(written(tmp_path / name, FORMS[name])) == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "b.json", "a.csv", "a.tsv"])
def test_every_compression_gives_the_same_rows_and_a_torn_file_is_refused(name, tmp_path):
    data = FORMS[name].encode()
    for end, compressed in {"gz": gzip.compress(data), "bz2": bz2.compress(data), "xz": lzma.compress(data)}.items():
        assert contents(written(tmp_path / f"{name}.{end}", compressed)) == ROWS, end
    assert contents(written(tmp_path / f"{name}.zip", zipped(data))) == ROWS
    for end, codec in (("zst", "zstd"), ("lz4", "lz4")):
        file = tmp_path / f"{name}.{end}"
        with pa.CompressedOutputStream(str(file), codec) as out:
            out.write(data)
        assert contents(file) == ROWS, end
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(DataError, match=r"cannot be read \("):
            rows(file)


def test_rows_are_named_by_their_line_or_item(tmp_path):
    assert [place for place, _ in rows(written(tmp_path / "b.json", FORMS["b.json"]), limit=2)] == [
        f"{tmp_path}/b.json: item {i}" for i in (1, 2)
    ]
    places = [place.rpartition(":")[2] for place, _ in rows(written(tmp_path / "a.csv", FORMS["a.csv"]))]
    assert places == ["2", "3", "4", "7", "8", "9"]  # line ends between quotes count, U+2028 does not
    file = written(tmp_path / "c.json", json.dumps([{"prompt": "a"}, {"prompt": 1}, 3], indent=1))
    with pytest.raises(DataError, match=r"c\.json: item 2: prompt is the number 1"):
        read(str(file))
    assert [where for where, _ in read(str(file), skip_invalid=True).skipped] == [f"{file}: item 2", f"{file}: item 3"]


def test_one_object_over_several_lines_is_one_row(tmp_path):
    file = written(tmp_path / "a.json", json.dumps(ROWS[0], indent=2))
    assert rows(file) == [(f"{file}:1", ROWS[0])]
    with pytest.raises(DataError, match=r"columns\.json:1: holds `train`; it should hold `messages`"):
        read(str(written(tmp_path / "columns.json", json.dumps({"train": ROWS}, indent=2))))


def test_files_without_rows_hold_none(tmp_path):
    for name, data in {"a.jsonl": "", "b.json": "[]", "c.json": "\ufeff \n", "d.csv": "", "e.csv": "id,prompt\n\n"}.items():
        assert rows(written(tmp_path / name, data)) == [], name
        with pytest.raises(DataError, match="holds no rows"):
            read_prompts(str(tmp_path / name))


REFUSED = {
    "a.jsonl": ('{"prompt": "a"},\n{"prompt": "b"}\n', r"1: is not JSON \(it ends with a comma\); remove the comma, or"),
    "b.json": ('[\n{"prompt": "a"},\n{"prompt": "b"},\n]', r"begins as one array of rows, but .* at line [34], column"),
    "c.json": ('[\n{"prompt": "a"},\n{"prompt": "b"}\n', r"begins as one array of rows, but .* at line 4, column 1"),
    "d.jsonl": ('{"prompt": "a", "prompt": "b"}', r"1: has an object with `prompt` twice \('a' and 'b'\); keep one"),
    "e.jsonl": ('["a"]\n["b"]\n', r"1: is a list of 1; it should be an object"),
    "f.csv": ("prompt,prompt\na,b\n", "has 2 columns named 'prompt'; rename or remove all but one"),
    "g.csv": ('id,prompt\n1,"a\n2,b\n', "2: the row that begins here is not CSV"),
    "h.csv": ('id,prompt\n1,"a"b\n', "2: the row that begins here is not CSV"),
    "i.csv": ("id,prompt\n1,a, b\n", "2: has 3 fields, but the header has 2"),
    "j.csv": ("id,prompt\n1\n", "2: has 1 fields, but the header has 2"),
    "k.csv": ("id;prompt\n1;a\n", "has one column, 'id;prompt'; separate columns by ',' instead of ';'"),
    "l.tsv": ("id,prompt\n1,a\n", r"has one column, 'id,prompt'; separate columns by '\\t' instead of ','"),
    "m.csv": ("prompt\né".encode("latin-1"), "is not UTF-8"),
    "n.csv": ("id,prompt\n1,a\n".encode("utf-16"), "is in UTF-16; save the file in UTF-8"),
    "o.csv": ("id,prompt\n1,\n", "2: holds `id`; it should hold `messages`"),
    "p.jsonl": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "q.parquet": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "r.xlsx": (zipped(b"a"), "is a spreadsheet or a zip archive; save the sheet as CSV"),
    "s": (b"PAR1 and more", r"is a Parquet file; change its suffix to \.parquet"),
    "t.json": (gzip.compress(b"[]"), r"is compressed; add the suffix \.gz to its name"),
    "u.json": ("<!DOCTYPE html>", "is a web page or XML; download the file itself"),
    "u.jsonl": ("\ufeff\n <Error><Code>AccessDenied</Code></Error>", "is a web page or XML; download the file itself"),
    "x.jsonl": ("id\tprompt\n1\ta\n", r"1: is not JSON \(Expecting value at column 1 of 'id.{1,2}tprompt'\); write one"),
    "y.jsonl": ('{"prompt": "a', r"1: is not JSON \(Unterminated string starting at column 12 of '\{\"prompt\": \"a'\)"),
    "z.tsv": (
        'id\tprompt\n1\t"A\n2\tB"\n',
        "2: has a field with line breaks and tabs, perhaps because a quote joins rows",
    ),
    "z.zip": (
        zipped(b"id,prompt\n1,a\n", "a.csv"),
        r"is an archive of `a\.csv`, but its own name is that of another format; change",
    ),
    "v.tar.gz": (b"", "is an archive of files; unpack it"),
    "w.parquet.gz": (gzip.compress(b"PAR1"), "is a compressed Parquet file; decompress it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_table_is_refused_by_name(name, tmp_path):
    data, says = REFUSED[name]
    with pytest.raises(DataError, match=rf"{name}:{'' if says[0].isdigit() else ' '}{says}") as caught:
        read(str(written(tmp_path / name, data)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"prompt": "a", "system": "Be brief."},
            "has a system message, which `tessy generate` does not support",
        ),
        ({"prompt": "a", "images": ["a.png"]}, "has `images` beside `prompt`, which no model would see"),
        ({"prompt": [{"role": "user", "content": "a"}]}, "it should be an object with a non-empty string `prompt`"),
    ],
)
def test_what_tessy_generate_would_not_show_is_refused(row, says, tmp_path):
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{says}"):
        read_prompts(str(written(tmp_path / "a.jsonl", json.dumps(row))))


def test_an_archive_of_several_files_is_refused_with_their_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
        archive.writestr("a.csv", "prompt\na\n")
        archive.writestr("b.csv", "prompt\nb\n")
    with pytest.raises(DataError, match=r"is an archive of 2 files \(`a\.csv`, `b\.csv`\); unpack it"):
        rows(tmp_path / "a.csv.zip")


def test_a_bad_line_leaves_the_others_readable_also_if_it_is_the_first(tmp_path):
    file = written(tmp_path / "a.jsonl", '{"prompt": \n{"prompt": "b"}\n["x"]\n{"prompt": "c"}\n')
    data = read(str(file), skip_invalid=True)
    assert [prompt.messages[0]["content"] for prompt in data.prompts] == ["b", "c"]
    assert [where for where, _ in data.skipped] == [f"{file}:1", f"{file}:3"]


def test_columns_of_csv_that_no_one_reads_may_repeat_or_have_no_name(tmp_path):
    file = written(tmp_path / "a.csv", ",prompt,note,note,\n0,a,x,y,\n1,b,,,,,\n")
    assert [(row["prompt"], row["note"]) for row in contents(file)] == [("a", "y"), ("b", None)]
    with pytest.raises(DataError, match="has 2 columns named 'note'"):
        read(str(file), prompt="note")


def test_addresses_are_read_by_their_name_without_the_query(tmp_path):
    memory = fsspec.filesystem("memory")
    for name, data in {"a.csv": delimited().encode(), "a.json.gz": gzip.compress(FORMS["b.json"].encode())}.items():
        memory.pipe_file(f"/tables/{name}", data)
        assert contents(f"memory://tables/{name}") == ROWS
    memory.pipe_file("/tables/b.csv?download=true", delimited().encode())
    assert contents("memory://tables/b.csv?download=true") == ROWS


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "a.json", FORMS["a.json"])
    assert contents("~/a.json") == ROWS


def test_a_saved_folder_gives_all_columns_as_python_values_whatever_its_format(tmp_path):
    row = {"input_ids": [1, 2], "labels": [-100, 2]}
    data = datasets.Dataset.from_list([row]).with_format("numpy", columns=["input_ids"])
    data.save_to_disk(str(tmp_path / "disk"))
    assert contents(tmp_path / "disk", columns=("input_ids", "labels")) == [row]


GPQA = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3,Subdomain,Record ID\n"


def test_gpqa_is_read_in_its_published_form(tmp_path):
    file = written(tmp_path / "gpqa.csv", GPQA + '"Which, of these, is a gas?","air\n","10^3",007,"NA",Physics,rec1\n')
    task = Task(name="gpqa", path=str(file), verifier="choice")
    (problem,) = choices.problems(task)
    assert sorted(problem.choices) == ["007", "10^3", "NA", "air\n"]
    assert problem.choices["ABCD".index(problem.reference)] == "air\n"
    assert problem.own_id == "rec1"
    (tmp_path / "hub").mkdir()
    written(tmp_path / "hub" / "gpqa_diamond.csv", file.read_bytes())
    hub = task.model_copy(update={"path": str(tmp_path / "hub"), "split": "train"})
    assert choices.problems(hub) == [problem]


def test_training_reads_conversations_from_every_form(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}]
    written(tmp_path / "a.json", json.dumps([{"messages": turns}], indent=2))
    written(tmp_path / "b.csv", "prompt,completion,reasoning\na,b,hm\n")
    turn = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    features = datasets.Features({"conversations": datasets.Sequence(turn)})
    sides = {"from": ["human", "gpt"], "value": [turn["content"] for turn in turns]}
    datasets.Dataset.from_list([{"conversations": sides}], features=features).to_parquet(str(tmp_path / "c.parquet"))
    for name in ("a.json", "b.csv", "c.parquet"):
        assert [list(row_of(raw, i).messages) for _, i, raw in rows_at(str(tmp_path / name), "train", None)] == [turns], name
    written(tmp_path / "d.csv", 'input_ids,labels\n"[1, 2]","[-100, 2]"\n')
    ((_, _, raw),) = rows_at(str(tmp_path / "d.csv"), "train", None)
    assert raw == {"input_ids": "[1, 2]", "labels": "[-100, 2]"}


@pytest.fixture(params=["jsonl", "csv"])
def hub(tmp_path, request):
    """A data set with two configurations."""
    lines = ["---", "configs:"]
    for name in ("main", "socratic"):
        file = f"{name}/train.{request.param}"
        written(tmp_path / "hub" / file, FORMS[f"a.{request.param}"].replace("007", name))
        lines += [f"- config_name: {name}", f"  data_files: [{{split: train, path: {file}}}]"]
    written(tmp_path / "hub" / "README.md", "\n".join([*lines, "---", ""]))
    return tmp_path / "hub"


def test_subset_chooses_a_configuration_and_the_message_lists_all_configurations(hub):
    for name in ("main", "socratic"):
        assert contents(hub, subset=name) == [row | {"prompt": row["prompt"].replace("007", name)} for row in ROWS]
    assert [place for place, _ in rows(hub, subset="main", limit=1)] == [f"{hub}[main, train]: row 1"]
    with pytest.raises(DataError, match="has no default configuration; it has `main`, `socratic`: set subset to one"):
        rows(hub)
    with pytest.raises(DataError, match="has no configuration 'gpqa'; it has `main`, `socratic`: set subset to one"):
        rows(hub, subset="gpqa")
    with pytest.raises(DataError, match="has no split 'test'; it has `train`: set split to one of them"):
        rows(hub, "test", subset="main")
    assert len(list(rows_at(str(hub), "train", 2, subset="main"))) == 2


def test_messages_name_all_columns_of_a_data_set_also_those_that_are_not_read(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"], "reward": ["1"]}), tmp_path / "a.parquet")
    task = Task(name="t", path=str(tmp_path / "a.parquet"), verifier="boxed")
    with pytest.raises(DataError, match="it holds `prompt` and `reward`: set answer to one of them"):
        table_problems(task)


def test_spans_are_read_beside_other_columns_of_parquet(tmp_path):
    messages = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "x"})
    row = Row("a/0", "a", 0, messages, (Span("student", "answer", 0, 1),), {"recipe": "r"})
    pq.write_table(pa.Table.from_pylist([{**row.to_json(), "score": 1.0}]), tmp_path / "a.parquet")
    ((_, _, raw),) = rows_at(str(tmp_path / "a.parquet"), "train", None)
    assert row_of(raw, 0) == row


def test_a_column_that_occurs_twice_is_refused_in_a_csv_file_and_in_a_data_set_of_them(tmp_path):
    file = written(tmp_path / "twice" / "train.csv", "id,prompt,prompt\n1,a,b\n")
    for path in (file, file.parent):
        with pytest.raises(DataError, match="has 2 columns named 'prompt'; rename or remove all but one"):
            rows(path)


def test_the_only_configuration_needs_no_name(tmp_path):
    card = "---\nconfigs: [{config_name: only, data_files: [{split: train, path: a.jsonl}]}]\n---\n"
    written(tmp_path / "hub" / "README.md", card)
    written(tmp_path / "hub" / "a.jsonl", FORMS["a.jsonl"])
    assert contents(tmp_path / "hub") == contents(tmp_path / "hub", subset="only") == ROWS
    with pytest.raises(DataError, match="has no split 'test'; it has `train`"):
        rows(tmp_path / "hub", "test")
    with pytest.raises(DataError, match="has no configuration 'main'; it has `only`"):
        rows(tmp_path / "hub", subset="main")


def test_a_subset_of_what_has_no_configurations_is_refused(tmp_path):
    written(tmp_path / "a.jsonl", FORMS["a.jsonl"])
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "disk"))
    with RunStore(str(tmp_path / "run")) as store:
        store.save_config("")
    for name, says in {"a.jsonl": "is a file", "disk": "is a saved data set", "run": "is a run folder"}.items():
        with pytest.raises(DataError, match=rf"{says}.* subset is 'main'; leave (subset|it) out"):
            list(rows_at(str(tmp_path / name), "train", None, subset="main"))


def test_a_run_folder_is_no_table_of_prompts(tmp_path):
    with RunStore(str(tmp_path / "run")) as store:
        store.save_config("")
    with pytest.raises(DataError, match="is a run folder; give a table of rows, such as the output of `tessy rows"):
        read(str(tmp_path / "run"))


def test_shards_and_sequence_columns_are_read_from_parquet_and_from_saved_folders(tmp_path):
    turn = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    features = datasets.Features({"conversations": datasets.Sequence(turn)})
    values = [{"conversations": {"from": ["human", "gpt"], "value": [text, "yes"]}} for text in TEXTS]
    data = datasets.Dataset.from_list(values, features=features)
    data.save_to_disk(str(tmp_path / "disk"))
    (tmp_path / "shards").mkdir()
    for i in range(2):
        data.shard(2, i, contiguous=True).to_parquet(str(tmp_path / "shards" / f"train-{i:05}-of-00002.parquet"))
    (tmp_path / "shards").rename(tmp_path / "shards.parquet")
    for name in ("disk", "shards.parquet", "shards.parquet/*.parquet"):
        prompts = read(str(tmp_path / name)).prompts
        assert [prompt.messages for prompt in prompts] == [[{"role": "user", "content": text}] for text in TEXTS], name
