"""Files of a tokenizer that contradict each other are read as in transformers with a warning, or refused by name."""

import json

import pytest

from tessy_jax.errors import TokenizerError
from tessy_jax.text.template import Template
from tessy_jax.text.tokenizer import Tokenizer
from tests.text.kinds import TEMPLATE, bpe, save

OTHER = TEMPLATE.replace("[Q]", "[B]")
ROWS = 1024
ADDED = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
MESSAGE = [{"role": "user", "content": "Hi there."}]


def with_tokens(*tokens):
    content = bpe("first", False)
    return {**content, "added_tokens": content["added_tokens"] + [{"id": i, "content": name} | ADDED for name, i in tokens]}


def size():
    return len(bpe("first", False)["model"]["vocab"])


def folder_of(folder, content=None, files=(), **settings):
    save(content or bpe("first", False), folder, **settings)
    for name, value in dict(files).items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return folder


def refusal(folder, vocab=ROWS):
    with pytest.raises(TokenizerError) as caught:
        Template(Tokenizer(folder, vocab), {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([("<|new|>", 30)], ["'<|new|>'", "the number {30}", "its number is {0}"]),
        ([("<|new|>", -500)], ["'<|new|>'", "its number is {0}"]),
        ([("<|a|>", 1), ("<|b|>", 0)], ["'<|a|>'", "the number {1}", "its number is {0}"]),
    ],
)
def test_an_added_token_whose_number_is_not_the_next_one_is_refused(tmp_path, tokens, words):
    content = with_tokens(*[(name, size() + step) for name, step in tokens])
    message = refusal(folder_of(tmp_path, content))
    for word in words:
        assert word.replace("{30}", str(size() + 30)).replace("{1}", str(size() + 1)).replace("{0}", str(size())) in message


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_numbers_of_added_tokens_in_other_files_agree_or_are_refused(tmp_path, file):
    def made(name, number):
        decoder = {"added_tokens_decoder": {str(number): {"content": name, "special": True}}}
        here = file == "tokenizer_config.json"
        folder = tmp_path / f"{name.strip('<|>')}-{number}"
        files = {} if here else {file: {name: number}}
        return folder_of(folder, with_tokens(("<|a|>", size())), files, **(decoder if here else {}))

    tokenizer = Tokenizer(made("<|a|>", size()), ROWS)
    assert tokenizer.description["added_tokens"][-1]["id"] == size()
    assert Template(Tokenizer(made("<|b|>", size() + 1), ROWS), {}).end_ids == {2}
    for name, number in (("<|b|>", size()), ("<|a|>", size() + 1), ("<|b|>", size() + 9)):
        assert f"{file}: gives the added token {name!r} the number {number}" in refusal(made(name, number))


def test_a_token_that_another_file_adds_is_named_in_a_warning(tmp_path, caplog):
    Template(Tokenizer(folder_of(tmp_path / "a", pad_token="[PAD]"), ROWS), {})
    assert f"tokens that tokenizer.json lacks are added, as in transformers: '[PAD]' ({size()})" in caplog.text
    caplog.clear()
    Template(Tokenizer(folder_of(tmp_path / "b", pad_token="<unk>"), ROWS), {})
    assert not caplog.text


def test_a_token_beyond_the_embedding_is_refused_with_the_file_that_adds_it(tmp_path):
    message = refusal(folder_of(tmp_path / "a", pad_token="[PAD]"), size())
    assert f"tokenizer_config.json: its token '[PAD]' is the last of {size() + 1} tokens, the model has {size()}" in message
    assert "or take '[PAD]' out of tokenizer_config.json" in message
    content = bpe("first", False)
    content["model"]["vocab"] = {**content["model"]["vocab"], "zz": ROWS + 7}
    message = refusal(folder_of(tmp_path / "b", content))
    assert f"tokenizer.json: its token 'zz' is the last of {ROWS + 8} tokens, the model has {ROWS}" in message


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    assert f"{name}: cannot be read as JSON" in refusal(folder_of(tmp_path / "a", files={name: "{"}))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    assert f"{name}: is a pointer of Git LFS; fetch the file with `git lfs pull`" in refusal(
        folder_of(tmp_path / "b", files={name: pointer})
    )


def test_raw_text_is_continued_without_the_tokens_that_would_end_it(tmp_path):
    start, text, end = ({"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "</s>", "type_id": 0}})  # fmt: skip
    names = {"special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in (("<s>", 1), ("</s>", 2))}}
    around = {"type": "TemplateProcessing", "single": [start, text, end], "pair": [text, end], **names}
    tokenizer = Tokenizer(folder_of(tmp_path, {**bpe("first", False), "post_processor": around}), ROWS)
    for words in ("Hi there.", "Hi</s> there", "</s>"):
        assert tokenizer.encode(words) == [1, *tokenizer.encode_rendered(words)]


def test_raw_text_that_transformers_tokenizes_otherwise_is_refused(tmp_path):
    tokenizer = Tokenizer(folder_of(tmp_path, tokenizer_class="Qwen2Tokenizer"), ROWS)
    with pytest.raises(TokenizerError, match=r"Qwen2Tokenizer.* in the text 'Hi there.'"):
        tokenizer.encode("Hi there.")


def test_control_tokens_that_transformers_reads_as_text_are_refused_with_the_setting(tmp_path):
    message = refusal(folder_of(tmp_path, split_special_tokens=True))
    assert "set split_special_tokens in tokenizer_config.json to false" in message


def test_a_template_beside_another_one_is_used_as_in_transformers_with_a_warning(tmp_path, caplog):
    both = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": OTHER}]
    for i, (beside, warned) in enumerate([(TEMPLATE, True), (OTHER, False), (both, True), (None, False), (both[1:], False)]):
        caplog.clear()
        folder = folder_of(tmp_path / str(i), files={"chat_template.jinja": OTHER}, chat_template=beside)
        assert Template(Tokenizer(folder, ROWS), {}).rendered(MESSAGE) == "<s>[B] Hi there. [A]"
        assert ("chat_template.jinja is used, as in transformers" in caplog.text) == warned
    twice = [{"name": "default", "template": TEMPLATE}, {"name": "default", "template": OTHER}]
    assert "chat_template has the names default, default" in refusal(folder_of(tmp_path / "twice", chat_template=twice))


def test_a_template_in_the_file_of_a_processor_is_pointed_out(tmp_path):
    message = refusal(folder_of(tmp_path, files={"chat_template.json": {"chat_template": TEMPLATE}}, chat_template=None))
    assert "save the text of chat_template.json as chat_template.jinja" in message


def test_settings_of_generation_that_are_not_followed_are_named(tmp_path, caplog):
    asked = {"temperature": 0.6, "repetition_penalty": 1.05, "suppress_tokens": [3], "num_beams": 1, "min_length": 0}
    raw = asked | {"eos_token_id": 2}
    for name, files in (("generation_config.json", {"config.json": {"top_k": 5}}), ("config.json", {})):
        caplog.clear()
        folder = folder_of(tmp_path / name, files={name: raw, **files})
        assert Tokenizer(folder, ROWS).eos_ids() == [2]
        assert f"{name}: has settings that are not followed: repetition_penalty 1.05, suppress_tokens [3];" in caplog.text


def test_different_names_of_the_token_that_ends_text_are_refused_unless_a_number_decides(tmp_path):
    content = {"content": "</s>", "lstrip": False}
    tokenizer = Tokenizer(folder_of(tmp_path / "a", files={"special_tokens_map.json": {"eos_token": content}}), ROWS)
    assert tokenizer.eos_ids() == [2]
    other = {"special_tokens_map.json": {"eos_token": "<s>"}}
    assert "eos_token is '</s>' in tokenizer_config.json and '<s>' in special_tokens_map.json" in refusal(
        folder_of(tmp_path / "b", files=other)
    )
    decided = {**other, "generation_config.json": {"eos_token_id": 2}}
    assert Tokenizer(folder_of(tmp_path / "c", files=decided), ROWS).eos_ids() == [2]
