"""Every error as RFC 9457 ``application/problem+json``, on ``/v1`` in the vendor's own form: the one table from error class to
status, and the handlers.

A problem shows what the error itself says to callers, and never input, paths, SQL or third-party text. What is not in the
tree of `app.core.errors` is a 500 with a generic text; its traceback goes to the log under the same request id.
"""

from __future__ import annotations

import http
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import vendor_errors, vendor_limits
from app.core import errors
from app.core.errors import AprendizError
from app.core.logging import request_id_var

RawHeaders = Sequence[tuple[bytes, bytes]]
CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:aprendiz:problem:"
REQUEST_PREFIX = "urn:aprendiz:request:"

STATUS: Mapping[type[AprendizError], int] = {
    AprendizError: 500,
    errors.InvalidRequest: 422,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.MalformedRequest: 400,
    errors.UrlTooLong: 414,
    errors.HeadersTooLarge: 431,
    errors.RequestTimeout: 408,
    errors.ContextOverflow: 422,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.CrossSiteRefused: 403,
    errors.NotFound: 404,
    errors.UnknownModel: 404,
    errors.Conflict: 409,
    errors.IdempotencyMismatch: 422,
    errors.TooLittleFeedback: 409,
    errors.NotPromotable: 409,
    errors.TrainingUnavailable: 409,
    errors.TooManyRequests: 429,
    errors.QueueFullForUser: 429,
    errors.BudgetExhausted: 429,
    errors.Unavailable: 503,
    errors.Overloaded: 503,
    errors.UpstreamBusy: 503,
    errors.UpstreamCoolingDown: 503,
    errors.EngineUnavailable: 503,
    errors.ShuttingDown: 503,
    errors.StorageUnavailable: 503,
    errors.StorageFull: 507,
    errors.UpstreamError: 502,
    errors.UpstreamTimeout: 504,
    errors.UpstreamUnreachable: 502,
    errors.UpstreamRefused: 502,
    errors.ModelLoadFailed: 422,
    errors.ConfigurationError: 500,
    errors.SchemaTooNew: 500,
}
"""Status of every class of the tree; a test compares it with the tree."""

_STARTS = ("http.response.start", "websocket.accept", "websocket.close", "websocket.http.response.start")
_INTERNAL_DETAIL = "Something went wrong on our side. Report it with the request id."
_SAFE_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_MAX_ERRORS = 20
_log = logging.getLogger(__name__)


def status_of(error: AprendizError) -> int:
    """HTTP status of an error: that of its class, or of the nearest ancestor in the table."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem(error: BaseException) -> dict[str, Any]:
    """The problem object of any error; whatever is not ours, or is our own fault, becomes the generic 500."""
    if isinstance(error, AprendizError) and status_of(error) != 500:
        body = _body(status_of(error), error.slug, error.title, error.detail)
        if error.field is not None:
            body["field"] = error.field
        return body
    return _body(500, AprendizError.slug, AprendizError.title, _INTERNAL_DETAIL)


def headers_of(error: BaseException) -> dict[str, str]:
    """Headers that belong to a problem: Retry-After, WWW-Authenticate."""
    headers: dict[str, str] = {}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="aprendiz"'
    if isinstance(error, AprendizError) and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return headers


def response_of(error: BaseException, path: str, headers: RawHeaders = ()) -> Response:
    """The whole response for an error that came up under ``path``. ``headers``: the request's."""
    return _in_form(path, headers, error, _response(problem(error), headers_of(error)))


def vendor_body(error: BaseException, form: vendor_errors.Form) -> dict[str, Any]:
    """The body of an error in a vendor's form, for the last event of a stream."""
    plain = problem(error)
    return form(error, plain["status"], plain["detail"], request_id_var.get())[1]


def _in_form(path: str, sent: RawHeaders, error: BaseException, response: Response) -> Response:
    """``response`` in the form that ``path`` speaks, to a request with the headers ``sent``."""
    form = vendor_errors.form_of(path, sent)
    if form is None:
        return response
    plain = json.loads(bytes(response.body))
    status, body = form(error, response.status_code, plain["detail"], request_id_var.get())
    headers = {name: value for name, value in response.headers.items() if name not in ("content-type", "content-length")}
    names = vendor_limits.anthropic if form is vendor_errors.anthropic else vendor_limits.openai
    headers |= vendor_limits.of_refusal(error, names)
    if form is vendor_errors.anthropic:
        headers["request-id"] = request_id_var.get()  # where its SDKs look; the id stands in X-Request-ID in any case
    return Response(_encode(body), status_code=status, media_type="application/json", headers=headers)


def register(app: FastAPI, *, methods_of: Callable[[str], Iterable[str]]) -> None:
    """Adds the handlers for everything that is raised inside the router.

    ``methods_of``: all methods of a path, for the header Allow; the router itself names only those of one of its routes.
    """

    async def on_http(request: Request, error: Exception) -> Response:
        response = _http_response(cast("HTTPException", error))
        if response.status_code == 405:
            response.headers["Allow"] = ", ".join(sorted(methods_of(request.scope["path"])))
        return _in_form(request.scope["path"], request.scope["headers"], error, response)

    app.add_exception_handler(AprendizError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, on_http)


class Problems:
    """Pure ASGI wrapper that answers what nothing inside answered, the middleware's own errors too.

    It sits inside the request-id middleware, so the id is known; a handler for ``Exception`` in the app would sit outside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] in _STARTS
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except ClientDisconnect:
            return  # left in the middle of the body: no fault of ours, and nobody to tell
        except Exception as error:
            log_failure(error)
            if started:
                raise  # the status line is gone: the server cuts the connection, which is all that can still be said
            await respond(error, scope, receive, send)


async def respond(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers an HTTP request, or refuses a WebSocket handshake, with the problem."""
    path, headers = scope["path"], scope["headers"]
    if isinstance(error, HTTPException):
        response = _in_form(path, headers, error, _http_response(error))
    else:
        response = response_of(error, path, headers)
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    await response(scope, receive, send)  # Response itself adds the "websocket." prefix in a handshake


def log_failure(error: BaseException) -> None:
    """Logs an error that is our fault, with its traceback; others were the caller's and are in the access log."""
    if not isinstance(error, (AprendizError, HTTPException)) or (isinstance(error, AprendizError) and status_of(error) == 500):
        _log.error("unhandled error", exc_info=error)


async def _on_error(request: Request, error: Exception) -> Response:
    log_failure(error)
    return response_of(error, request.scope["path"], request.scope["headers"])


async def _on_validation(request: Request, error: Exception) -> Response:
    found = list(_complaints(cast("RequestValidationError", error).errors()))
    body = _body(422, errors.InvalidRequest.slug, errors.InvalidRequest.title, "; ".join(f"{f}: {m}" for f, m in found[:3]))
    body["errors"] = [{"field": field, "message": message} for field, message in found]
    if found:
        body["field"] = found[0][0]
    return _in_form(request.scope["path"], request.scope["headers"], error, _response(body, {}))


def _complaints(items: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Where and what, without what was sent: a caller's own words come back only as a plain field name."""
    for item in items[:_MAX_ERRORS]:
        parts = [str(part) for part in item["loc"]]
        if item["type"] == "json_invalid":
            yield "body", "is not valid JSON"
            continue
        yield ".".join(part if _SAFE_NAME.fullmatch(part) else "…" for part in parts), str(item["msg"])


_HTTP_DETAILS = {
    404: "There is nothing here. The API is described at /docs.",
    405: "This path does not know that method; the header Allow names those it knows.",
}


def _http_response(error: HTTPException) -> Response:
    status = error.status_code
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else "Error"
    known = {404: errors.NotFound, 413: errors.PayloadTooLarge, 415: errors.UnsupportedMediaType, 422: errors.InvalidRequest}
    if status in known:
        body = _body(status, known[status].slug, known[status].title, str(error.detail))
    else:
        body = _body(status, phrase.lower().replace(" ", "-"), phrase, str(error.detail))
    if error.detail == phrase:
        body["detail"] = _HTTP_DETAILS.get(status, phrase)
    return _response(body, dict(error.headers or {}))


def _body(status: int, slug: str, title: str, detail: str) -> dict[str, Any]:
    body: dict[str, Any] = {"type": TYPE_PREFIX + slug, "title": title, "status": status, "detail": detail}
    request_id = request_id_var.get()
    if request_id:
        body["instance"] = REQUEST_PREFIX + request_id
    return body


def _response(body: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    response = Response(_encode(body), status_code=body["status"], media_type=CONTENT_TYPE, headers=dict(headers))
    response.headers["Cache-Control"] = "no-store"
    return response


def _encode(body: Mapping[str, Any]) -> bytes:
    # ensure_ascii: whatever a message holds, a lone surrogate too, the body is valid UTF-8
    return json.dumps(body, ensure_ascii=True).encode()
