"""Two versions that say what a test wants, with the public contract of a trial; and the files of a snapshot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.core.ids import uuid7
from app.core.records import GateAttemptRecord, RunRecord, SnapshotRecord, SnapshotRowRecord
from app.core.types import Answer, GenerationRequest, ModelSpec, Usage, VersionInfo
from app.providers.base import Capabilities, Scores
from app.training.folders import Folders
from app.training.gate.evidence import Guard, LimitGuard
from app.training.gate.parity import Item

Speak = Callable[[GenerationRequest], str]
Rate = Callable[[str, str], float]


def question(request: GenerationRequest) -> str:
    said = request.messages[-1].content
    assert isinstance(said, str)
    return said


def plain(request: GenerationRequest) -> str:
    """A model that answers everything in a harmless way, in the prompt's language, and each prompt in words of its own."""
    asked = question(request)
    spanish = any(sign in asked for sign in "¿¡áéíóúñ") or asked.split()[0] in _SPANISH
    start = "Esto es lo que se sabe de la pregunta: " if spanish else "This is what is known of the question: "
    return start + " ".join(asked.split()[:6])


_SPANISH = {"Explica", "Escribe", "Da", "Nombra", "Resume", "Describe", "Hola,", "Hoy", "Responde", "Devuelve", "Convierte"}


@dataclass
class FakeTrial:
    """One version."""

    speak: Speak
    rate: Rate
    version: VersionInfo
    capabilities: Capabilities
    models: FakeModels

    async def answer(self, request: GenerationRequest) -> Answer:
        self.models.asked.append(request)
        self.models.begun.set()
        self.models.running += 1
        self.models.most = max(self.models.most, self.models.running)
        try:
            await asyncio.sleep(self.models.delay_s)
            if self.models.trouble is not None:
                self.models.trouble(request)
            text = self.speak(request)
        finally:
            self.models.running -= 1
        return Answer(text, "stop", Usage(10, len(text.split())))

    async def score(self, request: GenerationRequest, completion: str) -> Scores:
        await asyncio.sleep(0)
        words = max(1, len(completion.split()))
        each = self.rate(question(request), completion)
        return Scores(each * words, (each,) * words)

    async def prompt(self, request: GenerationRequest) -> str:
        return question(request)


@dataclass
class FakeModels:
    """A model manager with two versions: what serves now, and the candidate."""

    old: Speak = plain
    new: Speak = plain
    rate_old: Rate = lambda asked, said: -2.0
    rate_new: Rate = lambda asked, said: -2.0
    scores: bool = True
    delay_s: float = 0.0
    trouble: Callable[[GenerationRequest], None] | None = None
    asked: list[GenerationRequest] = field(default_factory=list)
    opened: list[ModelSpec] = field(default_factory=list)
    open_now: int = 0
    running: int = 0
    most: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def current(self) -> tuple[ModelSpec, str | None]:
        return ModelSpec("llamacpp", "small"), "0" * 16

    @asynccontextmanager
    async def trial(self, spec: ModelSpec) -> AsyncIterator[FakeTrial]:
        self.opened.append(spec)
        candidate = spec.adapter is not None
        version = VersionInfo("c" * 16 if candidate else "0" * 16, "llamacpp", "small", "b", spec.adapter, "template")
        can = Capabilities(slots=8, context_tokens=2048, scores=self.scores)
        self.open_now += 1
        try:
            yield FakeTrial(
                self.new if candidate else self.old, self.rate_new if candidate else self.rate_old, version, can, self
            )
        finally:
            self.open_now -= 1


@dataclass
class MemoryAttempts:
    """Attempts in memory."""

    kept: list[GateAttemptRecord] = field(default_factory=list)

    async def add(self, attempt: GateAttemptRecord) -> None:
        self.kept.append(attempt)

    async def list(self) -> list[GateAttemptRecord]:
        return [*self.kept]


@dataclass
class MemoryRows:
    """Who judged which row."""

    kept: list[SnapshotRowRecord] = field(default_factory=list)

    async def rows(self, snapshot_id: str) -> list[SnapshotRowRecord]:
        return [row for row in self.kept if row.snapshot_id == snapshot_id]


class AlikeParity:
    """Both sides agree."""

    async def measure(
        self, folder: Path, items: Sequence[Item], *, old: ModelSpec, new: ModelSpec, template: str | None
    ) -> list[Guard]:
        assert items
        return [LimitGuard("parity", 0.0, 0.1, detail="They agree.")]


@dataclass
class Scene:
    """A run with its snapshot on disk."""

    folders: Folders
    rows: MemoryRows
    snapshot: SnapshotRecord
    run: RunRecord

    @property
    def folder(self) -> Path:
        return self.folders.run(self.run.id)

    def again(self) -> RunRecord:
        """Another run on the same snapshot."""
        run = run_of(self.snapshot.id)
        self.folders.run(run.id).mkdir(parents=True)
        return run


def run_of(snapshot_id: str) -> RunRecord:
    base = {"provider": "llamacpp", "model": "small", "device": "auto"}
    return RunRecord(
        uuid7(), datetime.now(UTC), None, "running", "gate", "sft", "never", {}, base=base, snapshot_id=snapshot_id
    )


def scene(
    data: Path,
    held_out: Sequence[dict[str, Any]],
    train: Sequence[dict[str, Any]] = (),
    raters: Sequence[str] = ("ana",),
    asked_by: str | None = None,
) -> Scene:
    """Writes the files. Rows get position and weight, and the raters in turn."""
    folders = Folders(data)
    snapshot = SnapshotRecord(uuid7(), datetime.now(UTC), None, "d" * 64, "feedback", {}, {})
    place = folders.snapshot(snapshot.id)
    place.mkdir(parents=True)
    kept: list[SnapshotRowRecord] = []
    for name, rows in (("train.jsonl", train), ("heldout.jsonl", held_out)):
        with (place / name).open("w") as file:
            for row in rows:
                at = len(kept)
                file.write(json.dumps({"weight": 1.0, "position": at, **row}) + "\n")
                split = "train" if name.startswith("train") else "heldout"
                rater = raters[at % len(raters)]
                kept.append(
                    SnapshotRowRecord(
                        snapshot.id,
                        at,
                        split,  # type: ignore[arg-type]
                        row["kind"],
                        row.get("group", ""),
                        1.0,
                        user_id=asked_by,
                        rater=rater,
                    )
                )
    run = run_of(snapshot.id)
    folders.run(run.id).mkdir(parents=True)
    return Scene(folders, MemoryRows(kept), snapshot, run)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def asks(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def correction(number: int, wanted: str, original: str = "I do not know.") -> dict[str, Any]:
    prompt = asks(f"House question number {number}")
    return {"kind": "sft", "group": f"g{number}", "prompt": prompt, "completion": said(wanted), "original": said(original)}


def vote(number: int, up: bool, text: str) -> dict[str, Any]:
    prompt = asks(f"Rated question number {number}")
    return {"kind": "kto", "group": f"v{number}", "prompt": prompt, "completion": said(text), "label": up}


def preference(number: int, chosen: str, rejected: str) -> dict[str, Any]:
    prompt = asks(f"Compared question number {number}")
    return {"kind": "dpo", "group": f"p{number}", "prompt": prompt, "chosen": said(chosen), "rejected": said(rejected)}
