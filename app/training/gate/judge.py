"""One judgement from a finished run to its stored verdict. It promotes nothing: `app.training.promotion` reads the verdict.

The order is what makes it honest. Which rows are judged, by which test and at what level is fixed before any answer is seen;
the attempt is stored before the verdict is written or returned. A run that is judged again (its service died) keeps its number
and level, and cannot do better than the first time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from app.core.errors import StorageFull, StorageUnavailable
from app.core.ids import uuid7
from app.core.records import GateAttemptRecord, RunRecord, SnapshotRecord, SnapshotRowRecord
from app.core.types import ModelSpec
from app.training.datasets import person_of
from app.training.folders import Folders, write_json
from app.training.gate.attempts import BUDGET, Plan, plan
from app.training.gate.collect import NO_SCORES, Asking, Collected, Progress, Sides, Trial, guards, held_out, parity_items
from app.training.gate.evidence import Guard, Guards, LevelGuard, RateGuard, Unmeasured
from app.training.gate.guards import GuardSet, Wanted, guard_set
from app.training.gate.heldout import HeldOut, Row, choose_groups, read_held_out, read_wanted
from app.training.gate.parity import Parity
from app.training.gate.report import page, write_page
from app.training.gate.statistics import mean
from app.training.gate.verdict import Verdict, band_of, decide

REPORT_JSON: Final = "report.json"
REPORT_HTML: Final = "report.html"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Models(Protocol):
    """What is used of `app.models.model_manager.ModelManager`."""

    def current(self) -> tuple[ModelSpec, str | None]: ...
    def trial(self, spec: ModelSpec) -> AbstractAsyncContextManager[Trial]: ...


class Attempts(Protocol):
    """What is used of `app.db.runs.GateAttempts`."""

    async def add(self, attempt: GateAttemptRecord) -> None: ...
    async def list(self) -> list[GateAttemptRecord]: ...


class SnapshotRows(Protocol):
    """What is used of `app.db.snapshots.Snapshots`."""

    async def rows(self, snapshot_id: str) -> list[SnapshotRowRecord]: ...


@dataclass(frozen=True, slots=True)
class _Case:
    """What is judged, decided before any answer is seen."""

    held: HeldOut
    wanted: tuple[Wanted, ...]
    rows: tuple[Row, ...]
    plan: Plan
    attempts: Sequence[GateAttemptRecord]


class Gate:
    """Judges one run at a time.

    Args:
        models: the model manager; both versions are asked through its trials.
        attempts: where attempts are kept.
        snapshots: who judged which row.
        folders: where snapshots and adapters lie.
        parity: how the trained side is asked; else by the child that ships.
        frozen: the guard prompts; else those that ship.
    """

    def __init__(
        self,
        *,
        models: Models,
        attempts: Attempts,
        snapshots: SnapshotRows,
        folders: Folders,
        parity: Parity | None = None,
        frozen: GuardSet | None = None,
    ) -> None:
        self._models = models
        self._attempts = attempts
        self._snapshots = snapshots
        self._folders = folders
        self._parity = Parity(folders) if parity is None else parity
        self._frozen = frozen
        self._one = asyncio.Lock()

    async def judge(
        self, run: RunRecord, snapshot: SnapshotRecord, folder: Path, *, progress: Progress | None = None
    ) -> Mapping[str, Any]:
        """The verdict of a run whose adapter is finished; see doc/architecture.md for its form.

        Stores the attempt, then writes ``report.json`` and ``report.html`` into ``folder``. ``progress(done, all)``: questions.

        Raises:
            Unavailable: an engine or the trained side failed again and again; it may be judged again.
            Conflict: the files of the snapshot are gone or damaged.
            ModelLoadFailed: the candidate cannot be loaded.
            StorageFull, StorageUnavailable: the report cannot be written.
        """
        async with self._one:
            begun = time.monotonic()
            frozen = await asyncio.to_thread(guard_set) if self._frozen is None else self._frozen
            case = await self._case(run, snapshot)
            spec, _ = self._models.current()
            candidate = ModelSpec(run.base["provider"], run.base["model"], run.base.get("device", "auto"), run.id)
            async with self._models.trial(spec) as old, self._models.trial(candidate) as new:
                sides = Sides(old, new)
                collected = await self._collect(case, sides, frozen, folder, (spec, candidate), progress)
                versions = {"candidate": new.version.id, "current": old.version.id}
            verdict = await asyncio.to_thread(decide, collected.evidence, collected.guards, case.plan, seed=_seed(run.id))
            await self._store(run, case.plan, verdict)
            report = _report(run, case, collected, verdict, versions, time.monotonic() - begun)
            await _written(folder, report, collected)
            return report

    async def _case(self, run: RunRecord, snapshot: SnapshotRecord) -> _Case:
        place = self._folders.snapshot(snapshot.id)
        rows = await self._snapshots.rows(snapshot.id)
        raters = {row.position: person_of(row.rater, row.user_id) or "" for row in rows}
        held = await asyncio.to_thread(read_held_out, place / "heldout.jsonl", raters)
        wanted = await asyncio.to_thread(read_wanted, place / "train.jsonl")
        attempts = await self._attempts.list()
        used = {group for attempt in attempts if attempt.run_id != run.id for group in attempt.groups}
        step = plan(choose_groups(held.groups, used), attempts, run.id)
        return _Case(held, wanted, held.sample(step.groups), step, [each for each in attempts if each.run_id != run.id])

    async def _collect(
        self,
        case: _Case,
        sides: Sides,
        frozen: GuardSet,
        folder: Path,
        specs: tuple[ModelSpec, ModelSpec],
        progress: Progress | None,
    ) -> Collected:
        asking = Asking(sides, progress)
        found = await held_out(asking, case.rows, sides.scores)
        measured = await guards(asking, sides, frozen, case.wanted)
        alike: list[Guard] = [Unmeasured("parity", NO_SCORES, passes=False)]
        if sides.scores:
            items = await parity_items(asking, case.rows, frozen)
            template = sides.new.version.template_hash
            alike = await self._parity.measure(folder, items, old=specs[0], new=specs[1], template=template)
        found.guards = Guards((*measured.each, *alike))
        return found

    async def _store(self, run: RunRecord, step: Plan, verdict: Verdict) -> None:
        """An attempt whose figures say nothing is none: nobody learned anything of the held-out feedback."""
        if verdict.primary is None or step.first_p is not None:
            return
        groups = tuple(sorted(step.groups))
        record = GateAttemptRecord(uuid7(), datetime.now(UTC), run.id, groups, step.alpha, verdict.p_value, verdict.passed)
        await self._attempts.add(record)


def _seed(run_id: str) -> int:
    return int(run_id.replace("-", ""), 16) & 0xFFFFFFFF


def _report(
    run: RunRecord, case: _Case, collected: Collected, verdict: Verdict, versions: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    """The report without any text of users: it is stored for ever."""
    primary = verdict.primary
    bands = [band_of(each) for each in collected.guards.each if isinstance(each, RateGuard | LevelGuard)]
    used = {group for attempt in case.attempts for group in attempt.groups}
    return {
        **verdict.to_json(),
        "attempt": {
            "number": case.plan.number,
            "alpha": case.plan.alpha,
            "p_value": verdict.p_value,
            "fresh_only": case.plan.fresh,
            "budget": BUDGET,
        },
        "versions": dict(versions),
        "run": run.id,
        "method": run.method,
        "primary": None if primary is None else {name: asdict(each) for name, each in primary.families.items()},
        "guards": [asdict(band) for band in bands if band is not None],
        "sampled": {
            "held_out_rows": len(case.held.rows),
            "held_out_groups": len(case.held.groups),
            "judged_rows": len(case.rows) - collected.skipped,
            "judged_groups": len(case.plan.groups),
            "fresh_groups": len(case.held.groups - used),
            "not_comparable": case.held.left_out,
            "skipped": collected.skipped,
            "people": len(collected.evidence.raters),
            "wanted_texts": len(case.wanted),
        },
        "corrections_margin": _margins(collected.margins),
        "history": [
            {"alpha": each.alpha, "p_value": each.p_value, "passed": each.passed}
            for each in case.attempts
            if not case.plan.groups.isdisjoint(each.groups)
        ][-50:],
        "judged_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


def _margins(margins: Sequence[float]) -> dict[str, Any] | None:
    """Told and not judged by: any training moves a model away from its own answers, which are what was corrected."""
    if not margins or not all(abs(each) < 1e9 for each in margins):
        return None
    return {"rows": len(margins), "mean": mean(margins), "raised": sum(each > 0 for each in margins) / len(margins)}


async def _written(folder: Path, report: Mapping[str, Any], collected: Collected) -> None:
    try:
        await asyncio.to_thread(write_json, folder / REPORT_JSON, report)
        text = await asyncio.to_thread(page, report, collected.samples)
        await asyncio.to_thread(write_page, folder / REPORT_HTML, text)
    except OSError as error:
        with contextlib.suppress(OSError):
            (folder / (REPORT_HTML + ".new")).unlink(missing_ok=True)
        if error.errno in _FULL:
            raise StorageFull("The disk is full: the gate's report cannot be written. Make room and start again.") from error
        raise StorageUnavailable("The gate's report cannot be written. The service's log says why.") from error
