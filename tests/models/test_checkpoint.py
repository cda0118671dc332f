"""Slices of weights are exact. Bad files are refused with file, tensor and remedy before anything is loaded."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tessy_jax import cli
from tessy_jax.errors import CheckpointError, ConfigError
from tessy_jax.models import hf
from tessy_jax.models.checkpoint import EverySecond, Stacked, Transposed, open_checkpoint
from tessy_jax.models.export import export
from tests.models.tiny import reference


@st.composite
def slices(draw, shape):
    result = []
    for size in shape:
        first = draw(st.integers(0, size - 1))
        result.append(slice(first, draw(st.integers(first + 1, size))))
    return tuple(result)


@given(data=st.data())
def test_every_slice_of_every_arrangement_equals_the_slice_of_the_complete_array(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensors")
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(6, 8)), "b": rng.normal(size=(6, 8)), "v": rng.normal(size=10)}
    values = {name: value.astype(np.float32) for name, value in values.items()}
    save_file(values, folder / "model.safetensors")
    tensors = open_checkpoint(folder)
    a, b, v = values["a"], values["b"], values["v"]
    pairs = [
        (tensors["a"], a),
        (tensors["v"], v),
        (Transposed(tensors["a"]), a.T),
        (Stacked((Transposed(tensors["a"]), Transposed(tensors["b"]))), np.stack([a.T, b.T])),
        (EverySecond(tensors["a"], 0), a[:, ::2]),
        (EverySecond(tensors["v"], 1), v[1::2]),
        (Stacked((EverySecond(tensors["a"], 1), EverySecond(tensors["b"], 1))), np.stack([a, b])[..., 1::2]),
    ]
    source, expected = data.draw(st.sampled_from(pairs))
    index = data.draw(slices(expected.shape))
    assert source.shape == expected.shape
    np.testing.assert_array_equal(source.read(index), expected[index])


@pytest.fixture
def folder(tmp_path):
    """A sharded checkpoint to break."""
    export(hf.load(reference("qwen2-untied").folder), tmp_path / "model", shard_bytes=60_000)
    return tmp_path / "model"


def shard_of(folder, tensor):
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][tensor]


def rewrite(folder, change):
    """Applies change(tensors) to the shard that holds the last layer's up_proj."""
    file = shard_of(folder, "model.layers.2.mlp.up_proj.weight")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_config(folder, **change):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **change}))


def remove_shard(folder):
    shard_of(folder, "model.layers.2.mlp.up_proj.weight").unlink()


def truncate_shard(folder):
    file = shard_of(folder, "model.layers.2.mlp.up_proj.weight")
    file.write_bytes(file.read_bytes()[:-100])


def empty_shard(folder):
    shard_of(folder, "model.layers.2.mlp.up_proj.weight").write_bytes(b"")


def garble_header(folder):
    shard_of(folder, "model.layers.2.mlp.up_proj.weight").write_bytes((50).to_bytes(8, "little") + b"x" * 60)


def cut_tensor(folder):
    rewrite(folder, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t["model.layers.2.mlp.up_proj.weight"][:-1]}))


def drop_tensor(folder):
    rewrite(folder, lambda t: t.pop("model.layers.2.mlp.up_proj.weight"))


def drop_weights(folder):
    (folder / "model.safetensors.index.json").unlink()


def garble_index(folder):
    (folder / "model.safetensors.index.json").write_text("{")


def fewer_layers(folder):
    edit_config(folder, num_hidden_layers=2, layer_types=None)


def more_layers(folder):
    edit_config(folder, num_hidden_layers=4, layer_types=None)


def wider(folder):
    edit_config(folder, intermediate_size=96)


def list_header(folder):
    shard_of(folder, "model.layers.2.mlp.up_proj.weight").write_bytes((3).to_bytes(8, "little") + b"[1]")


def unknown_type(folder):
    edit_config(folder, model_type="gpt2")


def integers(folder):
    rewrite(folder, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.ones((80, 72), np.uint8)}))


def unknown_quantisation(folder):
    edit_config(folder, quantization_config={"quant_method": "awq"})


BROKEN = [
    (list_header, CheckpointError, ["not a safetensors file", "fetch"]),
    (remove_shard, CheckpointError, ["safetensors: missing", "fetch"]),
    (truncate_shard, CheckpointError, ["safetensors: has", "bytes", "fetch"]),
    (empty_shard, CheckpointError, ["truncated", "fetch"]),
    (garble_header, CheckpointError, ["not a safetensors file", "fetch"]),
    (
        cut_tensor,
        CheckpointError,
        ["model.layers.2.mlp.up_proj.weight", "(72, 79)", "(72, 80)", "not of the same model"],
    ),
    (drop_tensor, CheckpointError, ["lacks tensor model.layers.2.mlp.up_proj.weight", "places in it", "fetch"]),
    (drop_weights, CheckpointError, ["holds neither model.safetensors nor"]),
    (garble_index, CheckpointError, ["index.json", "not a safetensors index"]),
    (fewer_layers, CheckpointError, ["model.layers.2", "unexpected", "not of the same model"]),
    (more_layers, CheckpointError, ["model.layers.3", "missing", "fetch"]),
    (wider, CheckpointError, ["mlp.", "(72, 80)", "(72, 96)"]),
    (integers, CheckpointError, ["model.layers.2.mlp.up_proj.weight", "U8", "dequantised"]),
    (unknown_type, ConfigError, ["config.json", "gpt2", "supported"]),
    (unknown_quantisation, ConfigError, ["config.json", "awq", "mxfp4"]),
]


@pytest.mark.parametrize(("damage", "kind", "words"), BROKEN, ids=[damage.__name__ for damage, _, _ in BROKEN])
def test_a_broken_model_is_one_clear_error_before_any_value_is_read(folder, damage, kind, words, monkeypatch):
    damage(folder)

    def no_reading(*_):
        raise AssertionError("a value was read before the checkpoint was checked")

    monkeypatch.setattr(hf, "_place", no_reading)
    with pytest.raises(kind) as caught:
        hf.load(folder)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_model_ends_the_command_with_code_2_and_one_line(folder, capsys):
    truncate_shard(folder)
    tokenizer_of(folder)
    assert cli.main(["generate", "--model", str(folder), "--prompt", "x", "--max-new-tokens", "2"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "safetensors: has" in err


def tokenizer_of(folder):
    from tests.text.tiny_tokenizer import save_tokenizer

    save_tokenizer(folder)


def test_tensors_that_transformers_ignores_are_ignored(tmp_path):
    source = reference("qwen2-tied").folder
    shutil.copytree(source, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    hf.load(tmp_path / "model")


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(tmp_path):
    shutil.copytree(reference("qwen2-tied").folder, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs.*tie_word_embeddings to false"):
        hf.load(tmp_path / "model")


def test_multi_token_prediction_is_ignored_with_a_warning(tmp_path, caplog):
    shutil.copytree(reference("deepseek_v3-untied").folder, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.3.eh_proj.weight"] = np.ones((2, 2), np.float32)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    edit_config(tmp_path / "model", num_nextn_predict_layers=1)
    model = hf.load(tmp_path / "model")
    assert "1 tensors of multi-token prediction are ignored" in caplog.text
    export(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_the_error_of_a_missing_output_head_names_the_key_that_ties_it(tmp_path):
    shutil.copytree(reference("qwen2-tied").folder, tmp_path / "model")
    edit_config(tmp_path / "model", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        hf.load(tmp_path / "model")


def test_a_hub_name_is_fetched_and_a_failing_hub_is_a_clear_error():
    requests = []

    def fetch(name, revision, allow_patterns, ignore_patterns):
        requests.append((name, allow_patterns))
        assert ignore_patterns == ["*/*"]
        return str(reference("qwen2-tied").folder)

    assert hf.resolve("Qwen/Qwen3-8B", fetch=fetch) == reference("qwen2-tied").folder
    hf.resolve("Qwen/Qwen3-8B", fetch=fetch, weights=False)
    assert [name for name, _ in requests] == ["Qwen/Qwen3-8B"] * 2
    assert "*.safetensors" in requests[0][1]
    assert "*.safetensors" not in requests[1][1]

    def fail(name, **_):
        raise OSError("no route to host\nmore")

    with pytest.raises(ConfigError, match=r"Qwen/Qwen3-8B.*no route to host"):
        hf.resolve("Qwen/Qwen3-8B", fetch=fail)
    with pytest.raises(ConfigError, match="no such folder"):
        hf.resolve("./not/here", fetch=fail)
