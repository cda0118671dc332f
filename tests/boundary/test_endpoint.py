"""A server is asked with a bounded number of requests at once, patiently, and never for what it has refused for good."""

import email.utils
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
def _impatient(monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def asked(url, segments=SEGMENTS, **settings):
    return Endpoint(Annotator(kind="endpoint", url=url, name="m", **settings)).annotate(segments)


def outcomes(found):
    return ["kept" if isinstance(o, Annotation) else o.outcome for o in found]


def test_every_segment_gets_its_own_reply_in_order():
    with serving(lambda excerpt, _: f'["{excerpt[-2:].strip()}"]') as server:
        found = asked(server.url)
    assert [o.segment for o in found] == SEGMENTS
    assert [o.segment.text[o.spans[0].start : o.spans[0].end] for o in found] == [str(i) for i in range(12)]
    assert {o.annotator for o in found} == {"endpoint:m"}
    assert set(server.paths) == {"/v1/chat/completions"}


def test_a_request_holds_what_the_configuration_says(monkeypatch):
    monkeypatch.setenv("MY_KEY", " secret\n")
    request = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": None, "max_completion_tokens": 9}
    with serving(lambda *_: '["wait"]') as server:
        asked(server.url + "/chat/completions", SEGMENTS[:1], key="MY_KEY", temperature=0.5, request=request)
    ((_, body),) = server.requests
    assert body.pop("messages")[0]["role"] == "user"
    assert body == {
        "model": "m",
        "temperature": 0.5,
        "chat_template_kwargs": {"enable_thinking": False},
        "max_completion_tokens": 9,
    }
    assert (server.paths, server.keys) == (["/v1/chat/completions"], ["Bearer secret"])


def test_no_key_is_sent_where_none_is_set():
    with serving(lambda *_: "[]") as server:
        assert outcomes(asked(server.url, SEGMENTS[:1])) == ["empty"]
    assert server.keys == [None]


def test_there_are_never_more_requests_at_once_than_configured_and_as_many_as_that():
    def slow(*_):
        time.sleep(0.05)
        return '["wait"]'

    with serving(slow) as server:
        asked(server.url, concurrency=3)
    assert server.most == 3
    assert len(server.requests) == 12


@pytest.mark.parametrize("trouble", [429, 500, 503, 408])
def test_what_may_pass_is_tried_again_until_it_does(trouble):
    with serving(lambda excerpt, before: trouble if before < 2 else '["wait"]') as server:
        assert outcomes(asked(server.url)) == ["kept"] * 12
    assert len(server.requests) == 36


def test_what_does_not_pass_fails_after_all_retries_and_the_others_do_not():
    with serving(lambda excerpt, _: 500 if excerpt.endswith(" 3") else '["wait"]') as server:
        found = asked(server.url, retries=2)
    assert outcomes(found) == ["failed" if i == 3 else "kept" for i in range(12)]
    assert found[3].detail == "500: no"
    assert len(server.requests) == 11 + 3


def test_a_request_that_the_server_cannot_read_is_not_repeated():
    with serving(lambda *_: 400) as server:
        assert outcomes(asked(server.url, SEGMENTS[:2])) == ["failed"] * 2
    assert len(server.requests) == 2


@pytest.mark.parametrize("content", [b"<html>", b"{}", b'{"choices": []}', b"[1]", b'{"choices": [{"message": null}]}'])
def test_an_answer_that_is_no_chat_completion_is_a_failure(content):
    with serving(lambda *_: content) as server:
        (failed,) = asked(server.url, SEGMENTS[:1])
    assert failed.outcome == "failed"
    assert failed.detail.startswith("no chat completion: ")


def test_a_completion_without_text_is_an_empty_reply():
    with serving(lambda *_: b'{"choices": [{"message": {"content": null}}]}') as server:
        assert outcomes(asked(server.url, SEGMENTS[:1])) == ["empty"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_that_every_request_would_meet_stops_the_command_and_does_not_show_the_key(status, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(lambda *_: status) as server, pytest.raises(ConfigError, match=f"{status}.*OPENAI_API_KEY") as error:
        asked(server.url)
    assert "secret" not in str(error.value)
    assert len(server.requests) <= 8


def test_a_key_that_is_none_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sec\nret")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds no API key") as error:
        asked("http://127.0.0.1:9")
    assert "ret" not in str(error.value).replace("environment", "").replace("set it", "")


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"annotator.url is 'http://\[::x/'"):
        asked("http://[::x/")


def test_a_server_that_is_not_there_or_does_not_answer_is_a_failure():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        (failed,) = asked(f"http://127.0.0.1:{port}", SEGMENTS[:1], retries=1)
        assert failed.detail.startswith("ConnectError")
        silent.listen()
        (failed,) = asked(f"http://127.0.0.1:{port}", SEGMENTS[:1], retries=1, timeout=0.05)
        assert failed.detail.startswith("ReadTimeout")


def test_the_server_says_when_to_come_back_and_is_not_waited_for_too_long():
    with serving(lambda _, before: (429, {"Retry-After": "1"}) if not before else '["wait"]') as server:
        begun = time.monotonic()
        assert outcomes(asked(server.url, SEGMENTS[:1])) == ["kept"]
        assert time.monotonic() - begun >= 1
    with serving(lambda *_: (503, {"Retry-After": "86400"})) as server:
        assert outcomes(asked(server.url, SEGMENTS[:1])) == ["failed"]
    assert len(server.requests) == 1


def test_retry_after_is_read_as_seconds_and_as_a_date():
    assert retry_after(None, 0) == 0
    assert retry_after("7", 0) == 7
    assert retry_after("-7", 0) == 0
    assert retry_after(email.utils.formatdate(1000, usegmt=True), 990) == 10
    assert retry_after(email.utils.formatdate(1000, usegmt=True), 1010) == 0
    assert retry_after("soon", 0) == 0
