"""The errors of Anthropic's Messages API as ours: by HTTP status, and where that says little by the type that the vendor names.

The vendor's own words decide in two cases that it gives no type of their own, a prompt that is too long and an account without
money, and for the name of the field that it complains of. They are logged at DEBUG only, and no caller sees them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

import msgspec

from app.core.errors import (
    AprendizError,
    ContextOverflow,
    InvalidRequest,
    PayloadTooLarge,
    UnknownModel,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from app.providers.wire_errors import retry_after_s

_LOGGED_CHARACTERS = 500
_TYPES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The status that goes with each type of the vendor's, for errors inside a stream of status 200."""
_TOO_LONG = re.compile(r"prompt is too long|exceeds? (the )?context (limit|window)", re.IGNORECASE)
_NO_MONEY = re.compile(r"credit balance|spend(ing)? limit|specified API usage limits", re.IGNORECASE)
_MONEY_CODES = re.compile(r"spend_limit_reached|billing|organization_on_hold")
_FIELDS = {
    "max_tokens": "max_tokens",
    "messages": "messages",
    "model": "model",
    "output_config": "response_format",
    "output_config.effort": "reasoning_effort",
    "effort": "reasoning_effort",
    "stop_sequences": "stop",
    "system": "messages",
    "temperature": "temperature",
    "thinking": "thinking",
    "tool_choice": "tool_choice",
    "tools": "tools",
    "top_k": "top_k",
    "top_p": "top_p",
}
"""Fields of the vendor's request that a complaint may begin with, and what they are called in ours."""
_HINTS = {"response_format": " Its schemas need additionalProperties: false, and know no ranges and no lengths."}
_FIELD = re.compile(r"\W*(output_config\.effort|[a-z_]+)")

logger = logging.getLogger(__name__)


class _Details(msgspec.Struct):
    error_code: str | None = None


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""
    details: _Details | None = None


class _Body(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


def answer_error(status: int, raw: bytes, headers: Mapping[str, str]) -> AprendizError:
    """Our error for an answer that is none.

    Args:
        status: as it came; below 300 where an error came in place of an answer.
        raw: the body, or its beginning.
        headers: names in lower case.
    """
    error = _read(raw)
    _log(status, error, raw, headers.get("request-id", ""))
    if status < 300 and error.type not in _TYPES:
        return UpstreamError("The model provider answered with something that is no message.")
    return _error(status, error, headers.get("retry-after"))


def stream_error(raw: bytes) -> AprendizError:
    """Our error for the data of an ``error`` event, inside a stream that began well."""
    error = _read(raw)
    _log(200, error, raw, "")
    if error.type not in _TYPES or error.type == "api_error":
        return UpstreamError("The model provider broke off the answer with an error. Try again.")
    return _error(200, error, None)


def _error(status: int, error: _Error, retry_after: str | None) -> AprendizError:
    code = error.details.error_code if error.details is not None else None
    if _MONEY_CODES.search(code or "") or (status in (400, 429) and _NO_MONEY.search(error.message)):
        return _refused_money()
    make = _BY_STATUS.get(status) or _BY_STATUS.get(_TYPES.get(error.type, status))
    if make is not None:
        return make(error, retry_after)
    if 300 <= status < 400:
        return UpstreamError("The model provider redirects elsewhere; an administrator must check its address.")
    return UpstreamError(f"The model provider answered with status {status}. Try again.")


def _bad_request(error: _Error, _: str | None) -> AprendizError:
    if _TOO_LONG.search(error.message):
        return ContextOverflow("The prompt does not fit into the model's context. Shorten it.", field="messages")
    match = _FIELD.match(error.message)
    field = _FIELDS.get(match.group(1)) if match else None
    if field is None:
        return InvalidRequest("The model provider refuses this request: check messages, tools and sampling parameters.")
    hint = _HINTS.get(field, "")
    return InvalidRequest(f"The model provider refuses {field} as it is; change it or leave it out.{hint}", field=field)


def _refused_credentials(_: _Error, __: str | None) -> AprendizError:
    return UpstreamRefused("The model provider refuses our credentials; an administrator must check them.")


def _refused_money(_: _Error | None = None, __: str | None = None) -> AprendizError:
    return UpstreamRefused("Our account with the model provider has no money left; an administrator must see to it.")


def _not_found(error: _Error, _: str | None) -> AprendizError:
    if not error.type:
        return UpstreamError("There is no Messages API at the provider's address; an administrator must check it.")
    return UnknownModel("The model provider does not know this model.", field="model")


def _too_large(_: _Error, __: str | None) -> AprendizError:
    return PayloadTooLarge("The model provider finds the request too large. Shorten it.", field="messages")


def _busy(_: _Error, retry_after: str | None) -> AprendizError:
    return UpstreamBusy("The model provider is busy. Try again later.", retry_after=retry_after_s(retry_after))


def _timeout(_: _Error, __: str | None) -> AprendizError:
    return UpstreamTimeout("The model provider did not answer in time. Try again.")


_BY_STATUS: dict[int, Callable[[_Error, str | None], AprendizError]] = {
    400: _bad_request,
    401: _refused_credentials,
    402: _refused_money,
    403: _refused_credentials,
    404: _not_found,
    408: _timeout,
    409: _bad_request,
    413: _too_large,
    422: _bad_request,
    429: _busy,
    503: _busy,
    504: _timeout,
    529: _busy,
}


def _read(raw: bytes) -> _Error:
    try:
        return msgspec.json.decode(raw, type=_Body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Error()


def _log(status: int, error: _Error, raw: bytes, request_id: str) -> None:
    kind = error.type if error.type in _TYPES else "unknown"
    data = {"status": status, "type": kind, "request_id": re.sub(r"[^A-Za-z0-9_-]", "", request_id)[:64]}
    level = logging.INFO if 400 <= status < 500 else logging.WARNING
    logger.log(level, "a model provider refused a request", extra={"data": data})
    logger.debug("its words", extra={"data": {"body": raw[:_LOGGED_CHARACTERS].decode("utf-8", "replace")}})
