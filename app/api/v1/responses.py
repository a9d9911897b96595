"""The Responses API: ``POST /v1/responses``, and the responses that are stored, to be read, continued and deleted.

A response is a prediction, its id the prediction's. There are no background responses, no conversations and no tools that run
here; each is refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.api.answers import admit, count_call
from app.api.bodies import read_body, require_json
from app.api.deps import current_principal, get_services
from app.api.disconnect import until_disconnect
from app.api.door import Caller, Door, Order
from app.api.v1.chat import extras
from app.api.v1.common import read
from app.api.v1.responses_body import RESPONSES, TOKENS, Asked, AskedResponse, name_field
from app.api.v1.responses_output import ended
from app.api.v1.responses_stored import (
    NO_RESPONSE,
    answer_of,
    conversation,
    door_of,
    find,
    input_of,
    output_of,
    resolve,
)
from app.api.v1.responses_stream import ResponsesShape
from app.api.v1.responses_turns import Turns, message_items
from app.core.errors import AprendizError, Forbidden, InvalidRequest, NotFound
from app.core.ids import uuid7
from app.core.logging import request_id_var
from app.core.types import Context, GenerationRequest, Message, Principal

if TYPE_CHECKING:
    from app.api.deps import Services

PATH: Final = "/v1/responses"
_encode = msgspec.json.Encoder().encode
_LISTED: Final = 20
_MOST_LISTED: Final = 100


class TokensOut(Struct, frozen=True):
    """How many tokens the model would read."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


class ItemsOut(Struct, frozen=True):
    """Items, in the order that was asked for. ``has_more``: send ``last_id`` as ``after`` for the next ones."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class DeletedOut(Struct, frozen=True):
    """What was deleted."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class _AsSent(Exception):
    """Carries an error that already names the fields of this format past those that do not."""

    def __init__(self, error: AprendizError) -> None:
        super().__init__()
        self.error = error


class ResponsesDoor(Door):
    """The door where also what a model refuses names the fields of this format."""

    def __init__(self) -> None:
        super().__init__(_read)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except _AsSent as sent:
            raise sent.error from None
        except AprendizError as error:
            name_field(error)
            raise


async def _read(body: bytes, caller: Caller) -> Order:
    try:
        return await parse(body, caller)
    except AprendizError as error:
        raise _AsSent(error) from None


async def parse(body: bytes, caller: Caller) -> Order:
    """The order in a body. Raises InvalidRequest, and NotFound for a response or item that is not the caller's."""
    asked = AskedResponse(read(body, RESPONSES))
    turns, context = await _conversation(asked, caller.services, caller.principal)
    echo, prediction_id = asked.echo(), uuid7()
    request = GenerationRequest(
        messages=(*_lead(asked), *turns),
        model=asked.model,
        sampling=asked.sampling(),
        request_id=caller.request_id,
        # What is left out of a long conversation depends on who answers: such an answer is not one for the cache.
        cache="off" if asked.truncate else "auto",
        prediction_id=prediction_id,
        whole=not asked.stream,
        door=door_of(echo, turns, summary=asked.summary),
        truncate=asked.truncate,
        context=context,
    )
    shape = ResponsesShape(
        prediction_id,
        echo,
        caller.services.settings,
        model=asked.model or "default",
        summary=asked.summary,
        encrypted=asked.encrypted,
        logprobs=asked.logprobs is not None,
    )
    return Order((request,), shape, stream=asked.stream)


async def count(request: Request) -> Response:
    """``POST /v1/responses/input_tokens``."""
    principal, services = await admit(request), get_services(request)
    await count_call(services, principal)
    require_json(request.scope["headers"])
    asked = Asked(read(await read_body(request.receive), TOKENS))
    turns, _ = await _conversation(asked, services, principal)
    wanted = GenerationRequest(
        messages=(*_lead(asked), *turns), model=asked.model, sampling=asked.sampling(), request_id=request_id_var.get()
    )
    try:
        async with until_disconnect(request.scope, request.receive):
            tokens = await services.models.count_tokens(wanted, principal)
    except AprendizError as error:
        name_field(error)
        raise
    return _json(TokensOut(tokens))


async def show(request: Request) -> Response:
    """``GET /v1/responses/{response_id}``."""
    principal, services = await _reader(request), get_services(request)
    _only(request, "include", "include[]", "stream", "starting_after", "include_obfuscation")
    if request.query_params.get("stream", "false") != "false" or "starting_after" in request.query_params:
        raise InvalidRequest("A stored response is not streamed again; ask without stream and starting_after.", field="stream")
    record = await find(services, principal, request.path_params["response_id"])
    marks = extras(record, services.settings)
    return _json(ended(record, record.input["door"]["response"], output_of(record), answer_of(record).usage, marks))


async def list_items(request: Request) -> Response:
    """``GET /v1/responses/{response_id}/input_items``: all that the model read, but for the instructions."""
    principal, services = await _reader(request), get_services(request)
    _only(request, "after", "before", "include", "include[]", "limit", "order")
    limit, order = _limit(request.query_params.get("limit")), request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc.", field="order")
    record = await find(services, principal, request.path_params["response_id"])
    items = message_items(input_of(record), record.id)
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    begin = _place(ids, request.query_params.get("after"), "after", -1) + 1
    end = _place(ids, request.query_params.get("before"), "before", len(items))
    page = items[begin:end][:limit]
    first_id, last_id = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return _json(ItemsOut(page, first_id, last_id, begin + len(page) < end))


async def delete(request: Request) -> Response:
    """``DELETE /v1/responses/{response_id}``: with the prediction and the feedback on it."""
    principal, services = _allow(await current_principal(request), "predict"), get_services(request)
    record = await find(services, principal, request.path_params["response_id"])
    if not await services.predictions.delete(record.id, user_id=principal.user_id):
        raise NotFound(NO_RESPONSE, field="response_id")
    await services.models.forget_answers(principal.user_id)
    return _json(DeletedOut(record.id))


async def cancel(request: Request) -> Response:
    """``POST /v1/responses/{response_id}/cancel``: there is none that could be."""
    principal = _allow(await current_principal(request), "predict")
    await find(get_services(request), principal, request.path_params["response_id"])
    raise InvalidRequest(
        "Only background responses can be cancelled, and there are none here; close the connection to stop one.",
        field="response_id",
    )


def routes() -> list[Route]:
    """The routes, for `app.api.v1.routes`."""
    one = f"{PATH}/{{response_id}}"
    return [
        Route(PATH, ResponsesDoor(), methods=["POST"], name="responses"),
        Route(f"{PATH}/input_tokens", count, methods=["POST"], name="responses_input_tokens"),
        Route(one, show, methods=["GET"], name="response"),
        Route(one, delete, methods=["DELETE"], name="response_delete"),
        Route(f"{one}/input_items", list_items, methods=["GET"], name="response_input_items"),
        Route(f"{one}/cancel", cancel, methods=["POST"], name="response_cancel"),
    ]


async def _conversation(asked: Asked, services: Services, principal: Principal) -> tuple[tuple[Message, ...], Context | None]:
    """What was said so far and the new input, without instructions; and that it was private, where it was."""
    earlier: tuple[Message, ...] = ()
    context = None
    if asked.previous_response_id is not None:
        earlier, context = await conversation(services, principal, asked.previous_response_id)
    turns = Turns(earlier)
    for index, item in enumerate(await resolve(services, principal, asked.items)):
        turns.add(item, f"input[{index}]")
    return turns.messages(), context


def _lead(asked: Asked) -> tuple[Message, ...]:
    return () if asked.instructions is None else (Message("system", asked.instructions),)


async def _reader(request: Request) -> Principal:
    return _allow(await current_principal(request), "read", "predict")


def _allow(principal: Principal, *scopes: str) -> Principal:
    """Raises Forbidden where the credential carries none of ``scopes``."""
    if principal.scopes.isdisjoint(scopes):
        raise Forbidden(f"This credential does not carry the scope `{scopes[0]}`.")
    return principal


def _only(request: Request, *known: str) -> None:
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(f"Unknown query parameter; there are {', '.join(known)}.", field="query")


def _limit(text: str | None) -> int:
    if text is None:
        return _LISTED
    if not text.isascii() or not text.isdigit() or len(text) > 3 or not 1 <= int(text) <= _MOST_LISTED:
        raise InvalidRequest(f"limit must be a whole number from 1 to {_MOST_LISTED}.", field="limit")
    return int(text)


def _place(ids: list[str], item_id: str | None, field: str, absent: int) -> int:
    if item_id is None:
        return absent
    if item_id not in ids:
        raise InvalidRequest(f"{field} names no item of this response.", field=field)
    return ids.index(item_id)


def _json(value: Any) -> Response:
    return Response(_encode(value), media_type="application/json", headers={"Cache-Control": "no-store"})
