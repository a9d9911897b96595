"""The client of the OpenAI format: one request in, our events out, every fault as one of our errors.

Engines speak it over a private Unix socket; remote servers speak it over TCP and TLS. It holds no policy: no retries, no
queue, no fallback. Text that the other side wrote into an error is never shown to a caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from app.core.errors import AprendizError, InvalidRequest, UpstreamError, UpstreamUnreachable
from app.core.types import Event, GenerationRequest
from app.providers.base import flat
from app.providers.chunks import ChunkReader, sampling_fields
from app.providers.http import HttpClient, HttpResponse
from app.providers.sse import EventTooLarge, SseParser
from app.providers.wire_errors import body_error, status_error

CHAT = "/v1/chat/completions"
_MAX_WHOLE_BYTES = 64 << 20
_MAX_ERROR_BYTES = 1 << 16
_ERROR_S = 5.0
"""Longest wait for the body of an error; its status alone says most."""


class WireClient:
    """One server of the OpenAI format, with one pool of connections.

    Args:
        base_url: ``http://engine`` with ``socket``, or the server's address. Paths are added to it.
        socket: path of a Unix socket, or None for TCP.
        api_key: sent as ``Authorization: Bearer``, if any.
        headers: go with every request.
        connect_timeout_s: longest time to connect.
        read_timeout_s: longest silence: until an answer begins, and between two pieces of it.
        lost: makes the error for a refused or cut connection; else it is UpstreamUnreachable.
        keep_alive: keep connections for later requests. Off for engines: a kept connection holds one of their few HTTP threads.
        allow_private: the host may be, or lead to, an address that is not public.
        tls: see `HttpClient`.

    Raises:
        ConfigurationError: the address or a header cannot be.
    """

    def __init__(
        self,
        base_url: str,
        *,
        socket: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 300,
        lost: Callable[[], AprendizError] | None = None,
        keep_alive: bool = True,
        allow_private: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._lost = lost
        own = {"Content-Type": "application/json", **(headers or {})}
        if api_key is not None:
            own["Authorization"] = f"Bearer {api_key}"
        self._http = HttpClient(
            base_url,
            socket=socket,
            headers=own,
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
            keep_alive=keep_alive,
            allow_private=allow_private,
            tls=tls,
        )

    async def aclose(self) -> None:
        """Cuts every connection; what still waits or streams ends with the ``lost`` error."""
        await self._http.aclose()

    async def batches_chat(self, body: Mapping[str, Any], *, path: str = CHAT) -> AsyncGenerator[Sequence[Event], None]:
        """Posts ``body`` (see `chat_body`) and yields deltas, then exactly one Finished; what one read brought in one list.

        Closing the generator closes the connection at once, which cancels the work at the other end.

        Raises:
            UpstreamError, UpstreamTimeout: nonsense, an error inside the stream, a cut or silent stream.
            UpstreamBusy, UpstreamRefused, UnknownModel: as the server's status says.
            InvalidRequest: the server refuses the request; ContextOverflow: its prompt is too long.
            the ``lost`` error: the connection was refused or cut.
        """
        reader, parser = _reader(body), SseParser()
        events: list[Event] = []
        try:
            async with self._http.request("POST", path, body=_encoded(body)) as response:
                await _must_be(response, "text/event-stream")
                while piece := await response.piece():
                    events = reader.read(_payloads(parser, piece))
                    if reader.done:
                        response.end_is_near()
                        break
                    if events:
                        yield events
                    if reader.error is not None:
                        raise reader.error.again()
                else:
                    events = [_end(reader, response)]
        except UpstreamUnreachable as error:
            if self._lost is None:
                raise
            raise self._lost() from error
        yield events

    def stream_chat(self, body: Mapping[str, Any], *, path: str = CHAT) -> AsyncGenerator[Event, None]:
        """`batches_chat`, flat."""
        return flat(self.batches_chat(body, path=path))

    async def whole_chat(self, body: Mapping[str, Any], *, path: str = CHAT) -> Sequence[Event]:
        """The same answer, asked for in one piece: no events to parse. Raises as `batches_chat` does.

        It comes after one long silence, for which ``read_timeout_s`` must be long enough.
        """
        asked = {**body, "stream": False}
        asked.pop("stream_options", None)
        return _reader(body).whole(await self._whole("POST", path, asked, content_type="application/json"))

    async def json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One call with a JSON answer. Raises as `batches_chat` does."""
        raw = await self._whole(method, path, body)
        try:
            return msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamError("The model provider sent an answer that is not JSON.") from error

    async def healthy(self, *, timeout_s: float) -> bool:
        """Whether ``GET /health`` answers 200 within ``timeout_s`` seconds. Never raises for the server's faults."""
        try:
            async with asyncio.timeout(timeout_s), self._http.request("GET", "/health") as response:
                return response.status == 200
        except (UpstreamError, TimeoutError):
            return False

    async def _whole(self, method: str, path: str, body: Mapping[str, Any] | None, *, content_type: str = "") -> bytes:
        """The body of an answer with status 200."""
        data = None if body is None else _encoded(body)
        try:
            async with self._http.request(method, path, body=data) as response:
                await _must_be(response, content_type)
                return await response.read(limit=_MAX_WHOLE_BYTES)
        except UpstreamUnreachable as error:
            if self._lost is None:
                raise
            raise self._lost() from error


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        raise InvalidRequest("The request holds text that is not Unicode: half a surrogate pair.") from None


def _reader(body: Mapping[str, Any]) -> ChunkReader:
    stop = body.get("stop") or ()
    return ChunkReader((stop,) if isinstance(stop, str) else stop)


def _payloads(parser: SseParser, piece: bytes) -> list[bytes]:
    try:
        return parser.feed(piece)
    except EventTooLarge:
        raise UpstreamError("The model provider sent an answer that is too large to be one.") from None


def _end(reader: ChunkReader, response: HttpResponse) -> Event:
    """The closing event of a stream that ended without ``[DONE]``: good only where its framing shows that nothing was cut."""
    if not response.framed:
        raise UpstreamError("The answer was cut off before its end. Try again.")
    return reader.finish()


async def _must_be(response: HttpResponse, content_type: str) -> None:
    if response.status != 200:
        raise await _refusal(response)
    if not response.headers.get("content-type", "").lower().startswith(content_type):
        raise body_error(await _beginning(response))


async def _refusal(response: HttpResponse) -> AprendizError:
    return status_error(response.status, await _beginning(response), response.headers)


async def _beginning(response: HttpResponse) -> bytes:
    """What there is of the body of an error, if it comes soon; a cut within it says nothing new."""
    parts: list[bytes] = []
    size = 0
    with contextlib.suppress(UpstreamError, TimeoutError):
        async with asyncio.timeout(_ERROR_S):
            while size < _MAX_ERROR_BYTES and (piece := await response.piece()):
                parts.append(piece)
                size += len(piece)
    return b"".join(parts)[:_MAX_ERROR_BYTES]


def chat_body(request: GenerationRequest, *, max_tokens: int, temperature: float) -> dict[str, Any]:
    """The request in the OpenAI chat format, streaming, with usage.

    Args:
        max_tokens: longest answer where the request names none.
        temperature: where the request names none.
    """
    body: dict[str, Any] = {
        "messages": [message.to_wire() for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    body.update(sampling_fields(request.sampling))
    return body
