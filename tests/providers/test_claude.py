"""The provider ``claude`` against a double of the vendor's API: real sockets, the documented wire format, no network."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import SecretStr

from app.core.errors import (
    AprendizError,
    ContextOverflow,
    InvalidRequest,
    ModelLoadFailed,
    UnknownModel,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from app.core.settings import Upstream
from app.core.types import (
    Answer,
    EngineState,
    Event,
    Finished,
    GenerationRequest,
    Message,
    ModelSpec,
    Sampling,
    TextDelta,
    fold,
)
from app.providers.base import LoadedModel, ProviderContext
from app.providers.claude import ClaudeProvider
from app.providers.contract import verify
from app.providers.estimate import prompt_tokens
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
from tests.vendors.replay import Raw, Received, Reply, Scripted, as_json

MakeContext = Callable[..., ProviderContext]
HELLO = message(thinking("Hm.", "c2ln"), text("¡Hola, 漢字 🙂!"), tool_use("toolu_1", "f", a="ñ"), stop_reason="tool_use")
WORDS = "THIRD-PARTY-WORDS"


def upstream_at(url: str, **fields: Any) -> Upstream:
    key = fields.pop("key", KEY)
    made = Upstream(kind="claude", base_url=url, **fields)
    return made.model_copy(update={"api_key": None if key is None else SecretStr(key)})


async def opened(context: ProviderContext, upstream: Upstream, model: str = MODEL) -> LoadedModel:
    return await ClaudeProvider(context, "far", upstream).open(ModelSpec("far", model), on_state=lambda state: None)


@pytest.fixture
async def server() -> AsyncIterator[AnthropicServer]:
    async with AnthropicServer() as running:
        yield running


@pytest.fixture
async def model(server: AnthropicServer, make_context: MakeContext) -> AsyncIterator[LoadedModel]:
    loaded = await opened(make_context(), upstream_at(server.url, read_timeout_s=10, context_tokens=256))
    yield loaded
    await loaded.aclose()


def asking(said: str = "Hello", *, whole: bool = False, **sampling: Any) -> GenerationRequest:
    return GenerationRequest((Message("user", said),), sampling=Sampling(**sampling), whole=whole)


async def answered(model: LoadedModel, request: GenerationRequest | None = None) -> Answer:
    async with asyncio.timeout(20), contextlib.aclosing(model.stream(request or asking())) as stream:
        return await fold(stream)


async def collected(model: LoadedModel, request: GenerationRequest | None = None) -> tuple[list[Event], AprendizError | None]:
    """What came, and what went wrong at its end."""
    came: list[Event] = []
    try:
        async with asyncio.timeout(20), contextlib.aclosing(model.stream(request or asking())) as stream:
            async for event in stream:
                came.append(event)
    except AprendizError as error:
        return came, error
    return came, None


@pytest.mark.parametrize("context_tokens", [None, 512])
async def test_fulfils_the_contract(make_context: MakeContext, context_tokens: int | None) -> None:
    async with AnthropicServer(context_tokens=512) as server:
        upstream = upstream_at(server.url, max_concurrency=8, context_tokens=context_tokens)
        assert await verify(lambda: opened(make_context(), upstream)) == []
        assert {request.headers["x-api-key"] for request in server.received} == {KEY}


IMAGE = {"type": "image_url", "image_url": {"url": "https://intranet.example/a.png"}}
DOCUMENT = {"type": "document", "source": {"type": "url", "url": "https://intranet.example/a.pdf"}}
CALL = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("part", [IMAGE, DOCUMENT])
async def test_a_server_inside_a_private_network_is_given_no_addresses(
    server: AnthropicServer, model: LoadedModel, part: dict[str, Any]
) -> None:
    called = (Message("user", "a"), Message("assistant", None, tool_calls=(CALL,)))
    for messages in ((Message("user", [part]),), (*called, Message("tool", [part], tool_call_id="toolu_1"))):
        for ask in (answered, type(model).count_tokens):
            with pytest.raises(InvalidRequest) as caught:
                await ask(model, GenerationRequest(messages))
            assert caught.value.field == "messages"
    assert server.received == []


@pytest.mark.parametrize("whole", [False, True])
async def test_a_whole_answer_and_a_stream_are_the_same(server: AnthropicServer, model: LoadedModel, whole: bool) -> None:
    server.push(HELLO)
    answer = await answered(model, asking("¿Qué?", whole=whole))
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("¡Hola, 漢字 🙂!", "Hm.", "tool_calls")
    assert answer.tool_calls == (
        {
            "id": "toolu_1",
            "type": "function",
            "function": {"name": "f", "arguments": answer.tool_calls[0]["function"]["arguments"]},
        },
    )
    (request,) = server.received
    assert (request.method, request.path) == ("POST", "/v1/messages")
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert request.headers["content-type"] == "application/json"
    assert request.body == {
        "model": MODEL,
        "max_tokens": 128,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "¿Qué?"}]}],
        "stream": not whole,
    }


async def test_a_long_answer_is_streamed_even_if_it_is_wanted_whole(server: AnthropicServer, model: LoadedModel) -> None:
    server.push(HELLO, HELLO)
    await answered(model, asking(whole=True, max_tokens=300))
    await answered(model, asking(whole=True, max_tokens=301))
    assert [request.body["stream"] for request in server.received] == [False, True]


async def test_events_that_come_together_come_in_one_batch(server: AnthropicServer, model: LoadedModel) -> None:
    pieces = sse(list(events(HELLO)))
    server.push(as_stream([b"".join(pieces)]), as_stream(pieces, pause_s=0.01))
    together = [batch async for batch in model.batches(asking())]
    apart = [batch async for batch in model.batches(asking())]
    assert len(together) == 1
    assert len(apart) > 8
    assert all(batch for batch in apart)
    assert [event for batch in apart for event in batch] == list(together[0])
    assert isinstance(together[0][-1], Finished)


async def test_connections_serve_again(server: AnthropicServer, model: LoadedModel) -> None:
    for whole in (False, True, False, False):
        server.push(HELLO)
        await answered(model, asking(whole=whole))
        await asyncio.sleep(0.01)
    assert server.connections == 1


async def test_a_connection_serves_again_though_its_body_ends_later_than_the_answer(
    server: AnthropicServer, model: LoadedModel
) -> None:
    server.push(as_stream([RECORDED, b": the end\n\n"], pause_s=0.02), HELLO)
    await answered(model)
    await asyncio.sleep(0.2)
    await answered(model)
    assert server.connections == 1


async def test_the_body_of_an_error_is_not_waited_for_long(
    server: AnthropicServer, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.providers.claude._ERROR_S", 0.05)
    server.push(Reply(429, [b'{"type":'], {"retry-after": "3"}, hang=True))
    async with asyncio.timeout(5):
        _, error = await collected(model)
    assert isinstance(error, UpstreamBusy)
    assert error.retry_after == 3


async def test_counts_tokens(server: AnthropicServer, model: LoadedModel) -> None:
    assert await model.count_tokens(asking("one two three", max_tokens=5, temperature=0.5, stop=("x",))) == 3
    assert server.received[0].path == "/v1/messages/count_tokens"
    server.push(failure(400, "prompt is too long: 3 tokens > 2 maximum"), as_json({"tokens": 3}))
    with pytest.raises(ContextOverflow):
        await model.count_tokens(asking())
    with pytest.raises(UpstreamError):
        await model.count_tokens(asking())


async def test_an_upstream_that_cannot_count_gets_an_estimate(server: AnthropicServer, make_context: MakeContext) -> None:
    model = await opened(make_context(), upstream_at(server.url))
    server.push(as_json({"detail": "Not Found"}, 404), Reply(405, [b""]), failure(404, "model: m"), failure(529))
    request = asking("one two three")
    assert [await model.count_tokens(request) for _ in range(2)] == [prompt_tokens(request)] * 2
    with pytest.raises(UnknownModel):
        await model.count_tokens(request)
    with pytest.raises(UpstreamBusy):
        await model.count_tokens(request)
    await model.aclose()


async def test_what_the_format_cannot_say_never_leaves(server: AnthropicServer, model: LoadedModel) -> None:
    for wrong in (asking(temperature=1.5), asking(logit_bias={"1": 1.0}), asking("half \ud83d a pair")):
        with pytest.raises(InvalidRequest):
            await answered(model, wrong)
    assert server.received == []


async def test_a_prompt_beyond_the_context(make_context: MakeContext) -> None:
    async with AnthropicServer(context_tokens=4) as server:
        model = await opened(make_context(), upstream_at(server.url))
        with pytest.raises(ContextOverflow):
            await answered(model, asking("one two three four"))
        await model.aclose()


# -- cut and broken streams -----------------------------------------------------------------------------------------------

RECORDED = b"".join(sse(list(events(HELLO))))
END = RECORDED.index(b"event: message_stop")
"""From the closing event's last byte on, the answer is whole."""


async def test_a_stream_that_is_cut_anywhere_never_ends_well(server: AnthropicServer, model: LoadedModel) -> None:
    cuts = sorted({*range(0, len(RECORDED), 23), *range(len(RECORDED) - 80, len(RECORDED))})
    for cut in cuts:
        server.push(as_stream([RECORDED[:cut]] if cut else [], cut=True))
        came, error = await collected(model)
        assert type(error) is UpstreamUnreachable, f"cut at {cut} of {len(RECORDED)}"
        assert not any(isinstance(event, Finished) for event in came)


async def test_a_body_that_ends_early_in_good_order_is_a_cut_too(server: AnthropicServer, model: LoadedModel) -> None:
    for cut in [*range(0, END, 211), END]:
        server.push(as_stream([RECORDED[:cut], b""][: 2 if cut else 0]) if cut else as_stream([]))
        came, error = await collected(model)
        assert isinstance(error, UpstreamUnreachable), f"ended at {cut}"
        assert not any(isinstance(event, Finished) for event in came)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_a_stream_in_pieces_of_any_size(server: AnthropicServer, model: LoadedModel, size: int) -> None:
    server.push(as_stream([RECORDED[at : at + size] for at in range(0, len(RECORDED), size)]))
    assert (await answered(model)).text == "¡Hola, 漢字 🙂!"


async def test_what_follows_the_end_is_not_waited_for(server: AnthropicServer, model: LoadedModel) -> None:
    server.push(as_stream([RECORDED], hang=True), as_stream([RECORDED + b"data: {]\n\n"]))
    async with asyncio.timeout(2):
        assert (await answered(model)).text
        assert (await answered(model)).text


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (as_stream([b"data: {]\n\n"]), UpstreamError),
        (as_stream([b"\xff\xfe\n\n", b"data: \xff\n\n"]), UpstreamError),
        (Reply(200, [RECORDED], {"Content-Type": "text/html"}), UpstreamError),
        (Reply(200, [RECORDED]), UpstreamError),
        (as_json({"type": "error", "error": {"type": "overloaded_error", "message": WORDS}}), UpstreamBusy),
        (as_json({"error": WORDS}), UpstreamError),
        (failure(429, WORDS, retry_after="17"), UpstreamBusy),
        (failure(529, WORDS), UpstreamBusy),
        (failure(500, WORDS), UpstreamError),
        (failure(401, WORDS), UpstreamRefused),
        (failure(400, "tools.0.input_schema: " + WORDS), InvalidRequest),
        (Reply(404, [b"<html>"]), UpstreamError),
        (Reply(503, []), UpstreamBusy),
        (Reply(502, [b"x" * 100_000]), UpstreamError),
        (Reply(529, [b"{", b"}"], cut=True), UpstreamBusy),
        (Reply(307, [b""], {"Location": "http://127.0.0.1:1/"}), UpstreamError),
        (Raw(b""), UpstreamUnreachable),
        (Raw(b"", reset=True), UpstreamUnreachable),
        (Raw(b"220 mail.example.org ESMTP\r\n\r\n"), UpstreamError),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
async def test_faults(
    server: AnthropicServer,
    model: LoadedModel,
    caplog: pytest.LogCaptureFixture,
    reply: Reply | Raw,
    error: type[AprendizError],
    whole: bool,
) -> None:
    server.push(reply)
    with caplog.at_level(logging.INFO):
        came, seen = await collected(model, asking(whole=whole))
    assert type(seen) is error
    assert came == []
    shown = f"{seen.detail} {seen!r}" + "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert WORDS not in shown
    assert KEY not in shown
    if isinstance(reply, Reply) and reply.status == 429:
        assert seen.retry_after == 17
    assert (await answered(model)).text == "Hello"


async def test_json_where_a_stream_was_asked_for(server: AnthropicServer, model: LoadedModel) -> None:
    server.push(as_json(message(text("whole, unasked"))))
    came, error = await collected(model)
    assert (came, type(error)) == ([], UpstreamError)


async def test_an_error_inside_a_stream_is_no_end(server: AnthropicServer, model: LoadedModel) -> None:
    server.push([*list(events(HELLO))[:9], error_event("overloaded_error", WORDS)])
    came, error = await collected(model)
    assert isinstance(error, UpstreamBusy)
    assert WORDS not in error.detail
    assert not any(isinstance(event, Finished) for event in came)


async def test_silence_ends_as_a_timeout(server: AnthropicServer, make_context: MakeContext) -> None:
    model = await opened(make_context(), upstream_at(server.url, read_timeout_s=0.2))
    server.push(as_stream([RECORDED[:400]], hang=True), as_stream([], hang=True))
    for whole in (False, True):
        _, error = await collected(model, asking(whole=whole, max_tokens=1))
        assert isinstance(error, UpstreamTimeout)
    await model.aclose()


async def test_an_event_without_end_is_bounded(server: AnthropicServer, model: LoadedModel) -> None:
    server.push(as_stream([b"data: " + b"x" * (1 << 20)] + [b"x" * (1 << 20)] * 5))
    _, error = await collected(model)
    assert type(error) is UpstreamError


async def test_nobody_listens_there(make_context: MakeContext, unused_tcp_port: int) -> None:
    model = await opened(make_context(), upstream_at(f"http://127.0.0.1:{unused_tcp_port}"))
    with pytest.raises(UpstreamUnreachable):
        await answered(model)
    await model.aclose()


# -- leaving, closing, sharing --------------------------------------------------------------------------------------------


async def test_who_leaves_cuts_the_connection(server: AnthropicServer, model: LoadedModel) -> None:
    server.push(as_stream([RECORDED[:700]], hang=True))
    stream = model.stream(asking())
    async with asyncio.timeout(5):
        await anext(stream)
        await stream.aclose()
    await until(lambda: not server.open)
    assert server.left == 1


async def test_closing_ends_what_runs(server: AnthropicServer, model: LoadedModel) -> None:
    server.push(as_stream([RECORDED[:700]], hang=True))
    stream = model.stream(asking())
    await anext(stream)
    waiting = asyncio.create_task(anext_error(stream))
    await asyncio.sleep(0.01)
    await model.aclose()
    async with asyncio.timeout(5):
        assert isinstance(await waiting, UpstreamUnreachable)
    assert model.status().state is EngineState.STOPPED


async def anext_error(stream: Any) -> AprendizError:
    try:
        async for _ in stream:
            pass
    except AprendizError as error:
        return error
    raise AssertionError("the stream ended well")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what the server saw has no event to wait for
            await asyncio.sleep(0.01)


async def test_an_upstream_gets_no_more_at_once_than_it_should(server: AnthropicServer, make_context: MakeContext) -> None:
    provider = ClaudeProvider(make_context(), "far", upstream_at(server.url, max_concurrency=2))
    models = [await provider.open(ModelSpec("far", MODEL), on_state=lambda state: None) for _ in range(2)]
    server.push(as_stream([RECORDED[:700]], hang=True), as_stream([RECORDED[:700]], hang=True))
    running = [asyncio.create_task(answered(models[number])) for number in range(2)]
    await until(lambda: len(server.received) == 2)
    third = asyncio.create_task(answered(models[0]))
    await asyncio.sleep(0.05)
    assert len(server.received) == 2
    running[1].cancel()
    assert (await third).text == "Hello"
    running[0].cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for model in models:
        await model.aclose()


FAULTS: list[Reply | Raw] = [
    as_stream([RECORDED[:600]], cut=True),
    as_stream([RECORDED[:900]]),
    Raw(b"", reset=True),
    failure(529),
    as_stream([b"data: {]\n\n"]),
    Reply(500, [b"{"], cut=True),
    Raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 10\r\n\r\nabc"),
    failure(429),
    Reply(200, [], {"Content-Type": "text/event-stream"}),
]


class FaultyServer(AnthropicServer):
    """Answers with one fault after the other, until it is well."""

    well = False

    async def answer(self, request: Received) -> Scripted:
        return await super().answer(request) if self.well else FAULTS[len(self.received) % len(FAULTS)]


async def test_a_thousand_faults_leave_nothing_behind(make_context: MakeContext) -> None:
    async with FaultyServer() as server:
        before = len(asyncio.all_tasks())
        model = await opened(make_context(), upstream_at(server.url, max_concurrency=16))
        for _ in range(10):
            results = await asyncio.gather(*(collected(model) for _ in range(100)))
            assert all(isinstance(error, UpstreamError | UpstreamBusy) for _, error in results)
        server.well = True
        assert (await answered(model)).text == "Hello"
        await model.aclose()
        await until(lambda: not server.open and len(asyncio.all_tasks()) <= before)
        gc.collect()


# -- opening --------------------------------------------------------------------------------------------------------------


async def test_opening_asks_nobody(server: AnthropicServer, make_context: MakeContext) -> None:
    heard: list[EngineState] = []
    provider = ClaudeProvider(make_context(), "far", upstream_at(server.url, max_concurrency=5, context_tokens=1000))
    model = await provider.open(ModelSpec("far", MODEL), on_state=heard.append)
    able = model.capabilities
    assert (able.remote, able.tools, able.json_schema, able.images, able.top_k) == (True, True, True, True, True)
    assert (able.logprobs, able.embeddings, able.raw_prompt, able.seed) == (False, False, False, False)
    assert (able.slots, able.context_tokens) == (5, 1000)
    assert (model.version.provider, model.version.model) == ("far", MODEL)
    await model.aclose()
    await model.aclose()
    assert heard == [EngineState.READY, EngineState.STOPPED]
    assert server.received == []


async def test_versions_differ_by_model_and_address(make_context: MakeContext) -> None:
    ids = [
        (await opened(make_context(), upstream_at(url), name)).version.id
        for url, name in (("http://127.0.0.1:1", "a"), ("http://127.0.0.1:1", "b"), ("http://127.0.0.1:2", "a"))
    ]
    assert len(set(ids)) == 3


async def test_the_vendor_needs_a_key(make_context: MakeContext) -> None:
    with pytest.raises(ModelLoadFailed, match="ANTHROPIC_API_KEY"):
        await opened(make_context(), upstream_at("", key=None))


async def test_an_upstream_without_a_key_gets_none(server: AnthropicServer, make_context: MakeContext) -> None:
    model = await opened(make_context(), upstream_at(server.url + "/v1", key=None))
    with pytest.raises(UpstreamRefused):
        await answered(model)
    assert "x-api-key" not in server.received[0].headers
    assert "authorization" not in server.received[0].headers
    await model.aclose()


async def test_an_unknown_model_is_the_vendors_to_say(server: AnthropicServer, make_context: MakeContext) -> None:
    model = await opened(make_context(), upstream_at(server.url), "claude-0")
    with pytest.raises(UnknownModel):
        await answered(model)
    await model.aclose()


async def test_the_key_is_nowhere_to_be_seen(
    server: AnthropicServer, make_context: MakeContext, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = upstream_at(server.url)
    provider = ClaudeProvider(make_context(), "far", upstream)
    model = await provider.open(ModelSpec("far", MODEL), on_state=lambda state: None)
    server.push(failure(401, f"invalid x-api-key: {KEY}"), failure(400, KEY), Raw(KEY.encode() + b"\r\n\r\n"), HELLO)
    with caplog.at_level(logging.INFO):
        errors = [(await collected(model))[1] for _ in range(3)]
        answer = await answered(model)
    await model.aclose()
    seen = [*map(repr, (provider, model, upstream, answer, *errors, model.version, model.status())), *map(str, errors)]
    seen += [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    assert not [text for text in seen if KEY in text]


async def test_text_arrives_as_it_was_sent(server: AnthropicServer, model: LoadedModel) -> None:
    odd = "  two  spaces\n\n\u2028 \x1b[31m 👩‍👩‍👧 \\u0041 data: x\n\nevent: y"
    server.push(message(text(odd)))
    came, error = await collected(model)
    assert error is None
    assert "".join(event.text for event in came if isinstance(event, TextDelta)) == odd
