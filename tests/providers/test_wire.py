"""The client against servers that misbehave: real sockets, each fault one of our errors, nothing hangs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import (
    AprendizError,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    PayloadTooLarge,
    UnknownModel,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from app.core.types import (
    Event,
    Finished,
    GenerationRequest,
    Message,
    ReasoningDelta,
    Sampling,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
    fold,
)
from app.providers.wire import WireClient, chat_body

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
SECRET = "third party says: /etc/secret"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(
    runtime_dir: Path, script: Script, *, read_timeout_s: float = 20, seen: list[bytes] | None = None
) -> AsyncIterator[WireClient]:
    """A server that reads one request a connection and then does what ``script`` says. ``seen`` gets the bodies."""
    path = str(runtime_dir / "s.sock")
    tasks: set[asyncio.Task[None] | None] = set()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
            body = await reader.readexactly(length)
            if seen is not None:
                seen.append(body)
            await script(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    listener = await asyncio.start_unix_server(on_connection, path)
    lost = EngineUnavailable("lost")
    client = WireClient("http://engine", socket=path, api_key="k", read_timeout_s=read_timeout_s, lost=lambda: lost)
    try:
        yield client
    finally:
        await client.aclose()
        listener.close()
        await listener.wait_closed()
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


def says(*pieces: bytes, pause: bool = True) -> Script:
    """Sends the pieces, each in its own segment, and closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause:
                await asyncio.sleep(0.002)

    return script


def chunk(content: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    body = {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


USAGE = chunk(usage={"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}})
DONE = b"data: [DONE]\n\n"


async def collect(client: WireClient) -> list[Event]:
    async with asyncio.timeout(15):
        return [event async for event in client.stream_chat({"messages": []})]


async def test_whole_answer(runtime_dir: Path) -> None:
    pieces = (HEAD, chunk("Hel"), chunk("lo"), chunk(finish="stop"), USAGE, DONE)
    async with server(runtime_dir, says(*pieces)) as client:
        events = await collect(client)
    assert events == [TextDelta("Hel"), TextDelta("lo"), Finished("stop", Usage(7, 2, 3))]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_events_split_anywhere(runtime_dir: Path, size: int) -> None:
    stream = (
        b": ping\r\n\r\n" + chunk("ñ漢🙂").replace(b"\n\n", b"\r\n\r\n") + b"event: x\nid: 3\n" + chunk(finish="length") + DONE
    )
    parts = [stream[at : at + size] for at in range(0, len(stream), size)]
    async with server(runtime_dir, says(HEAD, *parts, pause=False)) as client:
        answer = await fold(client.stream_chat({}))
    assert (answer.text, answer.finish_reason) == ("ñ漢🙂", "length")


async def test_data_over_several_lines_and_without_space(runtime_dir: Path) -> None:
    raw = b'data:{"choices":\ndata: [{"delta":{"content":"x"},\ndata: "finish_reason":"stop"}]}\n\n'
    async with server(runtime_dir, says(HEAD, raw, DONE)) as client:
        assert (await fold(client.stream_chat({}))).text == "x"


async def test_tool_calls_reasoning_and_logprobs(runtime_dir: Path) -> None:
    def delta(**fields: Any) -> bytes:
        return b"data: " + json.dumps({"choices": [{"delta": fields}]}).encode() + b"\n\n"

    logprobs = {"content": [{"token": "x", "logprob": -0.5, "top_logprobs": []}]}
    pieces = (
        delta(role="assistant", content=None),
        delta(reasoning_content="hm"),
        delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
        b"data: " + json.dumps({"choices": [{"delta": {"content": "x"}, "logprobs": logprobs}]}).encode() + b"\n\n",
        chunk(finish="tool_calls"),
        DONE,
    )
    async with server(runtime_dir, says(HEAD, *pieces)) as client:
        events = await collect(client)
    assert events[0] == ReasoningDelta("hm")
    assert events[1] == ToolCallDelta(0, id="c1", name="f")
    assert events[4:6] == [TextDelta("x"), TokenLogprobs(({"token": "x", "logprob": -0.5, "top_logprobs": []},))]
    assert events[-1] == Finished("tool_calls", Usage())


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ((HEAD, chunk("a")), UpstreamError),  # ends without an end
        ((HEAD, chunk("a"), DONE), UpstreamError),  # says done, not why
        ((HEAD, b"data: {nonsense\n\n"), UpstreamError),
        ((HEAD, b'data: {"choices": "text"}\n\n'), UpstreamError),
        ((HEAD, b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n'), UpstreamError),
        ((HEAD, b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'), UpstreamError),
        ((HEAD, b"data: " + b"[" * 100_000 + b"\n\n"), UpstreamError),
        ((HEAD, b'data: {"choices":[{"delta":{"tool_calls":[{"index":99999999}]}}]}\n\n'), UpstreamError),
        ((HEAD, b"data: " + b"x" * (5 << 20)), UpstreamError),  # a line without end
        ((HEAD, *([b"data: " + b"x" * (1 << 20) + b"\n"] * 5)), UpstreamError),  # an event without end
        ((HEAD, b'data: {"error":{"code":500,"message":"' + SECRET.encode() + b'"}}\n\n'), UpstreamError),
        ((HEAD, b'data: {"error":"' + SECRET.encode() + b'"}\n\n'), UpstreamError),
        ((HEAD, b'data: {"error":{"type":"exceed_context_size_error","n_ctx":99}}\n\n'), InvalidRequest),
        ((b"garbage\r\n\r\n" * 3,), UpstreamError),
        ((b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",), UpstreamError),
        ((b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",), UpstreamError),
        ((b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n",), UpstreamError),
        ((b"",), EngineUnavailable),  # closed without a word
        ((HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 999\r\n\r\n"), chunk("a")), EngineUnavailable),  # cut
        ((HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), b"zz\r\n"), UpstreamError),
        ((HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), b"9\r\ndata:"), EngineUnavailable),
        ((HEAD, chunk("a"), chunk(finish="stop")), UpstreamError),  # neither [DONE] nor a framed end: it may be cut
        ((b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", b'{"error":{"code":429}}'), UpstreamBusy),
    ],
)
async def test_faults_become_our_errors(runtime_dir: Path, pieces: tuple[bytes, ...], error: type[AprendizError]) -> None:
    async with server(runtime_dir, says(*pieces)) as client:
        with pytest.raises(error) as caught:
            await collect(client)
    assert "secret" not in caught.value.detail


def refusal(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (refusal(400, b'{"error":{"message":"' + SECRET.encode() + b'"}}'), InvalidRequest, "cannot take this request"),
        (refusal(400, b"not json"), InvalidRequest, "cannot take this request"),
        (refusal(400, b'{"error":{"param":"tools[0].function.name"}}'), InvalidRequest, "refuses tools"),
        (refusal(422, b'{"error":{"param":"/etc/secret"}}'), InvalidRequest, "cannot take this request"),
        (
            refusal(400, b'{"object":"error","message":"This model\'s maximum context length is 9 tokens.","code":400}'),
            ContextOverflow,
            "does not fit",
        ),
        (
            refusal(400, b'{"error":{"type":"exceed_context_size_error","n_prompt_tokens":30,"n_ctx":20}}'),
            ContextOverflow,
            "30 tokens.*at most 20",
        ),
        (refusal(400, b'{"error":{"code":"context_length_exceeded"}}'), ContextOverflow, "does not fit"),
        (refusal(413), PayloadTooLarge, "too large"),
        (refusal(401, SECRET.encode()), UpstreamRefused, "credentials"),
        (refusal(402), UpstreamRefused, "money"),
        (refusal(403), UpstreamRefused, "credentials"),
        (refusal(429, b'{"error":{"type":"insufficient_quota","code":"insufficient_quota"}}'), UpstreamRefused, "money"),
        (refusal(404, b'{"error":{"code":"model_not_found"}}'), UnknownModel, "does not know"),
        (refusal(404, b'{"object":"error","message":"no such model","code":404}'), UnknownModel, "does not know"),
        (refusal(404, b'{"detail":"Not Found"}'), UpstreamError, "no such API"),
        (refusal(302, Location="http://127.0.0.1/"), UpstreamError, "redirects"),
        (refusal(408), UpstreamTimeout, "in time"),
        (refusal(500, SECRET.encode()), UpstreamError, "500"),
        (refusal(503), UpstreamBusy, "busy"),
        (refusal(529), UpstreamBusy, "busy"),
        (refusal(504), UpstreamTimeout, "in time"),
    ],
)
async def test_statuses_become_our_errors(runtime_dir: Path, response: bytes, error: type[AprendizError], words: str) -> None:
    async with server(runtime_dir, says(response)) as client:
        with pytest.raises(error, match=words) as caught:
            await collect(client)
    assert type(caught.value) is error
    assert "secret" not in caught.value.detail


async def test_retry_after_is_passed_on_and_bounded(runtime_dir: Path) -> None:
    for value, seconds in (("7", 7), ("99999999", 3600), ("soon", None), ("-3", None)):
        async with server(runtime_dir, says(refusal(429, Retry_After=value))) as client:
            with pytest.raises(UpstreamBusy) as caught:
                await collect(client)
        assert caught.value.retry_after == seconds
        (runtime_dir / "s.sock").unlink(missing_ok=True)


async def test_silence_is_a_timeout(runtime_dir: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk("a"))
        await writer.drain()
        await reader.read()

    async with server(runtime_dir, script, read_timeout_s=0.2) as client:
        with pytest.raises(UpstreamTimeout):
            await collect(client)


async def test_nobody_there(runtime_dir: Path) -> None:
    client = WireClient("http://engine", socket=str(runtime_dir / "none.sock"), lost=lambda: EngineUnavailable("gone"))
    with pytest.raises(EngineUnavailable, match="gone"):
        await collect(client)
    assert not await client.healthy(timeout_s=1)
    await client.aclose()
    assert not await client.healthy(timeout_s=1)
    with pytest.raises(EngineUnavailable, match="gone"):
        await collect(client)


@pytest.mark.parametrize("first", [b"", HEAD, HEAD + chunk("a")])
async def test_closing_the_client_ends_what_waits(runtime_dir: Path, first: bytes) -> None:
    reached = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        reached.set()
        await reader.read()

    async with server(runtime_dir, script) as client:
        task = asyncio.create_task(collect(client))
        await reached.wait()
        await asyncio.sleep(0.05)
        await client.aclose()
        with pytest.raises(EngineUnavailable):
            await task


@pytest.mark.parametrize("how", ["aclose", "cancel", "break"])
async def test_leaving_early_closes_the_connection_at_once(runtime_dir: Path, how: str) -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk("a"))
        await writer.drain()
        if await reader.read() == b"":
            gone.set()

    async with server(runtime_dir, script) as client:
        stream = client.stream_chat({})
        assert await anext(stream) == TextDelta("a")
        if how == "cancel":
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await stream.aclose()
        async with asyncio.timeout(5):
            await gone.wait()


async def test_whole_json_answers_are_bounded_and_checked(runtime_dir: Path) -> None:
    async with server(runtime_dir, says(refusal(200, b'{"a": 1}'))) as client:
        assert await client.json("GET", "/props") == {"a": 1}
    (runtime_dir / "s.sock").unlink(missing_ok=True)
    async with server(runtime_dir, says(refusal(200, b"<html>"))) as client:
        with pytest.raises(UpstreamError):
            await client.json("GET", "/props")


async def test_what_came_together_is_one_batch(runtime_dir: Path) -> None:
    together = chunk("a") + chunk("b")
    async with server(runtime_dir, says(HEAD, together, chunk("c") + chunk(finish="stop") + DONE)) as client:
        async with asyncio.timeout(15):
            batches = [batch async for batch in client.batches_chat({})]
    assert batches == [[TextDelta("a"), TextDelta("b")], [TextDelta("c"), Finished("stop", Usage())]]


async def test_good_events_come_before_the_fault_behind_them(runtime_dir: Path) -> None:
    async with server(runtime_dir, says(HEAD, chunk("a") + b"data: {nonsense\n\n")) as client:
        stream = client.batches_chat({})
        assert list(await anext(stream)) == [TextDelta("a")]
        with pytest.raises(UpstreamError):
            await anext(stream)


WHOLE = json.dumps(
    {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
).encode()


async def test_an_answer_in_one_piece(runtime_dir: Path) -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(refusal(200, WHOLE, Content_Type="application/json; charset=utf-8"))

    async with server(runtime_dir, script, seen=seen) as client:
        body = {"messages": [], "stream": True, "stream_options": {"include_usage": True}}
        assert await client.whole_chat(body) == [TextDelta("Hi"), Finished("stop", Usage(1))]
        assert body["stream"] is True
    assert json.loads(seen[0]) == {"messages": [], "stream": False}


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (refusal(200, WHOLE, Content_Type="text/html"), UpstreamError),
        (refusal(200, WHOLE[:-5], Content_Type="application/json"), UpstreamError),
        (refusal(200, b'{"error":{"code":"insufficient_quota"}}', Content_Type="application/json"), UpstreamRefused),
        (refusal(200, b'{"choices":[]}', Content_Type="application/json"), UpstreamError),
        (refusal(200, WHOLE, Content_Type="application/json")[:-5], EngineUnavailable),
        (refusal(429), UpstreamBusy),
        (b"", EngineUnavailable),
    ],
)
async def test_faults_of_answers_in_one_piece(runtime_dir: Path, response: bytes, error: type[AprendizError]) -> None:
    async with server(runtime_dir, says(response)) as client:
        with pytest.raises(error) as caught:
            await client.whole_chat({})
    assert type(caught.value) is error


async def test_a_finished_stream_leaves_its_connection_for_the_next(runtime_dir: Path) -> None:
    """[DONE] ends the answer; the terminating chunk comes a moment later, and the connection is kept all the same."""
    connections = 0
    stream = chunk("a") + chunk(finish="stop") + DONE
    framed = HEAD.replace(b"Connection: close", b"Transfer-Encoding: chunked") + b"%x\r\n%s\r\n" % (len(stream), stream)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            head = await reader.read(1 << 16)
            if not head:
                break
            writer.write(framed)
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(b"0\r\n\r\n")
        writer.close()

    listener = await asyncio.start_unix_server(serve, str(runtime_dir / "k.sock"))
    client = WireClient("http://engine", socket=str(runtime_dir / "k.sock"))
    for _ in range(3):
        assert [type(event) for event in await collect(client)] == [TextDelta, Finished]
        await asyncio.sleep(0.03)
    assert connections == 1
    await client.aclose()
    await asyncio.sleep(0.02)
    listener.close()
    await listener.wait_closed()


async def test_the_key_is_sent_and_never_shown(runtime_dir: Path) -> None:
    client = WireClient("http://127.0.0.1:1", api_key="sk-canary", headers={"X-Extra": "canary"})
    assert "canary" not in repr(client) + repr(vars(client))
    await client.aclose()


async def test_half_a_surrogate_pair_is_the_callers_error(runtime_dir: Path) -> None:
    client = WireClient("http://127.0.0.1:1")
    with pytest.raises(InvalidRequest):
        await client.whole_chat({"messages": [{"role": "user", "content": "\ud800"}]})
    await client.aclose()


def test_the_body_holds_what_was_asked_and_nothing_else() -> None:
    request = GenerationRequest((Message("user", "hi"),))
    assert chat_body(request, max_tokens=9, temperature=0.2) == {
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "temperature": 0.2,
    }
    sampling = Sampling(
        max_tokens=1, temperature=0.0, stop=("x",), seed=0, logprobs=0, tools=({"type": "function"},), logit_bias={"5": -1.0}
    )
    body = chat_body(GenerationRequest((), sampling=sampling), max_tokens=9, temperature=0.2)
    assert body["temperature"] == 0.0
    assert body["seed"] == 0
    assert (body["logprobs"], body["top_logprobs"]) == (True, 0)
    assert (body["max_tokens"], body["stop"], body["tools"], body["logit_bias"]) == (
        1,
        ["x"],
        [{"type": "function"}],
        {"5": -1.0},
    )
