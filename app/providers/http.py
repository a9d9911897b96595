"""A small HTTP/1.1 client for model servers, over TCP, TLS or a Unix socket (ADR 0013).

It keeps connections, follows no redirect, keeps no cookie, knows no proxy, sends only whole bodies and takes only unpacked
ones. It holds no policy: no retry but the one that HTTP itself needs, no total deadline, no format.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from app.core.errors import ConfigurationError, InvalidRequest, UpstreamError, UpstreamUnreachable
from app.providers.http_address import is_public, parse_base_url, resolve
from app.providers.http_connection import HttpConnection, StaleConnection
from app.providers.http_pool import HttpPool

_LOGGED_CHARACTERS = 200
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE = re.compile(r"(?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]{0,16382}[!-~\x80-\xff])?)?")
_TARGET = re.compile(r"/[!-~]{0,8191}")
_MAX_KNOWN_HEADS = 64
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "te", "upgrade", "expect"})

logger = logging.getLogger(__name__)


class HttpResponse:
    """A response whose head has come. Valid within its ``async with`` block."""

    __slots__ = ("_connection", "_fields", "_headers", "status")

    def __init__(self, connection: HttpConnection) -> None:
        self._connection: HttpConnection | None = connection
        self._fields = connection.fields
        self._headers: Mapping[str, str] | None = None
        self.status = connection.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case; values of repeated ones joined by a comma."""
        if self._headers is None:
            self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._fields.items()}
        return self._headers

    @property
    def framed(self) -> bool:
        """Whether the body says itself where it ends; otherwise the end of the connection ends it, cut or not."""
        return self._bound().framed

    async def piece(self) -> bytes:
        """What of the body came since the last call: at least one byte, or none at its true end.

        Raises:
            UpstreamUnreachable: the connection was cut before the end of the body.
            UpstreamTimeout: silence. UpstreamError: what came is not HTTP.
        """
        return await self._bound().piece()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; ends only at its true end. Raises as `piece` does."""
        while data := await self._bound().piece():
            yield data

    async def read(self, *, limit: int) -> bytes:
        """The whole body. Raises as `piece` does, and UpstreamError where it has more than ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        while data := await self._bound().piece():
            parts.append(data)
            size += len(data)
            if size > limit:
                raise UpstreamError("The model provider sent an answer that is too large to be one.")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def end_is_near(self) -> None:
        """All that matters of the body has been read: leaving does not cut the connection if the rest comes soon."""
        self._bound().end_is_near()

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.leave()

    def _bound(self) -> HttpConnection:
        if self._connection is None:
            raise RuntimeError("the response was left")
        return self._connection


class HttpClient:
    """One server, with its pool of connections. Belongs to the event loop in which it is first used.

    Args:
        base_url: ``http://`` or ``https://``, host, perhaps port and path; each request's path is added to it.
        socket: path of a Unix socket; the host in ``base_url`` is then only a name.
        headers: go with every request; the key is among them.
        connect_timeout_s: longest time to resolve, connect and shake hands.
        read_timeout_s: longest silence: until the head of a response, and between two pieces of its body.
        keep_alive: keep connections for later requests.
        allow_private: the host may be, or lead to, an address that is not public.
        tls: for tests and private authorities; else the system's certificates are trusted. There is always a check.

    Raises:
        ConfigurationError: the address or a header cannot be.
    """

    def __init__(
        self,
        base_url: str,
        *,
        socket: str | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 300,
        keep_alive: bool = True,
        allow_private: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._address = parse_base_url(base_url)
        literal = self._address.literal
        if not allow_private and socket is None and literal is not None and not is_public(literal):
            raise ConfigurationError("base_url is a private address; allow it with `private: true`.")
        self._socket = socket
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._allow_private = allow_private
        self._tls = (tls or _default_tls()) if self._address.tls and socket is None else None
        try:
            own = _header_lines(headers or {})
        except InvalidRequest as error:
            raise ConfigurationError(error.detail) from None
        kept = "" if keep_alive else "Connection: close\r\n"
        fixed = f" HTTP/1.1\r\nHost: {self._address.host_header}\r\nUser-Agent: aprendiz\r\nAccept-Encoding: identity\r\n{kept}"
        self._fixed = fixed.encode("ascii") + own
        self._prefix = self._address.prefix
        self._known_heads: dict[tuple[str, str], bytes] = {}
        self._pool = HttpPool(keep_alive=keep_alive)
        self._connecting: set[asyncio.Timeout] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"HttpClient({self._address.scheme}://{self._address.host_header})"

    def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """Sends a request; ``async with`` gives the response when its head has come, whatever its status.

        Leaving the block before the end of the body cuts the connection at once, which tells the other side to stop.

        Args:
            path: from ``/`` on, percent-encoded, with the query if any.

        Raises:
            UpstreamUnreachable: no connection came about, or it was cut; or the client is closed.
            UpstreamTimeout: silence. UpstreamError: what came is not HTTP, too large a head, or a packed body.
            InvalidRequest: a header or the path holds characters that HTTP does not allow.
        """
        return _Exchange(self, self._request_bytes(method, path, body, headers))

    async def aclose(self) -> None:
        """Cuts every connection; what still waits or streams ends with UpstreamUnreachable. May be called twice."""
        self._closed = True
        now = asyncio.get_running_loop().time()
        for scope in tuple(self._connecting):
            scope.reschedule(now)
        self._pool.close(_closed())
        await asyncio.sleep(0)  # transports tell that they are closed in the next round of the loop

    def _request_bytes(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None) -> bytes:
        parts = [self._known_heads.get((method, path)) or self._head(method, path)]
        if headers:
            parts.append(_header_lines(headers))
        if body is None:
            parts.append(b"\r\n")
        else:
            parts += (b"Content-Length: %d\r\n\r\n" % len(body), body)
        return b"".join(parts)

    def _head(self, method: str, path: str) -> bytes:
        """The request line and the headers that are always the same; remembered, for paths are few."""
        target = self._prefix + path
        if _TARGET.fullmatch(target) is None:
            raise InvalidRequest("The path of a request to the model provider holds characters that it must not.")
        head = f"{method} {target}".encode("ascii") + self._fixed
        if len(self._known_heads) < _MAX_KNOWN_HEADS:
            self._known_heads[method, path] = head
        return head

    async def _send(self, data: bytes) -> HttpConnection:
        """A connection on which ``data`` was sent and the head of the response has come."""
        self._check_open()
        connection = self._pool.take()
        if connection is not None:
            try:
                return await _ask(connection, data)
            except StaleConnection:
                logger.debug("a kept connection was stale")
        return await _ask(await self._connect(), data)

    async def _connect(self) -> HttpConnection:
        try:
            async with asyncio.timeout(self._connect_timeout_s) as scope:
                self._connecting.add(scope)
                try:
                    connection = await self._open()
                finally:
                    self._connecting.discard(scope)
        except TimeoutError as error:
            self._check_open()
            raise UpstreamUnreachable("The model provider did not take a connection in time.", retry_after=5) from error
        except ssl.SSLError as error:
            _log_failure(error)
            raise UpstreamUnreachable("No secure connection to the model provider came about.", retry_after=5) from error
        except OSError as error:
            _log_failure(error)
            raise UpstreamUnreachable("The model provider cannot be reached. Try again.", retry_after=5) from error
        return connection

    async def _open(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            _, connection = await loop.create_unix_connection(self._new, self._socket)
            return connection
        hosts = await resolve(self._address, allow_private=self._allow_private)
        name = self._address.host.rstrip(".") if self._tls is not None else None
        for last, host in ((host is hosts[-1], host) for host in hosts):
            try:
                _, connection = await loop.create_connection(
                    self._new, host, self._address.port, ssl=self._tls, server_hostname=name
                )
            except ssl.SSLError:
                raise
            except OSError:
                if last:
                    raise
                continue
            return connection
        raise UpstreamUnreachable("The model provider's host name has no address.", retry_after=5)

    def _new(self) -> HttpConnection:
        return HttpConnection(self._pool, read_timeout_s=self._read_timeout_s)

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()


class _Exchange(AbstractAsyncContextManager[HttpResponse]):
    """One request and its response."""

    __slots__ = ("_client", "_data", "_response")

    def __init__(self, client: HttpClient, data: bytes) -> None:
        self._client = client
        self._data = data
        self._response: HttpResponse | None = None

    async def __aenter__(self) -> HttpResponse:
        self._response = response = HttpResponse(await self._client._send(self._data))
        return response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        response, self._response = self._response, None
        if response is not None:
            response._leave()


async def _ask(connection: HttpConnection, data: bytes) -> HttpConnection:
    try:
        connection.send(data)
        await connection.head()
    except BaseException:
        connection.abort()
        raise
    return connection


def _closed() -> UpstreamUnreachable:
    return UpstreamUnreachable("The connection to the model provider was closed. Try again.", retry_after=5)


def _default_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _header_lines(headers: Mapping[str, str]) -> bytes:
    """Raises InvalidRequest, which names the header and never its value."""
    for name, value in headers.items():
        if _TOKEN.fullmatch(name) is None or name.lower() in _OURS:
            raise InvalidRequest("A header for the model provider has a name that it must not have.")
        if _VALUE.fullmatch(value) is None:
            raise InvalidRequest(f"The header {name} for the model provider holds characters that HTTP does not allow.")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def _log_failure(error: OSError) -> None:
    logger.info("no connection to a model server", extra={"data": {"error": repr(error)[:_LOGGED_CHARACTERS]}})
