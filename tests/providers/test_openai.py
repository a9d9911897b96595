"""The provider ``openai`` against a double of the vendor's API: real sockets, the documented wire format, no network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.core.errors import (
    InvalidRequest,
    ModelLoadFailed,
    UnknownModel,
)
from app.core.settings import VENDOR_URLS, Upstream
from app.core.types import (
    EmbeddingRequest,
    EngineState,
    GenerationRequest,
    Message,
    ModelSpec,
    Sampling,
)
from app.providers.base import LoadedModel, ProviderContext
from app.providers.contract import verify
from app.providers.openai import OpenAIProvider
from app.providers.openai_messages import wire_messages
from tests.providers.openai_setup import KEY, MakeContext, ask, opened, request, upstream_at
from tests.vendors.openai_server import Completion, OpenAIServer, ToolCall, logprob

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(key=KEY) as running:
        yield running


@pytest.fixture
async def model(server: OpenAIServer, make_context: MakeContext) -> AsyncIterator[LoadedModel]:
    loaded = await opened(make_context(), upstream_at(server.url))
    yield loaded
    await loaded.aclose()


@asynccontextmanager
async def as_vendor(
    monkeypatch: pytest.MonkeyPatch, server: OpenAIServer, context: ProviderContext, name: str
) -> AsyncIterator[LoadedModel]:
    """A model at what counts as the vendor's own address."""
    monkeypatch.setitem(VENDOR_URLS, "openai", server.url)
    loaded = await opened(context, upstream_at(server.url), name)
    try:
        yield loaded
    finally:
        await loaded.aclose()


async def test_it_keeps_the_contract(make_context: MakeContext) -> None:
    async with OpenAIServer(key=KEY, context_tokens=512) as server:
        upstream = upstream_at(server.url, context_tokens=512)
        assert await verify(lambda: opened(make_context(), upstream)) == []


async def test_opening_asks_the_upstream_nothing(server: OpenAIServer, make_context: MakeContext) -> None:
    states: list[EngineState] = []
    provider = OpenAIProvider(make_context(), "far", upstream_at(server.url))
    loaded = await provider.open(ModelSpec("far", "gpt-4o"), on_state=states.append)
    await loaded.aclose()
    assert states == [EngineState.READY, EngineState.STOPPED]
    assert server.connections == 0


@pytest.mark.parametrize("whole", [False, True])
async def test_what_goes_over_the_wire(server: OpenAIServer, model: LoadedModel, whole: bool) -> None:
    answer = await ask(model, request("Hello there", whole=whole))
    assert (answer.text, answer.finish_reason) == ("Hello there", "stop")
    sent = server.received[-1]
    assert (sent.method, sent.path) == ("POST", "/v1/chat/completions")
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    fields = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello there"}]}
    stream = {"stream": False} if whole else {"stream": True, "stream_options": {"include_usage": True}}
    assert sent.body == {**fields, **stream}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 2)


async def test_only_what_the_caller_said_is_sent(server: OpenAIServer, model: LoadedModel) -> None:
    said: dict[str, Any] = {
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ("zzz",),
        "seed": 7,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"42": -100},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "tools": ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}, "cache_control": {}},),
        "tool_choice": "auto",
    }
    await ask(model, request(**said))
    body = server.received[-1].body
    del body["model"], body["messages"], body["stream"], body["stream_options"]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert body == {**said, "stop": ["zzz"], "tools": tools}


async def test_words_of_other_formats_stay_here(server: OpenAIServer, model: LoadedModel) -> None:
    marked = {"type": "text", "text": "Look", "cache_control": {"type": "ephemeral"}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = (
        Message("developer", "Be short."),
        Message("user", [marked, image]),
        Message("assistant", "I see.", reasoning=({"type": "thinking", "thinking": "hm", "signature": "s"},)),
        Message("assistant", None, tool_calls=({**CALL, "cache_control": {"type": "ephemeral"}},)),
        Message("tool", "broken", tool_call_id="c1", is_error=True, cache_control={"type": "ephemeral"}),
        Message("user", "Well?"),
    )
    await ask(model, GenerationRequest(messages, sampling=Sampling(thinking={"type": "enabled", "budget_tokens": 1024})))
    assert server.received[-1].body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Look"}, image]},
        {"role": "assistant", "content": "I see."},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "broken", "tool_call_id": "c1"},
        {"role": "user", "content": "Well?"},
    ]
    assert "thinking" not in server.received[-1].body


PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}


@pytest.mark.parametrize(
    ("part", "sent"),
    [
        (
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "Body"},
                "title": "T",
                "context": "C",
            },
            {"type": "text", "text": "T\nC\nBody"},
        ),
        (
            {
                "type": "document",
                "source": {"type": "content", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            },
            {"type": "text", "text": "a\nb"},
        ),
        (
            {"type": "document", "source": PDF, "cache_control": {"type": "ephemeral"}},
            {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        ),
        (
            {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "text", "text": "a"}]},
            {"type": "text", "text": "T (S)\na"},
        ),
    ],
)
async def test_documents_of_the_other_format(server: OpenAIServer, model: LoadedModel, part: Any, sent: Any) -> None:
    await ask(model, GenerationRequest((Message("user", [{"type": "text", "text": "Read"}, part]),)))
    assert server.received[-1].body["messages"][0]["content"] == [{"type": "text", "text": "Read"}, sent]


async def test_an_address_of_a_document_is_refused(server: OpenAIServer, model: LoadedModel) -> None:
    part = {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}
    with pytest.raises(InvalidRequest, match=r"messages\[0\].content\[0\]"):
        await ask(model, GenerationRequest((Message("user", [part]),)))
    assert not server.received


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "https://intranet/x.png", "HTTP://127.0.0.1:1/", "file:///etc/passwd", ""]
)
async def test_a_server_inside_fetches_nothing_for_callers(server: OpenAIServer, model: LoadedModel, url: str) -> None:
    asked = GenerationRequest((Message("user", [{"type": "image_url", "image_url": {"url": url}}]),))
    with pytest.raises(InvalidRequest, match="data: URL"):
        await ask(model, asked)
    assert not server.received


async def test_a_vendor_is_given_addresses_of_images() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}
    assert wire_messages([Message("user", [part])], vendor=True, outside=True)[0]["content"] == [part]


async def test_top_k_goes_to_servers_that_know_it(make_context: MakeContext) -> None:
    async with OpenAIServer(strict=False) as server:
        loaded = await opened(make_context(), upstream_at(server.url, key=None))
        await ask(loaded, request(top_k=5))
        await loaded.aclose()
    assert server.received[-1].body["top_k"] == 5
    assert "authorization" not in server.received[-1].headers


async def test_the_vendor_gets_its_own_words(
    server: OpenAIServer, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with as_vendor(monkeypatch, server, make_context(), "gpt-5") as loaded:
        answer = await ask(
            loaded, GenerationRequest((Message("developer", "x"), Message("user", "a b c")), sampling=Sampling(max_tokens=2))
        )
        assert answer.finish_reason == "length"
        body = server.received[-1].body
        assert (body["max_completion_tokens"], body["messages"][0]["role"]) == (2, "developer")
        assert not loaded.capabilities.top_k
        with pytest.raises(InvalidRequest, match="top_k"):
            await ask(loaded, request(top_k=5))
        vectors = (await loaded.embed(EmbeddingRequest(("a", "b")))).vectors
        assert [len(vector) for vector in vectors] == [8, 8]
        assert server.received[-1].body["encoding_format"] == "base64"


@pytest.mark.parametrize("whole", [False, True])
async def test_tool_calls_in_pieces_and_in_parallel(server: OpenAIServer, model: LoadedModel, whole: bool) -> None:
    calls = [ToolCall("weather", ['{"ci', 'ty":"Lima"}'], "call_a"), ToolCall("time", ["{}"], "call_b")]
    server.push(Completion(tool_calls=calls))
    answer = await ask(model, request(whole=whole))
    assert answer.finish_reason == "tool_calls"
    assert [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in answer.tool_calls] == [
        ("call_a", "weather", '{"city":"Lima"}'),
        ("call_b", "time", "{}"),
    ]


@pytest.mark.parametrize("whole", [False, True])
async def test_logprobs_usage_and_reasoning(server: OpenAIServer, model: LoadedModel, whole: bool) -> None:
    entries = [logprob("He", -0.5, ("Ha", -2.0)), logprob("llo", -0.25)]
    server.push(
        Completion(
            text="Hello",
            pieces=("He", "llo"),
            logprobs=entries,
            reasoning=("Let me ", "think."),
            prompt_tokens=100,
            completion_tokens=50,
            cached_tokens=64,
            reasoning_tokens=40,
        )
    )
    answer = await ask(model, request(logprobs=1, whole=whole))
    assert (answer.text, answer.reasoning) == ("Hello", "Let me think.")
    assert list(answer.logprobs) == entries
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens) == (100, 50, 64, 40)
    body = server.received[-1].body
    assert (body["logprobs"], body["top_logprobs"]) == (True, 1)


@pytest.mark.parametrize("whole", [False, True])
async def test_a_refusal_is_an_answer(server: OpenAIServer, model: LoadedModel, whole: bool) -> None:
    server.push(Completion(refusal="I cannot help with that."))
    answer = await ask(model, request(whole=whole))
    assert answer.text == "I cannot help with that."


async def test_a_prompt_to_go_on_from(server: OpenAIServer, model: LoadedModel) -> None:
    asked = GenerationRequest((Message("user", "Once upon a time"),), sampling=Sampling(max_tokens=3, logprobs=2), raw=True)
    answer = await ask(model, asked)
    assert (answer.text, answer.finish_reason) == ("Once upon a", "length")
    assert [entry["token"] for entry in answer.logprobs] == ["Once", " upon", " a"]
    sent = server.received[-1]
    assert sent.path == "/v1/completions"
    assert sent.body == {
        "model": "gpt-4o",
        "prompt": "Once upon a time",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 3,
        "logprobs": 2,
    }


async def test_embeddings_in_the_order_of_the_texts(server: OpenAIServer, model: LoadedModel) -> None:
    both = await model.embed(EmbeddingRequest(("first text", "second")))
    alone = await model.embed(EmbeddingRequest(("second",)))
    assert both.vectors[1] == alone.vectors[0]
    assert (len(both.vectors), len(both.vectors[0]), both.prompt_tokens) == (2, 8, 3)
    short = await model.embed(EmbeddingRequest(("second",), dimensions=4))
    assert len(short.vectors[0]) == 4
    assert server.received[-1].body == {"model": "gpt-4o", "input": ["second"], "encoding_format": "float", "dimensions": 4}


async def test_equal_address_and_model_are_one_version(make_context: MakeContext) -> None:
    context = make_context()
    ids = []
    for url, name in (
        ("http://127.0.0.1:1", "m"),
        ("http://127.0.0.1:1/v1/", "m"),
        ("http://127.0.0.1:2", "m"),
        ("http://127.0.0.1:1", "n"),
    ):
        loaded = await opened(context, upstream_at(url), name)
        ids.append(loaded.version.id)
        await loaded.aclose()
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "ñ", "x" * 257, "a\x00"])
async def test_what_is_no_name_of_a_model(make_context: MakeContext, name: str) -> None:
    with pytest.raises(UnknownModel):
        await opened(make_context(), upstream_at("http://127.0.0.1:1"), name)


async def test_the_vendor_needs_a_key_and_nobody_takes_adapters(make_context: MakeContext) -> None:
    with pytest.raises(ModelLoadFailed, match="OPENAI_API_KEY"):
        await opened(make_context(), Upstream(), name="openai")
    provider = OpenAIProvider(make_context(), "far", upstream_at("http://127.0.0.1:1"))
    with pytest.raises(ModelLoadFailed, match="adapters"):
        await provider.open(ModelSpec("far", "m", adapter="mine"), on_state=lambda state: None)
