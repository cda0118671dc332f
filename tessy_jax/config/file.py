"""Configurations out of YAML and dotted overrides, and back. Faults are one line: source, key, what was got, the remedy."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from tessy_jax.config.base import Section
from tessy_jax.config.renamed import new_name
from tessy_jax.config.sections import Dated, Run, Synthesize, differences
from tessy_jax.errors import ConfigError

R = TypeVar("R", bound=Run)
D = TypeVar("D", bound=Dated)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Synthesize:
    """A synthesis run from a file; see `read`."""
    return read(Synthesize, path, overrides)


def read(kind: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """A configuration from a YAML file and dotted overrides, each `a.b=value` with the value in YAML.

    Raises:
        ConfigError: naming file (or override) and key, what was got, and what would be right.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({reason}); give a YAML file, such as one of configs/") from None
    raw = _parse(text, str(path))
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds {_short(raw)}; it should hold keys and values, such as `output: runs/first`")
    set_keys = [_override(raw, text) for text in overrides]
    return _checked(kind, raw, str(path), set_keys)


def from_values(kind: type[R], values: Mapping[str, Any], overrides: Sequence[str], source: str) -> R:
    """A configuration from values and dotted overrides as `read` takes them; source: what errors call the values.

    Raises:
        ConfigError: naming the key, what was got, and what would be right.
    """
    raw = dict(values)
    set_keys = [_override(raw, text) for text in overrides]
    return _checked(kind, raw, source, set_keys)


def with_changes(kind: type[R], run: Mapping[str, Any], changes: Mapping[str, Any], source: str) -> R:
    """A configuration from the sections of another one and changes of dotted keys; source: what errors call the changes.

    Raises:
        ConfigError: naming the key, what was got, and what would be right.
    """
    raw = dict(run)
    for key, value in changes.items():
        _put(raw, key.split("."), value, f"{source}: {key}")
    return _checked(kind, raw, source, [])


def _checked(kind: type[R], raw: dict[str, Any], source: str, set_keys: Sequence[str]) -> R:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(kind, error, source, set_keys)) from None


def dump(config: Run) -> str:
    """The configuration as YAML, as resolved: every key, and what the preset fills in."""
    return yaml.dump(config.resolved().model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def reconcile(config: D, earlier: str | None, *, but: Collection[str] = ()) -> D:
    """The run as resolved and with its date filled in, checked against the config.yaml of its folder's earlier starts. but:
    sections that may differ all the same.

    Raises:
        ConfigError: the folder holds another kind of run, or one with other settings; names them.
    """
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    if earlier is not None:
        try:
            before = type(config).model_validate(yaml.safe_load(earlier))
        except ValidationError as error:
            unknown = (_dotted(fault) for fault in error.errors(include_url=False))
            old = [f"{key} is now {new_name(key)}" for key in unknown if new_name(key)]
            kind = f"a run of an earlier version ({', '.join(old)})" if old else "another kind of run"
            raise ConfigError(f"{config.output}: holds {kind}; name another output") from None
        changed = [key for key in differences(before, config) if key.partition(".")[0] not in but]
        if changed:
            raise ConfigError(
                f"{config.output}: holds a run with other settings ({', '.join(changed)}); name another output, or set them "
                "as before"
            )
        date = before.date or date
    return config.model_copy(update={"date": config.date or date}).resolved()


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand once only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} stands twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe YAML in which text with line breaks stays on one line, as "\\n"."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None),
)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ConfigError(f"{source}: is not valid YAML{where}: {problem}") from None


def _override(raw: dict[str, Any], text: str) -> str:
    """Puts `a.b=value` into the nested mapping; returns the key."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {text}: is no override; write it as --set synthesis.lanes=16")
    _put(raw, names, _parse(value, f"--set {text}"), f"--set {text}")
    return ".".join(names)


def _put(raw: dict[str, Any], names: Sequence[str], value: Any, source: str) -> None:
    """Puts a value where nested keys lead."""
    for name in names[:-1]:
        inner = {} if raw.get(name) is None else raw[name]
        if not isinstance(inner, dict):
            raise ConfigError(f"{source}: {name} is {_short(inner)}, which has no keys; set {name} as a whole")
        raw[name] = dict(inner)  # a copy: YAML aliases share one mapping
        raw = raw[name]
    raw[names[-1]] = value


def _explain(kind: type[Section], error: ValidationError, source: str, set_keys: Sequence[str]) -> str:
    """The first fault in one line: source, dotted key, what was got, what would be right."""
    faults = error.errors(include_url=False)
    # a renamed key explains the others: what it held is missing under its new name
    fault = next((f for f in faults if f["type"] == "extra_forbidden" and new_name(_dotted(f))), faults[0])
    key, got, message = _dotted(fault), fault["input"], fault["msg"]
    known = dict(keys(kind))
    if any(f"{key}.".startswith(f"{overridden}.") for overridden in set_keys):
        source = "--set"
    if fault["type"] == "extra_forbidden":
        renamed = new_name(key)
        problem = f"is unknown{_suggestion(key, known)}" if renamed is None else f"is now called {renamed}; rename it"
    elif fault["type"] == "missing":
        problem = f"is missing; set it ({known.get(key) or 'a section'})"
    elif fault["type"] == "value_error":
        composite = isinstance(got, dict) or not key
        problem = ("" if composite else f"is {_short(got)}: ") + message.removeprefix("Value error, ")
        key += ":" if key and composite else ""
    else:
        right = "it should be a section of keys" if fault["type"] == "model_type" else message.replace("Input", "it", 1)
        problem = f"is {_short(got)}; {right}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{source}: {key + ' ' if key else ''}{problem}{more}"


def _dotted(fault: Mapping[str, Any]) -> str:
    """The key that a pydantic fault is about."""
    return ".".join(map(str, fault["loc"]))


def keys(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted key with its description."""
    for name, field in kind.model_fields.items():
        yield prefix + name, (field.description or "").rstrip(".")
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Section):
                yield from keys(part, f"{prefix}{name}.")


def _suggestion(key: str, known: Iterable[str]) -> str:
    """The nearest key beside it, else the nearest anywhere, else all beside it."""
    parent, _, name = key.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    anywhere = {k.rpartition(".")[2]: k for k in reversed(list(known))}
    for names in (beside, anywhere):
        near = difflib.get_close_matches(name, names, 1)
        if near:
            return f"; did you mean {names[near[0]]}?"
    return f"; the keys here are {', '.join(beside)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
