"""The provider ``openai`` and what goes wrong: documented errors, cuts, redirects, limits, leaks, and a key nobody hears of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from app.core.errors import (
    AprendizError,
    ContextOverflow,
    InvalidRequest,
    UnknownModel,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from app.core.logging import JsonFormatter, Redacting
from app.core.types import (
    EmbeddingRequest,
    EngineState,
    ModelSpec,
    TextDelta,
)
from app.providers.base import LoadedModel
from app.providers.openai import OpenAIModel, OpenAIProvider
from tests.providers.openai_setup import KEY, MakeContext, ask, events_of, opened, request, upstream_at
from tests.vendors.openai_server import Completion, OpenAIServer, failure
from tests.vendors.replay import Raw, Reply, as_json


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(key=KEY) as running:
        yield running


@pytest.fixture
async def model(server: OpenAIServer, make_context: MakeContext) -> AsyncIterator[LoadedModel]:
    loaded = await opened(make_context(), upstream_at(server.url))
    yield loaded
    await loaded.aclose()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("name", "kind", "retry_after"),
    [
        ("bad_parameter", InvalidRequest, None),
        ("context_length", ContextOverflow, None),
        ("invalid_key", UpstreamRefused, None),
        ("region", UpstreamRefused, None),
        ("no_model", UnknownModel, None),
        ("rate_limit", UpstreamBusy, 7.0),
        ("rate_limit_bare", UpstreamBusy, ...),
        ("quota", UpstreamRefused, None),
        ("server_error", UpstreamError, None),
        ("overloaded", UpstreamBusy, ...),
    ],
)
async def test_documented_errors(
    server: OpenAIServer, model: LoadedModel, name: str, kind: type[AprendizError], retry_after: object, whole: bool
) -> None:
    server.push(failure(name))
    with pytest.raises(kind) as caught:
        await events_of(model, request(whole=whole))
    assert type(caught.value) is kind
    assert KEY not in caught.value.detail
    assert "org-test" not in caught.value.detail
    if retry_after is not ...:
        assert caught.value.retry_after == retry_after
    assert (await ask(model, request("again"))).text == "again"


async def test_a_cut_stream_is_an_error(server: OpenAIServer, model: LoadedModel) -> None:
    server.push(Completion(text="one two", pieces=("one", " two"), cut_after=2))
    with pytest.raises(UpstreamError):
        await events_of(model, request())


async def test_an_error_inside_a_stream_is_an_error(server: OpenAIServer, model: LoadedModel) -> None:
    server.push(Completion(text="one two", pieces=("one", " two"), error_after=2))
    with pytest.raises(UpstreamError):
        await events_of(model, request())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target", ["{canary}/v1/chat/completions", "https://127.0.0.1:1/", "//evil.example/", "file:///etc/passwd"]
)
async def test_a_redirect_is_not_followed(server: OpenAIServer, model: LoadedModel, status: int, target: str) -> None:
    async with OpenAIServer() as canary:
        server.push(Reply(status, (b"moved",), {"Location": target.replace("{canary}", canary.url)}))
        with pytest.raises(UpstreamError):
            await events_of(model, request())
        assert (canary.connections, len(server.received)) == (0, 1)


async def test_leaving_ends_the_work_at_the_other_end(server: OpenAIServer, model: LoadedModel) -> None:
    server.push(Completion(text="a", pieces=("a ",) * 1000, pause_s=0.01))
    stream = model.stream(request())
    assert isinstance(await anext(stream), TextDelta)
    await stream.aclose()
    async with asyncio.timeout(5):
        while not server.left:  # noqa: ASYNC110 - the server is a double, and counts
            await asyncio.sleep(0.01)


async def test_no_more_requests_at_once_than_the_upstream_takes(server: OpenAIServer, make_context: MakeContext) -> None:
    provider = OpenAIProvider(make_context(), "far", upstream_at(server.url, max_concurrency=2))
    models = [await provider.open(ModelSpec("far", name), on_state=lambda state: None) for name in ("a", "b", "c")]
    server.push(*(Completion(text="x", pieces=("x ",) * 3, pause_s=0.02) for _ in range(9)))
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, server.answering)
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(ask(model, request()) for model in models for _ in range(3)))
    watching.cancel()
    for model in models:
        await model.aclose()
    assert (most, len(server.received)) == (2, 9)


async def test_a_server_that_is_not_there(make_context: MakeContext) -> None:
    async with OpenAIServer() as gone:
        url = gone.url
    loaded = await opened(make_context(), upstream_at(url))
    with pytest.raises(UpstreamUnreachable):
        await ask(loaded, request())
    await loaded.aclose()


async def test_the_key_is_told_to_nobody(
    server: OpenAIServer, make_context: MakeContext, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    context = make_context()
    upstream = upstream_at(server.url)
    provider = OpenAIProvider(context, "far", upstream)
    loaded = await provider.open(ModelSpec("far", "gpt-4o"), on_state=lambda state: None)
    shown = [repr(upstream), str(upstream), upstream.model_dump_json(), repr(provider), repr(loaded), repr(loaded.version)]
    shown += [repr(vars(thing)) for thing in (provider, loaded)]
    echo = json.dumps({"error": {"message": f"Bearer {KEY}", "type": KEY, "code": KEY, "param": KEY}}).encode()
    for status in (400, 401, 404, 429, 500):
        server.push(Reply(status, (echo,), {"Content-Type": "application/json", "x-request-id": KEY, "Retry-After": KEY}))
    server.push(failure("invalid_key"), Raw(f"HTTP/1.1 200 {KEY}\r\n{KEY}\r\n\r\n".encode()), Raw(f"{KEY}\r\n\r\n".encode()))
    for _ in range(8):
        with pytest.raises(AprendizError) as caught:
            await ask(loaded, request())
        shown += [repr(caught.value), str(caught.value), caught.value.detail, repr(caught.value.field)]
    await loaded.aclose()
    formatter = Redacting(JsonFormatter(), [KEY])
    logged = [formatter.format(record) for record in caplog.records]
    assert any("its words" in line for line in logged)
    shown += logged
    out = capsys.readouterr()
    assert not [text for text in [*shown, out.out, out.err] if KEY in text or KEY[3:] in text]
    assert len(server.received) == 8


def rows(*vectors: Any, order: Sequence[int] | None = None) -> Reply:
    indices = range(len(vectors)) if order is None else order
    data = [
        {"object": "embedding", "index": index, "embedding": vector} for index, vector in zip(indices, vectors, strict=True)
    ]
    return as_json({"object": "list", "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}})


async def test_embeddings_are_read_in_both_encodings_and_any_order(server: OpenAIServer, model: LoadedModel) -> None:
    server.push(rows([3.0, 4.0], "AACAPwAAAEA=", order=[1, 0]))
    assert (await model.embed(EmbeddingRequest(("a", "b")))).vectors == ((1.0, 2.0), (3.0, 4.0))


@pytest.mark.parametrize(
    "reply",
    [
        rows([1.0]),
        rows([1.0], [2.0], [3.0]),
        rows([1.0], [1.0, 2.0]),
        rows([], []),
        rows([1.0], [2.0], order=[0, 0]),
        rows([1.0], [2.0], order=[0, 2]),
        rows("AADAfw==", "AADAfw=="),
        rows("AAA", "AAA"),
        rows("AAAA", "AAAA"),
        rows(["1"], ["2"]),
        rows(None, None),
        as_json({"object": "list", "data": {}}),
        as_json([]),
        as_json({}),
        Reply(200, (b"not JSON",), {"Content-Type": "application/json"}),
        Reply(200, (b"[" * 100_000,), {"Content-Type": "application/json"}),
    ],
)
async def test_embeddings_that_are_none(server: OpenAIServer, model: LoadedModel, reply: Reply) -> None:
    server.push(reply)
    with pytest.raises(UpstreamError):
        await model.embed(EmbeddingRequest(("a", "b")))


def places(model: LoadedModel) -> int:
    """Free places at the upstream's gate."""
    assert isinstance(model, OpenAIModel)
    return model._gate._value


FAULTS: list[Callable[[], Any]] = [
    lambda: failure("server_error"),
    lambda: failure("rate_limit"),
    lambda: failure("quota"),
    lambda: Completion(text="a b", pieces=("a", " b"), cut_after=2),
    lambda: Completion(text="a b", pieces=("a", " b"), error_after=1),
    lambda: Raw(reset=True),
    lambda: Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"),
    lambda: Raw(b"\x16\x03\x01nonsense\r\n\r\n"),
    lambda: Reply(200, (b"<html>",), {"Content-Type": "text/html"}),
    lambda: Reply(200, (b"data: {broken\n\n",), {"Content-Type": "text/event-stream"}),
    lambda: Reply(200, (b"data: [DONE]\n\n",), {"Content-Type": "text/event-stream"}),
    lambda: Reply(302, (b"",), {"Location": "/elsewhere"}),
    lambda: Completion(text="a", pieces=("a ",) * 20, pause_s=0.01),  # left after its first event
]


async def test_faults_leave_nothing_behind(server: OpenAIServer, make_context: MakeContext) -> None:
    loaded = await opened(make_context(), upstream_at(server.url, max_concurrency=8))
    tasks = len(asyncio.all_tasks())

    async def one(number: int) -> None:
        asked = request(whole=number % 7 == 0)
        with contextlib.suppress(AprendizError):
            async with contextlib.aclosing(loaded.batches(asked)) as batches:
                async for batch in batches:
                    if number % 2 and any(isinstance(event, TextDelta) for event in batch):
                        break

    for round_number in range(10):
        server.push(*(fault() for fault in FAULTS))
        await asyncio.gather(*(one(round_number + number) for number in range(len(FAULTS))))
    assert len(server.received) >= 10 * len(FAULTS)  # a kept connection that is cut unanswered is tried once more
    assert places(loaded) == 8
    assert (await ask(loaded, request("still here"))).text == "still here"
    await loaded.aclose()
    async with asyncio.timeout(5):
        while server.open or len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110 - the server is a double, and counts
            await asyncio.sleep(0.01)


async def test_whoever_gives_up_waiting_leaves_the_place_to_others(server: OpenAIServer, make_context: MakeContext) -> None:
    loaded = await opened(make_context(), upstream_at(server.url, max_concurrency=1))
    server.push(Completion(text="a", pieces=("a ",) * 100, pause_s=0.05))
    first = loaded.stream(request())
    await anext(first)
    waiting = [asyncio.create_task(ask(loaded, request("next"))) for _ in range(3)]
    await asyncio.sleep(0.02)
    waiting[0].cancel()
    await first.aclose()
    assert [answer.text for answer in await asyncio.gather(*waiting[1:])] == ["next", "next"]
    assert (places(loaded), len(server.received)) == (1, 3)
    await loaded.aclose()


async def test_closing_ends_what_streams_and_what_waits(server: OpenAIServer, make_context: MakeContext) -> None:
    loaded = await opened(make_context(), upstream_at(server.url, max_concurrency=1))
    server.push(Reply(200, (b": hello\n\n",), {"Content-Type": "text/event-stream"}, hang=True))
    tasks = [asyncio.create_task(ask(loaded, request())) for _ in range(3)]
    async with asyncio.timeout(5):
        while not server.received:  # noqa: ASYNC110 - the server is a double, and counts
            await asyncio.sleep(0.01)
        await loaded.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [UpstreamUnreachable] * 3
    assert (loaded.status().state, places(loaded)) == (EngineState.STOPPED, 1)


async def test_silence_ends(server: OpenAIServer, make_context: MakeContext) -> None:
    loaded = await opened(make_context(), upstream_at(server.url, read_timeout_s=0.2))
    for scripted in (
        Raw(hang=True),
        Raw(b"HTTP/1.1 200 OK\r\n", hang=True),
        Reply(200, (b": x\n\n",), {"Content-Type": "text/event-stream"}, hang=True),
    ):
        server.push(scripted)
        with pytest.raises(UpstreamTimeout):
            await ask(loaded, request())
    await loaded.aclose()


@pytest.mark.parametrize(
    ("max_tokens", "read_timeout_s", "stream"),
    [(None, 120, False), (3600, 120, False), (3601, 120, True), (None, 60, True), (9, 1, False)],
)
async def test_a_long_answer_comes_as_a_stream(
    server: OpenAIServer, make_context: MakeContext, max_tokens: int | None, read_timeout_s: float, stream: bool
) -> None:
    loaded = await opened(make_context(), upstream_at(server.url, read_timeout_s=read_timeout_s))
    await ask(loaded, request("a", whole=True, max_tokens=max_tokens))
    assert server.received[-1].body["stream"] is stream
    await loaded.aclose()


async def test_half_a_surrogate_pair_is_the_callers_fault(server: OpenAIServer, model: LoadedModel) -> None:
    with pytest.raises(InvalidRequest):
        await ask(model, request("\ud800"))
    with pytest.raises(InvalidRequest):
        await model.embed(EmbeddingRequest(("\ud800",)))
    assert not server.received


async def test_embeddings_that_drip_end_too(server: OpenAIServer, make_context: MakeContext) -> None:
    loaded = await opened(make_context(answer_timeout_s=0.3), upstream_at(server.url))
    server.push(Reply(200, (b" ",) * 1000, {"Content-Type": "application/json"}, pause_s=0.05))
    with pytest.raises(UpstreamTimeout):
        await loaded.embed(EmbeddingRequest(("a",)))
    assert places(loaded) == 256
    await loaded.aclose()
