"""The one way from an HTTP call to an answer: admit, count, read, reserve, answer. Raw ASGI, for this is the hot path.

A door is a route. What is particular to it, the words of its request and of its answer, stands in two things that it brings:
``parse`` makes an `Order` out of a body, and the order's `Shape` writes the answer. Neither knows of sockets, slots or time.

Whatever can be refused is refused with a status; the head of a stream waits for the first piece, but no longer than `HEAD_S`,
so that a failing provider is a 502 and a slow one still shows signs of life. Afterwards an error is the stream's last event.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import Receive, Scope, Send

from app.api.answers import admit, count_call, reserve
from app.api.bodies import read_body, require_json
from app.api.caching import cache_policy, wants_no_examples, with_memory
from app.api.deps import get_services
from app.api.disconnect import until_disconnect
from app.api.problems import log_failure
from app.api.remembered import mark_of
from app.api.watch import ReaderTooSlow, Watch
from app.core.errors import UpstreamError
from app.core.exchange import exchange_of
from app.core.logging import request_id_var
from app.core.types import Context, Event, GenerationRequest, Principal
from app.models.generation import Completed

if TYPE_CHECKING:
    from app.api.deps import Services
    from app.models.generation import Generation
    from app.security.rate_limit import RateState

HEAD_S: Final = 10.0
"""Longest time that the head of a stream waits for the first piece."""
_QUEUED: Final = 64
Headers = list[tuple[bytes, bytes]]
_JSON: Final = (b"content-type", b"application/json")
_EVENTS: Final[Headers] = [  # SecurityHeaders adds `cache-control: no-store`
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
]


class Shape(Protocol):
    """How one call is answered, in the words of its vendor. Made anew for each call; may remember what it has written.

    A call has one choice, or several of the same request; ``choice`` counts from 0.
    """

    heartbeat: bytes
    """What is sent when there is nothing to send for a while."""

    def headers(self, state: RateState) -> Headers:
        """Headers of every answer: the rate limit, in the vendor's names (lower case)."""

    def whole(self, answers: Sequence[Completed]) -> bytes:
        """A whole answer, all choices."""

    def first(self, generation: Generation) -> bytes:
        """What opens the stream, before any piece; ``generation`` is the one whose piece came first."""

    def piece(self, choice: int, events: Sequence[Event]) -> bytes:
        """The next events of one choice, `Finished` excepted; may be empty."""

    def last(self, answers: Sequence[Completed]) -> bytes:
        """What closes the stream, once all choices have ended."""

    def failure(self, error: BaseException) -> bytes:
        """What closes a stream that failed after its head."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a body asks for: one request for each choice, and how to answer."""

    requests: tuple[GenerationRequest, ...]
    shape: Shape
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what came beside the body."""

    services: Services
    principal: Principal
    request_id: str
    headers: Sequence[tuple[bytes, bytes]]


Parse = Callable[[bytes, Caller], Awaitable[Order]]


class Door:
    """The endpoint of a route that answers, as ASGI has it."""

    def __init__(self, parse: Parse) -> None:
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        services = get_services(connection)
        principal = await admit(connection)
        state = await count_call(services, principal)
        require_json(scope["headers"])
        try:
            body = await read_body(receive)
            caller = Caller(services, principal, request_id_var.get(), scope["headers"])
            order = _with_wishes(await self._parse(body, caller), caller)
            for _ in order.requests[1:]:
                state = await count_call(services, principal)  # each choice is a prediction of its own
            async with until_disconnect(scope, receive):
                if order.stream:
                    await _Stream(caller, order, scope, send, state).run()
                    return
                answers = await _whole(caller, order)
        except ClientDisconnect:
            return
        content = order.shape.whole(answers)
        marks = _marks(answers[0].prediction.fallback, answers[0].prediction.cached, answers[0].context)
        await send_json(send, content, [*order.shape.headers(state), *marks])


async def send_json(send: Send, content: bytes, headers: Headers) -> None:
    """A whole answer of JSON, encoded already. SecurityHeaders adds `cache-control: no-store`."""
    headers = [*headers, _JSON, (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _with_wishes(order: Order, caller: Caller) -> Order:
    """``order`` with what headers say beside it: of the cache, of examples, of memory and documents. Raises InvalidRequest."""
    requests = tuple([with_memory(request, caller.headers) for request in order.requests])
    if requests != order.requests:
        order = dataclasses.replace(order, requests=requests)
    if wants_no_examples(caller.headers):
        requests = tuple(dataclasses.replace(request, no_examples=True) for request in order.requests)
        order = dataclasses.replace(order, requests=requests)
    policy, max_age_s = cache_policy(caller.headers)
    if policy == "use" and len(order.requests) > 1:
        policy = "auto"  # several choices are asked for to differ: any earlier answer would make them all the same
    if policy == "auto" and max_age_s is None:
        return order
    requests = tuple(dataclasses.replace(request, cache=policy, max_age_s=max_age_s) for request in order.requests)
    return dataclasses.replace(order, requests=requests)


async def _whole(caller: Caller, order: Order) -> list[Completed]:
    if len(order.requests) == 1:
        return [await _completed(caller, order.requests[0])]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_completed(caller, request)) for request in order.requests]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None  # one call, one error; the group has ended the other choices
    return [task.result() for task in tasks]


async def _completed(caller: Caller, request: GenerationRequest) -> Completed:
    async with await reserve(caller.services, request, caller.principal) as generation:
        return await generation.completed()


_Item = tuple[int, "Generation", Sequence[Event] | Completed]


class _Stream:
    """One answer as server-sent events."""

    def __init__(self, caller: Caller, order: Order, scope: Scope, send: Send, state: RateState) -> None:
        exchange = exchange_of(scope)
        self._caller = caller
        self._order = order
        self._shape = order.shape
        self._state = state
        self._send = send
        self._send_body = send if exchange is None else exchange.send
        self._opened = False

    async def run(self) -> None:
        """To its end. Raises what is to be answered with a status; afterwards nothing but what the server has to know."""
        watch = Watch(
            self._caller.services,
            self._caller.principal,
            self._send_body,
            heartbeat=self._shape.heartbeat,
            head_s=HEAD_S,
            open_head=self._open,
        )
        try:
            async with watch, contextlib.aclosing(self._items()) as items:
                last = await self._pass_on(items, watch)
                # While the generations are still open: a client that never takes its end must not outlive its session.
                await watch.send(last, more=False)
        except ReaderTooSlow:
            return  # without its end the response is visibly cut: the server closes the connection
        except Exception as error:
            if not self._opened:
                raise
            log_failure(error)
            with contextlib.suppress(ReaderTooSlow):
                async with Watch(self._caller.services, self._caller.principal, self._send_body) as watch:
                    await watch.send(self._shape.failure(error), more=False)

    async def _pass_on(self, items: AsyncGenerator[_Item, None], watch: Watch) -> bytes:
        """Sends the pieces; returns what closes the stream."""
        shape, begun = self._shape, False
        answers: list[Completed | None] = [None] * len(self._order.requests)
        async for choice, generation, item in items:
            data = b""
            if not begun:
                begun = True
                await self._open(generation)
                data = shape.first(generation)
            if isinstance(item, Completed):
                answers[choice] = item
            else:
                data += shape.piece(choice, item)
            whole = [answer for answer in answers if answer is not None]
            if len(whole) == len(answers):
                return data + shape.last(whole)
            if data:
                await watch.send(data)
        raise UpstreamError("The answer was cut off before its end. Try again.")

    async def _open(self, generation: Generation | None = None) -> None:
        """Sends the head, unless it is out."""
        if self._opened:
            return
        self._opened = True
        marks = [] if generation is None else _marks(generation.fallback, generation.cached, generation.context)
        headers = [*_EVENTS, *self._shape.headers(self._state), *marks]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    def _items(self) -> AsyncGenerator[_Item, None]:
        """The batches of all choices, each with its number, as they come."""
        requests = self._order.requests
        return self._of_choice(0, requests[0]) if len(requests) == 1 else self._merged(requests)

    async def _merged(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[_Item, None]:
        queue: asyncio.Queue[_Item | Exception] = asyncio.Queue(_QUEUED)
        # Each choice waits for its own slot: a call that held one while it waits for the next could block another for ever.
        tasks = [asyncio.create_task(self._produce(choice, request, queue)) for choice, request in enumerate(requests)]
        ended = 0
        try:
            while ended < len(requests):
                found = await queue.get()
                if isinstance(found, Exception):
                    raise found
                ended += isinstance(found[2], Completed)
                yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _produce(self, choice: int, request: GenerationRequest, queue: asyncio.Queue[_Item | Exception]) -> None:
        try:
            async with contextlib.aclosing(self._of_choice(choice, request)) as items:
                async for item in items:
                    await queue.put(item)
        except Exception as error:  # noqa: BLE001  # not swallowed: the consumer raises it
            await queue.put(error)

    async def _of_choice(self, choice: int, request: GenerationRequest) -> AsyncGenerator[_Item, None]:
        generation = await reserve(self._caller.services, request, self._caller.principal)
        async with generation, contextlib.aclosing(generation.batches()) as batches:
            async for batch in batches:
                yield choice, generation, batch


def _marks(fallback: str | None, cached: bool, context: Context | None) -> Headers:
    """What an operator wants to see of an answer without reading it."""
    marks = []
    if fallback is not None:
        marks.append((b"x-aprendiz-fallback", fallback.encode()))
    if cached:
        marks.append((b"x-aprendiz-cached", b"true"))
    if context is not None:
        marks.append((b"x-aprendiz-context", mark_of(context)))
    return marks
