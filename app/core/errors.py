"""Every error that Aprendiz itself raises, in one tree.

    AprendizError
    ├── InvalidRequest            the caller's words are off
    │   ├── PayloadTooLarge
    │   ├── UnsupportedMediaType
    │   ├── MalformedRequest      not proper HTTP: Host, Content-Length, ...
    │   ├── UrlTooLong
    │   ├── HeadersTooLarge
    │   ├── RequestTimeout        the body did not come in time
    │   └── ContextOverflow       the prompt does not fit into the model's context
    ├── Unauthenticated           no credential, or a bad one
    ├── Forbidden                 a good credential without the right
    │   └── CrossSiteRefused
    ├── NotFound                  absent, or another's: the two are never told apart
    │   └── UnknownModel
    ├── Conflict                  the thing's state forbids it now
    │   ├── IdempotencyMismatch
    │   ├── TooLittleFeedback     not enough to learn from yet; says how much is missing
    │   ├── NotPromotable         the gate failed, or what it was trained on was erased
    │   └── TrainingUnavailable   the packages of the extra `train` are not installed
    ├── TooManyRequests           a limit of the caller's own
    │   ├── QueueFullForUser
    │   └── BudgetExhausted       the money set aside for the caller is spent
    ├── Unavailable               the service cannot now; worth another try
    │   ├── Overloaded            queue full, or the deadline passed in it
    │   │   └── UpstreamBusy      a provider's own rate limit or overload
    │   ├── UpstreamCoolingDown   a provider failed too often and is left alone for a while
    │   ├── EngineUnavailable     an engine died, or does not start
    │   ├── ShuttingDown
    │   └── StorageUnavailable    the disk refused; nothing is acknowledged
    │       └── StorageFull
    ├── UpstreamError             a provider answered with nonsense or an error
    │   ├── UpstreamTimeout
    │   ├── UpstreamUnreachable   the connection was refused or cut
    │   └── UpstreamRefused       it refuses our credentials, or our account has no money left
    ├── ModelLoadFailed           the model cannot be loaded; the old one serves on
    ├── ConfigurationError        the operator's words are off (start-up, CLI)
    └── SchemaTooNew              the database was written by a newer Aprendiz

Raise these anywhere below ``api``. ``app/api/problems.py`` holds the one table from class to status.
``detail`` is shown to callers: it says what to do, and holds no secret, no path and no third-party text.
"""

from __future__ import annotations

from typing import Self


class AprendizError(Exception):
    """Root of the tree.

    Args:
        detail: one or two sentences for the caller: what happened and what to do. Safe to show.
        retry_after: seconds after which the same call may succeed, or None.
        field: the name of the offending request field, or None.
    """

    title = "Internal error"
    slug = "internal-error"

    def __init__(self, detail: str = "", *, retry_after: float | None = None, field: str | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after = retry_after
        self.field = field

    def again(self, *, retry_after: float | None = None) -> Self:
        """A fresh copy to raise: one exception object raised in many tasks would collect all their tracebacks."""
        return type(self)(self.detail, retry_after=self.retry_after if retry_after is None else retry_after, field=self.field)


class InvalidRequest(AprendizError):
    title = "The request is not valid"
    slug = "invalid-request"


class PayloadTooLarge(InvalidRequest):
    title = "The request body is too large"
    slug = "payload-too-large"


class UnsupportedMediaType(InvalidRequest):
    title = "The content type is not supported"
    slug = "unsupported-media-type"


class MalformedRequest(InvalidRequest):
    title = "The request is malformed"
    slug = "malformed-request"


class UrlTooLong(InvalidRequest):
    title = "The URL is too long"
    slug = "url-too-long"


class HeadersTooLarge(InvalidRequest):
    title = "The request headers are too large"
    slug = "headers-too-large"


class RequestTimeout(InvalidRequest):
    title = "The request did not arrive in time"
    slug = "request-timeout"


class ContextOverflow(InvalidRequest):
    title = "The prompt does not fit into the model's context"
    slug = "context-overflow"


class Unauthenticated(AprendizError):
    title = "Authentication is required"
    slug = "unauthenticated"


class Forbidden(AprendizError):
    title = "Not allowed"
    slug = "forbidden"


class CrossSiteRefused(Forbidden):
    title = "Cross-site request refused"
    slug = "cross-site-refused"


class NotFound(AprendizError):
    title = "Not found"
    slug = "not-found"


class UnknownModel(NotFound):
    title = "Unknown model"
    slug = "unknown-model"


class Conflict(AprendizError):
    title = "Conflict with the current state"
    slug = "conflict"


class IdempotencyMismatch(Conflict):
    title = "The idempotency key was used with another body"
    slug = "idempotency-mismatch"


class TooLittleFeedback(Conflict):
    title = "There is too little feedback to learn from"
    slug = "too-little-feedback"


class NotPromotable(Conflict):
    title = "This version may not be promoted"
    slug = "not-promotable"


class TrainingUnavailable(Conflict):
    title = "Training is not installed here"
    slug = "training-unavailable"


class TooManyRequests(AprendizError):
    title = "Too many requests"
    slug = "too-many-requests"
    limit: int | None = None
    """Calls per window, where it is a rate limit that was reached."""


class QueueFullForUser(TooManyRequests):
    title = "Too many of your requests are waiting"
    slug = "queue-full-for-user"


class BudgetExhausted(TooManyRequests):
    title = "The budget is spent"
    slug = "budget-exhausted"


class Unavailable(AprendizError):
    title = "Temporarily unavailable"
    slug = "unavailable"


class Overloaded(Unavailable):
    title = "The service is busy"
    slug = "overloaded"


class UpstreamBusy(Overloaded):
    title = "The model provider is busy"
    slug = "upstream-busy"


class UpstreamCoolingDown(Unavailable):
    title = "The model provider is left alone after failures"
    slug = "upstream-cooling-down"


class EngineUnavailable(Unavailable):
    title = "The model engine is not available"
    slug = "engine-unavailable"


class ShuttingDown(Unavailable):
    title = "The service is shutting down"
    slug = "shutting-down"


class StorageUnavailable(Unavailable):
    title = "Storage is not available"
    slug = "storage-unavailable"


class StorageFull(StorageUnavailable):
    title = "Storage is full"
    slug = "storage-full"


class UpstreamError(AprendizError):
    title = "The model provider answered with an error"
    slug = "upstream-error"


class UpstreamTimeout(UpstreamError):
    title = "The model provider did not answer in time"
    slug = "upstream-timeout"


class UpstreamUnreachable(UpstreamError):
    title = "The model provider cannot be reached"
    slug = "upstream-unreachable"


class UpstreamRefused(UpstreamError):
    title = "The model provider refuses our account"
    slug = "upstream-refused"


class ModelLoadFailed(AprendizError):
    title = "The model could not be loaded"
    slug = "model-load-failed"


class ConfigurationError(AprendizError):
    title = "The configuration is not valid"
    slug = "configuration-error"


class SchemaTooNew(AprendizError):
    title = "The database belongs to a newer version"
    slug = "schema-too-new"
