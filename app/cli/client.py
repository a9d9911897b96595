"""The command line's HTTP client of a running service: a few JSON calls and one stream. Not a client library.

Problems (RFC 9457) become our typed errors again, so that every command fails with one clear line.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, BinaryIO, Self

import aiohttp

from app.core.errors import AprendizError, TooManyRequests, Unauthenticated, Unavailable, UpstreamError

_MAX_EVENT = 8 << 20
_CONNECT_S = 5.0
_CALL_S = 600.0
"""Loading a model may take minutes."""


class ServiceClient:
    """One service and one credential. Use as ``async with``.

    All methods raise Unavailable where nothing answers at the address, Unauthenticated for a refused credential, and
    AprendizError with the service's own words for every other problem.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, *, accept: int | None = None) -> Any:
        """The JSON that ``path`` answers; with the status ``accept`` too."""
        return await self._call("GET", path, None, accept=accept)

    async def text(self, path: str) -> str:
        """What ``path`` answers, as text."""
        async with self._request("GET", path, None, total=_CALL_S) as response:
            await self._check(response)
            return await response.text()

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Sends ``body`` and returns the JSON answer."""
        return await self._call("POST", path, body)

    async def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """A call by any method, and the JSON answer; None where there is nothing to say."""
        return await self._call(method, path, body)

    async def upload(self, path: str, content: BinaryIO, *, name: str, fields: Mapping[str, str]) -> Any:
        """Sends a file as it is read, as the part ``file`` of a form, and returns the JSON answer."""
        form = aiohttp.FormData()
        for field, value in fields.items():
            form.add_field(field, value)
        form.add_field("file", content, filename=name)
        async with self._request("POST", path, None, total=_CALL_S, form=form) as response:
            await self._check(response)
            return await response.json(content_type=None)

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Sends ``body`` and yields each server-sent event as ``(name, data)``. Closing it early closes the connection.

        The event ``problem`` is raised as an error, not yielded.
        """
        async with contextlib.aclosing(self._events("POST", path, body)) as events:
            async for _, name, data in events:
                yield name, data

    async def follow(
        self, path: str, *, after: str | None = None
    ) -> AsyncGenerator[tuple[str | None, str, dict[str, Any]], None]:
        """The events of ``path`` as ``(id, name, data)``, from the one behind the id ``after``. Otherwise as `events`."""
        headers = {} if after is None else {"last-event-id": after}
        async with contextlib.aclosing(self._events("GET", path, None, headers)) as events:
            async for event in events:
                yield event

    async def _events(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[tuple[str | None, str, dict[str, Any]], None]:
        async with self._request(method, path, body, headers=headers) as response:
            await self._check(response)
            buffer = b""
            async for chunk in response.content.iter_any():
                *blocks, buffer = (buffer + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
                if len(buffer) > _MAX_EVENT:
                    raise UpstreamError("The service sent an event that is too large.")
                for block in blocks:
                    event = _event(block)
                    if event is None:
                        continue
                    if event[1] == "problem":
                        raise _error(int(event[2].get("status", 500)), event[2])
                    yield event

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None, *, accept: int | None = None) -> Any:
        async with self._request(method, path, body, total=_CALL_S) as response:
            if response.status != accept:
                await self._check(response)
            return await response.json(content_type=None) if response.status != 204 else None

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        total: float | None = None,
        headers: Mapping[str, str] | None = None,
        form: aiohttp.FormData | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        if self._session is None:
            raise RuntimeError("use the client as `async with`")
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=_CONNECT_S)
        try:
            async with self._session.request(
                method, self.url + path, json=body, data=form, timeout=timeout, headers=headers
            ) as response:
                yield response
        except (aiohttp.ClientConnectionError, aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise Unavailable(f"No service answers at {self.url}. Start it with `aprendiz serve`, or pass --url.") from error
        except aiohttp.ClientPayloadError as error:
            raise UpstreamError("The connection broke off before the end of the answer. Ask again.") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise UpstreamError(f"The answer of {self.url} cannot be read; is it an Aprendiz service?") from error
        except TimeoutError as error:
            raise Unavailable(f"The service at {self.url} does not answer in time.") from error

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status < 400:
            return
        try:
            problem = await response.json(content_type=None)
        except ValueError:
            problem = None
        error = _error(response.status, problem if isinstance(problem, dict) else {})
        wait = response.headers.get("retry-after", "")
        error.retry_after = float(wait) if wait.isascii() and wait.isdigit() else None
        raise error


def _error(status: int, problem: Mapping[str, Any]) -> AprendizError:
    detail = str(problem.get("detail") or problem.get("title") or f"The service answered with status {status}.")
    if status == 401:
        return Unauthenticated(detail)
    if status == 429:
        return TooManyRequests(detail)
    return Unavailable(detail) if status == 503 else AprendizError(detail)


def _event(block: bytes) -> tuple[str | None, str, dict[str, Any]] | None:
    mark, name, data = None, "message", []
    for line in block.decode("utf-8", "replace").split("\n"):
        field, _, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "id":
            mark = value.strip()
        elif field == "data":
            data.append(value.removeprefix(" "))
    if not data:
        return None
    content = json.loads("\n".join(data))
    return (mark, name, content) if isinstance(content, dict) else None
