#!/usr/bin/env python3
"""A small random boundary predictor: a token classifier with a given flip rate. For tests and benchmarks.

    python scripts/make_predictor.py --tokenizer DIR --output DIR --flip-rate 0.12 --seed 0 [--cuts-at {0,1}]

Its labels (0 capability, 1 style) are meaningless. It has the form of trained predictors (LlamaForTokenClassification,
score.weight and score.bias), the vocabulary of the model in --tokenizer, and the cost of its size. The bias is set so that
on a sample text the share of tokens after which the label is --cuts-at is the flip rate. A student's predictor cuts at
0, a teacher's at 1. Needs the `test` extra (torch).
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
WINDOW = 200
SPREAD = 2.0
"""Standard deviation of the difference of the two scores: wide enough that rounding seldom turns a label."""
TEXT = """Okay, so the problem gives us n rocks in a river and asks for the largest shortest jump after taking away at most
m of them. Let me think about how to get there. Hmm, trying every subset is hopeless: there are 2^n of them. But wait, what
if we fix the answer d first? Then we walk from the start, and whenever the next rock is closer than d to the one we
stand on, we remove it. So the count of removed rocks only grows with d, and that means a binary search works: low = 1,
high = length.

```python
def removed(rocks: list[int], d: int) -> int:
    count, last = 0, 0
    for x in rocks:
        if x - last < d:
            count += 1
        else:
            last = x
    return count
```

Let me check it on the example: rocks at 2, 11, 14, 17, 21, length 25 and m = 2. For d = 4 we remove 14? No: 14 - 11 = 3
< 4, yes, and then 17 - 11 = 6 is fine. Next, 21 - 17 = 4. Alright, that is one rock, so 4 is possible. For d = 5 it
would be three. Good.
"""


def make_predictor(
    folder: Path | str,
    tokenizer_dir: Path | str,
    seed: int,
    flip_rate: float,
    *,
    cuts_at: int = 0,
    text: str = TEXT,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
) -> None:
    """Writes the predictor's folder; equal arguments give equal files.

    flip_rate: share of the tokens of `text` after which the label is cuts_at.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForTokenClassification

    folder, source = Path(folder), Path(tokenizer_dir)
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = len(tokenizer)
    if (source / "config.json").exists():
        rows = json.loads((source / "config.json").read_text("utf-8"))["vocab_size"]
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        initializer_range=0.3,  # larger than usual: an untrained model's labels should depend on more than the last token
        num_labels=2,
        id2label={0: "capability", 1: "style"},
        label2id={"capability": 0, "style": 1},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = LlamaForTokenClassification(config).float().eval()
        model.score.bias.zero_()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        windows = [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
        scores = torch.cat([model(torch.tensor([window])).logits[0] for window in windows])
        gaps = scores[:, 1] - scores[:, 0]
        model.score.weight *= SPREAD / gaps.std()
        gaps *= SPREAD / gaps.std()
        share_of_capability = flip_rate if cuts_at == 0 else 1 - flip_rate
        model.score.bias[1] = -torch.quantile(gaps, share_of_capability)
        model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="model folder whose vocabulary it reads")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--flip-rate", type=float, default=0.12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cuts-at", type=int, choices=(0, 1), default=0, help="0 for a student's, 1 for a teacher's")
    args = parser.parse_args()
    if not 0 <= args.flip_rate <= 1:
        parser.error("--flip-rate is a share between 0 and 1")
    make_predictor(args.output, args.tokenizer, args.seed, args.flip_rate, cuts_at=args.cuts_at)


if __name__ == "__main__":
    main()
