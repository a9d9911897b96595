"""``POST /predict``: one answer in our own form, whole or as server-sent events ``delta``, ``done`` and ``problem``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.routing import Route

from app.api import sse
from app.api.answers import answer_out
from app.api.bodies import PREDICT, decode
from app.api.door import Caller, Door, Headers, Order
from app.api.problems import problem
from app.core.types import Event, TextDelta

if TYPE_CHECKING:
    from app.api.deps import Services
    from app.models.generation import Completed, Generation
    from app.security.rate_limit import RateState

PATH: Final = "/predict"
_encode = msgspec.json.Encoder().encode


class PredictShape:
    """Our own words; see `app.api.door.Shape`."""

    heartbeat = sse.HEARTBEAT

    def __init__(self, services: Services) -> None:
        self._settings = services.settings

    def headers(self, state: RateState) -> Headers:
        """See `Shape.headers`."""
        return [(name.lower().encode(), value.encode()) for name, value in state.headers()]

    def whole(self, answers: Sequence[Completed]) -> bytes:
        """See `Shape.whole`."""
        return _encode(answer_out(answers[0], self._settings))

    def first(self, generation: Generation) -> bytes:
        """See `Shape.first`: nothing."""
        return b""

    def piece(self, choice: int, events: Sequence[Event]) -> bytes:
        """See `Shape.piece`."""
        return b"".join(sse.delta(event.text) for event in events if isinstance(event, TextDelta))

    def last(self, answers: Sequence[Completed]) -> bytes:
        """See `Shape.last`."""
        return sse.event("done", answer_out(answers[0], self._settings))

    def failure(self, error: BaseException) -> bytes:
        """See `Shape.failure`."""
        return sse.event("problem", problem(error))


async def _parse(body: bytes, caller: Caller) -> Order:
    wanted = decode(body, PREDICT)
    request = wanted.to_request(request_id=caller.request_id, whole=not wanted.stream)
    return Order((request,), PredictShape(caller.services), stream=wanted.stream)


def route() -> Route:
    """The route, for the app to put before all others."""
    return Route(PATH, Door(_parse), methods=["POST"], name="predict")
