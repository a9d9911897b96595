"""What is written down about promotions: lines of the audit log, what a run shows of its version's fate, and counts."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from app.core.errors import AprendizError
from app.core.ids import uuid7
from app.core.logging import request_id_var
from app.core.metrics import Metrics
from app.core.records import AuditRecord
from app.core.types import Principal
from app.models.stores import AuditLog
from app.training.rules import Rules

logger = logging.getLogger(__name__)


class Chronicle:
    """Writes it down.

    Args:
        audit: the audit log.
        rules: what runs remember.
        metrics: where promotions are counted.
    """

    def __init__(self, audit: AuditLog, rules: Rules, metrics: Metrics) -> None:
        self._audit = audit
        self._rules = rules
        self._metrics = metrics

    async def tell_run(
        self, run_id: str | None, version: str | None, what: str, why: str, actor: Principal | None, **words: Any
    ) -> None:
        """Lets the run that made a version show what became of it; ``run_id`` None: no run did."""
        by = None if actor is None else actor.user_id
        if run_id is not None and await self._rules.note(run_id, what, by=by, reason=why, **words):
            await self.audit(f"run.{what}", f"run:{run_id}", actor, {"version": version, "why": why, **words})

    async def audit(self, action: str, target: str, actor: Principal | None, details: dict[str, Any]) -> None:
        """Adds a line to the audit log; never raises."""
        record = AuditRecord(
            id=uuid7(),
            at=datetime.now(UTC),
            actor=None if actor is None else actor.user_id,
            action=action,
            target=target,
            details=details,
            request_id=request_id_var.get(),
        )
        try:
            await self._audit.add(record)
        except AprendizError:
            # What was done stands; the log keeps what the table could not.
            logger.exception("audit line not stored", extra={"data": {"action": action, "target": target, **details}})

    def count(self, outcome: str) -> None:
        """Counts one outcome."""
        self._metrics.promotions.labels(outcome).inc()

    def show_share(self, share: float) -> None:
        """Shows the share of sessions that a canary answers."""
        self._metrics.canary_share.set(share)
