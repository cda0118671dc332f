"""The tokenizers of the miniature: byte-level BPE with different sizes, split rules and merges.

| | student | teacher |
|---|---|---|
| splits text as | GPT-2: ` 12` is a word | GPT-OSS: a number without the space before it |
| marks thinking as | Qwen 3: `<think>`, `</think>`, tokens with text | GPT-OSS: channels of control tokens |

Each tokenizer learns its merges from its speaker's pretraining text of the train split. All 256 bytes are tokens in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tessy_jax.mini.styles import Speaker, render
from tessy_jax.mini.tasks import Family, items, stream
from tessy_jax.records import CLOSE, OPEN
from tessy_jax.text.chat import HARMONY
from tessy_jax.text.split import O200K, SPLITS

STUDENT_TEMPLATE = """\
{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}<|end|>{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""
TEACHER_TEMPLATE = """\
{%- for m in messages -%}
<|start|>{{ m.role }}
{%- if m.role == "assistant" -%}<|channel|>final{%- endif -%}
<|message|>{{ m.content }}
{%- if m.role == "assistant" and loop.last -%}<|return|>{%- else -%}<|end|>{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""
ITEMS = 400
"""Texts per family for learning merges."""


@dataclass(frozen=True)
class Form:
    """The recipe of a speaker's tokenizer. vocab: number of tokens. families: families of the training text. mixed: share of
    texts in both styles. control, text: added tokens without and with text. end: the token that ends a turn. words: words of
    the template."""

    vocab: int
    families: tuple[Family, ...]
    mixed: float
    control: tuple[str, ...]
    text: tuple[str, ...]
    end: str
    template: str
    words: tuple[str, ...]


FORMS: dict[Speaker, Form] = {
    "student": Form(
        vocab=416,
        families=("Ae", "B", "C", "D"),
        mixed=0.5,
        control=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        text=(OPEN.strip(), CLOSE.strip()),
        end="<|end|>",
        template=STUDENT_TEMPLATE,
        words=(),
    ),
    "teacher": Form(
        vocab=448,
        families=("A", "B", "C", "D"),
        mixed=0.25,
        control=(*HARMONY, "<|return|>"),
        text=(),
        end="<|return|>",
        template=TEACHER_TEMPLATE,
        words=("user", "assistant", "analysis", "final"),
    ),
}


def build(speaker: Speaker) -> Tokenizer:
    """A speaker's tokenizer; the result is deterministic."""
    form = FORMS[speaker]
    built = Tokenizer(models.BPE())
    if speaker == "student":
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        (expression,) = next(expressions for expressions, rule in SPLITS.items() if rule == O200K)
        split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        built.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=form.vocab - len(form.control) - len(form.text),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(_texts(speaker), trainer)
    built.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in form.control])
    built.add_tokens([AddedToken(token, normalized=False, special=False) for token in form.text])
    return built


def save(speaker: Speaker, folder: Path) -> None:
    """Writes a speaker's tokenizer files into a model's folder: tokenizer.json, tokenizer_config.json with the chat
    template, and generation_config.json with the token that ends a turn."""
    form, built = FORMS[speaker], build(speaker)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": form.end,
        "clean_up_tokenization_spaces": False,
        "chat_template": form.template,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(built.to_str(pretty=True) + "\n", "utf-8")
    for name, content in (
        ("tokenizer_config.json", settings),
        ("generation_config.json", {"eos_token_id": built.token_to_id(form.end)}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _texts(speaker: Speaker) -> Iterator[str]:
    form = FORMS[speaker]
    for family in form.families:
        for item in islice(items(family, "train", 0), ITEMS):
            rng = stream("tokenizer", speaker, item.id)
            response = render(item, speaker, rng, mixed=rng.random() < form.mixed)
            yield from (item.prompt, response.thinking, response.answer, *form.words)
