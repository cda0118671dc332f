"""The process in which math-verify compares boxed answers; see `boxed`. Run as a file: it needs nothing of this package.

A line out once it is ready. Then, a line in: {"answer", "reference", "seconds"}, and a line out: "right", "wrong_answer",
"unreadable" or "unreadable_reference". After so many seconds of processor time the kernel ends the process: the timer's
signal is left at its default, which no computation can put off.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys

MEMORY = 4 << 30
"""Bytes of address space."""


def main() -> None:
    """Answers until its input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    logging.disable()
    with contextlib.suppress(ValueError, OSError):  # where the machine has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print(json.dumps(compared("1", "1")), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        reply = compared(request["answer"], request["reference"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=replies, flush=True)


def compared(answer: str, reference: str) -> str:
    """Whether two pieces of LaTeX are the same mathematics."""
    from math_verify import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        LatexExtractionConfig,
        parse,
        verify,
    )

    try:
        latex = [LatexExtractionConfig(boxed_match_priority=0)]
        right, found = (parse(f"\\boxed{{{text}}}", latex, parsing_timeout=None) for text in (reference, answer))
        if not right:
            return "unreadable_reference"
        if not found:
            return "unreadable"
        return "right" if verify(right, found, timeout_seconds=None) else "wrong_answer"
    except Exception:  # parsers of strange text, and mathematics without memory, have errors of all kinds
        return "unreadable"


if __name__ == "__main__":
    main()
