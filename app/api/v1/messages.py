"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: answers, streams and counts as Anthropic's API writes them.

``anthropic-version`` and ``anthropic-beta`` are not asked for and not read: there is one version of us. Where the vendor knows
the tokens of the prompt from the start, we know them at the end: ``message_start`` says 0, and ``message_delta`` says the true
number, which the vendor's SDKs put in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from app.api import vendor_limits
from app.api.answers import admit, count_call
from app.api.bodies import read_body, require_json
from app.api.deps import get_services
from app.api.disconnect import until_disconnect
from app.api.door import Caller, Door, Headers, Order, send_json
from app.api.problems import vendor_body
from app.api.v1.chat import extras_of
from app.api.v1.common import AprendizOut
from app.api.v1.describe import Operation
from app.api.v1.messages_answer import AppliedEditsOut, MessageOut, TokenCountOut, content_of, ending_of, usage_of
from app.api.v1.messages_bodies import COUNT, MESSAGES, CountBody, MessagesBody, decode
from app.api.v1.messages_stream import PING, STOP, BlockWriter, event
from app.api.v1.messages_turns import to_request
from app.api.vendor_errors import anthropic
from app.core.ids import uuid7
from app.core.logging import request_id_var
from app.core.types import Event, Usage
from app.security.tokens import sign_feedback_token

if TYPE_CHECKING:
    from app.core.settings import Settings
    from app.models.generation import Completed, Generation
    from app.security.rate_limit import RateState

PATH: Final = "/v1/messages"
COUNT_PATH: Final = "/v1/messages/count_tokens"
_encode = msgspec.json.Encoder().encode


class MessagesShape:
    """See `app.api.door.Shape`.

    Args:
        prediction_id: which is the message's id.
        body: what was asked.
    """

    heartbeat = PING

    def __init__(self, settings: Settings, prediction_id: str, body: MessagesBody) -> None:
        self._settings = settings
        self._id = prediction_id
        self._edits: dict[str, Any] = {} if body.context_management is None else {"context_management": AppliedEditsOut()}
        self._blocks = BlockWriter(prediction_id)

    def headers(self, state: RateState) -> Headers:
        """See `Shape.headers`."""
        return limit_headers(state)

    def whole(self, answers: Sequence[Completed]) -> bytes:
        """See `Shape.whole`."""
        prediction, answer = answers[0].prediction, answers[0].answer
        ending = ending_of(answer)
        return _encode(
            MessageOut(
                id=prediction.id,
                model=f"{prediction.provider}/{prediction.model}",
                content=content_of(answer, prediction.id),
                usage=usage_of(answer.usage),
                aprendiz=extras_of(answers[0], self._settings),
                stop_reason=ending.stop_reason,
                stop_sequence=ending.stop_sequence,
                **self._edits,
            )
        )

    def first(self, generation: Generation) -> bytes:
        """See `Shape.first`: the message, still empty."""
        token = sign_feedback_token(self._id, self._settings.security)
        marks = AprendizOut(generation.version, generation.cached, generation.fallback, token, generation.examples)
        message = MessageOut(id=self._id, model=generation.model, content=(), usage=usage_of(Usage()), aprendiz=marks)
        return event("message_start", {"message": message})

    def piece(self, choice: int, events: Sequence[Event]) -> bytes:
        """See `Shape.piece`."""
        return self._blocks.write(events)

    def last(self, answers: Sequence[Completed]) -> bytes:
        """See `Shape.last`."""
        answer = answers[0].answer
        fields = {"delta": ending_of(answer), "usage": usage_of(answer.usage), **self._edits}
        if answers[0].context is not None:  # what `first` could not say yet
            fields["aprendiz"] = extras_of(answers[0], self._settings)
        return self._blocks.close() + event("message_delta", fields) + STOP

    def failure(self, error: BaseException) -> bytes:
        """See `Shape.failure`."""
        return b"event: error\ndata: %b\n\n" % _encode(vendor_body(error, anthropic))


class CountDoor:
    """The endpoint of `COUNT_PATH`, as ASGI has it: who may ask for an answer may ask what it would take."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        services = get_services(connection)
        principal = await admit(connection)
        state = await count_call(services, principal)
        require_json(scope["headers"])
        try:
            request = to_request(decode(await read_body(receive), COUNT), request_id=request_id_var.get())
            async with until_disconnect(scope, receive):
                tokens = await services.models.count_tokens(request, principal)
        except ClientDisconnect:
            return
        await send_json(send, _encode(TokenCountOut(tokens)), limit_headers(state))


def limit_headers(state: RateState) -> Headers:
    """The rate limit in the vendor's names, and the request's id."""
    limits = vendor_limits.anthropic(state.limit, state.remaining, state.reset_s)
    return [(b"request-id", request_id_var.get().encode()), *limits]


async def parse(body: bytes, caller: Caller) -> Order:
    """The order in a body. Raises InvalidRequest."""
    wanted = decode(body, MESSAGES)
    prediction_id = uuid7()
    request = to_request(
        wanted,
        request_id=caller.request_id,
        prediction_id=prediction_id,
        whole=not wanted.stream,
    )
    return Order((request,), MessagesShape(caller.services.settings, prediction_id, wanted), stream=bool(wanted.stream))


def routes() -> list[BaseRoute]:
    """The routes, for `app.api.v1.routes`."""
    return [
        Route(PATH, Door(parse), methods=["POST"], name="messages"),
        Route(COUNT_PATH, CountDoor(), methods=["POST"], name="count_tokens"),
    ]


_ASK: Final = {"model": "default", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
OPERATIONS: Final = (
    Operation(
        method="post",
        path=PATH,
        operation_id="messages",
        summary="Ask, in Anthropic's format",
        description="Anthropic's Messages API: system, images, documents, tools, thinking, structured outputs, whole or with "
        "`stream: true` as server-sent events. Tools, containers and servers that the vendor runs are refused by name. The "
        "`id` is the prediction's and can be rated at once.",
        body=MessagesBody,
        answer=(MessageOut,),
        errors="anthropic",
        stream='event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"Paris"}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
        examples={
            "text": {"max_tokens": 256, **_ASK},
            "stream": {"max_tokens": 256, "system": "Be brief.", "stream": True, **_ASK},
        },
    ),
    Operation(
        method="post",
        path=COUNT_PATH,
        operation_id="count_tokens",
        summary="Count a prompt's tokens, in Anthropic's format",
        description="What `/v1/messages` would make of the same messages, system and tools, by the model's own tokenizer; for "
        "models of other vendors whose API cannot count, an estimate. Counts as a call.",
        body=CountBody,
        answer=(TokenCountOut,),
        errors="anthropic",
        examples={"text": _ASK},
    ),
)
