"""The API's own description: OpenAPI for all routes, the raw ones too, and a page for people at ``/docs``.

The page is plain HTML made from the same document: it needs no script and nothing from elsewhere, so it works under the strict
content security policy and on a machine without internet.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute, compile_path

from app.api import docs_page
from app.api.answers import AnswerOut
from app.api.bodies import PredictBody, StrictRoute
from app.api.deps import ServicesDep, admin_principal
from app.api.problems import CONTENT_TYPE
from app.api.routers import predict, socket
from app.api.v1 import routes as v1
from app.api.v1.describe import Operation
from app.core.errors import NotFound

if TYPE_CHECKING:
    from app.api.deps import Services

router = APIRouter(route_class=StrictRoute, include_in_schema=False)

OPEN_OPERATIONS: Final = frozenset(
    {
        ("/auth/register", "post"),
        ("/auth/login", "post"),
        ("/auth/token", "post"),
        ("/auth/refresh", "post"),
        ("/auth/logout", "post"),
        ("/feedback", "post"),
        ("/health/live", "get"),
        ("/health/ready", "get"),
        ("/metrics", "get"),
    }
)
"""Operations that can succeed without a login; all others name a security scheme."""

PROBLEMS: Final = {
    "400": "Malformed HTTP",
    "401": "No credential, or a bad one",
    "403": "A good credential without the right, or a request from another web site",
    "404": "Absent, or another's",
    "405": "The path does not know that method",
    "408": "The body did not come in time",
    "409": "The thing's state forbids it now",
    "413": "The body is too large",
    "414": "The URL is too long",
    "415": "The content type is not supported",
    "422": "The request is not valid; `field` names the place",
    "429": "Too many requests; `Retry-After` says when",
    "431": "The headers are too large",
    "500": "An error of ours; report it with the request id",
    "502": "A model provider failed",
    "503": "Not now; `Retry-After` says when",
    "504": "A model provider was too slow",
    "507": "The disk is full",
}
"""What each status of a problem means; a test compares with `app.api.problems.STATUS`."""
_PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457. `instance` names the request, as the header X-Request-ID does.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri", "examples": ["urn:aprendiz:problem:not-found"]},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What happened, and what to do."},
        "instance": {"type": "string", "format": "uri"},
        "field": {"type": "string", "description": "The offending field, where one is."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_VENDOR_ERRORS: Final[dict[str, dict[str, Any]]] = {
    "openai": {
        "type": "object",
        "title": "OpenAIError",
        "description": "An error as OpenAI's API writes it. `param` names the place, where one is.",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "anthropic": {
        "type": "object",
        "title": "AnthropicError",
        "description": "An error as Anthropic's API writes it.",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
            "request_id": {"type": "string"},
        },
    },
}
_VENDOR_STATUS: Final = {"openai": {"422", "408", "414", "415", "431"}, "anthropic": {"422", "408", "414", "415", "431", "503"}}
"""Statuses that a vendor's form writes as another: what we refuse as 422 is 400 there."""
_SECURITY: Final[dict[str, Any]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or the token of `POST /auth/token`."},
    "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same credentials."},
    "session": {"type": "apiKey", "in": "cookie", "name": "__Host-aprendiz", "description": "What `POST /auth/login` sets."},
}
_DESCRIPTION: Final = """A self-hosted LLM service that learns from its users.

All bodies are JSON in UTF-8, unknown fields are refused, every error is `application/problem+json` (under `/v1` in the
vendor's own form), every answer carries `X-Request-ID`. Log in with `POST /auth/token`, ask with `POST /predict`, rate with
`POST /feedback`."""


@dataclass(frozen=True, slots=True)
class Known:
    """One route as it is served: ``methods`` is empty for a WebSocket or a mounted app."""

    path: str
    methods: frozenset[str]
    endpoint: Any
    websocket: bool = False


def inventory(routes: Iterable[Any], prefix: str = "") -> Iterator[Known]:
    """Every route, mounts and included routers too."""
    for route in routes:
        if hasattr(route, "effective_route_contexts"):  # an included router, as FastAPI holds it
            yield from inventory(route.effective_route_contexts(), prefix)
        elif isinstance(route, Mount):
            yield Known(prefix + route.path + "/{path:path}", frozenset(), route.app)
            yield from inventory(route.routes, prefix + route.path)
        elif isinstance(getattr(route, "original_route", route), WebSocketRoute):
            yield Known(prefix + str(route.path), frozenset(), route.endpoint, websocket=True)
        else:
            yield Known(prefix + str(route.path), frozenset(route.methods or ()), route.endpoint)


def templates(app: FastAPI) -> dict[Any, str]:
    """Endpoint to path of the plain routes; FastAPI names its own in the scope. For the labels of metrics."""
    plain: list[BaseRoute] = [route for route in app.routes if type(route) in (Route, WebSocketRoute)]
    return {known.endpoint: known.path for known in inventory(plain)}


def methods_of(app: FastAPI, path: str) -> set[str]:
    """All HTTP methods that the routes of ``path`` know."""
    return {method for known in inventory(app.routes) if compile_path(known.path)[0].match(path) for method in known.methods}


def install(app: FastAPI) -> None:
    """Lets ``app.openapi()`` give the whole document, made once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def build(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    document = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    operations = v1.operations()
    types = [PredictBody, AnswerOut, *(kind for each in operations for kind in _types(each))]
    refs, found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = {id(kind): ref for kind, ref in zip(types, refs, strict=True)}
    schemas.update(found)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = _PROBLEM_SCHEMA
    schemas.update({schema["title"]: schema for schema in _VENDOR_ERRORS.values()})
    components["securitySchemes"] = _SECURITY
    paths = document["paths"]
    paths[predict.PATH] = {"post": _predict_operation(by_type[id(PredictBody)], by_type[id(AnswerOut)])}
    paths[socket.PATH] = {"get": _socket_operation()}
    for path, methods in paths.items():
        for method, operation in methods.items():
            _complete(operation, open_to_all=(path, method) in OPEN_OPERATIONS)
    for each in operations:
        paths.setdefault(each.path.replace(":path}", "}"), {})[each.method] = _vendor_operation(each, by_type)
    document["paths"] = dict(sorted(paths.items()))
    return document


@router.get("/openapi.json")
async def openapi_json(request: Request, services: ServicesDep) -> Response:
    """The OpenAPI document."""
    await _check_reader(request, services)
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs(request: Request, services: ServicesDep) -> Response:
    """The reference as a page."""
    await _check_reader(request, services)
    digest = base64.b64encode(hashlib.sha256(docs_page.STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return HTMLResponse(docs_page.render(request.app.openapi()), headers={"Content-Security-Policy": policy})


async def _check_reader(request: Request, services: Services) -> None:
    """As ``server.docs`` says. Raises NotFound, Unauthenticated or Forbidden."""
    match services.settings.server.docs:
        case "off":
            raise NotFound("The reference is switched off here (server.docs).")
        case "admin":
            await admin_principal(request)
        case "open":
            pass


def _complete(operation: dict[str, Any], *, open_to_all: bool) -> None:
    """Adds what is the same everywhere: problems, and how to say who one is."""
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    for status, meaning in PROBLEMS.items():
        described = responses.setdefault(status, {"description": meaning})
        if "application/json" not in described.get("content", {}):
            described["content"] = {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    operation["responses"] = dict(sorted(responses.items()))
    operation["security"] = [{name: []} for name in _SECURITY] + ([{}] if open_to_all else [])


def _types(operation: Operation) -> list[Any]:
    return [*([] if operation.body is None else [operation.body]), *operation.answer]


def _vendor_operation(operation: Operation, by_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A route of the vendors' APIs, whole."""
    answers = [by_type[id(kind)] for kind in operation.answer]
    content: dict[str, Any] = {"application/json": {"schema": answers[0] if len(answers) == 1 else {"anyOf": answers}}}
    if operation.stream is not None:
        content["text/event-stream"] = {"example": operation.stream}
    title = _VENDOR_ERRORS[operation.errors]["title"]
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{title}"}}}
    statuses = {**PROBLEMS, "400": "The request is not valid", **({"529": "Busy"} if operation.errors == "anthropic" else {})}
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": operation.operation_id,
        "description": operation.description,
        "responses": {
            "200": {"description": "The answer.", "content": content},
            **{
                status: {"description": meaning, "content": error}
                for status, meaning in sorted(statuses.items())
                if status not in _VENDOR_STATUS[operation.errors]
            },
        },
        "security": [{name: []} for name in _SECURITY],
    }
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body is not None:
        media: dict[str, Any] = {"schema": by_type[id(operation.body)]}
        if operation.examples:
            media["examples"] = {name: {"value": value} for name, value in operation.examples.items()}
        described["requestBody"] = {"required": True, "content": {"application/json": media}}
    return described


def _predict_operation(body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    example = {"prompt": "What is the capital of France?", "max_tokens": 50}
    stream = 'event: delta\ndata: {"text":"Paris"}\n\nevent: done\ndata: {"id":"01934f…","text":"Paris.",…}\n\n'
    return {
        "tags": ["predict"],
        "summary": "Ask",
        "operationId": "predict",
        "description": "One answer: whole, or with `stream: true` as server-sent events `delta`, then `done` or `problem`. "
        "Send either `prompt` or `messages`. When the client leaves, the work stops.",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": body,
                    "examples": {
                        "prompt": {"value": example},
                        "messages": {"value": {"messages": [{"role": "user", "content": "Say hello."}], "stream": True}},
                    },
                }
            },
        },
        "responses": {
            "200": {
                "description": "The answer. Its `id` can be rated at once.",
                "content": {
                    "application/json": {"schema": answer},
                    "text/event-stream": {"example": stream},
                },
            }
        },
    }


def _socket_operation() -> dict[str, Any]:
    return {
        "tags": ["predict"],
        "summary": "Ask over a WebSocket",
        "operationId": "predict_ws",
        "description": "After the upgrade, send the body of `POST /predict` as a text frame; frames "
        '`{"event": "delta" | "done" | "problem", "data": {…}}` come back. One answer at a time; `{"cancel": true}` ends the '
        "running one. The socket closes when the session ends, after ten idle minutes, and when the service shuts down.",
        "responses": {"101": {"description": "Switching to the WebSocket protocol."}},
    }
