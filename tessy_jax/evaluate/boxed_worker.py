"""The process in which math-verify compares boxed answers; see `boxed`. It runs as a file, without this package.

It writes a line when it is ready. It then reads lines {"answer", "reference", "seconds"} and replies to each with a line:
"right", "wrong_answer", "unreadable" or "unreadable_reference". The kernel ends the process after `seconds` of processor
time: the timer's signal keeps its default action, which no computation can delay.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys

MEMORY = 4 << 30
"""Limit of the address space, in bytes."""


def main() -> None:
    """Replies to requests until its input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the replies
    logging.disable()
    with contextlib.suppress(ValueError, OSError):  # the machine has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print(json.dumps(compare("1", "1")), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        reply = compare(request["answer"], request["reference"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=replies, flush=True)


def compare(answer: str, reference: str) -> str:
    """Compares two LaTeX expressions; see the module docstring for the results."""
    from math_verify import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        LatexExtractionConfig,
        parse,
        verify,
    )

    try:
        latex = [LatexExtractionConfig(boxed_match_priority=0)]
        right, parsed = (parse(f"\\boxed{{{text}}}", latex, parsing_timeout=None) for text in (reference, answer))
        if not right:
            return "unreadable_reference"
        if not parsed:
            return "unreadable"
        return "right" if verify(right, parsed, timeout_seconds=None) else "wrong_answer"
    except Exception:  # the parser and the arithmetic raise many kinds of errors
        return "unreadable"


if __name__ == "__main__":
    main()
