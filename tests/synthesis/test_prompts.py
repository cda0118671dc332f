"""Prompts: all published forms give the same messages, every bad row is named, and no two responses share a key."""

import gzip
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.errors import ConfigError, DataError
from tessy_jax.synthesis.prompts import Job, Prompt, jobs, read

USER = {"role": "user", "content": "What is 6 × 7?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "<think>\n…\n</think>\n\n42"}
SPOKEN = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "What is 6 × 7?"},
    {"from": "gpt", "value": "42"},
]
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
nonblank = text.filter(str.strip)


@pytest.fixture
def rows_file(tmp_path):
    def write(*rows, name="rows.jsonl"):
        file = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))
        return str(file)

    return write


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, USER]},
        {"messages": [SYSTEM, USER, ANSWER]},
        {"prompt": [SYSTEM, USER]},
        {"dialogs": [SYSTEM, USER, ANSWER], "id_ddm": 3},
        {"conversations": SPOKEN},
        {"conversations": [SYSTEM, USER, ANSWER]},
        {"dialogs": SPOKEN},
        {"system_prompt": SYSTEM["content"], "prompt": USER["content"]},
        {"conversations": SPOKEN[:2], "messages": None, "prompt": None, "id": None},
        {"messages": [SYSTEM | {"name": None}, USER], "prompt": "something else", "score": 1.5},
    ],
)
def test_every_form_gives_the_same_prompt_with_the_same_id(row, rows_file):
    (prompt,) = read(rows_file(row)).prompts
    assert prompt == Prompt("h6f41a7bccbd34db4", [SYSTEM, USER], 0)


def test_a_context_beside_a_prompt_is_refused_unless_the_configuration_names_the_column_of_the_prompt(rows_file):
    file = rows_file({"prompt": "Who came?", "context": "Ann came."})
    with pytest.raises(DataError, match=r"has `context` beside `prompt`.*or set the key `prompt` of the data to `prompt`"):
        read(file)
    (prompt,) = read(file, prompt="prompt").prompts
    assert prompt.messages == [{"role": "user", "content": "Who came?"}]


def test_earlier_turns_stay_and_only_the_last_answer_goes(rows_file):
    turns = [USER, ANSWER, {"role": "user", "content": "And 6 × 8?"}, ANSWER]
    assert read(rows_file({"messages": turns})).prompts[0].messages == turns[:-1]


def test_ids_are_the_rows_own_as_text_or_a_hash_of_the_messages(rows_file):
    data = read(rows_file({"prompt": "a", "id": 7}, {"prompt": "a", "id": "x/é"}, {"prompt": "a"}, {"prompt": "a", "n": 1}))
    assert [p.id for p in data.prompts[:2]] == ["7", "x/é"]
    assert data.prompts[2].id == data.prompts[3].id
    assert re.fullmatch("h[0-9a-f]{16}", data.prompts[2].id)
    assert [p.index for p in data.prompts] == [0, 1, 2, 3]


def test_a_named_column_is_the_prompt(rows_file):
    file = rows_file({"problem": "a", "id": 7, "messages": [USER]}, {"problem": "b", "answer": 3})
    first, second = read(
        file, prompt="problem", columns=["answer"], ground_truth=lambda row, name: (row.get("answer"), name)
    ).prompts
    assert (first.id, first.messages, first.ground_truth) == ("7", [{"role": "user", "content": "a"}], (None, "7"))
    assert (second.messages, second.ground_truth) == ([{"role": "user", "content": "b"}], (3, second.id))
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: has no `messages`.* it holds `answer` and `problem`: set prompt to one"
    ):
        read(file, prompt="messages", skip_invalid=False)


def test_real_prompts_are_read(shared):
    file = shared / "data" / "ojbench-examples.jsonl"
    raw = [json.loads(line) for line in file.read_text().splitlines()]
    data = read(str(file))
    assert [p.id for p in data.prompts] == [str(row["id"]) for row in raw]
    assert [p.messages for p in data.prompts] == [[{"role": "user", "content": row["prompt"]}] for row in raw]
    assert len(raw) == 5
    assert len(read(str(file), limit=3).prompts) == 3


@given(st.lists(st.tuples(nonblank, st.booleans(), st.integers(0, 2)), min_size=1, max_size=8))
def test_any_text_reads_back_unchanged_escaped_or_not_between_blank_lines(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("any") / "a.jsonl"
    lines = [json.dumps({"prompt": t}, ensure_ascii=escaped) + "\n" * (1 + blank) for t, escaped, blank in rows]
    file.write_bytes("\ufeff".encode() + "".join(lines).encode())
    assert [p.messages[0]["content"] for p in read(str(file)).prompts] == [t for t, _, _ in rows]


def test_byte_order_marks_line_separators_and_windows_line_ends_are_read(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes('\ufeff\r\n{"prompt": "a\u2028b\x85"}\r\n \t\n{"prompt": "c"}'.encode())
    assert [p.messages[0]["content"] for p in read(str(file)).prompts] == ["a\u2028b\x85", "c"]
    file.write_bytes(b'\n{"prompt": "a"}\n\n{"prompt": 1}')
    with pytest.raises(DataError, match=r"a\.jsonl:4: prompt is the number 1;"):
        read(str(file))


BAD = [
    ("{", r"is not JSON \(.*\); write one object per line"),
    ('{"prompt": "a"} {"prompt": "b"}', "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ("3", "is the number 3; it should be an object with `messages`, `prompt`, `dialogs` or `conversations`"),
    ('["a"]', "is a list of 1; it should be an object"),
    ("{}", "holds nothing; it should hold"),
    ({"question": "a", "id": 1}, "holds `id` and `question`; it should hold `messages`, `prompt`"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": " \n\u3000"}, "the prompt is empty; prompt should end with some text of the user"),
    ({"prompt": {"text": "a"}}, "prompt is an object of `text`; it should be a string or a list of messages"),
    ({"prompt": []}, "prompt is empty; it should end with a message of the user"),
    ({"prompt": [USER, ANSWER]}, "prompt ends with a message of 'assistant'"),
    ({"messages": "a"}, "messages is the string 'a'; it should be a list of messages"),
    ({"messages": [ANSWER]}, "messages is empty"),
    (
        {"messages": [USER, ANSWER, ANSWER]},
        "ends with a message of 'assistant'; the message before the answer should be the user",
    ),
    ({"messages": [USER, SYSTEM]}, "ends with a message of 'system'"),
    ({"messages": [{"role": "user", "content": " "}, ANSWER]}, "the prompt is empty"),
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content is null; it should be a string"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\].content\[0\] is"),
    ({"messages": ["a"]}, r"messages\[0\] is the string 'a'; it should hold role and content"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\] holds `role`; it should hold role and content"),
    (
        {"messages": [{"role": "wizard", "content": "a"}]},
        r"\.role is 'wizard'; use `system`, `developer`, `user`, `assistant`, `tool`, `human` or `gpt`",
    ),
    ({"messages": [{"role": [], "content": "a"}]}, r"\.role is an empty list; use `system`"),
    ({"dialogs": [{"from": "human", "content": "a"}]}, r"dialogs\[0\] holds `content` and `from`; it should hold role and"),
    ({"conversations": [{"from": "gpt"}]}, r"conversations\[0\] holds `from`; it should hold from and value"),
    ({"prompt": "<|im_start|>user\na"}, r"prompt begins with '<\|im_start\|>', so a chat template has"),
    ({"id": "x" * 9999, "prompt": 3}, "prompt is the number 3"),
    (
        {"conversations": [{"from": "bing", "value": "a"}]},
        r"conversations\[0\].from is 'bing'; use `system`, `developer`",
    ),
    ({"prompt": "a", "id": 1.5}, "id is the number 1.5; it should be a string or a whole number, or left out"),
    ({"prompt": "a", "id": True}, "id is true; it should"),
    ({"prompt": "a", "id": ""}, "id is empty"),
    ('{"prompt": "a", "id": "\\ud83d"}', "id holds half of a surrogate pair"),
    ('{"prompt": "a\\udc00"}', "half of a surrogate pair, which is not text; remove it"),
    ('{"prompt": "a\ud800"}', "is not UTF-8"),
]


@pytest.mark.parametrize(("row", "says"), BAD)
def test_a_row_that_is_no_prompt_is_named_with_file_and_line_or_recorded(row, says, rows_file):
    file = rows_file({"prompt": "good"}, "", row, {"prompt": "good"})
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: .*{says}") as caught:
        read(file)
    assert len(str(caught.value)) < 500
    data = read(file, skip_invalid=True)
    assert [p.index for p in data.prompts] == [0, 2]
    assert [where for where, _ in data.skipped] == [f"{file}:3"]
    assert data.skipped[0][1] in str(caught.value)


def test_an_id_of_two_different_prompts_is_refused_with_both_places(rows_file):
    file = rows_file(
        {"prompt": "a", "id": 1}, {"prompt": "a", "id": "1"}, {"prompt": "b", "id": 1}, {"prompt": "c", "id": 2}
    )
    with pytest.raises(DataError, match=r"rows\.jsonl:3: has the id '1' of another prompt, at .*rows\.jsonl:1; give each"):
        read(file)
    data = read(file, skip_invalid=True)
    assert [p.id for p in data.prompts] == ["1", "1", "2"]
    assert [where for where, _ in data.skipped] == [f"{file}:3"]


def test_an_input_without_prompts_is_refused(rows_file, tmp_path):
    for file in (rows_file(), rows_file("", " ")):
        with pytest.raises(DataError, match="holds no rows"):
            read(file)
    with pytest.raises(DataError, match=r"none of its 2 rows is a prompt; the first, at .*:1: is the number 1;"):
        read(rows_file("1", "2"), skip_invalid=True)
    for absent in ("absent.jsonl", "/absent/prompts", "./absent", "absent.jsonl.gz", str(tmp_path / "absent.parquet")):
        with pytest.raises(DataError, match=r"no such file|No such file|cannot be read"):
            read(absent)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read(str(tmp_path / "folder.jsonl"))
    with pytest.raises(ConfigError, match=r"nosuch://a\.jsonl: cannot be opened"):
        read("nosuch://a.jsonl")


def test_rows_after_the_limit_are_not_read(rows_file):
    file = rows_file({"prompt": "a"}, "", {"prompt": "b"}, "{")
    assert len(read(file, limit=2).prompts) == 2
    with pytest.raises(DataError):
        read(file, limit=3)


def test_compressed_and_remote_lines_are_read(rows_file, tmp_path):
    import fsspec

    line = b'{"prompt": "a"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line))
    assert len(read(str(tmp_path / "a.jsonl.gz")).prompts) == 1
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line * 1000)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read(str(tmp_path / "b.jsonl.gz"))
    fsspec.filesystem("memory").pipe_file("/prompts/a.jsonl", line)
    assert len(read("memory://prompts/a.jsonl").prompts) == 1
    assert len(read(rows_file('{"prompt": "a"}', name="no_suffix")).prompts) == 1


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_every_response_has_its_own_key_also_for_repeated_prompts(which, rollouts):
    prompts = [Prompt(f"p{w}", [USER], i) for i, w in enumerate(which)]
    keyed = jobs(prompts, rollouts)
    assert [job.prompt.index for job in keyed] == [p.index for p in prompts for _ in range(rollouts)]
    keys = {(job.prompt.id, job.rollout) for job in keyed}
    assert len(keys) == len(keyed)
    assert keys == {(f"p{w}", r) for w in set(which) for r in range(which.count(w) * rollouts)}


def test_rollouts_of_a_repeated_prompt_continue_its_numbering():
    a, b, again = Prompt("a", [USER], 0), Prompt("b", [USER], 1), Prompt("a", [USER], 2)
    assert jobs([a, b, again], 2) == [Job(a, 0), Job(a, 1), Job(b, 0), Job(b, 1), Job(again, 2), Job(again, 3)]


ROWS = [
    {"id": 1, "messages": [SYSTEM, USER, ANSWER], "prompt": None, "score": 0.5},
    {"id": None, "messages": None, "prompt": "b", "score": None},
]


def test_parquet_and_folders_of_data_sets_are_read_like_lines(tmp_path, rows_file):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    expected = read(rows_file(*ROWS)).prompts
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(str(tmp_path / "a.parquet"))
    data.save_to_disk(str(tmp_path / "disk"))
    datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "folder" / "data").mkdir(parents=True)
    data.to_parquet(str(tmp_path / "folder" / "data" / "train-0.parquet"))
    for path, split in (
        ("a.parquet", "train"),
        ("a.parquet", "any"),
        ("disk", "train"),
        ("splits", "test"),
        ("folder", "train"),
    ):
        assert read(str(tmp_path / path), split).prompts == expected, path
    assert len(read(str(tmp_path / "a.parquet"), limit=1).prompts) == 1
    with pytest.raises(DataError, match="has no split 'train'; it has `test`"):
        read(str(tmp_path / "splits"))
    with pytest.raises(DataError, match="has no split 'test'; it has `train`: set split to one of them"):
        read(str(tmp_path / "folder"), "test")


def test_bad_rows_of_parquet_are_named_by_their_number(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    file = str(tmp_path / "a.parquet")
    datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": " "}]).to_parquet(file)
    with pytest.raises(DataError, match=r"a\.parquet: row 2: the prompt is empty"):
        read(file)
    assert read(file, skip_invalid=True).skipped[0][0] == f"{file}: row 2"
    datasets.Dataset.from_list([{"question": "a", "id": 1}]).to_parquet(file)
    with pytest.raises(DataError, match=r"a\.parquet: row 1: holds `id` and `question`; it should hold"):
        read(file)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(DataError, match="cannot be read as a data set"):
        read(str(tmp_path / "torn.parquet"))


def test_reading_lines_needs_neither_datasets_nor_fsspec_and_their_absence_is_explained(rows_file):
    code = "import sys\nfrom tessy_jax.synthesis.prompts import read\nread(sys.argv[1])\n"
    code += "assert not {'datasets', 'fsspec', 'jax'} & set(sys.modules)\nsys.modules['datasets'] = None\nread('name')"
    file = rows_file({"prompt": "a"})
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=False)
    assert "ConfigError: name: needs a package that is missing" in done.stderr
    assert "pip install datasets, or give JSONL" in done.stderr
