"""Small tokenizers of every kind that can be built here, as the content of a tokenizer.json and as model folders."""

import json
import random
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.text.chunks import WORDS, chunk

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[Q] {{ m.content }} [A]{% else %}{{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
SCHEMES = tuple((scheme, split) for scheme in ("first", "always", "never") for split in (True, False))
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def _samples():
    rng = random.Random(4)
    return [chunk(rng) for _ in range(300)] + [" ".join(WORDS[:20])]


def _content(built, scheme, split):
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    built.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    built.add_special_tokens(["<unk>", "<s>", "</s>"])
    return json.loads(built.to_str())


@cache
def _bpe():
    built = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False)
    built.train_from_iterator(_samples()[::2], trainer)
    return built.model


def bpe(scheme, split):
    """BPE as Llama 2 has it, with a token for every byte."""
    built = Tokenizer(_bpe())
    return _content(built, scheme, split)


@cache
def _unigram():
    built = Tokenizer(models.Unigram())
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=1200, special_tokens=special, unk_token="<unk>", show_progress=False)
    built.train_from_iterator([text.replace("\n", " ") for text in _samples()], trainer)
    return built.model


def unigram(scheme, split):
    """Unigram as T5 has it: no bytes, no line break."""
    return _content(Tokenizer(_unigram()), scheme, split)


def legacy():
    """BPE in the form of 2023: a normalizer puts the space in front, and there is no pre-tokenizer."""
    content = bpe("always", False)
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    return {**content, "pre_tokenizer": None, "normalizer": {"type": "Sequence", "normalizers": steps}}


def gemma():
    """BPE in the form of Gemma: a normalizer replaces spaces, the pre-tokenizer finds none, and runs of white space are
    model tokens that are also added tokens."""
    content = bpe("never", True)
    model, runs = content["model"], [name * n for name in ("\n", "▁") for n in (2, 3, 4)]
    vocab = {**model["vocab"], **{name: len(model["vocab"]) + i for i, name in enumerate([*runs, "<b>"])}}
    merges = [[name[0] * a, name[0] * (len(name) - a)] for name in runs for a in range(1, len(name))]
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    decoder = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [{"id": vocab[name], "content": name} | flags for name in (*runs, "<b>")]
    return {
        **content,
        "model": {**model, "vocab": vocab, "merges": [*merges, *model["merges"]]},
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": split,
        "decoder": {"type": "Sequence", "decoders": decoder},
        "added_tokens": [*content["added_tokens"], *added],
    }


@cache
def _across_words():
    built = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    built.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False)
    texts = ["so it is the end of the line, and the end is near"] * 20
    built.train_from_iterator([*texts, *_samples()[1::2]], trainer)
    return built.model


def across_words():
    """BPE with tokens that contain spaces between words."""
    content = _content(Tokenizer(_across_words()), "never", False)
    return {**content, "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "pre_tokenizer": None}


def save(content, folder, **settings):
    """Writes a model folder's tokenizer files; settings: of tokenizer_config.json. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings), "utf-8")
    return folder


def padded(content):
    """The content after a call that pads and truncates to 24 tokens, as the library saves it."""
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), pad_token="</s>")
    fast(["ok so"], padding="max_length", truncation=True, max_length=24)
    return json.loads(fast.backend_tokenizer.to_str())


def with_added(content, name, **flags):
    """The content with one more added token."""
    built = Tokenizer.from_str(json.dumps(content))
    built.add_tokens([AddedToken(name, **flags)])
    return json.loads(built.to_str())
