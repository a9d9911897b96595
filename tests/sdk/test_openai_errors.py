"""The Python package ``openai`` when something is wrong: each failure is the exception that its users catch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.acceptance.harness import free_port
from tests.conftest import Serve
from tests.sdk.conftest import Site, drain, make_key


@pytest.fixture
def client(site: Site) -> Iterator[OpenAI]:
    with OpenAI(base_url=site.v1, api_key=site.key, max_retries=0) as made:
        yield made


def ask(client: OpenAI, text: str = "hello", **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "default", "messages": [{"role": "user", "content": text}], **more})


REFUSALS: list[tuple[str, dict[str, Any], type[openai.APIStatusError], str | None, str | None]] = [
    ("an unknown model", {"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "model"),
    ("a temperature", {"temperature": 3}, openai.BadRequestError, None, "temperature"),
    ("no messages", {"messages": []}, openai.BadRequestError, None, "messages"),
    ("a field that nobody knows", {"extra_body": {"temprature": 1}}, openai.BadRequestError, None, "temprature"),
    ("what is not offered", {"extra_body": {"functions": [{"name": "f"}]}}, openai.BadRequestError, None, "functions"),
    (
        "a schema",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
        openai.BadRequestError,
        None,
        "response_format.json_schema.schema.type",
    ),
    (
        "a long prompt",
        {"messages": [{"role": "user", "content": "w " * 5000}]},
        openai.BadRequestError,
        "context_length_exceeded",
        "messages",
    ),
    ("an engine that does not load", {"model": "unloadable"}, openai.InternalServerError, "engine_unavailable", None),
]


@pytest.mark.parametrize(("body", "kind", "code", "param"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_refusals(
    client: OpenAI, body: dict[str, Any], kind: type[openai.APIStatusError], code: str | None, param: str | None
) -> None:
    with pytest.raises(kind) as raised:
        ask(client, **body)
    assert type(raised.value) is kind
    assert (raised.value.code, raised.value.param) == (code, param)
    assert raised.value.request_id
    assert raised.value.body["message"]  # type: ignore[index]
    with pytest.raises(kind):
        list(ask(client, **body, stream=True))


def test_credentials(site: Site) -> None:
    with OpenAI(base_url=site.v1, api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            ask(client)
        assert raised.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with OpenAI(base_url=site.v1, api_key=site.read_only, max_retries=0) as client:
        with pytest.raises(openai.PermissionDeniedError):
            ask(client)
        assert client.models.list().data


def test_a_body_that_is_too_large(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        ask(client, "x" * 5_000_000)
    assert raised.value.status_code == 413


def test_an_engine_that_dies(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as whole:
        ask(client, "one two three four five", model="breaks")
    assert whole.value.code == "engine_unavailable"
    assert whole.value.response.headers["retry-after"] == "1"
    found: list[Any] = []
    stream = ask(client, "one two three four five", model="breaks", stream=True)
    with pytest.raises(openai.APIError) as raised:
        drain(stream, found)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in found) == "one two three"
    assert not isinstance(raised.value, openai.APIStatusError), "the answer had begun"
    assert raised.value.code == "engine_unavailable"


def test_nobody_there_and_too_slow(site: Site) -> None:
    nobody = OpenAI(base_url=f"http://127.0.0.1:{free_port()}/v1", api_key="x", max_retries=1)
    with nobody, pytest.raises(openai.APIConnectionError):
        ask(nobody)
    hasty = OpenAI(base_url=site.v1, api_key=site.key, timeout=0.3, max_retries=1)
    with hasty, pytest.raises(openai.APITimeoutError):
        ask(hasty, "word " * 500, model="slow")
    site.wait_until_idle()


def limited(serve: Serve, limit: str) -> tuple[str, str]:
    service = serve(rate_limits={"predict": limit})
    return f"{service.url}/v1", make_key(service.url, service.admin().headers, "predict")


def test_the_rate_limit(serve: Serve) -> None:
    url, key = limited(serve, "2/minute")
    once = OpenAI(base_url=url, api_key=key, max_retries=0)
    with once, pytest.raises(openai.RateLimitError) as raised:
        drain((ask(once) for _ in range(3)), [])
    assert raised.value.code == "rate_limit_exceeded"
    headers = raised.value.response.headers
    assert 0 < int(headers["retry-after"]) <= 63
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"].endswith("s")


async def test_the_retries_of_the_client_pass_the_limit(serve: Serve) -> None:
    url, key = await asyncio.to_thread(limited, serve, "1/second")
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=5) as client:
        calls = client.chat.completions.with_raw_response
        raw = await asyncio.gather(
            *(calls.create(model="default", messages=[{"role": "user", "content": text}]) for text in ("a", "b", "c"))
        )
    assert [each.parse().choices[0].message.content for each in raw] == ["a", "b", "c"]
    assert sum(each.retries_taken for each in raw) >= 1


async def test_asynchronous(site: Site) -> None:
    async with AsyncOpenAI(base_url=site.v1, api_key=site.key, max_retries=0) as client:

        async def one(model: str, **more: Any) -> None:
            await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "a b c d e"}], **more)

        found = await asyncio.gather(
            one("gpt-9"), one("breaks"), one("slow", timeout=0.05), one("default"), return_exceptions=True
        )
    assert [type(each) for each in found] == [
        openai.NotFoundError,
        openai.InternalServerError,
        openai.APITimeoutError,
        type(None),
    ]
