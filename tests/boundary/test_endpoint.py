"""Concurrent requests are bounded, transient failures are retried, and permanent refusals are not."""

import email.utils
import json
import re
import socket
import time

import pytest

from tessy_jax.boundary import endpoint
from tessy_jax.boundary.endpoint import Endpoint, retry_after
from tessy_jax.boundary.segments import Segment
from tessy_jax.boundary.spans import Annotation
from tessy_jax.config.predictors import Annotator
from tessy_jax.errors import ConfigError
from tests.boundary.server import serving

SEGMENTS = [Segment(f"r#{i}", "r", "train", i, f"wait, x = {i}") for i in range(12)]


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def annotated(url, segments=SEGMENTS, **settings):
    return Endpoint(Annotator(kind="endpoint", url=url, name="m", **settings)).annotate(segments)


def outcomes(results):
    return ["kept" if isinstance(o, Annotation) else o.outcome for o in results]


def test_every_segment_gets_its_own_reply_in_order():
    with serving(lambda excerpt, _: f'["{excerpt[-2:].strip()}"]') as server:
        results = annotated(server.url)
    assert [o.segment for o in results] == SEGMENTS
    assert [o.segment.text[o.spans[0].start : o.spans[0].end] for o in results] == [str(i) for i in range(12)]
    assert {o.annotator for o in results} == {"endpoint:m"}
    assert set(server.paths) == {"/v1/chat/completions"}


def test_a_request_follows_the_configuration(monkeypatch):
    monkeypatch.setenv("MY_KEY", " secret\n")
    request = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": None, "max_completion_tokens": 9}
    with serving(lambda *_: '["wait"]') as server:
        annotated(server.url + "/chat/completions", SEGMENTS[:1], key="MY_KEY", temperature=0.5, request=request)
    ((_, body),) = server.requests
    assert body.pop("messages")[0]["role"] == "user"
    assert body == {
        "model": "m",
        "temperature": 0.5,
        "chat_template_kwargs": {"enable_thinking": False},
        "max_completion_tokens": 9,
    }
    assert (server.paths, server.keys) == (["/v1/chat/completions"], ["Bearer secret"])


def test_without_a_key_no_header_is_sent():
    with serving(lambda *_: "[]") as server:
        assert outcomes(annotated(server.url, SEGMENTS[:1])) == ["empty"]
    assert server.keys == [None]


def test_concurrent_requests_reach_the_configured_number_and_no_more():
    def slow(*_):
        time.sleep(0.05)
        return '["wait"]'

    with serving(slow) as server:
        annotated(server.url, concurrency=3)
    assert server.most == 3
    assert len(server.requests) == 12


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_a_transient_failure_is_retried(status):
    with serving(lambda excerpt, before: status if before < 2 else '["wait"]') as server:
        assert outcomes(annotated(server.url)) == ["kept"] * 12
    assert len(server.requests) == 36


def test_a_persistent_failure_fails_after_all_retries_without_affecting_others():
    with serving(lambda excerpt, _: 500 if excerpt.endswith(" 3") else '["wait"]') as server:
        results = annotated(server.url, retries=2)
    assert outcomes(results) == ["failed" if i == 3 else "kept" for i in range(12)]
    assert results[3].detail == "500: no"
    assert len(server.requests) == 11 + 3


def test_a_bad_request_is_not_retried():
    with serving(lambda *_: 400) as server:
        assert outcomes(annotated(server.url, SEGMENTS[:2])) == ["failed"] * 2
    assert len(server.requests) == 2


@pytest.mark.parametrize("content", [b"<html>", b"{}", b'{"choices": []}', b"[1]", b'{"choices": [{"message": null}]}'])
def test_a_response_that_is_not_a_chat_completion_is_a_failure(content):
    with serving(lambda *_: content) as server:
        (failed,) = annotated(server.url, SEGMENTS[:1])
    assert failed.outcome == "failed"
    assert re.match(r"the response is (a web page, )?not a chat completion; check annotator\.url\. ", failed.detail)


def test_a_completion_without_text_is_an_empty_reply():
    with serving(lambda *_: b'{"choices": [{"message": {"content": null}}]}') as server:
        assert outcomes(annotated(server.url, SEGMENTS[:1])) == ["empty"]


WAIT = '["wait"]'
COMPLETE = {
    "text": WAIT,
    "one part": {"type": "text", "text": WAIT},
    "parts": [{"type": "thinking", "thinking": [{"type": "text", "text": '["x"]'}]}, {"type": "text", "text": WAIT}],
    "output parts": [{"type": "reasoning", "text": '["x"]'}, {"type": "output_text", "text": WAIT}],
    "two parts": [{"type": "text", "text": '["wa'}, {"type": "text", "text": 'it"]'}],
    "strings": [WAIT],
}


def completion(content, finish="stop", **message):
    return json.dumps({"choices": [{"message": {"content": content, **message}, "finish_reason": finish}]}).encode()


@pytest.mark.parametrize("form", COMPLETE)
def test_the_text_parts_of_a_content_are_the_reply(form):
    with serving(lambda *_: completion(COMPLETE[form], reasoning_content="Which words?")) as server:
        (kept,) = annotated(server.url, SEGMENTS[:1])
    assert outcomes([kept]) == ["kept"]
    assert kept.spans == ((0, 4),)


@pytest.mark.parametrize(
    ("body", "outcome", "detail"),
    [
        (completion(None, reasoning_content="So: wait"), "reasoning", "only reasoning; .*annotator.request.*So: wait"),
        (completion("", reasoning="So: wait"), "reasoning", "So: wait"),
        (completion([{"type": "thinking", "thinking": "So: wait"}]), "reasoning", "So: wait"),
        (completion(None, "length", thinking="So"), "truncated", "raise annotator.max_new_tokens.* \\(reasoning\\) So"),
        (completion('["wait", "le', "length"), "truncated", r'finish_reason: length.*It begins: \["wait", "le'),
        (completion(None, "content_filter"), "refused", "refuses: content_filter"),
        (completion(None, refusal="I cannot"), "refused", "refuses: I cannot"),
        (completion([{"type": "refusal", "refusal": "I cannot"}]), "refused", "refuses: I cannot"),
        (completion([{"type": "image_url", "image_url": "x"}]), "failed", "a part of type 'image_url'; it should be text"),
        (completion(7), "failed", "the content holds 7; it should be text"),
        (completion(""), "empty", r"the reply is empty \(finish_reason: stop\)"),
        (completion(None, None), "empty", r"the reply is empty \(finish_reason: null\)"),
        (completion('["wa', "MAX_TOKENS"), "truncated", r'It begins: \["wa'),
        (completion(WAIT, "content_filter"), "refused", "refuses: content_filter"),
        (completion("", "SAFETY"), "refused", "refuses: SAFETY"),
        (
            completion(None, "tool_calls", tool_calls=[{"id": "1"}]),
            "failed",
            "calls tools; leave tools out of annotator",
        ),
        (completion(None, "tool_calls"), "failed", r"calls tools \(finish_reason: tool_calls\); leave tools out"),
        (
            b'data: {"choices": [{"delta": {"content": "a"}}]}',
            "failed",
            r"a stream, not a chat completion; leave stream out of annotator.req",
        ),
    ],
)
def test_a_completion_without_a_reply_has_its_own_outcome_and_is_not_retried(body, outcome, detail):
    with serving(lambda *_: body) as server:
        (dropped,) = annotated(server.url, SEGMENTS[:1], retries=2)
    assert dropped.outcome == outcome
    assert re.search(detail, dropped.detail)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": 429, "message": "too many requests"}},
        {"error": {"code": "503", "message": "busy"}, "choices": []},
        {"error": {"code": "rate_limit_exceeded", "message": "x"}},
        {"error": {"type": "overloaded_error", "message": "x"}},
        {"error": "upstream closed"},
        {"choices": [{"error": {"code": 502}, "message": {"content": ""}, "finish_reason": "error"}]},
        {"object": "error", "message": "busy", "code": 500},
        {"choices": [{"message": {"content": '["wa'}, "finish_reason": "insufficient_system_resource"}]},
        {"choices": [{"message": {"content": WAIT}, "finish_reason": "abort"}]},
    ],
)
def test_an_error_in_a_response_with_status_200_is_retried_like_its_own_status(body):
    with serving(lambda _, before: json.dumps(body).encode() if before < 2 else WAIT) as server:
        assert outcomes(annotated(server.url, SEGMENTS[:2])) == ["kept"] * 2
    assert len(server.requests) == 6


@pytest.mark.parametrize("finish", [None, "", "stop", "eos_token", "end_turn", "STOP"])
def test_a_reply_that_its_server_calls_complete_in_any_way_is_used(finish):
    with serving(lambda *_: completion(WAIT, finish)) as server:
        assert outcomes(annotated(server.url, SEGMENTS[:1])) == ["kept"]


def test_an_error_inside_a_200_that_cannot_pass_is_not_retried():
    with serving(lambda *_: b'{"error": {"code": "context_length_exceeded"}}') as server:
        (failed,) = annotated(server.url, SEGMENTS[:1])
    assert (failed.outcome, len(server.requests)) == ("failed", 1)
    assert failed.detail.startswith("an error in a response with status 200 (as 400)")
    with serving(lambda *_: b'{"error": {"code": "model_not_found"}}') as server, pytest.raises(ConfigError, match="404"):
        annotated(server.url, SEGMENTS[:1])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_authorization_failure_stops_the_command_without_showing_the_key(status, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(lambda *_: status) as server, pytest.raises(ConfigError, match=f"{status}.*OPENAI_API_KEY") as error:
        annotated(server.url)
    assert "secret" not in str(error.value)
    assert len(server.requests) <= 8


def test_an_invalid_key_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sec\nret")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds no API key") as error:
        annotated("http://127.0.0.1:9")
    assert "ret" not in str(error.value).replace("environment", "").replace("set it", "")


def test_an_invalid_url_is_refused():
    with pytest.raises(ConfigError, match=r"annotator.url is 'http://\[::x/'"):
        annotated("http://[::x/")


def test_a_server_that_is_absent_or_does_not_answer_is_a_failure():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        (failed,) = annotated(f"http://127.0.0.1:{port}", SEGMENTS[:1], retries=1)
        assert failed.detail.startswith("ConnectError")
        silent.listen()
        (failed,) = annotated(f"http://127.0.0.1:{port}", SEGMENTS[:1], retries=1, timeout=0.05)
        assert failed.detail.startswith("ReadTimeout")


def test_retry_after_is_respected_up_to_a_limit():
    with serving(lambda _, before: (429, {"Retry-After": "1"}) if not before else '["wait"]') as server:
        started = time.monotonic()
        assert outcomes(annotated(server.url, SEGMENTS[:1])) == ["kept"]
        assert time.monotonic() - started >= 1
    with serving(lambda *_: (503, {"Retry-After": "86400"})) as server:
        (failed,) = annotated(server.url, SEGMENTS[:1])
    assert failed.outcome == "failed"
    assert failed.detail.endswith("(the server asks to wait 86400 s, more than 600 s)")
    assert len(server.requests) == 1


def test_retry_after_is_read_as_seconds_and_as_a_date():
    assert retry_after(None, 0) == 0
    assert retry_after("7", 0) == 7
    assert retry_after("-7", 0) == 0
    assert retry_after(email.utils.formatdate(1000, usegmt=True), 990) == 10
    assert retry_after(email.utils.formatdate(1000, usegmt=True), 1010) == 0
    assert retry_after("soon", 0) == 0
