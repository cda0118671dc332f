"""The command line: help that helps, rows as promised, exit codes, nothing half-written."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tessy_jax import cli
from tessy_jax.store import RunStore
from tests.models.tiny import reference
from tests.text.tiny_tokenizer import build, save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(reference("qwen3-untied").folder, path)
    save_tokenizer(path)
    return path


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def generate(folder, *arguments):
    return run("generate", "--model", folder, "--max-new-tokens", 6, "--dtype", "float32", *arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"], ["generate", "--help"]])
def test_help_shows_an_example_and_ends_with_0(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    assert "example:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["generate", "--model", "x"],
        ["generate", "--model", "x", "--prompt", "a", "--max-new-tokens", "0"],
        ["generate", "--model", "x", "--prompt", "a", "--temperature", "-1"],
        ["generate", "--model", "x", "--prompt", "a", "--temperature", "nan"],
        ["generate", "--model", "x", "--prompt", "a", "--seed", "-3"],
        ["generate", "--model", "x", "--prompt", "a", "--prompts", "b"],
    ],
)
def test_invalid_arguments_end_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_rows_come_in_the_order_of_the_prompts_with_text_and_token_ids(folder, tmp_path, capsys):
    prompts = ["the quick brown fox jumps", "a", "the lazy\u2028 dog", "naïve 狗 🐕"]
    lines = [json.dumps({"prompt": p, "id": 1}, ensure_ascii=False) + "\r\n\n" for p in prompts]
    (tmp_path / "in.jsonl").write_text("\ufeff" + "".join(lines), "utf-8", newline="")
    out = tmp_path / "out.jsonl"
    assert generate(folder, "--prompts", tmp_path / "in.jsonl", "--output", out, "--batch-size", 3) == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").split("\n")[:-1]]
    assert [row["prompt"] for row in rows] == prompts
    for row in rows:
        assert sorted(row) == ["prompt", "text", "token_ids"]
        assert 1 <= len(row["token_ids"]) <= 6
        assert row["text"] == build().decode(row["token_ids"], skip_special_tokens=True)
    again = tmp_path / "again.jsonl"
    assert generate(folder, "--prompts", tmp_path / "in.jsonl", "--output", again, "--batch-size", 1) == 0
    assert again.read_text() == out.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.jsonl", "in.jsonl", "out.jsonl"]


def test_a_prompt_is_continued_raw_or_in_the_chat_template(folder, capsys, monkeypatch):
    import tessy_jax.synthesis.generate as module

    seen = []

    def spy(model, prompts, **options):
        seen.extend(prompts)
        return real(model, prompts, **options)

    real = module.generate
    monkeypatch.setattr(module, "generate", spy)
    assert generate(folder, "--prompt", "the dog") == 0
    assert generate(folder, "--prompt", "the dog", "--chat") == 0
    raw, chat = (build().decode(ids) for ids in seen)
    assert raw == "the dog"
    assert chat == "<|user|>the dog<|end|><|assistant|>"


def test_an_output_that_is_a_link_stays_a_link(folder, tmp_path):
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    assert generate(folder, "--prompt", "the fox", "--output", tmp_path / "link.jsonl") == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert json.loads((tmp_path / "real.jsonl").read_text())["prompt"] == "the fox"


def test_a_mesh_gives_the_same_rows(folder, tmp_path):
    for name, mesh in (("one", ""), ("many", "tensor=2,data=4")):
        assert generate(folder, "--prompt", "the fox", "--output", tmp_path / name, "--mesh", mesh) == 0
    assert (tmp_path / "one").read_text() == (tmp_path / "many").read_text()


def broken_tokenizer(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    return ["--model", tmp_path / "m", "--prompt", "x"], ["tokenizer.json", "fetch"]


def no_tokenizer(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    return ["--model", tmp_path / "m", "--prompt", "x"], ["no tokenizer.json"]


def too_many_tokens(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    tokenizer = build()
    import copy

    larger = copy.deepcopy(tokenizer)
    larger.add_tokens([f"<extra{i}>" for i in range(100)])
    larger.save_pretrained(tmp_path / "m")
    return ["--model", tmp_path / "m", "--prompt", "x"], ["tokens, the model has 320", "not of the same model"]


def no_template(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    return ["--model", tmp_path / "m", "--prompt", "x", "--chat"], ["no chat template", "--chat"]


def failing_template(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")
    return ["--model", tmp_path / "m", "--prompt", "x", "--chat"], ["no users here"]


def no_tokens(folder, tmp_path):
    return ["--model", folder, "--prompt", ""], ["prompt 1", "no tokens"]


def too_long(folder, tmp_path):
    return ["--model", folder, "--prompt", "x" * 2000], ["2000 tokens", "1024 positions", "--max-new-tokens"]


def torn_row(folder, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"')
    return ["--model", folder, "--prompts", tmp_path / "p.jsonl"], ["p.jsonl:2", "not JSON"]


def row_without_prompt(folder, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    return ["--model", folder, "--prompts", tmp_path / "p.jsonl"], ["p.jsonl:2", "`prompt`", "text"]


def surrogate(folder, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b\\ud800"}\n')
    return ["--model", folder, "--prompts", tmp_path / "p.jsonl"], ["p.jsonl:2: prompt holds", "surrogate"]


def surrogate_argument(folder, tmp_path):
    return ["--model", folder, "--prompt", "b\ud800"], ["prompt 1", "surrogate"]


def rendered(folder, tmp_path):
    return ["--model", folder, "--chat", "--prompt", "<|im_start|>user\na"], [
        "prompt 1 begins with '<|im_start|>'",
        "template",
    ]


def no_rows(folder, tmp_path):
    (tmp_path / "p.jsonl").write_text("\n")
    return ["--model", folder, "--prompts", tmp_path / "p.jsonl"], ["p.jsonl", "no rows"]


def no_file(folder, tmp_path):
    return ["--model", folder, "--prompts", tmp_path / "p.jsonl"], ["p.jsonl", "cannot be read"]


def no_output_folder(folder, tmp_path):
    return ["--model", folder, "--prompt", "x", "--output", tmp_path / "no" / "o"], ["cannot be written", "folder"]


def device_as_output(folder, tmp_path):
    return ["--model", folder, "--prompt", "x", "--output", "/dev/null"], ["/dev/null", "not a regular file"]


def garbled_generation_config(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text("{")
    return ["--model", tmp_path / "m", "--prompt", "x"], ["generation_config.json", "fetch"]


def large_mesh(folder, tmp_path):
    return ["--model", folder, "--prompt", "x", "--mesh", "data=64"], ["data=64 needs 64 devices, 8 are available"]


def classifier(folder, tmp_path):
    return ["--model", reference("qwen3-untied", 2).folder, "--prompt", "x"], ["token classifier", "ForCausalLM"]


BAD = [
    broken_tokenizer, no_tokenizer, too_many_tokens, no_template, failing_template, no_tokens, too_long, torn_row,
    row_without_prompt, surrogate, surrogate_argument, rendered, no_rows, no_file, no_output_folder,
    device_as_output, garbled_generation_config, large_mesh, classifier,
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=[case.__name__ for case in BAD])
def test_bad_input_is_one_line_and_code_2_and_writes_nothing(case, folder, tmp_path, capsys, monkeypatch):
    arguments, words = case(folder, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    out = [] if "--output" in arguments else ["--output", tmp_path / "out.jsonl"]
    assert run("generate", "--max-new-tokens", 4, *arguments, *out) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_internal_error_ends_with_code_1_and_shows_its_traceback_with_debug(folder, capsys, monkeypatch):
    import tessy_jax.synthesis.generate as module

    def fault(*_, **__):
        raise RuntimeError("broken loop")

    monkeypatch.setattr(module, "generate", fault)
    assert generate(folder, "--prompt", "x") == 1
    assert "broken loop" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="broken loop"):
        generate(folder, "--prompt", "x", "--debug")


def test_a_closed_output_pipe_is_no_error(tmp_path):
    from tests.synthesis.test_publish import row

    with RunStore(str(tmp_path / "run")) as store:
        store.commit([row(i, note="x" * 10_000) for i in range(200)])
    command = f"{sys.executable} -m tessy_jax.cli rows {tmp_path / 'run'}; echo rc $? >&2"
    done = subprocess.run(f"({command}) | head -1", shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == "rc 0\n"
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(("written", "code"), [(0, 2), (1, 0)])
def test_a_synthesis_names_the_reasons_of_failures_and_is_no_success_if_every_response_failed(
    written, code, tmp_path, monkeypatch, capsys
):
    summary = {"run": {"responses": written, "failures": {"length": 2, "repetition": 1}}}
    monkeypatch.setattr("tessy_jax.synthesis.job.synthesize", lambda config, **options: SimpleNamespace(summary=summary))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    config = tmp_path / "s.yaml"
    config.write_text(
        f"output: {tmp_path}/out\ndata: {{path: {tmp_path}/prompts.jsonl}}\nteacher: {{model: teacher}}\n"
        "synthesis: {recipe: teacher_only, max_prompt_tokens: 8, max_response_tokens: 8, lanes: 1}\n"
    )
    assert run("synthesize", config) == code
    shown = capsys.readouterr()
    assert f"{written} responses, 3 failures (2 length, 1 repetition) in {tmp_path}/out" in shown.out
    assert ("every response failed; `tessy rows --failures` gives the reasons" in shown.err) == (code == 2)
