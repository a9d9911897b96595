"""Jobs with real rows, folders, locks and child processes; the child counts instead of training, and models are doubles."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.core.errors import AprendizError
from app.core.files import FileHashes
from app.core.ids import uuid7
from app.core.metrics import Metrics
from app.core.records import RunRecord, SnapshotRecord
from app.core.types import ModelSpec, Principal
from app.db.audit import Audit
from app.db.database import Database
from app.db.runs import Runs
from app.db.snapshots import Snapshots
from app.training.bases import Bases
from app.training.folders import Folders
from app.training.jobs import OPEN, Jobs
from app.training.lock import RUN_LOCK, holder
from app.training.packages import Packages
from app.training.snapshots import SnapshotConfig
from app.training.supervisor import Timings
from app.training.throttle import Throttle
from app.training.tools import Tools

TRAINER = Path(__file__).with_name("fake_trainer.py")
ADMIN = Principal("01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77", "ada", "admin", frozenset({"admin"}), "session")
QUICK = Timings(look_s=0.02, hear_s=0.02, end_s=0.5, again_s=0.05, patience_s=0.05, unnamed_s=2)
VERSION = "c" * 16


def report(**ready: bool) -> dict[str, Any]:
    """What a snapshot reports, as far as the choice of a method reads it."""
    methods = {name: {"ready": ready.get(name, False), "missing": [f"7 more {name}"]} for name in ("sft", "dpo", "kto")}
    return {"methods": methods, "rows": {name: {"train": 10} for name in methods}}


def command(**options: Any) -> tuple[str, ...]:
    """The counting child; see `tests.training.fake_trainer`."""
    return (sys.executable, str(TRAINER), json.dumps(options))


@dataclass
class FakeModels:
    """Who serves, and whether anybody is served."""

    spec: ModelSpec
    version: str | None = "b" * 16
    served: bool = False

    def busy(self) -> bool:
        return self.served

    def current(self) -> tuple[ModelSpec, str | None]:
        return self.spec, self.version


@dataclass
class FakeBuilder:
    """Writes the smallest snapshot that checks out."""

    store: Snapshots
    folders: Folders
    told: Mapping[str, Any] = field(default_factory=lambda: report(sft=True))
    failure: Exception | None = None

    async def preview(self, config: SnapshotConfig) -> Mapping[str, Any]:
        return self.told

    def rows(self) -> bytes:
        return b'{"kind": "sft"}\n'

    async def build(self, config: SnapshotConfig, *, actor: Principal | None) -> SnapshotRecord:
        if self.failure is not None:
            raise self.failure
        record = SnapshotRecord(
            uuid7(), datetime.now(UTC), None, "d" * 64, "feedback", config.model_dump(mode="json"), self.told
        )
        folder = self.folders.snapshot(record.id)
        folder.mkdir(parents=True)
        rows = self.rows()
        for name in ("train.jsonl", "heldout.jsonl"):
            (folder / name).write_bytes(rows)
        files = dict.fromkeys(("train.jsonl", "heldout.jsonl"), hashlib.sha256(rows).hexdigest())
        (folder / "manifest.json").write_text(json.dumps({"digest": record.digest, "files": files}))
        await self.store.add(record, [])
        return record


@dataclass
class FakeJudge:
    """A verdict, after as long as it is told to take."""

    verdict: str = "pass"
    takes_s: float = 0
    failures: list[AprendizError] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)

    async def judge(
        self, run: RunRecord, snapshot: SnapshotRecord, folder: Path, *, progress: Callable[[int, int], None]
    ) -> Mapping[str, Any]:
        self.judged.append(run.id)
        progress(1, 2)
        await asyncio.sleep(self.takes_s)
        if self.failures:
            raise self.failures.pop(0)
        (folder / "report.json").write_text(json.dumps({"verdict": self.verdict}))
        (folder / "report.html").write_text("<!doctype html><style>p{color:red}</style><p>report</p>")
        check = {"name": "gain", "value": 0.3, "interval": [0.1, 0.5], "bound": 0.05, "passed": self.verdict == "pass"}
        return {"verdict": self.verdict, "checks": [check], "versions": {"candidate": VERSION, "current": "b" * 16}}


@dataclass
class FakePromoter:
    """Remembers who was promoted."""

    models: FakeModels
    promoted: list[str] = field(default_factory=list)
    failure: AprendizError | None = None

    async def promote(self, version: str, *, actor: Principal | None) -> None:
        if self.failure is not None:
            raise self.failure
        self.promoted.append(version)
        self.models.version = version


class World:
    """Everything around `Jobs`. ``jobs`` is not started; `started` does it, and ends the children that are left behind."""

    def __init__(self, database: Database, data: Path, *, runs_per_day: int = 100, **tools: Any) -> None:
        self.base = data / "base.gguf"
        self.base.write_bytes(b"GGUF weights")
        self.runs, self.snapshots, self.audit = Runs(database), Snapshots(database), Audit(database)
        self.models, self.metrics, self.folders = (
            FakeModels(ModelSpec("llamacpp", str(self.base), "cpu")),
            Metrics(),
            Folders(data),
        )
        self.builder = FakeBuilder(self.snapshots, self.folders)
        self.judge, self.promoter = FakeJudge(), FakePromoter(self.models)
        made = Tools(
            runs=self.runs,
            snapshots=self.snapshots,
            builder=self.builder,
            models=self.models,
            judge=self.judge,
            promoter=self.promoter,
            bases=Bases(lambda name: Path(name), FileHashes(), cache=data),
            folders=self.folders,
            metrics=self.metrics,
            command=command(),
            packages=Packages,
            throttle=lambda: Throttle(quiet_s=0.3, slice_s=0.1, every_s=60),
            timings=QUICK,
        )
        self.tools = dataclasses.replace(made, **tools)
        self._runs_per_day = runs_per_day
        self.jobs = self.another()

    def another(self, **tools: Any) -> Jobs:
        """Jobs of another service process on the same data, as far as one process can show it."""
        return Jobs(dataclasses.replace(self.tools, **tools), runs=self.runs, audit=self.audit, runs_per_day=self._runs_per_day)

    @contextlib.asynccontextmanager
    async def started(self, jobs: Jobs | None = None) -> AsyncIterator[Jobs]:
        jobs = jobs or self.jobs
        await jobs.start()
        try:
            yield jobs
        finally:
            await jobs.aclose()

    def end_children(self) -> None:
        """Ends what is still training: it would outlive the tests."""
        for folder in self.folders.runs.glob("*-*"):
            who = holder(folder / RUN_LOCK)
            if who is not None:
                os.kill(who.pid, signal.SIGKILL)

    def heard(self, jobs: Jobs, run: RunRecord) -> Mapping[str, Any]:
        """How far a run is that ``jobs`` works on, without a look at its row."""
        return jobs.progress(dataclasses.replace(run, state="running"))

    def count(self, run_id: str) -> int:
        """How many steps the child has made."""
        path = self.folders.run(run_id) / "count"
        return int(path.read_text()) if path.exists() else 0

    def lives(self, run_id: str) -> list[int]:
        """Process ids of the child's lives so far."""
        path = self.folders.run(run_id) / "lives"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    async def until(self, what: Callable[[], Any], *, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline, "it did not happen in time"
            await asyncio.sleep(0.01)

    async def ended(self, run_id: str, *, timeout_s: float = 20) -> RunRecord:
        """The run, once it has ended."""
        deadline = time.monotonic() + timeout_s
        while True:
            run = await self.runs.get(run_id)
            assert run is not None
            if run.state not in OPEN:
                return run
            assert time.monotonic() < deadline, run
            await asyncio.sleep(0.02)
