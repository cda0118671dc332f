"""Reads configurations from YAML and dotted overrides, and writes them. An error is one line: source, key, value, remedy."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from tessy_jax.config.base import Section
from tessy_jax.config.renamed import ANYWHERE, new_name
from tessy_jax.config.sections import Dated, Run, Synthesize, differences
from tessy_jax.errors import ConfigError

R = TypeVar("R", bound=Run)
D = TypeVar("D", bound=Dated)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Synthesize:
    """Reads the configuration of a synthesis; see `read`."""
    return read(Synthesize, path, overrides)


def read(kind: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """Reads a configuration from a YAML file and dotted overrides, each `a.b=value` with the value in YAML.

    Raises:
        ConfigError: the configuration is invalid; names file (or override), key, value and remedy.
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
    """Makes a configuration from values and dotted overrides as in `read`. source: the name of the values in errors.

    Raises:
        ConfigError: the configuration is invalid; names key, value and remedy.
    """
    raw = dict(values)
    set_keys = [_override(raw, text) for text in overrides]
    return _checked(kind, raw, source, set_keys)


def with_changes(kind: type[R], run: Mapping[str, Any], changes: Mapping[str, Any], source: str) -> R:
    """Makes a configuration from the sections of another one and changes of dotted keys. source: the name of the changes in
    errors.

    Raises:
        ConfigError: the configuration is invalid; names key, value and remedy.
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
    """The resolved configuration as YAML, with every key."""
    return yaml.dump(config.resolved().model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def reconcile(config: D, earlier: str | None, *, but: Collection[str] = ()) -> D:
    """The resolved run with its date, checked against the config.yaml of the run folder.

    earlier: the text of config.yaml, or None. but: sections that may differ.

    Raises:
        ConfigError: the folder holds another kind of run, or a run with other settings; names them.
    """
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    if earlier is not None:
        try:
            before = type(config).model_validate(yaml.safe_load(earlier))
        except ValidationError as error:
            kind = earlier_version(type(config), error) or "another kind of run"
            raise ConfigError(f"{config.output}: holds {kind}; name another output") from None
        changed = [key for key in differences(before, config) if key.partition(".")[0] not in but]
        if changed:
            raise ConfigError(
                f"{config.output}: holds a run with other settings ({', '.join(changed)}); name another output, or set them "
                "as before"
            )
        date = before.date or date
    return config.model_copy(update={"date": config.date or date}).resolved()


def earlier_version(kind: type[Section], error: ValidationError) -> str:
    """Words for a run whose configuration has keys of an earlier version, with their new names; empty if it has none."""
    renamed = ", ".join(f"{_dotted(fault)} is now {new}" for fault, new in _renamed(kind, error))
    return f"a run of an earlier version ({renamed})" if renamed else ""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} occurs twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe YAML that writes line breaks in text as "\\n"."""


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
    """Sets `a.b=value` in the nested mapping; returns the key."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {text}: is not an override; write it as --set synthesis.lanes=16")
    _put(raw, names, _parse(value, f"--set {text}"), f"--set {text}")
    return ".".join(names)


def _put(raw: dict[str, Any], names: Sequence[str], value: Any, source: str) -> None:
    """Sets a value under nested keys."""
    for name in names[:-1]:
        inner = {} if raw.get(name) is None else raw[name]
        if not isinstance(inner, dict):
            raise ConfigError(f"{source}: {name} is {_short(inner)}, which has no keys; set {name} itself")
        raw[name] = dict(inner)  # a copy: YAML aliases share one mapping
        raw = raw[name]
    raw[names[-1]] = value


def _explain(kind: type[Section], error: ValidationError, source: str, set_keys: Sequence[str]) -> str:
    """The first fault in one line: source, dotted key, value, remedy."""
    faults = error.errors(include_url=False)
    # a renamed key comes first, because its value is then missing under the new name
    fault, renamed = next(_renamed(kind, error), (faults[0], None))
    key, got, message = _dotted(fault), fault["input"], fault["msg"]
    known = dict(keys(kind))
    if any(f"{key}.".startswith(f"{overridden}.") for overridden in set_keys):
        source = "--set"
    if fault["type"] == "extra_forbidden":
        problem = f"is unknown{_suggestion(key, known)}" if renamed is None else f"is now called {renamed}; rename it"
    elif fault["type"] == "missing":
        problem = f"is missing; set it ({known.get(key) or 'a section'})"
    elif fault["type"] == "value_error":
        composite = isinstance(got, dict) or not key
        problem = ("" if composite else f"is {_short(got)}: ") + message.removeprefix("Value error, ")
        key += ":" if key and composite else ""
    else:
        expected = "it should be a section of keys" if fault["type"] == "model_type" else message.replace("Input", "it", 1)
        problem = f"is {_short(got)}; {expected}"
    others = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{source}: {key + ' ' if key else ''}{problem}{others}"


def _dotted(fault: Mapping[str, Any]) -> str:
    """The dotted key of a pydantic fault."""
    return ".".join(map(str, fault["loc"]))


def _renamed(kind: type[Section], error: ValidationError) -> Iterator[tuple[Any, str]]:
    """The faults that are keys of an earlier version, each with the dotted key of this kind that replaces it."""
    known = {key for key, _ in keys(kind)}
    for fault in error.errors(include_url=False):
        new = new_name(_dotted(fault))
        if fault["type"] == "extra_forbidden" and new in known:
            yield fault, new


def keys(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields every dotted key with its description."""
    for name, field in kind.model_fields.items():
        yield prefix + name, (field.description or "").rstrip(".")
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Section):
                yield from keys(part, f"{prefix}{name}.")


def _suggestion(key: str, known: Iterable[str]) -> str:
    """A hint: the key that replaces an old one, otherwise the nearest key of the same section or of all sections, otherwise
    the keys of the section."""
    known = list(known)
    parent, _, name = key.rpartition(".")
    for candidate in known:
        if name in ANYWHERE and candidate.rpartition(".")[2] == ANYWHERE[name]:
            return f"; did you mean {candidate}?"
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    anywhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    for names in (siblings, anywhere):
        near = difflib.get_close_matches(name, names, 1)
        if near:
            return f"; did you mean {names[near[0]]}?"
    return f"; the keys here are {', '.join(siblings)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
