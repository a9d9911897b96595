"""The client of the OpenAI chat format: one request in, our events out, every fault as one of our errors.

Engines speak it over a private Unix socket; remote servers speak it over TCP. It holds no policy: no retries, no queue, no
fallback. Text that the other side wrote into an error is logged and never shown to a caller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import msgspec

from app.core.errors import (
    AprendizError,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    UnknownModel,
    UpstreamError,
    UpstreamTimeout,
)
from app.core.types import Event, GenerationRequest
from app.providers.chunks import ChunkReader, error_of, sampling_fields
from app.providers.sse import EventTooLarge, SseParser

_CONNECT_TIMEOUT_S = 10.0
_MAX_WHOLE_BYTES = 64 << 20
_MAX_ERROR_BYTES = 1 << 16
_LOGGED_CHARACTERS = 500

logger = logging.getLogger(__name__)


def _unreachable() -> AprendizError:
    return UpstreamError("The model provider cannot be reached, or cut the connection. Try again.", retry_after=5)


class WireClient:
    """One server of the OpenAI format, with one pool of connections.

    Args:
        base_url: ``http://engine`` with ``socket``, or the server's address. Paths are added to it.
        socket: path of a Unix socket, or None for TCP.
        api_key: sent as ``Authorization: Bearer``, if any.
        read_timeout_s: longest silence between two pieces of an answer.
        lost: makes the error for a refused or cut connection.
        keep_alive: keep connections for later requests. Off for engines: a kept connection holds one of their few HTTP threads.
    """

    def __init__(
        self,
        base_url: str,
        *,
        socket: str | None = None,
        api_key: str | None = None,
        read_timeout_s: float = 300,
        lost: Callable[[], AprendizError] = _unreachable,
        keep_alive: bool = True,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._lost = lost
        self._waiting: set[asyncio.Timeout] = set()
        self._responses: set[aiohttp.ClientResponse] = set()
        connector: aiohttp.BaseConnector
        if socket is not None:
            connector = aiohttp.UnixConnector(path=socket, limit=0, force_close=not keep_alive)
        else:
            connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive)
        headers = {"Accept-Encoding": "identity"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=read_timeout_s),
        )

    async def aclose(self) -> None:
        """Cuts every connection; what still waits or streams ends with the ``lost`` error."""
        # aiohttp closes the transports and leaves their readers waiting for ever; so each is told.
        now = asyncio.get_running_loop().time()
        for scope in tuple(self._waiting):
            scope.reschedule(now)
        for response in tuple(self._responses):
            response.close()
        await self._session.close()

    async def stream_chat(self, body: Mapping[str, Any], *, path: str = "/v1/chat/completions") -> AsyncGenerator[Event, None]:
        """Posts ``body`` (see `chat_body`) and yields deltas, then exactly one Finished.

        Closing the generator closes the connection at once, which cancels the work at the other end.

        Raises:
            UpstreamError, UpstreamTimeout: nonsense, an error inside the stream, a cut or silent stream.
            InvalidRequest: the server refuses the request (a prompt longer than its context, say).
            the ``lost`` error: the connection was refused or cut.
        """
        async with self._open("POST", path, json=body) as response:
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                await self._refuse_answer(response)
            reader, parser = ChunkReader(), SseParser()
            async for piece in response.content.iter_any():
                try:
                    payloads = parser.feed(piece)
                except EventTooLarge:
                    raise UpstreamError("The model provider sent an answer that is too large to be one.") from None
                for payload in payloads:
                    if payload == b"[DONE]":
                        yield reader.finish()
                        return
                    for event in reader.read(payload):
                        yield event
            yield reader.finish()

    async def json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One call with a JSON answer. Raises as `stream_chat` does."""
        async with self._open(method, path, json=body) as response:
            return await self._whole(response)

    async def healthy(self, *, timeout_s: float) -> bool:
        """Whether ``GET /health`` answers 200 within ``timeout_s`` seconds. Never raises for the server's faults."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.get(self._base_url + "/health", allow_redirects=False) as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError, RuntimeError):  # RuntimeError: the session is closed
            return False

    @asynccontextmanager
    async def _open(self, method: str, path: str, *, json: Mapping[str, Any] | None) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with status 200; whatever aiohttp raises, here or while the body is read, leaves as one of our errors."""
        if self._session.closed:
            raise self._lost()
        data = None if json is None else msgspec.json.encode(json)
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            response = await self._head(method, path, data, headers)
            self._responses.add(response)
            try:
                with _ended_with_connection(response):
                    if response.status != 200:
                        raise await self._status_error(response)
                    yield response
            finally:
                self._responses.discard(response)
                response.close()  # not release(): that would read on, and the other end would work on
        except TimeoutError as error:
            if self._session.closed:
                raise self._lost() from error
            raise UpstreamTimeout("The model provider fell silent for too long. Try again.") from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            logger.info("a connection to a model server was lost", extra={"data": {"error": repr(error)[:_LOGGED_CHARACTERS]}})
            raise self._lost() from error
        except (aiohttp.ClientError, ValueError) as error:
            logger.warning("a model server sent bad HTTP", extra={"data": {"error": repr(error)[:_LOGGED_CHARACTERS]}})
            raise UpstreamError("The model provider sent an answer that is not HTTP.") from error

    async def _head(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Sends the request and waits for the head of the response; a scope that `aclose` ends."""
        async with asyncio.timeout(None) as scope:
            self._waiting.add(scope)
            try:
                return await self._session.request(
                    method, self._base_url + path, data=data, headers=headers, allow_redirects=False
                )
            finally:
                self._waiting.discard(scope)

    async def _whole(self, response: aiohttp.ClientResponse, *, limit: int = _MAX_WHOLE_BYTES) -> Any:
        raw = await _read_bounded(response, limit)
        try:
            return msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamError("The model provider sent an answer that is not JSON.") from error

    async def _refuse_answer(self, response: aiohttp.ClientResponse) -> None:
        raw = await _read_bounded(response, _MAX_ERROR_BYTES)
        _log_refusal(200, raw)
        raise UpstreamError("The model provider did not answer with a stream of events.")

    async def _status_error(self, response: aiohttp.ClientResponse) -> AprendizError:
        raw = await _read_bounded(response, _MAX_ERROR_BYTES)
        _log_refusal(response.status, raw)
        return status_error(response.status, raw, response.headers.get("Retry-After"))


def status_error(status: int, raw: bytes, retry_after: str | None) -> AprendizError:
    """Our error for an HTTP status that is not 200. ``raw``: the body, for known fields only; its text is not passed on."""
    if status in (400, 413, 422):
        return _request_error(status, raw)
    if status in (429, 503):
        seconds = float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 5.0
        return Overloaded("The model provider is busy. Try again later.", retry_after=min(seconds, 3600))
    if status in (408, 504):
        return UpstreamTimeout("The model provider did not answer in time. Try again.")
    if status in (401, 403):
        return UpstreamError("The model provider refused our credentials; an administrator must check them.")
    if status == 404:
        return UnknownModel("The model provider does not know this model.")
    return UpstreamError(f"The model provider answered with status {status}.")


def _request_error(status: int, raw: bytes) -> AprendizError:
    error = error_of(raw)
    if error.type == "exceed_context_size_error" or error.code == "context_length_exceeded":
        size = f" has {error.n_prompt_tokens} tokens and" if error.n_prompt_tokens else ""
        limit = f" (at most {error.n_ctx} tokens)" if error.n_ctx else ""
        return InvalidRequest(f"The prompt{size} does not fit into the model's context{limit}. Shorten it.", field="messages")
    if status == 413:
        return PayloadTooLarge("The model provider finds the request too large.")
    return InvalidRequest("The model cannot take this request: check messages, tools and response_format.")


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


@contextmanager
def _ended_with_connection(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Ends the body when its connection is gone.

    aiohttp leaves the reader waiting, without even the read timeout, where broken chunking made it close the connection.
    """
    content = response.content
    protocol = None if response.connection is None else response.connection.protocol
    closed = None if protocol is None else protocol.closed

    def end(future: asyncio.Future[None]) -> None:
        _seen(future)
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection ended within the body"))

    if closed is None:
        yield
        return
    closed.add_done_callback(end)
    try:
        yield
    finally:
        closed.remove_done_callback(end)
        closed.remove_done_callback(_seen)  # once is enough for a connection that serves many requests
        closed.add_done_callback(_seen)


def _seen(future: asyncio.Future[None]) -> None:
    """Looks at the exception, so that the loop does not complain of one that nobody saw."""
    if not future.cancelled():
        future.exception()


async def _read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        parts.append(piece)
        size += len(piece)
        if size > limit:
            raise UpstreamError("The model provider sent an answer that is too large to be one.")
    return b"".join(parts)


def _log_refusal(status: int, raw: bytes) -> None:
    """The text itself only at DEBUG: servers quote prompts in it."""
    error = error_of(raw)
    data = {"status": status, "type": error.type, "code": error.code}
    logger.log(logging.INFO if status < 500 else logging.WARNING, "a model server refused a request", extra={"data": data})
    logger.debug("its words", extra={"data": {"body": raw[:_LOGGED_CHARACTERS].decode("utf-8", "replace")}})
