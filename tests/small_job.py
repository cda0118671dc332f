"""A job of the miniature that takes seconds: few prompts, few steps, few problems."""

import json
from itertools import islice
from pathlib import Path

import yaml

from tessy_jax.mini.tasks import items
from tests.conftest import ROOT

MODELS = ROOT / "tessy_jax" / "mini" / "checkpoints"


def job(folder: Path, name: str = "job", items_each: int = 6, **changes) -> Path:
    """Writes the configuration and its prompts to the folder. items_each: problems of a family. changes: sections to update,
    or values to replace."""
    prompts = folder / "prompts.jsonl"
    lines = [json.dumps({"id": item.id, "prompt": item.prompt}) for item in islice(items("A", "train", 3), 12)]
    prompts.write_text("\n".join(lines) + "\n")
    raw = yaml.safe_load((ROOT / "configs" / "mini.yaml").read_text())
    raw["output"], raw["data"] = str(folder / name), {"path": str(prompts)}
    for speaker in ("student", "teacher"):
        raw[speaker]["model"] = str(ROOT / raw[speaker]["model"])
        raw["boundary"][speaker] = str(ROOT / raw["boundary"][speaker])
    raw["synthesis"]["lanes"] = raw["evaluation"]["synthesis"]["lanes"] = 8
    raw["training"] |= {"steps": 6, "batch_size": 8, "save_every": 2}
    raw["optimizer"]["learning_rate"] = 2e-3
    for task in raw["evaluation"]["tasks"]:
        task["mini"]["items"] = items_each
    for key, value in changes.items():
        raw[key] = raw[key] | value if isinstance(raw.get(key), dict) and isinstance(value, dict) else value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file
