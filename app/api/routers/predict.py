"""``POST /predict``: one answer, whole or as server-sent events. A raw ASGI endpoint, for this is the hot path."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.api import sse
from app.api.answers import (
    VALIDITY_S,
    AnswerOut,
    ReaderTooSlow,
    admit,
    answer_out,
    count_call,
    ensure_valid,
    reserve,
    send_patiently,
)
from app.api.bodies import PREDICT, decode, read_body, require_json
from app.api.deps import get_services
from app.api.disconnect import until_disconnect
from app.api.problems import log_failure, problem
from app.core.errors import UpstreamError
from app.core.logging import request_id_var
from app.core.types import Event, GenerationRequest, Principal, TextDelta
from app.models.generation import Completed

if TYPE_CHECKING:
    from app.api.deps import Services

PATH: Final = "/predict"
_encode = msgspec.json.Encoder().encode
_JSON: Final = (b"content-type", b"application/json")
_NO_STORE: Final = (b"cache-control", b"no-store")


class Predict:
    """The endpoint, as ASGI has it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        services = get_services(connection)
        principal = await admit(connection)
        state = await count_call(services, principal)
        headers = [(name.lower().encode(), value.encode()) for name, value in state.headers()]
        require_json(scope["headers"])
        try:
            body = decode(await read_body(receive), PREDICT)
            request = body.to_request(request_id=request_id_var.get())
            if body.stream:
                async with until_disconnect(receive):
                    await _stream(services, request, principal, send, headers)
                return
            async with until_disconnect(receive):
                answer = await _whole(services, request, principal)
        except ClientDisconnect:
            return
        content = _encode(answer)
        headers += [_JSON, _NO_STORE, (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def route() -> Route:
    """The route, for the app to put before all others."""
    return Route(PATH, Predict(), methods=["POST"], name="predict")


async def _whole(services: Services, request: GenerationRequest, principal: Principal) -> AnswerOut:
    generation = await reserve(services, request, principal)
    async with generation:
        return answer_out((await generation.completed()).prediction, services.settings)


async def _stream(
    services: Services, request: GenerationRequest, principal: Principal, send: Send, headers: list[tuple[bytes, bytes]]
) -> None:
    generation = await reserve(services, request, principal)
    try:
        async with generation:
            box: sse.Mailbox[Event | Completed] = sse.Mailbox()
            pumping = asyncio.create_task(sse.pump(generation.events(), box))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS, *headers]})
                last = await _send_events(services, principal, send, box)
            finally:
                pumping.cancel()
                await asyncio.gather(pumping, return_exceptions=True)
        await send_patiently(send, {"type": "http.response.body", "body": last}, services, principal)
    except ReaderTooSlow:
        return  # without its end the response is visibly cut: the server closes the connection


async def _send_events(services: Services, principal: Principal, send: Send, box: sse.Mailbox[Event | Completed]) -> bytes:
    """Sends deltas and heartbeats; returns the last event, ``done`` or ``problem``, which ends every stream."""
    checked = sent = time.monotonic()
    try:
        while (items := await box.take(VALIDITY_S)) is not None:
            now = time.monotonic()
            if now - checked >= VALIDITY_S:
                await ensure_valid(services, principal)
                checked = now
            data = b"".join(sse.delta(item.text) for item in items if isinstance(item, TextDelta))
            end = items[-1] if items else None
            if isinstance(end, Completed):
                return data + sse.event("done", answer_out(end.prediction, services.settings))
            if not data and now - sent >= sse.HEARTBEAT_S:
                data = sse.HEARTBEAT
            if data:
                await send_patiently(send, {"type": "http.response.body", "body": data, "more_body": True}, services, principal)
                sent = time.monotonic()
        raise UpstreamError("The answer was cut off before its end. Try again.")
    except ReaderTooSlow:
        raise
    except Exception as error:  # noqa: BLE001  # the status line is gone: whatever it is, it becomes the last event
        log_failure(error)
        return sse.event("problem", problem(error))
