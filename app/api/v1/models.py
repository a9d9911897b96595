"""``GET /v1/models`` and ``/v1/models/{name}``: the names that callers may ask for, in OpenAI's form or, for those who send the
header ``anthropic-version``, in Anthropic's."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Struct
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route

from app.api.deps import current_principal, get_services
from app.api.v1.describe import Operation
from app.core.errors import Forbidden, InvalidRequest, UnknownModel

if TYPE_CHECKING:
    from app.models.routing import ModelName

PATH: Final = "/v1/models"
ONE_PATH: Final = "/v1/models/{model:path}"
_LIMIT: Final = 1000
_DEFAULT_LIMIT: Final = 20
_NUMBER = re.compile(r"[0-9]{1,4}")
_encode = msgspec.json.Encoder().encode


class ModelOut(Struct, frozen=True, kw_only=True):
    """A model in OpenAI's form. ``created``: seconds since the epoch."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelListOut(Struct, frozen=True):
    """All models in OpenAI's form."""

    data: list[ModelOut]
    object: Literal["list"] = "list"


class AnthropicModelOut(Struct, frozen=True, kw_only=True):
    """A model in Anthropic's form."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str


class AnthropicModelListOut(Struct, frozen=True):
    """A page of models in Anthropic's form."""

    data: list[AnthropicModelOut]
    has_more: bool
    first_id: str | None
    last_id: str | None


async def list_models(request: Request) -> Response:
    """All names, or in Anthropic's form a page of them."""
    names = await _names(request)
    if _is_anthropic(request):
        return _json(_page(names, request))
    return _json(ModelListOut([_openai(name) for name in names]))


async def get_model(request: Request) -> Response:
    """One of them. Raises UnknownModel."""
    names = await _names(request)
    wanted = request.path_params["model"]
    for name in names:
        if name.id == wanted:
            return _json(_anthropic(name) if _is_anthropic(request) else _openai(name))
    raise UnknownModel("There is no model of that name here; GET /v1/models lists all.", field="model")


async def _names(connection: HTTPConnection) -> list[ModelName]:
    """Whoever may ask a model may know their names, and so may whoever may read."""
    principal = await current_principal(connection)
    if not principal.scopes & {"predict", "read"}:
        raise Forbidden("This credential carries neither the scope `predict` nor `read`.")
    return get_services(connection).models.names()


def _is_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _page(names: list[ModelName], request: Request) -> AnthropicModelListOut:
    """Anthropic's paging: ``limit``, ``after_id``, ``before_id``."""
    query = request.query_params
    wanted = query.get("limit", str(_DEFAULT_LIMIT))
    if not _NUMBER.fullmatch(wanted) or not 1 <= int(wanted) <= _LIMIT:
        raise InvalidRequest(f"limit must be a whole number from 1 to {_LIMIT}.", field="limit")
    limit = int(wanted)
    ids = [name.id for name in names]
    if "before_id" in query:
        end = _place(ids, query["before_id"], "before_id")
        begin = max(0, end - limit)
        more = begin > 0
    else:
        begin = _place(ids, query["after_id"], "after_id") + 1 if "after_id" in query else 0
        end = begin + limit
        more = end < len(ids)
    page = [_anthropic(name) for name in names[begin:end]]
    return AnthropicModelListOut(page, more, page[0].id if page else None, page[-1].id if page else None)


def _place(ids: list[str], wanted: str, field: str) -> int:
    if wanted not in ids:
        raise InvalidRequest(f"{field} is no model's id.", field=field)
    return ids.index(wanted)


def _openai(name: ModelName) -> ModelOut:
    return ModelOut(id=name.id, created=name.created, owned_by=name.owned_by)


def _anthropic(name: ModelName) -> AnthropicModelOut:
    created = datetime.fromtimestamp(name.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return AnthropicModelOut(id=name.id, display_name=name.id, created_at=created)


def _json(value: Any) -> Response:
    return Response(_encode(value), media_type="application/json", headers={"Cache-Control": "no-store"})


OPERATIONS: Final = (
    Operation(
        method="get",
        path=PATH,
        operation_id="list_models",
        summary="The models that one may ask",
        description="Aliases, routes and `provider/name`, in OpenAI's form; with a header `anthropic-version` in Anthropic's, "
        "in pages (`limit`, `after_id`, `before_id`). Needs the scope `predict` or `read`.",
        answer=(ModelListOut, AnthropicModelListOut),
    ),
    Operation(
        method="get",
        path=ONE_PATH,
        operation_id="get_model",
        summary="One of them",
        description="By its name, slashes and all.",
        answer=(ModelOut, AnthropicModelOut),
        parameters=({"name": "model", "in": "path", "required": True, "schema": {"type": "string"}},),
    ),
)


def routes() -> list[Route]:
    """The routes, for `app.api.v1.routes`."""
    return [
        Route(PATH, list_models, methods=["GET"], name="list_models"),
        Route(ONE_PATH, get_model, methods=["GET"], name="get_model"),
    ]
