"""``/predict/ws``: the messages of ``POST /predict`` over a WebSocket, one answer at a time, many per connection.

A `PredictBody` comes in as a text frame; frames ``{"event": "delta" | "done" | "problem", "data": {...}}`` go out.
``{"cancel": true}`` ends the running answer, whose ``done`` then says ``cancelled``. CrossSiteGuard checks the handshake's
origin. The socket ends by itself when it is idle, when its session ends, and when the service shuts down.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.types import Message, Receive, Scope, Send

from app.api.answers import VALIDITY_S, admit, answer_out, count_call, ensure_valid, reserve, send_patiently, stored_out
from app.api.bodies import PREDICT, CancelBody, decode
from app.api.caching import wants_no_examples, with_memory
from app.api.deps import count_against, get_address, get_services
from app.api.problems import log_failure, problem
from app.api.sse import Mailbox
from app.api.watch import ReaderTooSlow
from app.core.errors import Conflict, InvalidRequest, Unauthenticated
from app.core.logging import request_id_var
from app.core.types import GenerationRequest, Principal, TextDelta
from app.models.generation import Completed, Generation

if TYPE_CHECKING:
    from app.api.deps import Services

PATH: Final = "/predict/ws"
IDLE_S: Final = 600.0
GOING_AWAY: Final = 1001
POLICY: Final = 1008
RESTART: Final = 1012
_MAX_WAITING_FRAMES: Final = 4
_IS_CANCEL = re.compile(r'\s{0,16}\{\s{0,16}"cancel"')
_CANCEL = msgspec.json.Decoder(CancelBody)
_encode = msgspec.json.Encoder().encode


class PredictSocket:
    """The endpoint, as ASGI has it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        services = get_services(connection)
        principal = await admit(connection)
        if (await receive())["type"] != "websocket.connect":
            return
        await send({"type": "websocket.accept"})
        session = _Session(services, connection, principal, send)
        with contextlib.suppress(ReaderTooSlow, OSError):  # gone or as good as gone: nobody is left to tell
            await session.run(receive)


def route() -> WebSocketRoute:
    """The route, for the app to put before all others."""
    return WebSocketRoute(PATH, PredictSocket(), name="predict_ws")


class _Session:
    """One open socket."""

    def __init__(self, services: Services, connection: HTTPConnection, principal: Principal, send: Send) -> None:
        self._services = services
        self._connection = connection
        self._principal = principal
        self._send = send
        self._answering: asyncio.Task[None] | None = None
        self._inbox: Mailbox[Message] = Mailbox(_MAX_WAITING_FRAMES)

    async def run(self, receive: Receive) -> None:
        """Until either side has had enough."""
        reading = asyncio.create_task(self._read(receive))
        with self._woken_by_drain():
            try:
                code = await self._serve()
                if code is not None:
                    await self._send({"type": "websocket.close", "code": code})
            finally:
                reading.cancel()
                await self._cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _serve(self) -> int | None:
        """Takes frames; returns the code to close with, or None where the client has left."""
        active = time.monotonic()
        while True:
            frames = await self._inbox.take(VALIDITY_S)
            if frames is None:
                return None
            now = time.monotonic()
            if frames or self._busy:
                active = now
            try:
                await ensure_valid(self._services, self._principal)
            except Unauthenticated as error:
                await self._cancel()
                await self._emit("problem", problem(error))
                return POLICY
            if not self._busy:
                if self._services.draining.is_set():
                    return RESTART
                if now - active > IDLE_S:
                    return GOING_AWAY
            for frame in frames:
                await self._take(frame)

    async def _take(self, frame: Message) -> None:
        try:
            text = frame.get("text")
            if text is None:
                raise InvalidRequest("Send text frames.", field="body")
            if _IS_CANCEL.match(text):
                if decode(text, _CANCEL).cancel:
                    await self._cancel()
                return
            await count_against("predict_address", self._services, await get_address(self._connection))
            await count_call(self._services, self._principal)
            if self._busy:
                raise Conflict("An answer is under way on this socket. Wait for it, or cancel it.")
            request = decode(text, PREDICT).to_request(request_id=request_id_var.get())
            if wants_no_examples(self._connection.scope["headers"]):
                request = dataclasses.replace(request, no_examples=True)
            request = with_memory(request, self._connection.scope["headers"])
        except Exception as error:  # noqa: BLE001  # the socket stays: whatever it is, it is told
            log_failure(error)
            await self._emit("problem", problem(error))
            return
        self._answering = asyncio.create_task(self._answer(request))

    async def _answer(self, request: GenerationRequest) -> None:
        try:
            generation = await reserve(self._services, request, self._principal)
            try:
                async with generation:
                    await self._events(generation)
            except asyncio.CancelledError:
                await self._emit_cancelled(generation)
                raise
        except (ReaderTooSlow, OSError):  # uvicorn's word for a client that has left is an OSError
            self._inbox.end()
        except Exception as error:  # noqa: BLE001  # the socket stays: whatever it is, it is told
            log_failure(error)
            await self._emit("problem", problem(error))
        finally:
            self._inbox.poke()

    async def _events(self, generation: Generation) -> None:
        async with contextlib.aclosing(generation.events()) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    await self._emit("delta", {"text": event.text})
                elif isinstance(event, Completed):
                    await self._emit("done", answer_out(event, self._services.settings))

    async def _emit_cancelled(self, generation: Generation) -> None:
        """After a cancel: ``done`` with what there was, as it is stored."""
        kept = await self._services.predictions.get(generation.id, user_id=self._principal.user_id)
        if kept is not None:
            await self._emit("done", stored_out(kept, self._services.settings, generation.context))

    async def _emit(self, event: str, data: Any) -> None:
        frame = _encode({"event": event, "data": data}).decode()
        await send_patiently(self._send, {"type": "websocket.send", "text": frame}, self._services, self._principal)

    async def _cancel(self) -> None:
        """Ends the running answer, if there is one, and waits for its end."""
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)
            self._answering = None

    @property
    def _busy(self) -> bool:
        return self._answering is not None and not self._answering.done()

    async def _read(self, receive: Receive) -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._inbox.end()
                return
            await self._inbox.put(message)

    @contextlib.contextmanager
    def _woken_by_drain(self) -> Iterator[None]:
        waiting = asyncio.create_task(self._services.draining.wait())
        waiting.add_done_callback(lambda _: self._inbox.poke())
        try:
            yield
        finally:
            waiting.cancel()
