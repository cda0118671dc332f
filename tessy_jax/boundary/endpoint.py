"""An annotator behind a URL: any server that speaks OpenAI's chat completions, for models too large for this mesh."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import os
import random
import time
from collections.abc import Sequence

import httpx2

from tessy_jax.boundary.completion import read_completion
from tessy_jax.boundary.segments import Segment
from tessy_jax.boundary.spans import INSTRUCTION, Dropped, Outcome, parse_reply_spans
from tessy_jax.config.predictors import Annotator
from tessy_jax.errors import ConfigError

logger = logging.getLogger(__name__)

BACKOFF = 1.0
"""Seconds before the first retry. Each further one waits twice as long; chance takes off up to half, so that requests that
failed at the same time do not retry at the same time."""
LONGEST = 60.0
"""Seconds before any retry, at most, unless the server asks for more."""
PATIENCE = 600.0
"""Seconds for which a server may ask; one that asks for more is not waited for."""
AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})
"""Answers after which the same request may succeed."""
REFUSED = frozenset({301, 302, 307, 308, 401, 402, 403, 404, 405, 407})
"""Answers that every request would get."""


class Endpoint:
    """An annotator that asks a server, with a bounded number of requests at once."""

    def __init__(self, section: Annotator) -> None:
        """section: with url and name."""
        assert section.url is not None, "the section checks that"
        base = section.url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.name = f"endpoint:{section.name}"
        self.at_once = 8 * section.concurrency
        self._section = section

    def annotate(self, segments: Sequence[Segment]) -> list[Outcome]:
        """The outcome of each segment; "failed" if there was no reply after all retries.

        Raises:
            ConfigError: the server refuses permanently (unknown address or model, wrong key).
        """
        try:
            return asyncio.run(self._all(segments))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _all(self, segments: Sequence[Segment]) -> list[Outcome]:
        section = self._section
        key = os.environ.get(section.key, "").strip()
        if not (key.isascii() and key.isprintable()):  # the error message of httpx would quote it
            raise ConfigError(f"the environment variable {section.key} holds no API key; set it again")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=section.concurrency, max_keepalive_connections=section.concurrency)
        free = asyncio.Semaphore(section.concurrency)
        async with (
            httpx2.AsyncClient(headers=headers, timeout=section.timeout, limits=limits) as client,
            asyncio.TaskGroup() as group,  # the first refusal ends all others
        ):
            tasks = [group.create_task(self._annotate_one(client, free, segment)) for segment in segments]
        return [task.result() for task in tasks]

    async def _annotate_one(self, client: httpx2.AsyncClient, free: asyncio.Semaphore, segment: Segment) -> Outcome:
        section = self._section
        fields = {
            "model": section.name,
            "messages": [{"role": "user", "content": INSTRUCTION.format(text=segment.text)}],
            "temperature": section.temperature,
            "max_tokens": section.max_new_tokens,
            **section.request,
        }
        body = {name: value for name, value in fields.items() if value is not None}
        async with free:  # also while waiting for a retry, so that a failing server gets fewer requests
            for attempt in range(section.retries + 1):
                retry_delay = 0.0
                try:
                    response = await client.post(self.url, json=body)
                except httpx2.InvalidURL as error:
                    raise ConfigError(f"annotator.url is {section.url!r}: {error}") from None
                except httpx2.RequestError as error:
                    problem = f"{type(error).__name__}: {error}".rstrip(": ")
                else:
                    status, problem = response.status_code, f"{response.status_code}: {response.text.strip()[:200]}"
                    if status == 200:
                        completion = read_completion(response.text)
                        if completion.reason is None:
                            return parse_reply_spans(segment, completion.text, self.name)
                        if completion.status is None:
                            return Dropped(segment, completion.reason, completion.detail)
                        status, problem = completion.status, completion.detail
                    if status in REFUSED:
                        raise ConfigError(
                            f"{self.url}: answers {problem!r}; check annotator.url, annotator.name and the key in the "
                            f"environment variable {section.key} ({'set' if section.key in os.environ else 'not set'})"
                        )
                    if status not in AGAIN:
                        break
                    retry_delay = retry_after(response.headers.get("retry-after"), time.time())
                if retry_delay > PATIENCE:
                    problem += f" (the server asks to wait {retry_delay:.0f} s, more than {PATIENCE:.0f} s)"
                if attempt == section.retries or retry_delay > PATIENCE:
                    break
                logger.info("%s: %s; trying again", segment.id, problem)
                await asyncio.sleep(max(retry_delay, min(LONGEST, BACKOFF * 2**attempt) * random.uniform(0.5, 1)))
        return Dropped(segment, "failed", problem)


def retry_after(header: str | None, now: float) -> float:
    """The seconds in a Retry-After header, which holds seconds or a date; 0 if it is missing or invalid.

    now: seconds since 1970.
    """
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
    except ValueError:
        return 0.0
