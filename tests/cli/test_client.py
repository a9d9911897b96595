"""The command line's HTTP client against a server that answers oddly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from app.cli.client import ServiceClient
from app.core.errors import AprendizError, Unauthenticated, Unavailable, UpstreamError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[ServiceClient]:
    app = web.Application()
    app.router.add_route("*", "/x", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with ServiceClient(f"http://{host}:{port}", "the key") as client:
            yield client
    finally:
        await runner.cleanup()


def stream(*pieces: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    return handler


def answer(status: int, text: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        assert request.headers["authorization"] == "Bearer the key"
        return web.Response(status=status, text=text, content_type="application/problem+json")

    return handler


async def test_events_may_be_split_anywhere() -> None:
    text = ': hello\n\nevent: delta\ndata: {"text": "añ"}\n\nevent: done\r\ndata: {"id":\r\ndata: 1}\r\n\r\n'.encode()
    async with served(stream(*(text[index : index + 1] for index in range(len(text))))) as client:
        found = [event async for event in client.events("/x", {})]
    assert found == [("delta", {"text": "añ"}), ("done", {"id": 1})]


async def test_a_problem_in_the_stream_is_raised() -> None:
    async with served(stream(b'event: problem\ndata: {"status": 503, "detail": "The engine died."}\n\n')) as client:
        with pytest.raises(Unavailable, match=r"The engine died\."):
            [event async for event in client.events("/x", {})]


@pytest.mark.parametrize(
    ("status", "text", "kind", "words"),
    [
        (401, '{"detail": "Log in."}', Unauthenticated, "Log in."),
        (422, '{"detail": "prompt is empty."}', AprendizError, "prompt is empty."),
        (500, "<html>", AprendizError, "status 500"),
        (502, "[1]", AprendizError, "status 502"),
        (200, "<html>", UpstreamError, "is it an Aprendiz service"),
    ],
)
async def test_problems_become_errors(status: int, text: str, kind: type[AprendizError], words: str) -> None:
    async with served(answer(status, text)) as client:
        with pytest.raises(kind, match=words):
            await client.get("/x")


async def test_a_broken_stream_of_json_is_an_error_of_the_service() -> None:
    async with served(stream(b"event: delta\ndata: {broken\n\n")) as client:
        with pytest.raises(UpstreamError):
            [event async for event in client.events("/x", {})]


async def test_a_connection_that_breaks_off_is_no_end() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'event: delta\ndata: {"text": "half"}\n\n')
        assert request.transport is not None
        request.transport.abort()
        return response

    async with served(handler) as client:
        with pytest.raises((UpstreamError, Unavailable)):
            [event async for event in client.events("/x", {})]


async def test_nobody_there_and_no_address() -> None:
    for url in ("http://127.0.0.1:1", "not a url", "ftp://127.0.0.1"):
        async with ServiceClient(url, None) as client:
            with pytest.raises(Unavailable, match="No service answers"):
                await client.get("/x")
