"""What all account services share: the stores, the clock, and the one way to write down what was done.

Nothing here decides anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.core.ids import uuid7
from app.core.logging import request_id_var
from app.core.metrics import Metrics
from app.core.records import AuditRecord
from app.core.settings import Security
from app.security.auth import Authenticator
from app.security.passwords import Passwords
from app.security.rate_limit import RateLimiter
from app.security.stores import AuditStore, InviteStore, KeyStore, SessionStore, UserStore
from app.security.tokens import SessionTokens

_log = logging.getLogger("app.security")


def utc_now() -> datetime:
    """The time of day, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The parts that `app.security.accounts.Accounts` works with."""

    settings: Security
    users: UserStore
    invites: InviteStore
    sessions: SessionStore
    keys: KeyStore
    audit: AuditStore
    passwords: Passwords
    tokens: SessionTokens
    authenticator: Authenticator
    limiter: RateLimiter
    metrics: Metrics | None = None
    now: Callable[[], datetime] = utc_now

    def note(self, event: str, *, level: int = logging.INFO, **data: Any) -> None:
        """Logs an event. ``data`` holds ids and addresses, never a secret or what a caller typed."""
        _log.log(level, event, extra={"data": data})

    async def record(self, action: str, *, actor: str | None, target: str, address: str = "", **details: Any) -> None:
        """Logs a change and adds it to the audit log."""
        self.note(action, actor=actor, target=target, address=address, **details)
        await self.audit.add(
            AuditRecord(
                id=uuid7(),
                at=self.now(),
                actor=actor,
                action=action,
                target=target,
                details=details,
                request_id=request_id_var.get(),
                address=address,
            )
        )

    def count_login(self, result: str) -> None:
        """Counts a login attempt: ``ok``, ``failed`` or ``refused``."""
        if self.metrics is not None:
            self.metrics.logins.labels(result).inc()
