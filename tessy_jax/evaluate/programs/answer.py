"""The program in a response: its last fenced block."""

from __future__ import annotations

import re

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`\n]*)$")


def program(answer: str) -> str | None:
    """The last non-blank fenced block; None if there is none. A fence closes with at least as many of the same characters
    as it opened with; an unclosed block extends to the end of the answer."""
    block: str | None = None
    fence = ""
    lines: list[str] = []
    for line in [*answer.split("\n"), None]:
        match = FENCE.match(line.rstrip("\r")) if line is not None else None
        closes = line is None or bool(match and fence and match[1].startswith(fence) and not match[2].strip())
        if fence and closes:
            if any(own.strip() for own in lines):
                block = "\n".join(lines) + "\n"
            fence, lines = "", []
        elif fence:
            assert line is not None
            lines.append(line)
        elif match:
            fence = match[1]
    return block
