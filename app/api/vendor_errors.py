"""Our errors in the forms of OpenAI and Anthropic: what their SDKs turn into exceptions, and retry by.

Pure functions from an error and its status to a status, a body and headers. Which path speaks which form stands here too; the
text of an error is the same in every form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from app.core import errors
from app.core.errors import AprendizError

Rendering = tuple[int, dict[str, Any]]
"""Status and body."""
Form = Callable[[BaseException, int, str, str], Rendering]
"""``(error, status, detail, request id)`` to a rendering; ``status`` and ``detail`` as the problem would have them."""

_INVALID: Final = frozenset({422, 415, 414, 431, 408, 411})
_OPENAI_TYPES: Final[Mapping[int, str]] = {
    401: "invalid_request_error",
    403: "invalid_request_error",
    429: "rate_limit_error",
    507: "server_error",
}
_OPENAI_CODES: Final[Mapping[type[AprendizError], str]] = {
    errors.Unauthenticated: "invalid_api_key",
    errors.Forbidden: "insufficient_permissions",
    errors.UnknownModel: "model_not_found",
    errors.ContextOverflow: "context_length_exceeded",
    errors.BudgetExhausted: "insufficient_quota",
    errors.TooManyRequests: "rate_limit_exceeded",
}
_ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_NO_THREADS: Final = {"error_code": "thread_unsupported_request"}
"""By this word the vendor's SDKs go on without a thread, sending the whole conversation each time."""


def form_of(path: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> Form | None:
    """The vendor's form that a path speaks, or None: problem details.

    The list of models has one path for both vendors; the header ``anthropic-version`` among the request's ``headers`` tells.
    """
    if not path.startswith("/v1/"):
        return None
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return anthropic
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return anthropic if any(name == b"anthropic-version" for name, _ in headers) else openai
    return openai


def openai(error: BaseException, status: int, detail: str, request_id: str) -> Rendering:
    """``{"error": {"message", "type", "param", "code"}}``. What we refuse as 422 is 400 there."""
    status = 400 if status in _INVALID else status
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = _code(error) or (None if status < 500 else slug_of(error))
    if code == "insufficient_quota":
        kind = "insufficient_quota"
    return status, {"error": {"message": detail, "type": kind, "param": getattr(error, "field", None), "code": code}}


def anthropic(error: BaseException, status: int, detail: str, request_id: str) -> Rendering:
    """``{"type": "error", "error": {"type", "message"}, "request_id"}``; a busy service is 529 there."""
    status = 400 if status in _INVALID else 529 if isinstance(error, errors.Overloaded) else status
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    field = getattr(error, "field", None)
    message = detail if field is None or field in detail else f"{field}: {detail}"
    if isinstance(error, errors.ContextOverflow):
        message = f"prompt is too long: {detail}"  # the words by which this vendor's clients know it; there is no code
    body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
    if status == 400 and field == "thread":
        body["error"]["details"] = _NO_THREADS
    if request_id:
        body["request_id"] = request_id
    return status, body


def slug_of(error: BaseException) -> str:
    """The slug of an error's type, with underscores, as the vendors write codes."""
    slug = error.slug if isinstance(error, AprendizError) else AprendizError.slug
    return slug.replace("-", "_")


def _code(error: BaseException) -> str | None:
    if isinstance(error, errors.NotFound) and error.field == "previous_response_id":
        return "previous_response_not_found"  # clients send the whole conversation then
    return next((_OPENAI_CODES[kind] for kind in type(error).__mro__ if kind in _OPENAI_CODES), None)
