#!/usr/bin/env python3
"""Writes the generated parts of configs/README.md: every configuration key, memory plans of the paper's pairs, and their
compiled programs.

    python scripts/document_configs.py            # print them
    python scripts/document_configs.py --write    # put them into configs/README.md

The keys come from the pydantic models: names, types, defaults and the docstrings of fields.

Every row of the pairs is the output of `tessy inspect --model configs/models/NAME --mesh … --json`; a pair adds teacher,
student and two boundary predictors. Lanes that fit: caches of both large models at 40,960 tokens in the memory that remains,
which is 90 % of a device's memory minus the weights.

Every row of the compiled pairs is a line of scripts/plans.jsonl, which scripts/plan_pairs.py writes.
"""

import inspect
import json
import sys
import types
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tessy_jax.config import Analyze, Comparison, Evaluate, Pipeline, Predictors, Section, Synthesize, Train
from tessy_jax.decode.engine import CACHE_SLACK
from tessy_jax.models.hf_config import read_config
from tessy_jax.models.plan import plan
from tessy_jax.sharding import parse_mesh

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PLANS = CONFIGS.parent / "scripts" / "plans.jsonl"
CONTEXT = 40_960
PREDICTOR = "qwen3-0.6b-base"
# memory in GB of one device
DEVICES = {"H100": 80, "v5p": 95, "v6e": 32}
PAIRS = (
    ("gpt-oss-20b", "qwen3-8b", ("1 H100 data=1", "4 H100 tensor=4", "4 v5p tensor=4", "8 v6e tensor=8")),
    ("gpt-oss-120b", "qwen3-8b", ("8 H100 tensor=8", "4 v5p tensor=4", "8 v5p tensor=8", "16 v6e tensor=8,expert=2")),
    ("gpt-oss-120b", "qwen3-30b-a3b", ("8 H100 tensor=4,expert=2", "8 v5p tensor=4,expert=2", "16 v6e tensor=4,expert=4")),
    (
        "qwen3-235b-a22b-thinking",
        "qwen3-8b",
        ("8 H100 tensor=4,expert=2", "8 v5p tensor=4,expert=2", "32 v6e tensor=4,expert=8"),
    ),
    (
        "deepseek-r1",
        "qwen3-8b",
        ("32 H100 tensor=8,expert=4", "32 v5p tensor=8,expert=4", "64 v6e tensor=8,expert=8", "128 v6e tensor=8,expert=16"),
    ),
)
KINDS = {
    Pipeline: "tessy run",
    Comparison: "tessy compare",
    Synthesize: "tessy synthesize",
    Predictors: "tessy boundary",
    Train: "tessy train",
    Evaluate: "tessy evaluate",
    Analyze: "tessy analyze",
}
"""The commands that read each kind of configuration."""


def gb(number: float) -> str:
    return f"{number / 1e9:.1f}"


def model_table() -> str:
    rows = [
        "| model | family | total | active | weights GB (bfloat16) | cache KiB / token | window MiB / lane |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in sorted((CONFIGS / "models").iterdir()):
        p = plan(read_config(folder), dtype="bfloat16", slack=CACHE_SLACK)
        total, active = (p["parameters"][key] / 1e9 for key in ("total", "active"))
        rows.append(
            f"| {folder.name} | {p['family']} | {total:.2f}B | {active:.2f}B | {gb(p['weights']['bytes'])} "
            f"| {p['kv']['bytes_per_token'] / 1024:g} | {p['kv']['window_bytes_per_lane'] / 2**20:g} |"
        )
    return "\n".join(rows) + "\n"


def pair_table() -> str:
    rows = [
        "| teacher → student | slice | mesh | weights GB / device | cache GB / device (1 lane a shard) | lanes that fit |",
        "|---|---|---|---|---|---|",
    ]
    for teacher, student, slices in PAIRS:
        for text in slices:
            count, kind, mesh = text.split()
            sizes = parse_mesh(mesh)
            assert prod(sizes.values()) == int(count), text
            shards = sizes.get("data", 1) * sizes.get("fsdp", 1) * sizes.get("expert", 1)
            plans = [
                plan(
                    read_config(CONFIGS / "models" / name),
                    dtype="bfloat16",
                    mesh=sizes,
                    lanes=shards,
                    context=CONTEXT,
                    slack=CACHE_SLACK,
                )
                for name in (teacher, student, PREDICTOR, PREDICTOR)
            ]
            weights = sum(p["weights"]["bytes_per_device"] for p in plans)
            lane = sum(p["kv"]["bytes_per_device"] for p in plans[:2])
            fit = int((0.9 * DEVICES[kind] * 1e9 - weights) // lane) * shards
            cells = (
                f"{teacher} → {student}",
                f"{count} × {kind}",
                f"`{mesh}`",
                gb(weights),
                gb(lane),
                max(fit, 0) or "none",
            )
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"


def pairs() -> str:
    """The tables of models and of pairs."""
    return f"\n{model_table()}\n{pair_table()}\n"


def escaped(text: str) -> str:
    """Text for a cell of a table. Text between backticks is code, in which only the bar has a meaning."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "\\<").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


def link(section: type[Section]) -> str:
    return f"[{section.__name__}](#{section.__name__.lower()})"


def bounds(metadata: Any) -> list[str]:
    """The constraints of a type, e.g. ["≥ 1"]."""
    signs = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< ", "multiple_of": "a multiple of "}
    constraints = [item for part in metadata for item in (part.metadata if isinstance(part, FieldInfo) else [part])]
    return [f"{sign}{getattr(part, key)}" for part in constraints for key, sign in signs.items() if hasattr(part, key)]


def type_text(annotation: Any, metadata: Any = ()) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(part, metadata) for part in arguments)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in arguments)
    if origin is list:
        return f"list ({type_text(arguments[0])})"
    if origin is dict:
        return "mapping" if arguments[1] is Any else f"mapping (to {type_text(arguments[1])})"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return link(annotation)
    names = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", Any: "any value"}
    return f"{names[annotation]} {', '.join(bounds(metadata) if annotation in (int, float) else [])}".rstrip()


def default_text(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Section):
        return "its defaults" if value == type(value)() else code(value.model_dump(exclude_defaults=True))
    return code(TypeAdapter(Any).dump_python(value, mode="json"))


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def bases(section: type[Section]) -> list[type[Section]]:
    return [base for base in section.__bases__ if issubclass(base, Section) and base is not Section]


def reachable() -> list[type[Section]]:
    """All sections below the kinds of run, each once, base classes first."""
    known: dict[type[Section], None] = {}

    def visit(section: type[Section]) -> None:
        if section in known:
            return
        for base in bases(section):
            visit(base)
        known[section] = None
        for field in section.model_fields.values():
            for inner in sections_in(field.annotation):
                visit(inner)

    for kind in KINDS:
        visit(kind)
    return list(known)


def section_text(section: type[Section], level: str) -> str:
    """The heading, the docstring and the table of the keys that a section adds to those of its bases, or changes."""
    lines = [f"{level} {section.__name__}", "", escaped(inspect.cleandoc(section.__doc__ or ""))]
    if section in KINDS:
        lines[-1] += f" Read by `{KINDS[section]}`."
    own = [name for name in section.model_fields if name in section.__annotations__]
    if bases(section):
        lines += ["", f"All keys of {' and '.join(map(link, bases(section)))}" + (", and:" if own else ".")]
    if own:
        lines += ["", "| key | type | default | meaning |", "|---|---|---|---|"]
    for name in own:
        field = section.model_fields[name]
        inner = next(sections_in(field.annotation), None)
        meaning = field.description or (inspect.cleandoc(inner.__doc__ or "") if inner else "")
        cells = (f"`{name}`", type_text(field.annotation, field.metadata), default_text(field), escaped(meaning))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def keys() -> str:
    """Every key of every kind of run; a section that several kinds share stands once."""
    kinds = "\n".join(section_text(kind, "###") for kind in KINDS)
    sections = "\n".join(section_text(section, "###") for section in reachable() if section not in KINDS)
    return f"\n## Kinds of run\n\n{kinds}\n## Sections\n\n{sections}\n"


COMPILED = """\
`python scripts/plan_pairs.py` compiles pairs as `tessy plan` does, for TPUs and GPUs that are not attached. The table
below shows the results. *Loop* is the decode loop of the configuration with the name of the pair. *Training step* is a
step of SFT of the student with all weights: one row per device, 40,960 tokens per row (`small_pair`: 8,192), weights
sharded over all devices by `fsdp`, and `remat: full`. GB are the bytes on one device: arguments, outputs, temporaries
and code. *Lanes that fit* assumes temporaries in proportion to the lanes; it has one number if a lane has at most 8,192
tokens. *Kernels* are the kernel launches of a step without catch-up. A job can use 80.7 GB of an H100, 102.0 GB of a
v5p, 34.4 GB of a v6e and 17.2 GB of a v5e."""
"""The introduction of the table of compiled pairs."""


def compiled() -> str:
    """The table of compiled pairs, from scripts/plans.jsonl, with its introduction."""
    rows = [
        "| pair | target | mesh | loop, GB / device | lanes that fit at 8,192 and at all tokens "
        "| kernels of a step: student, teacher | training step, GB / device |",
        "|---|---|---|---|---|---|---|",
    ]
    records = [json.loads(line) for line in PLANS.read_text("utf-8").splitlines()]
    for record in records:
        mesh = ",".join(f"{axis}={size}" for axis, size in record["mesh"].items()) or "1 device"
        loop, train = (result_of(record[name]) for name in ("loop", "train"))
        steps = {s["side"]: s["kernels"] for s in loop.get("steps", []) if s["part"] == "step"}
        cells = (
            record["pair"],
            f"`{record['target']}`",
            f"`{mesh}`",
            loop.get("error") or memory_text(loop),
            ", ".join(str(n) for n in loop.get("rows_that_fit", {}).values()) or "–",
            ", ".join(str(steps[side]) for side in sorted(steps)) or "–",
            train.get("error") or memory_text(train),
        )
        rows.append("| " + " | ".join(cells) + " |")
    versions = sorted({f"{r['date']}, JAX {r['versions']['jax']}, commit {r['commit']}" for r in records})
    return f"\n{COMPILED}\n\nCompiled on {'; '.join(versions)}.\n\n" + "\n".join(rows) + "\n\n"


def result_of(target: dict[str, Any]) -> dict[str, Any]:
    """The record of the program that a target has compiled, or a shortened error."""
    programs = target["programs"]
    result: dict[str, Any] = dict(programs[0]) if programs else {"error": target.get("error", "no result")}
    if "error" in result:
        needs = result.get("remedy", "").split(" per device (")[0]
        result["error"] = f"does not compile: {needs}" if needs else f"does not compile: {escaped(result['error'])[:70]}"
    return result


def memory_text(program: dict[str, Any]) -> str:
    used = program["device_bytes"]
    return gb(used) if program.get("fits", True) else f"{gb(used)}, too much for {gb(program['memory'])}"


BLOCKS = {"keys": keys, "pairs": pairs, "compiled": compiled}
"""The generated parts of configs/README.md, by the name in their markers."""


def block(name: str) -> str:
    """A generated part between its markers."""
    return f"<!-- {name}: scripts/document_configs.py -->\n{BLOCKS[name]()}<!-- end of {name} -->\n"


def main() -> None:
    blocks = {name: block(name) for name in BLOCKS}
    if sys.argv[1:] != ["--write"]:
        print(*blocks.values(), sep="\n")
        return
    readme = CONFIGS / "README.md"
    text = readme.read_text("utf-8")
    for name, new in blocks.items():
        before, _, rest = text.partition(new.partition("\n")[0] + "\n")
        text = before + new + rest.partition(f"<!-- end of {name} -->\n")[2]
    readme.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
