"""The Python package ``anthropic`` when something is wrong: each failure is the exception that its users catch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import MessageParam

from tests.acceptance.harness import free_port
from tests.conftest import Serve
from tests.sdk.conftest import Site, drain, make_key


@pytest.fixture
def client(site: Site) -> Iterator[Anthropic]:
    with Anthropic(base_url=site.url, api_key=site.key, max_retries=0) as made:
        yield made


def ask(client: Anthropic, text: str = "hello", **more: Any) -> Any:
    body = {"model": "default", "max_tokens": 900, "messages": [{"role": "user", "content": text}], **more}
    return client.messages.create(**body)


REFUSALS: list[tuple[str, dict[str, Any], type[anthropic.APIStatusError], str, str]] = [
    ("an unknown model", {"model": "claude-9"}, anthropic.NotFoundError, "not_found_error", "model"),
    ("no messages", {"messages": []}, anthropic.BadRequestError, "invalid_request_error", "messages"),
    ("no limit", {"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error", "max_tokens"),
    (
        "a field that nobody knows",
        {"extra_body": {"temprature": 1}},
        anthropic.BadRequestError,
        "invalid_request_error",
        "temprature: Extra inputs are not permitted",
    ),
    (
        "a tool's schema",
        {"tools": [{"name": "f", "input_schema": {"type": "nothing"}}]},
        anthropic.BadRequestError,
        "invalid_request_error",
        "tools",
    ),
    (
        "a long prompt",
        {"messages": [{"role": "user", "content": "w " * 5000}]},
        anthropic.BadRequestError,
        "invalid_request_error",
        "prompt is too long",
    ),
    ("an engine that does not load", {"model": "unloadable"}, anthropic.ServiceUnavailableError, "api_error", ""),
]


@pytest.mark.parametrize(
    ("body", "kind", "type_", "words"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_refusals(
    client: Anthropic, body: dict[str, Any], kind: type[anthropic.APIStatusError], type_: str, words: str
) -> None:
    for stream in (False, True):
        with pytest.raises(kind) as raised:
            ask(client, **body, stream=stream)
        assert type(raised.value) is kind
        assert raised.value.type == type_
        assert words in raised.value.body["error"]["message"]  # type: ignore[index]
        assert raised.value.request_id


def test_credentials(site: Site) -> None:
    with Anthropic(base_url=site.url, api_key="sk-ant-wrong", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError) as raised:
            ask(client)
        assert raised.value.type == "authentication_error"
        with pytest.raises(anthropic.AuthenticationError) as raised:
            client.models.list()
        assert raised.value.type == "authentication_error"
    with Anthropic(base_url=site.url, api_key=site.read_only, max_retries=0) as client:
        with pytest.raises(anthropic.PermissionDeniedError):
            ask(client)
        assert client.models.list().data


def test_a_body_that_is_too_large(client: Anthropic) -> None:
    with pytest.raises(anthropic.ContentTooLargeError) as raised:
        ask(client, "x" * 5_000_000)
    assert raised.value.body["error"]["type"] == "request_too_large"  # type: ignore[index]


def test_an_engine_that_dies(client: Anthropic) -> None:
    with pytest.raises(anthropic.ServiceUnavailableError):
        ask(client, "one two three four five", model="breaks")
    found: list[str] = []
    hello: list[MessageParam] = [{"role": "user", "content": "one two three four five"}]
    answering = client.messages.stream(model="breaks", max_tokens=99, messages=hello)
    with answering as stream, pytest.raises(anthropic.APIError) as raised:
        drain(stream.text_stream, found)
    assert found == ["one", " two", " three"]
    assert isinstance(raised.value, anthropic.APIStatusError)
    assert raised.value.type == "api_error"


def test_nobody_there_and_too_slow(site: Site) -> None:
    nobody = Anthropic(base_url=f"http://127.0.0.1:{free_port()}", api_key="x", max_retries=1)
    with nobody, pytest.raises(anthropic.APIConnectionError):
        ask(nobody)
    hasty = Anthropic(base_url=site.url, api_key=site.key, timeout=0.3, max_retries=1)
    with hasty, pytest.raises(anthropic.APITimeoutError):
        ask(hasty, "word " * 500, model="slow")
    site.wait_until_idle()


def limited(serve: Serve, limit: str) -> tuple[str, str]:
    service = serve(rate_limits={"predict": limit})
    return service.url, make_key(service.url, service.admin().headers, "predict")


def test_the_rate_limit(serve: Serve) -> None:
    url, key = limited(serve, "2/minute")
    once = Anthropic(base_url=url, api_key=key, max_retries=0)
    with once, pytest.raises(anthropic.RateLimitError) as raised:
        drain((ask(once) for _ in range(3)), [])
    assert raised.value.type == "rate_limit_error"
    headers = raised.value.response.headers
    assert 0 < int(headers["retry-after"]) <= 63
    assert headers["anthropic-ratelimit-requests-limit"] == "2"
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert headers["anthropic-ratelimit-requests-reset"].endswith("Z")


async def test_the_retries_of_the_client_pass_the_limit(serve: Serve) -> None:
    url, key = await asyncio.to_thread(limited, serve, "1/second")
    async with AsyncAnthropic(base_url=url, api_key=key, max_retries=5) as client:
        calls = client.messages.with_raw_response
        raw = await asyncio.gather(
            *(
                calls.create(model="default", max_tokens=9, messages=[{"role": "user", "content": text}])
                for text in ("a", "b", "c")
            )
        )
    assert sum(each.retries_taken for each in raw) >= 1
