"""The provider ``claude`` with our own service as its upstream, and our own service in front of the vendor's double."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from app.core.errors import ContextOverflow, UnknownModel, UpstreamRefused
from app.core.settings import Upstream
from app.core.types import GenerationRequest, Message, ModelSpec, Sampling, fold
from app.providers.base import LoadedModel, ProviderContext
from app.providers.claude import ClaudeProvider
from app.providers.contract import verify
from tests.conftest import Serve, Service
from tests.vendors.anthropic_server import (
    KEY,
    MODEL,
    AnthropicServer,
    as_stream,
    error_event,
    events,
    failure,
    message,
    sse,
    text,
    thinking,
    tool_use,
)

MakeContext = Callable[..., ProviderContext]
WORDS = "THIRD-PARTY-WORDS"


def key_of(service: Service, *scopes: str) -> str:
    with service.client(service.admin()) as client:
        made = client.post("/auth/keys", json={"name": "upstream", "scopes": list(scopes) or ["predict"]})
    assert made.status_code == 201, made.text
    key: str = made.json()["key"]
    return key


async def opened(context: ProviderContext, url: str, key: str, model: str = "default") -> LoadedModel:
    upstream = Upstream(kind="claude", base_url=url, max_concurrency=8, context_tokens=2048)
    upstream = upstream.model_copy(update={"api_key": SecretStr(key)})
    return await ClaudeProvider(context, "far", upstream).open(ModelSpec("far", model), on_state=lambda state: None)


async def test_our_own_service_fulfils_the_contract(service: Service, make_context: MakeContext) -> None:
    key = await asyncio.to_thread(key_of, service)
    assert await verify(lambda: opened(make_context(), service.url, key)) == []


async def test_our_own_service_as_upstream_says_what_is_wrong(service: Service, make_context: MakeContext) -> None:
    key = await asyncio.to_thread(key_of, service)
    hello = GenerationRequest((Message("user", "hello"),))
    for model, request, error in (
        (await opened(make_context(), service.url, "apr_wrong"), hello, UpstreamRefused),
        (await opened(make_context(), service.url, key, "nobody/knows"), hello, UnknownModel),
        (
            await opened(make_context(), service.url, key),
            GenerationRequest((Message("user", "word " * 5000),)),
            ContextOverflow,
        ),
    ):
        with pytest.raises(error):
            await fold(model.stream(request))
        await model.aclose()


async def test_a_turn_with_tools_through_our_own_service(service: Service, make_context: MakeContext) -> None:
    model = await opened(make_context(), service.url, await asyncio.to_thread(key_of, service))
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    for whole in (False, True):
        asked = GenerationRequest(
            (Message("system", "S"), Message("user", "What time is it?")),
            sampling=Sampling(max_tokens=50, tools=(tool,), tool_choice="required"),
            whole=whole,
        )
        answer = await fold(model.stream(asked))
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.tool_calls
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("now", {})
        turns = (*asked.messages, Message("assistant", answer.text or None, tool_calls=answer.tool_calls))
        last = (*turns, Message("tool", "noon", tool_call_id=call["id"]))
        answer = await fold(model.stream(GenerationRequest(last, sampling=Sampling(tools=(tool,)), whole=whole)))
        assert "noon" in answer.text
        assert answer.finish_reason == "stop"
    await model.aclose()


# -- our service in front of the vendor -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def gateway(serve: Serve) -> AsyncIterator[tuple[AnthropicServer, httpx.AsyncClient]]:
    """The double, and a client of a service whose upstream ``far`` it is."""
    async with AnthropicServer() as server:
        upstream = {"kind": "claude", "base_url": server.url, "models": ["*"], "api_key": KEY}
        running = await asyncio.to_thread(serve, providers={"upstreams": {"far": upstream}})
        account = await asyncio.to_thread(running.user)
        async with httpx.AsyncClient(base_url=running.url, headers=account.headers, timeout=20, trust_env=False) as client:
            yield server, client


ANSWER = message(
    thinking("Hm.", "c2ln"),
    text("Two words."),
    tool_use("toolu_1", "f", a=1),
    stop_reason="tool_use",
    cache_read_input_tokens=100,
    cache_creation_input_tokens=7,
)
ASKED = {
    "model": f"far/{MODEL}",
    "max_tokens": 1024,
    "system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    "thinking": {"type": "adaptive"},
    "tools": [{"name": "f", "input_schema": {"type": "object"}}],
}


async def test_a_call_in_the_vendors_format_comes_and_goes_unchanged(serve: Serve) -> None:
    async with gateway(serve) as (server, client):
        server.push(ANSWER, ANSWER)
        answers = [await client.post("/v1/messages", json={**ASKED, "stream": stream}) for stream in (False, True)]
        count = await client.post(
            "/v1/messages/count_tokens", json={name: ASKED[name] for name in ("model", "messages", "system")}
        )
    assert [answer.status_code for answer in answers] == [200, 200], answers
    assert [request.path for request in server.received] == ["/v1/messages", "/v1/messages", "/v1/messages/count_tokens"]
    assert [request.body for request in server.received[:2]] == [{**ASKED, "model": MODEL, "stream": s} for s in (False, True)]
    assert {request.headers["x-api-key"] for request in server.received} == {KEY}
    for made in (answers[0].json(), _assembled(answers[1].text)):
        assert made["content"] == [{k: v for k, v in block.items() if k != "citations"} for block in ANSWER["content"]]
        assert made["stop_reason"] == "tool_use"
        counts = {"input_tokens": 25, "output_tokens": 15, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 7}
        assert {name: made["usage"][name] for name in counts} == counts
    assert count.json() == {"input_tokens": 2}


def _assembled(stream: str) -> dict[str, Any]:
    """The message of a stream, as the vendor's SDK puts it together."""
    found = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    assert (found[0]["type"], found[-1]["type"]) == ("message_start", "message_stop")
    made: dict[str, Any] = {**found[0]["message"], "content": []}
    written: dict[int, str] = {}
    for event in found:
        match event:
            case {"type": "content_block_start", "content_block": block}:
                made["content"].append(block)
            case {"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": part}}:
                written[index] = written.get(index, "") + part
            case {"type": "content_block_delta", "index": index, "delta": {"type": _, **delta}}:
                for name, piece in delta.items():
                    made["content"][index][name] += piece
            case {"type": "message_delta", "delta": delta, "usage": usage}:
                made |= {**delta, "usage": usage}
    for index, arguments in written.items():
        made["content"][index]["input"] = json.loads(arguments)
    return made


async def test_a_call_in_the_other_vendors_format(serve: Serve) -> None:
    async with gateway(serve) as (server, client):
        server.push(ANSWER)
        body = {
            "model": f"far/{MODEL}",
            "messages": [{"role": "developer", "content": "S"}, {"role": "user", "content": "Hello"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "seed": 3,
        }
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert server.received[0].body == {
        "model": MODEL,
        "max_tokens": 8192,
        "system": [{"type": "text", "text": "S"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "stream": server.received[0].body["stream"],
    }
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Two words."
    (call,) = choice["message"]["tool_calls"]
    assert (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) == ("toolu_1", "f", {"a": 1})
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (132, 100)


REFUSALS: list[tuple[Any, int, str]] = [
    (failure(400, "tools.0: " + WORDS), 400, "invalid_request_error"),
    (failure(400, "prompt is too long: " + WORDS), 400, "invalid_request_error"),
    (failure(413, WORDS), 413, "request_too_large"),
    (failure(404, WORDS), 404, "not_found_error"),
    ([*list(events(ANSWER))[:2], error_event("invalid_request_error", WORDS)], 400, "invalid_request_error"),
]


async def test_the_vendors_refusals_come_in_its_form_without_its_words(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(serve) as (server, client):
        for reply, status, kind in REFUSALS:
            server.push(reply)
            answer = await client.post("/v1/messages", json={**ASKED, "stream": True})
            assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
            assert WORDS not in answer.text + caplog.text
            assert KEY not in answer.text + caplog.text
            assert answer.json()["error"]["message"].startswith("prompt is too long") == (reply is REFUSALS[1][0])


async def test_a_stream_that_breaks_is_seen_as_broken(serve: Serve) -> None:
    pieces = sse([*list(events(ANSWER))[:9], error_event("api_error", WORDS)])
    async with gateway(serve) as (server, client):
        server.push(as_stream(pieces[:9], cut=True, pause_s=0.02), as_stream(pieces, pause_s=0.02))
        for _ in range(2):
            answer = await client.post("/v1/messages", json={**ASKED, "stream": True})
            assert answer.status_code == 200
            assert "event: error" in answer.text
            assert "message_stop" not in answer.text
            assert WORDS not in answer.text
        assert len(server.received) == 2
        server.push(as_stream([*pieces[:2], pieces[-1]], pause_s=0.02), ANSWER)  # broken before anything came: asked again
        answer = await client.post("/v1/messages", json={**ASKED, "stream": True})
        assert "message_stop" in answer.text
        assert len(server.received) == 4
