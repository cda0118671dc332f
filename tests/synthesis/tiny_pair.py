"""A student and a teacher as Hugging Face folders: tiny, random, with vocabularies, split rules and templates of their own,
and a predictor for each. Their tokenizers know ASCII only, so that random tokens are text."""

import json
import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification, PreTrainedTokenizerFast

from tests.decode.world import QWEN

TEXT = "wait, so we need to add 12 and 7. then the sum is 19. okay now let me check it again.\n\n hence x = 3 * (a+b); "
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]
CLOSE = "\ne\n\n"


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    built = Tokenizer(models.BPE())
    if kind == "student":
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        split = pre_tokenizers.Split(Regex(QWEN), behavior="isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        built.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    built.decoder = decoders.ByteLevel()
    text = TEXT if kind == "student" else TEXT[::-1]
    size = 150 if kind == "student" else 135
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    built.train_from_iterator([string.printable, *[text] * 5], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<|end|>")
    fast.chat_template = TEMPLATE if kind == "student" else TEMPLATE.replace("<|assistant|>", "<|assistant|>\n")
    return fast


def sentencepiece_tokenizer(folder: Path, byte_fallback: bool = False) -> PreTrainedTokenizerFast:
    """A SentencePiece model, trained here, as transformers reads its file. The form with byte fallback is Llama 2's."""
    import sentencepiece

    (folder / "text").write_text("\n".join([TEXT.replace("\n", "")] * 20 + [string.printable.strip()] * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=140 + 256 * byte_fallback,
        model_type="bpe",
        byte_fallback=byte_fallback,
        user_defined_symbols=[] if byte_fallback else ["\n", *SPECIAL],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    built = AutoTokenizer.from_pretrained(folder)
    if byte_fallback:
        built.add_special_tokens({"additional_special_tokens": SPECIAL})
    built.chat_template = TEMPLATE
    return built


def silence(model: LlamaForCausalLM, token_ids: list[int]) -> None:
    """Changes the weights so that the model does not write these tokens: the first hidden dimension is constant, and only
    they read it."""
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 3.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[token_ids, 0] = -50.0


def shape(vocab: int, **options) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        **options,
    )


def build(folder: Path, **tokenizers: PreTrainedTokenizerFast) -> dict[str, str]:
    """Writes student, teacher and both predictors; returns their paths by name. tokenizers: instead of `tokenizer`'s."""
    paths = {}
    for seed, name in enumerate(("student", "teacher")):
        fast = tokenizers.get(name) or tokenizer(name)
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape(len(fast)))
        byte_ids = [i for name, i in fast.get_vocab().items() if name.startswith("<0x") and name != "<0x0A>"]
        if byte_ids:
            silence(model, byte_ids)
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
        ends = [fast.convert_tokens_to_ids(t) for t in ("<|end|>", "Q", "Z", "k", "~", "|")]
        (folder / name / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        torch.manual_seed(10 + seed)
        student = tokenizer("student")
        predictor = LlamaForTokenClassification(shape(len(student), num_labels=2))
        predictor.save_pretrained(folder / f"{name}-predictor")
        student.save_pretrained(folder / f"{name}-predictor")
        paths |= {name: str(folder / name), f"{name}-predictor": str(folder / f"{name}-predictor")}
    return paths


def settings(paths: dict[str, str], prompts: Path, output: Path, **synthesis) -> dict:
    """A configuration as it stands in a file."""
    thinking = {"open": "<think>\n", "close": CLOSE}
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    writer = {"dtype": "float32", "thinking": thinking, "sampling": sampling}
    return {
        "output": str(output),
        "seed": 3,
        "data": {"path": str(prompts), "rollouts": 4},
        "student": {"model": paths["student"], **writer},
        "teacher": {"model": paths["teacher"], **writer},
        "boundary": {
            "student": paths["student-predictor"],
            "teacher": paths["teacher-predictor"],
            "dtype": "float32",
            "window": 16,
        },
        "synthesis": {
            "max_prompt_tokens": 64,
            "max_response_tokens": 48,
            "max_attempts": 8,
            "lanes": 4,
            "student_step": 6,
            "teacher_step": 8,
            "repetition": {"window": 24, "period": 6},
            "rounds_per_dispatch": 4,
            "snapshot_seconds": 0,
            **synthesis,
        },
    }


def write_prompts(file: Path, count: int = 10) -> Path:
    lines = [{"id": i, "prompt": f"add {i} and {i * i}" + " please" * (i % 3)} for i in range(count)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
