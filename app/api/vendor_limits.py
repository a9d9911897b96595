"""The rate limit in the vendors' header names, for answers and for the refusal when it is reached. Counts nothing itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from app.core.errors import TooManyRequests

Limits = list[tuple[bytes, bytes]]
"""Header names and values, as ASGI has them."""
Names = Callable[[int, int, float], Limits]
"""``(calls per window, calls left, seconds until the first comes free)`` to headers."""


def openai(limit: int, remaining: int, reset_s: float) -> Limits:
    """In OpenAI's names."""
    return [
        (b"x-ratelimit-limit-requests", b"%d" % limit),
        (b"x-ratelimit-remaining-requests", b"%d" % remaining),
        (b"x-ratelimit-reset-requests", _duration(reset_s).encode()),
    ]


def anthropic(limit: int, remaining: int, reset_s: float) -> Limits:
    """In Anthropic's names."""
    reset = datetime.now(UTC) + timedelta(seconds=max(reset_s, 0))
    return [
        (b"anthropic-ratelimit-requests-limit", b"%d" % limit),
        (b"anthropic-ratelimit-requests-remaining", b"%d" % remaining),
        (b"anthropic-ratelimit-requests-reset", reset.strftime("%Y-%m-%dT%H:%M:%SZ").encode()),
    ]


def of_refusal(error: BaseException, names: Names) -> dict[str, str]:
    """The limit that a refused call has reached; empty where it was refused for anything else."""
    if not isinstance(error, TooManyRequests) or error.limit is None:
        return {}
    return {name.decode(): value.decode() for name, value in names(error.limit, 0, error.retry_after or 0)}


def _duration(seconds: float) -> str:
    """Seconds, rounded up, as OpenAI writes them: ``1s``, ``6m0s``, ``1h0m0s``."""
    minutes, rest = divmod(math.ceil(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
