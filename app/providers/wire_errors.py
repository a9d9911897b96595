"""The errors of the OpenAI format as ours: by HTTP status first, then by the type and code that the server names.

Servers disagree about types and codes, so the one case that must be told from others, a prompt that is too long, is also known
by the words of its message. No word of another's reaches a caller: texts are logged at DEBUG, because servers quote prompts.
"""

from __future__ import annotations

import email.utils
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

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

_LOGGED_CHARACTERS = 500
_LOGGED_NAME = 60
_MOST_S = 3600.0
_NOTHING = msgspec.Raw(b"null")  # msgspec knows no `Raw | None`
_TOO_LONG = re.compile(
    r"maximum context length|context[ _](?:length|size|window) (?:was )?exceeded|"
    r"(?:exceeds?|longer than) the (?:model'?s? |available |maximum |allowed )*context",
    re.IGNORECASE,
)
_TOO_LONG_NAMES = ("context_length_exceeded", "exceed_context_size_error")
_FIELD = re.compile(r"([a-z][a-z0-9_]{0,63})(?:[.\[].*)?", re.DOTALL)
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 529,
    "unavailable_error": 503,
    "insufficient_quota": 402,
}
"""For errors inside a body or stream of status 200."""

logger = logging.getLogger(__name__)


class WireError(msgspec.Struct):
    """The ``error`` object of the format, as far as we read it."""

    type: str | None = None
    code: str | int | None = None
    message: str | None = None
    param: Any = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None

    @property
    def too_long(self) -> bool:
        """Whether it complains of a prompt that does not fit into the context."""
        named = self.type in _TOO_LONG_NAMES or self.code in _TOO_LONG_NAMES
        return named or (self.message is not None and _TOO_LONG.search(self.message) is not None)

    @property
    def quota(self) -> bool:
        """Whether our account has no money left."""
        return "insufficient_quota" in (self.type, self.code)

    @property
    def field(self) -> str | None:
        """The request's field that it complains of, if it says so."""
        match = _FIELD.fullmatch(self.param) if isinstance(self.param, str) else None
        return match.group(1) if match else None


class _Body(msgspec.Struct):
    error: msgspec.Raw = _NOTHING
    object: Any = None


def error_of(raw: bytes) -> WireError | None:
    """The error object in a body, or None where there is none. vLLM's older form has no ``error`` around it."""
    try:
        body = msgspec.json.decode(raw, type=_Body)
        if body.error != _NOTHING:
            return _object(bytes(body.error))
        return _object(raw) if body.object == "error" else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _object(raw: bytes) -> WireError:
    try:
        return msgspec.json.decode(raw, type=WireError)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # an error all the same: a bare text, as a rule
        return WireError()


def status_error(status: int, raw: bytes, headers: Mapping[str, str]) -> AprendizError:
    """Our error for a status that is not 200.

    Args:
        raw: the body, or its beginning.
        headers: names in lower case.
    """
    error = error_of(raw)
    _log(status, error, raw)
    return _error(status, error, retry_after_s(headers.get("retry-after")))


def body_error(raw: bytes) -> AprendizError:
    """Our error for a body or an event of status 200 that holds an ``error`` object, or is of another kind than asked for."""
    error = error_of(raw)
    _log(200, error, raw)
    if error is None:
        return UpstreamError("The model provider sent an answer of another kind than asked for.")
    status = error.code if isinstance(error.code, int) else _STATUS_OF_TYPE.get(str(error.code))
    status = status or _STATUS_OF_TYPE.get(error.type or "", 0)
    if error.too_long or 400 <= status < 500 or status in (503, 529):
        return _error(400 if error.too_long else status, error, None)
    return UpstreamError("The model provider broke off the answer with an error. Try again.")


def _error(status: int, error: WireError | None, retry_after: float | None) -> AprendizError:
    if status in (400, 409, 413, 422):
        return _request_error(status, error or WireError())
    if status in (401, 403):
        return UpstreamRefused("The model provider refuses our credentials; an administrator must check them.")
    if status == 402 or (status == 429 and error is not None and error.quota):
        return UpstreamRefused("Our account with the model provider has no money left; an administrator must see to it.")
    if status == 404:
        return _not_found(error)
    if status in (429, 503, 529):
        return UpstreamBusy("The model provider is busy. Try again later.", retry_after=retry_after)
    if status in (408, 504, 524):
        return UpstreamTimeout("The model provider did not answer in time. Try again.")
    if 300 <= status < 400:
        return UpstreamError("The model provider redirects elsewhere; an administrator must check its address.")
    return UpstreamError(f"The model provider answered with status {status}. Try again.")


def _request_error(status: int, error: WireError) -> AprendizError:
    if error.too_long:
        size = f" has {error.n_prompt_tokens} tokens and" if error.n_prompt_tokens else ""
        limit = f" (at most {error.n_ctx} tokens)" if error.n_ctx else ""
        return ContextOverflow(f"The prompt{size} does not fit into the model's context{limit}. Shorten it.", field="messages")
    if status == 413:
        return PayloadTooLarge("The model provider finds the request too large. Shorten it.")
    if error.field is not None:
        return InvalidRequest(f"The model refuses {error.field} as it is; change it or leave it out.", field=error.field)
    return InvalidRequest("The model cannot take this request: check messages, tools and response_format.")


def _not_found(error: WireError | None) -> AprendizError:
    if error is None:  # a server that does not know the path speaks no OpenAI
        return UpstreamError("There is no such API at the model provider's address; an administrator must check it.")
    return UnknownModel("The model provider does not know this model.", field="model")


def retry_after_s(value: str | None) -> float | None:
    """The wait that a header ``Retry-After`` asks for, in seconds: a number or a date, bounded to an hour; None for none."""
    if not value:
        return None
    if re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", value):
        return min(float(value), _MOST_S)
    try:
        at = email.utils.parsedate_to_datetime(value[:64])
    except ValueError:
        return None
    wait = (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(max(wait.total_seconds(), 0.0), _MOST_S)


def _log(status: int, error: WireError | None, raw: bytes) -> None:
    """Names, shortened; the text itself only at DEBUG."""
    data: dict[str, Any] = {"status": status}
    if error is not None:
        data |= {"type": str(error.type)[:_LOGGED_NAME], "code": str(error.code)[:_LOGGED_NAME]}
    logger.log(
        logging.INFO if 400 <= status < 500 else logging.WARNING, "a model server refused a request", extra={"data": data}
    )
    logger.debug("its words", extra={"data": {"body": raw[:_LOGGED_CHARACTERS].decode("utf-8", "replace")}})
