"""From an answer to the feedback behind it, and from a person to what has learned from them. Ids and counts, never a text.

What the lineage knows stands in the rows of snapshots, written when a snapshot is frozen; snapshots from files know no people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from app.core.errors import NotFound
from app.core.ids import is_uuid7
from app.core.records import PredictionRecord, RunRecord, SnapshotRecord, SnapshotRowRecord, VersionRecord

CANARY: Final = "canary"
_MOST_ROWS: Final = 5000


class SnapshotStore(Protocol):
    """What is used of `app.db.snapshots.Snapshots`."""

    async def get(self, snapshot_id: str) -> SnapshotRecord | None: ...
    async def rows(self, snapshot_id: str) -> list[SnapshotRowRecord]: ...
    async def rows_of_person(self, user_id: str, raters: Sequence[str] = ()) -> list[SnapshotRowRecord]: ...


class RunStore(Protocol):
    """What is used of `app.db.runs.Runs`."""

    async def get(self, run_id: str) -> RunRecord | None: ...
    async def of_version(self, version: str) -> RunRecord | None: ...
    async def of_snapshots(self, snapshot_ids: Sequence[str]) -> list[RunRecord]: ...


class VersionStore(Protocol):
    """What is used of `app.db.versions.Versions`."""

    async def get(self, version_id: str) -> VersionRecord | None: ...


class PredictionStore(Protocol):
    """What is used of `app.db.predictions.Predictions`."""

    async def get(self, prediction_id: str, *, user_id: str | None = None) -> PredictionRecord | None: ...


class People(Protocol):
    """What is used of `app.db.erased.Erased`."""

    async def counts(self, user_id: str) -> dict[str, int]: ...


class Serving(Protocol):
    """What serves now: `app.training.serving.Serving`."""

    async def uses(self) -> Mapping[str, tuple[str, ...]]:
        """By version: the aliases that mean it, and ``canary`` where it is on trial."""


@dataclass(frozen=True, slots=True)
class RowLineage:
    """One row of a snapshot. ``user_id``: who asked; ``rater``: who judged."""

    feedback_id: str | None
    prediction_id: str | None
    user_id: str | None
    rater: str | None
    kind: str
    split: str
    weight: float


@dataclass(frozen=True, slots=True)
class SnapshotLineage:
    """A dataset. ``rows``: at most 5,000 of ``row_count``; ``erased_at``: since when its files are gone."""

    id: str
    created_at: datetime
    source: str
    digest: str
    erased_at: datetime | None
    row_count: int
    rows: tuple[RowLineage, ...]


@dataclass(frozen=True, slots=True)
class RunLineage:
    """A training run. Its id is its adapter's name; ``retired_at``: since when its adapter may not serve."""

    id: str
    created_at: datetime
    state: str
    method: str
    version: str | None
    adapter_hash: str | None
    retired_at: datetime | None
    retired_reason: str | None
    serves: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VersionLineage:
    """What a version is made of. ``run`` and ``snapshot``: None where it was not trained here."""

    version: str
    provider: str | None
    model: str | None
    base_hash: str | None
    adapter: str | None
    adapter_hash: str | None
    serves: tuple[str, ...]
    run: RunLineage | None
    snapshot: SnapshotLineage | None


@dataclass(frozen=True, slots=True)
class PredictionLineage:
    """What is behind one answer. ``examples``: ids of the approved corrections that were shown with it."""

    prediction_id: str
    user_id: str
    created_at: datetime
    cached: bool
    examples: tuple[str, ...]
    version: VersionLineage


@dataclass(frozen=True, slots=True)
class PersonSnapshot:
    """A dataset with a person's data in it. ``rows``: of this person, by side of the split."""

    id: str
    created_at: datetime
    erased_at: datetime | None
    rows: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PersonLineage:
    """Where a person's data went. ``counts``: rows that are the account's own, by kind."""

    user_id: str
    counts: Mapping[str, int]
    snapshots: tuple[PersonSnapshot, ...]
    runs: tuple[RunLineage, ...]


class Lineage:
    """Both directions. Reads only."""

    def __init__(
        self,
        *,
        predictions: PredictionStore,
        snapshots: SnapshotStore,
        runs: RunStore,
        versions: VersionStore,
        people: People,
        serving: Serving,
    ) -> None:
        self._predictions = predictions
        self._snapshots = snapshots
        self._runs = runs
        self._versions = versions
        self._people = people
        self._serving = serving

    async def of_prediction(self, prediction_id: str) -> PredictionLineage:
        """Raises NotFound."""
        found = await self._predictions.get(prediction_id) if is_uuid7(prediction_id) else None
        if found is None:
            raise NotFound("There is no such prediction.")
        return PredictionLineage(
            prediction_id=found.id,
            user_id=found.user_id,
            created_at=found.created_at,
            cached=found.cached,
            examples=tuple(found.input.get("examples", ())),
            version=await self._of_version(found.version),
        )

    async def of_version(self, version: str) -> VersionLineage:
        """Raises NotFound for a version that nothing is known of."""
        found = await self._of_version(version[:64])
        if found.provider is None and found.run is None:
            raise NotFound("There is no such version.")
        return found

    async def of_person(self, user_id: str) -> PersonLineage:
        """Of an account that is there, or was: what is not there has learned nothing."""
        rows = await self._snapshots.rows_of_person(user_id)
        by_snapshot: dict[str, Counter[str]] = {}
        for row in rows:
            by_snapshot.setdefault(row.snapshot_id, Counter())[row.split] += 1
        found = []
        for snapshot_id in sorted(by_snapshot):
            snapshot = await self._snapshots.get(snapshot_id)
            if snapshot is not None:
                found.append(
                    PersonSnapshot(snapshot.id, snapshot.created_at, snapshot.erased_at, dict(by_snapshot[snapshot_id]))
                )
        runs, uses = await self._runs.of_snapshots(sorted(by_snapshot)), await self._serving.uses()
        return PersonLineage(
            user_id=user_id,
            counts=await self._people.counts(user_id),
            snapshots=tuple(found),
            runs=tuple(_run(run, uses) for run in runs),
        )

    async def _of_version(self, version: str) -> VersionLineage:
        known = await self._versions.get(version)
        adapter = None if known is None else known.details.get("adapter")
        run = await self._runs.get(adapter) if adapter else await self._runs.of_version(version)
        uses = await self._serving.uses()
        snapshot = None if run is None or run.snapshot_id is None else await self._snapshot(run.snapshot_id)
        return VersionLineage(
            version=version,
            provider=None if known is None else known.provider,
            model=None if known is None else known.model,
            base_hash=None if known is None else known.base_hash,
            adapter=adapter or (None if run is None else run.id),
            adapter_hash=run.adapter_hash if known is None and run is not None else known.adapter_hash if known else None,
            serves=uses.get(version, ()),
            run=None if run is None else _run(run, uses),
            snapshot=snapshot,
        )

    async def _snapshot(self, snapshot_id: str) -> SnapshotLineage | None:
        snapshot = await self._snapshots.get(snapshot_id)
        if snapshot is None:
            return None
        rows = await self._snapshots.rows(snapshot_id)
        shown = (
            RowLineage(row.feedback_id, row.prediction_id, row.user_id, row.rater, row.kind, row.split, row.weight)
            for row in rows[:_MOST_ROWS]
        )
        return SnapshotLineage(
            snapshot.id, snapshot.created_at, snapshot.source, snapshot.digest, snapshot.erased_at, len(rows), tuple(shown)
        )


def _run(run: RunRecord, uses: Mapping[str, tuple[str, ...]]) -> RunLineage:
    return RunLineage(
        id=run.id,
        created_at=run.created_at,
        state=run.state,
        method=run.method,
        version=run.version,
        adapter_hash=run.adapter_hash,
        retired_at=run.retired_at,
        retired_reason=run.retired_reason,
        serves=uses.get(run.version, ()) if run.version is not None else (),
    )
