"""The audit log: who did what to what. Lines are only ever added; each carries a SHA-256, checked whenever it is read."""

from __future__ import annotations

import builtins
import logging
from dataclasses import replace

from sqlalchemy import RowMapping, select

from app.core.errors import StorageUnavailable
from app.core.records import AuditRecord
from app.db.checksum import content_of, digest
from app.db.database import Database
from app.db.rows import make, values_of
from app.db.schema import audit

_log = logging.getLogger(__name__)


def checksum(record: AuditRecord) -> str:
    """SHA-256 over the whole line."""
    return digest(content_of(record, without=frozenset({"checksum"})))


class Audit:
    """The table ``audit``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, record: AuditRecord) -> None:
        """Adds a line, in a group commit with others."""
        await self._database.append(audit, values_of(replace(record, checksum=checksum(record))))

    async def list(self, *, limit: int = 100, after: str | None = None) -> builtins.list[AuditRecord]:
        """Lines, newest first; ``after``: the last id of the page before. Raises StorageUnavailable for a damaged line."""
        query = select(audit).order_by(audit.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(audit.c.id < after)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_verified(row._mapping) for row in rows]


def _verified(row: RowMapping) -> AuditRecord:
    record = make(AuditRecord, row)
    if checksum(record) != record.checksum:
        _log.error("an audit line does not match its checksum", extra={"data": {"audit_id": record.id}})
        raise StorageUnavailable(f"The audit line {record.id} is damaged. An admin should restore the last good backup.")
    return record
