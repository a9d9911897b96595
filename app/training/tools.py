"""What a training run works with, by the little that is used of each part: the seams between runs and all the rest.

Only names and types; `app.main` puts the real parts together, tests put others in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from app.core.metrics import Metrics
from app.core.records import RunRecord, RunState, SnapshotRecord
from app.core.types import ModelSpec, Principal
from app.training.bases import Bases
from app.training.child import COMMAND
from app.training.folders import Folders
from app.training.packages import Packages, packages
from app.training.snapshots import SnapshotConfig
from app.training.supervisor import Timings
from app.training.throttle import Throttle


class RunStore(Protocol):
    """What is used of `app.db.runs.Runs`."""

    async def update(self, run_id: str, *, only_in: Sequence[RunState] = ..., **changes: Any) -> RunRecord | None: ...


class SnapshotStore(Protocol):
    """What is used of `app.db.snapshots.Snapshots`."""

    async def get(self, snapshot_id: str) -> SnapshotRecord | None: ...


class Builder(Protocol):
    """What is used of `app.training.snapshots.SnapshotBuilder`."""

    async def build(self, config: SnapshotConfig, *, actor: Principal | None) -> SnapshotRecord: ...
    async def preview(self, config: SnapshotConfig) -> Mapping[str, Any]: ...


class Models(Protocol):
    """What is used of `app.models.model_manager.ModelManager`."""

    def busy(self) -> bool: ...
    def current(self) -> tuple[ModelSpec, str | None]: ...


class Judge(Protocol):
    """The gate; see `app.training.gate.judge`."""

    async def judge(
        self, run: RunRecord, snapshot: SnapshotRecord, folder: Path, *, progress: Callable[[int, int], None]
    ) -> Mapping[str, Any]: ...


class Rehearsal(Protocol):
    """What is used of `app.training.rehearsal.Rehearsal`."""

    async def rows(self, base: ModelSpec) -> Path: ...


class Promoter(Protocol):
    """What is used of `app.training.promotion.Promotion`."""

    async def promote(self, version: str, *, actor: Principal | None) -> Any: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run works with. ``threads``: of its child; ``command``: what the child is, the run's folder is appended;
    ``rehearsal``: None: runs rehearse nothing."""

    runs: RunStore
    snapshots: SnapshotStore
    builder: Builder
    models: Models
    judge: Judge
    promoter: Promoter
    bases: Bases
    folders: Folders
    metrics: Metrics
    rehearsal: Rehearsal | None = None
    threads: int = 0
    command: Sequence[str] = COMMAND
    packages: Callable[[], Packages] = packages
    throttle: Callable[[], Throttle] = Throttle
    timings: Timings = field(default_factory=Timings)
