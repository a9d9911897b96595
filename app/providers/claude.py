"""The provider ``claude``: any server of Anthropic's Messages API, over HTTP. Anthropic itself, a gateway, another Aprendiz.

One `ClaudeProvider` an upstream of ``providers.upstreams``. What goes out is made in `app.providers.claude_request`, what comes
back is read in `app.providers.claude_events`; this file joins them to a connection. No retry, no fallback, no price.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from app.core.addresses import upstream_address
from app.core.errors import AprendizError, InvalidRequest, UnknownModel, UpstreamError, UpstreamUnreachable
from app.core.settings import Upstream
from app.core.types import EngineState, Event, GenerationRequest, VersionInfo
from app.providers.base import Capabilities
from app.providers.claude_errors import answer_error
from app.providers.claude_events import EventReader, counted, whole
from app.providers.claude_parts import refuse_addresses
from app.providers.claude_request import count_body, messages_body
from app.providers.estimate import prompt_tokens
from app.providers.http import HttpClient, HttpResponse
from app.providers.sse import EventTooLarge, SseParser
from app.providers.upstreams import RemoteModel, RemoteProvider, allows_private, is_inside, whole_is_safe

_MESSAGES = "/v1/messages"
_COUNT = "/v1/messages/count_tokens"
_API_VERSION = "2023-06-01"
"""The last version that takes sampling parameters, of the models that have them. Later ones answer in the same form."""
_MAX_WHOLE_BYTES = 64 << 20
_MAX_ERROR_BYTES = 1 << 16
_MAX_TOKENS = 8192
"""Longest answer where the caller names none: the format demands a number. Every model that the vendor serves takes it."""
_ERROR_S = 5.0
"""Longest wait for the body of an error; its status alone says most."""
_NO_SUCH_ROUTE = (404, 405, 501)

logger = logging.getLogger(__name__)


class ClaudeProvider(RemoteProvider):
    """The models of one upstream; see `RemoteProvider`."""

    name = "claude"

    def model(self, version: VersionInfo, *, on_state: Callable[[EngineState], None]) -> ClaudeModel:
        """See `RemoteProvider.model`."""
        return ClaudeModel(
            version,
            self._upstream,
            outside=not is_inside(self._upstream_name, self._upstream),
            client=_client(self._upstream_name, self._upstream),
            gate=self._gate,
            on_state=on_state,
        )


class ClaudeModel(RemoteModel):
    """One model of an upstream, with connections of its own. ``outside``: its server stands in the open internet."""

    def __init__(
        self,
        version: VersionInfo,
        upstream: Upstream,
        *,
        outside: bool,
        client: HttpClient,
        gate: asyncio.Semaphore,
        on_state: Callable[[EngineState], None],
    ) -> None:
        capabilities = Capabilities(
            slots=upstream.max_concurrency,
            context_tokens=upstream.context_tokens,
            tools=True,
            json_schema=True,
            seed=False,
            images=True,
            top_k=True,
            remote=True,
        )
        super().__init__(version, capabilities, gate=gate, on_state=on_state)
        self._client = client
        self._outside = outside
        half = _MAX_TOKENS if upstream.context_tokens is None else upstream.context_tokens // 2
        self._max_tokens = min(_MAX_TOKENS, half)
        self._upstream = upstream

    async def batches(self, request: GenerationRequest) -> AsyncGenerator[Sequence[Event], None]:
        """See `LoadedModel.batches`: a list for each read from the network, or one in all for a whole answer."""
        body = self._checked(messages_body(request, model=self.version.model, max_tokens=self._max_tokens))
        in_one_piece = request.whole and whole_is_safe(self._upstream, body["max_tokens"])
        async with self._post(_MESSAGES, {**body, "stream": not in_one_piece}) as response:
            if response.status != 200:
                raise await _refusal(response)
            if in_one_piece:
                yield whole(await response.read(limit=_MAX_WHOLE_BYTES))
                return
            await _must_stream(response)
            reader, parser = EventReader(), SseParser()
            while piece := await response.piece():
                events = _read(reader, parser, piece)
                if reader.done:
                    response.end_is_near()
                if events:
                    yield events
                if reader.done:
                    return
        raise UpstreamUnreachable("The model provider cut the connection within the answer. Try again.", retry_after=5)

    async def count_tokens(self, request: GenerationRequest) -> int:
        """See `LoadedModel.count_tokens`: the upstream counts. One that has no way to ask gets an estimate."""
        async with self._post(_COUNT, self._checked(count_body(request, model=self.version.model))) as response:
            if response.status == 200:
                return counted(await response.read(limit=_MAX_ERROR_BYTES))
            error = await _refusal(response)
            if response.status not in _NO_SUCH_ROUTE or isinstance(error, UnknownModel):
                raise error
            logger.info("an upstream cannot count tokens; an estimate stands in", extra={"data": {"status": response.status}})
            return prompt_tokens(request)

    async def _disconnect(self) -> None:
        await self._client.aclose()

    def _checked(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self._outside:
            for turn in body["messages"]:
                refuse_addresses(turn["content"])
        return body

    @contextlib.asynccontextmanager
    async def _post(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[HttpResponse]:
        """The response, whatever its status."""
        try:
            data = msgspec.json.encode(body)
        except (UnicodeEncodeError, RecursionError):
            raise InvalidRequest(
                "The request is nested too deeply, or holds text that is no Unicode.", field="messages"
            ) from None
        async with self._gate, self._client.request("POST", path, body=data) as response:
            yield response


def _client(name: str, upstream: Upstream) -> HttpClient:
    headers = {"anthropic-version": _API_VERSION, "content-type": "application/json"}
    if upstream.api_key is not None:
        headers["x-api-key"] = upstream.api_key.get_secret_value()
    return HttpClient(
        upstream_address(name, upstream).url,
        headers=headers,
        connect_timeout_s=upstream.connect_timeout_s,
        read_timeout_s=upstream.read_timeout_s,
        allow_private=allows_private(name, upstream),
    )


def _read(reader: EventReader, parser: SseParser, piece: bytes) -> list[Event]:
    """The events that came with ``piece``, up to the true end if it is among them."""
    events: list[Event] = []
    try:
        payloads = parser.feed(piece)
    except EventTooLarge:
        raise UpstreamError("The model provider sent an answer that is too large to be one.") from None
    for payload in payloads:
        events += reader.read(payload)
        if reader.done:
            break
    return events


async def _must_stream(response: HttpResponse) -> None:
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        raise await _refusal(response)


async def _refusal(response: HttpResponse) -> AprendizError:
    """The error in a response that is no answer; its body, if that comes soon and is small."""
    raw = b""
    with contextlib.suppress(UpstreamError, TimeoutError):
        async with asyncio.timeout(_ERROR_S):
            raw = await response.read(limit=_MAX_ERROR_BYTES)
    return answer_error(response.status, raw, response.headers)
