"""The transparent annotator: a list of phrases in a readable file.

A phrase matches in any case, with any white space between its words and with either apostrophe, and never as part of a
longer word, a name or a piece of code (`now.year`, `so-called`). Following punctuation that ends at white space belongs to
it. A phrase that ends with a comma matches only with this comma. If several phrases begin at one place, the longest counts.
Phrases under `anywhere` are style at any place. Phrases under `opening` are style only at the start of a sentence, a line or
the trace, or directly after another phrase ("wait, so now …"), because inside a clause they connect parts of the reasoning.
Phrases separated only by white space form one span.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tessy_jax.boundary.segments import Segment
from tessy_jax.boundary.spans import Annotation, Outcome, Range
from tessy_jax.errors import ConfigError

CLASSES = ("anywhere", "opening")
BEGINS = re.compile(r"(?<=[.!?:;…\n])[\"'”)\]]*\s+(?:[-*•>#]+\s+)*|\n\s*(?:[-*•>#]+\s+)*")
"""White space (and marks of lists, quotes and headings) in front of a new sentence or line; ends where that begins."""
BEFORE = r"(?<![\w\\/$@#`.'-])"
AFTER = r"(?!\w)(?![-'._:/(\[]\w)(?![(\[=])(?:[,.!?…:;]+(?!\S))?"


class Rules:
    """The annotator that matches phrases. Its outcomes are always kept: a segment without phrases has no style."""

    name = "rules"
    at_once = 2000

    def __init__(self, lexicon: str | None) -> None:
        """lexicon: a JSON file; None: the package's own.

        Raises:
            ConfigError: it cannot be read or is malformed.
        """
        phrases = read_lexicon(lexicon)
        # longest first: of alternatives, a regular expression takes the first that fits
        classes = {phrase: kind for kind in CLASSES for phrase in phrases[kind]}
        ordered = sorted(classes, key=lambda phrase: (-len(phrase), phrase))
        first = "|".join(("(?<=\n)" if classes[p] == "opening" else "") + _pattern(p) for p in ordered)
        further = "|".join(map(_pattern, ordered))
        self._regex = re.compile(f"{BEFORE}(?:{first})(?:[ \n]+(?:{further}))*", re.IGNORECASE)

    def annotate(self, segments: Sequence[Segment]) -> list[Outcome]:
        return [Annotation(s, self.spans(s.text, begins=s.start == 0), self.name) for s in segments]

    def spans(self, text: str, *, begins: bool) -> tuple[Range, ...]:
        """The style spans of a text. begins: whether the text begins a sentence."""
        marked = ("\n" if begins else " ") + _marked(text)
        return tuple(Range(match.start() - 1, match.end() - 1) for match in self._regex.finditer(marked))


def read_lexicon(path: str | None) -> dict[str, list[str]]:
    """The phrases of a lexicon by class, in lower case and with single spaces. path: None for the package's lexicon.

    The file holds one object: `anywhere` and `opening` (lists of phrases; one may be omitted) and optionally `about`.

    Raises:
        ConfigError: it cannot be read or is malformed; names the file and the entry.
    """
    name = path or "lexicon.json"
    try:
        file = Path(path).expanduser() if path else resources.files(__package__) / "lexicon.json"
        content = json.loads(file.read_text("utf-8-sig" if path else "utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}: cannot be read as JSON ({reason}); give a file of phrases in UTF-8") from None
    if not isinstance(content, dict) or not set(content) <= {*CLASSES, "about"}:
        keys = ", ".join(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ConfigError(f"{name}: holds {keys}; it should hold {' and '.join(CLASSES)}, and nothing else but about")
    phrases: dict[str, list[str]] = {kind: [] for kind in CLASSES}
    places: dict[str, str] = {}
    for kind in CLASSES:
        entries = content.get(kind, [])
        if not isinstance(entries, list):
            raise ConfigError(f"{name}: {kind} is a {type(entries).__name__}; it should be a list of phrases")
        for i, entry in enumerate(entries):
            phrase, place = _phrase(entry, f"{name}: {kind}[{i}]"), f"{kind}[{i}]"
            if places.setdefault(phrase, place) != place:
                raise ConfigError(f"{name}: {place} is {entry!r}, as is {places[phrase]}; keep one of the two")
            phrases[kind].append(phrase)
    if not places:
        raise ConfigError(f"{name}: holds no phrases; list some under {' or '.join(CLASSES)}")
    return phrases


def _phrase(entry: Any, place: str) -> str:
    if not isinstance(entry, str):
        raise ConfigError(f"{place} is a {type(entry).__name__}; it should be a phrase")
    phrase = " ".join(entry.split()).replace("’", "'").lower()
    bare = phrase.removesuffix(",")
    if not bare or not bare[0].isalnum() or not bare[-1].isalnum():
        raise ConfigError(f"{place} is {entry!r}; a phrase begins with a letter and ends with one, or with a comma after it")
    return phrase


def _pattern(phrase: str) -> str:
    return "[ \n]+".join(map(re.escape, phrase.split(" "))) + AFTER


def _marked(text: str) -> str:
    """The text, character for character, with white space replaced: by "\\n" at the start of a sentence or a line, otherwise
    by " ". The character before a phrase then shows whether it opens a sentence."""
    plain = re.sub(r"\s", " ", text.replace("’", "'"))
    ends = [match.end() - 1 for match in BEGINS.finditer(text)]
    parts, at = [], 0
    for end in ends:
        parts += [plain[at:end], "\n"]
        at = end + 1
    return "".join([*parts, plain[at:]])
