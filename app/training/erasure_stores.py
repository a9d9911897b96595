"""What an erasure works on, as small protocols that the repositories and the parts of a service fit, and what it reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from app.core.records import AuditRecord, RunRecord, SnapshotRecord, UserRecord
from app.core.types import Principal


class UserStore(Protocol):
    """What is used of `app.db.users.Users`."""

    async def get(self, user_id: str) -> UserRecord | None: ...
    async def update(self, user_id: str, *, disabled_at: datetime | None = ...) -> UserRecord | None: ...
    async def delete(self, user_id: str) -> bool: ...


class SessionStore(Protocol):
    """What is used of `app.db.sessions.Sessions`."""

    async def revoke_user(self, user_id: str, *, now: datetime) -> int: ...


class SnapshotStore(Protocol):
    """What is used of `app.db.snapshots.Snapshots`."""

    async def get(self, snapshot_id: str) -> SnapshotRecord | None: ...
    async def set_report(self, snapshot_id: str, *, report: Mapping[str, Any], erased_at: datetime | None) -> None: ...


class RunStore(Protocol):
    """What is used of `app.db.runs.Runs`."""

    async def get(self, run_id: str) -> RunRecord | None: ...
    async def of_snapshots(self, snapshot_ids: Sequence[str]) -> list[RunRecord]: ...
    async def update(self, run_id: str, **changes: Any) -> RunRecord | None: ...


class People(Protocol):
    """What is used of `app.db.erased.Erased`."""

    async def counts(self, user_id: str) -> dict[str, int]: ...
    async def lent(self, user_id: str) -> list[str]: ...
    async def blank_answers(self, user_id: str, feedback_ids: Sequence[str]) -> int: ...
    async def snapshots_of(self, user_id: str) -> list[str]: ...
    async def strip_lineage(self, user_id: str) -> int: ...


class AuditLog(Protocol):
    """What is used of `app.db.audit.Audit`."""

    async def add(self, record: AuditRecord) -> None: ...


class Disk(Protocol):
    """What is used of `app.db.database.Database`."""

    async def compact(self) -> None: ...


class Jobs(Protocol):
    """What is used of `app.training.jobs.Jobs`."""

    async def cancel(self, run_id: str, *, actor: Principal | None) -> RunRecord: ...


class Serving(Protocol):
    """What is used of `app.training.serving.Serving`."""

    async def leave(self, adapters: Sequence[str], *, actor: Principal | None) -> Mapping[str, str]: ...


class Answers(Protocol):
    """What is used of `app.models.model_manager.ModelManager`."""

    async def forget_all_answers(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """What an erasure did.

    ``counts``: rows that are gone, by kind, and ``answers_of_others`` that were emptied. ``serves``: by alias, the version that
    serves in place of a retired one. ``backups``: files that still hold the person, for the operator to delete.
    ``retrain``: the body for ``POST /training/runs`` that learns again without the person; None: nothing was lost.
    ``complete``: False where a running service still has to finish it.
    """

    user_id: str
    complete: bool
    counts: Mapping[str, int]
    snapshots: tuple[str, ...]
    runs: tuple[str, ...]
    versions: tuple[str, ...]
    serves: Mapping[str, str]
    backups: tuple[str, ...]
    backups_deleted: int
    retrain: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Stores:
    """The repositories that an erasure works on."""

    users: UserStore
    sessions: SessionStore
    snapshots: SnapshotStore
    runs: RunStore
    people: People
    audit: AuditLog
    disk: Disk


@dataclass(frozen=True, slots=True)
class Live:
    """What runs in a service, and not beside the command line.

    ``forget``: the authenticator's, for a user id. ``recollections``: what memory derived from the person's documents and facts
    (vectors in a store, cached embeddings), dropped for a user id.
    """

    jobs: Jobs
    serving: Serving
    answers: Answers
    forget: Callable[[str], None]
    recollections: Callable[[str], Awaitable[None]]
