"""Doubles with the public contracts: stores in memory, and a provider whose models do exactly what a test tells them."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.core.errors import AprendizError, UnknownModel
from app.core.metrics import Metrics
from app.core.records import UNSET, AliasRecord, AuditRecord, PredictionRecord, Unset, VersionRecord
from app.core.settings import Model, Providers, Routing, Upstream
from app.core.types import (
    ALL_SCOPES,
    EngineState,
    Event,
    Finished,
    GenerationRequest,
    Message,
    ModelSpec,
    Principal,
    Role,
    Sampling,
    TextDelta,
    Usage,
    VersionInfo,
)
from app.db.versions import previous_of
from app.models.model_manager import ModelManager, ModelStores
from app.providers.base import BaseLLMProvider, Capabilities, EngineStatus, LoadedModel, ProviderContext

TIMEOUT_S = 20.0
"""No test waits longer for anything; nothing is asserted about time."""


class MemoryPredictions:
    def __init__(self) -> None:
        self.rows: dict[str, PredictionRecord] = {}
        self.error: AprendizError | None = None
        self.gate: asyncio.Event | None = None

    async def add(self, prediction: PredictionRecord) -> None:
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        assert prediction.id not in self.rows
        self.rows[prediction.id] = prediction

    def of_status(self, status: str) -> list[PredictionRecord]:
        return [row for row in self.rows.values() if row.status == status]


class MemoryVersions:
    def __init__(self) -> None:
        self.rows: dict[str, VersionRecord] = {}
        self.error: AprendizError | None = None

    async def put(self, version: VersionRecord) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.rows.setdefault(version.id, version)

    async def list(self) -> list[VersionRecord]:
        return list(self.rows.values())

    async def get(self, version_id: str) -> VersionRecord | None:
        return self.rows.get(version_id)


class MemoryAliases:
    def __init__(self) -> None:
        self.rows: dict[str, AliasRecord] = {}
        self.error: AprendizError | None = None
        self.moves = 0

    async def list(self) -> list[AliasRecord]:
        return list(self.rows.values())

    async def move(self, alias: AliasRecord, *, previous: Mapping[str, Any] | Unset | None = UNSET) -> AliasRecord:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.moves += 1
        old = self.rows.get(alias.name)
        if isinstance(previous, Unset):
            previous = None if old is None else previous_of(old, alias)
        self.rows[alias.name] = dataclasses.replace(alias, previous=previous)
        return self.rows[alias.name]


class MemoryAudit:
    def __init__(self) -> None:
        self.rows: list[AuditRecord] = []

    async def add(self, record: AuditRecord) -> None:
        self.rows.append(record)


class ScriptedModel(LoadedModel):
    """Says the model's name, word for word of the prompt. A gate per model holds every answer back until it is opened."""

    def __init__(self, provider: ScriptedProvider, spec: ModelSpec, on_state: Callable[[EngineState], None]) -> None:
        self.spec = spec
        self.on_state = on_state
        self.state = EngineState.READY
        self.closed = False
        self.running = 0
        self.most_running = 0
        self.begun: list[str] = []
        self.cancelled = 0
        self.counted = 0
        self.slots = provider.slots
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.cut = False
        self.capabilities = Capabilities(slots=provider.slots, context_tokens=provider.context_tokens)
        base = provider.hashes.get(spec.model, spec.model)
        self.version = VersionInfo(f"{base}-{spec.adapter or 'base'}", spec.provider, spec.model, base, spec.adapter, None, 256)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        assert not self.closed
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        text = str(request.messages[-1].content)
        self.begun.append(text)
        finished = False
        words = text.split()
        try:
            for word in words:
                await self.gate.wait()
                await asyncio.sleep(0)
                assert not self.closed
                yield TextDelta(f"{self.spec.model}:{word} ")
                if self.error is not None:
                    raise self.error
            await self.gate.wait()
            finished = True
            if not self.cut:
                yield Finished("stop", Usage(prompt_tokens=7, completion_tokens=len(words)))
        finally:
            self.running -= 1
            self.cancelled += not finished

    async def count_tokens(self, request: GenerationRequest) -> int:
        self.counted += 1
        return sum(len(str(message.content).split()) for message in request.messages)

    def status(self) -> EngineStatus:
        return EngineStatus(self.state, pid=1)

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        assert self.running == 0 or self.closed
        self.closed = True
        self.tell(EngineState.STOPPED)

    def tell(self, state: EngineState) -> None:
        self.state = state
        self.on_state(state)


class ScriptedProvider(BaseLLMProvider):
    """Loads any name but ``missing``. ``gate``: holds loads back; ``errors``: what loading a name fails with."""

    name = "scripted"

    def __init__(self, slots: int = 4, context_tokens: int | None = 256) -> None:
        super().__init__(ProviderContext(Model(), Providers(), Path("/nonexistent"), Path("/nonexistent"), lambda name: None))
        self.slots = slots
        self.context_tokens = context_tokens
        self.gate = asyncio.Event()
        self.gate.set()
        self.errors: dict[str, Exception] = {}
        self.hashes: dict[str, str] = {}
        self.opened: list[ScriptedModel] = []
        self.tries = 0

    async def open(self, spec: ModelSpec, *, on_state: Callable[[EngineState], None]) -> LoadedModel:
        self.tries += 1
        on_state(EngineState.STARTING)
        await self.gate.wait()
        await asyncio.sleep(0)
        if spec.model in self.errors:
            on_state(EngineState.FAILED)
            raise self.errors[spec.model]
        if spec.model == "missing":
            raise UnknownModel("There is no such model; pull it first.")
        on_state(EngineState.READY)
        model = ScriptedModel(self, spec, on_state)
        self.opened.append(model)
        return model

    @property
    def alive(self) -> list[ScriptedModel]:
        return [model for model in self.opened if not model.closed]

    def last(self, name: str) -> ScriptedModel:
        return [model for model in self.opened if model.spec.model == name][-1]


class Registry:
    def __init__(self, *providers: BaseLLMProvider) -> None:
        self.providers = {provider.name: provider for provider in providers}

    def get(self, name: str) -> BaseLLMProvider:
        if name not in self.providers:
            raise UnknownModel(f"There is no provider {name}.")
        return self.providers[name]


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class House:
    """A manager and everything around it."""

    def __init__(
        self,
        provider: BaseLLMProvider | None = None,
        clock: Callable[[], float] | None = None,
        *,
        routes: Mapping[str, Any] | None = None,
        upstreams: Mapping[str, Any] | None = None,
        others: Sequence[BaseLLMProvider] = (),
        **settings: Any,
    ) -> None:
        self.provider = provider or ScriptedProvider()
        self.others = others
        self.routing = Routing.model_validate({"models": routes or {}})
        self.upstreams = {name: Upstream.model_validate(values) for name, values in (upstreams or {}).items()}
        values: dict[str, Any] = {"provider": self.provider.name, "model": "a", "preload": False, **settings}
        self.settings = Model(**{"system_prompt": "", **values})
        self.predictions, self.versions = MemoryPredictions(), MemoryVersions()
        self.aliases, self.audit = MemoryAliases(), MemoryAudit()
        self.metrics = Metrics()
        self.clock = clock
        self.manager = self.build()

    def build(self) -> ModelManager:
        stores = ModelStores(self.predictions, self.versions, self.aliases, self.audit)
        more: dict[str, Any] = {} if self.clock is None else {"clock": self.clock}
        return ModelManager(
            self.settings,
            providers=Registry(self.provider, *self.others),
            stores=stores,
            metrics=self.metrics,
            routing=self.routing,
            upstreams=self.upstreams,
            rng=random.Random(7),
            **more,
        )

    @property
    def scripted(self) -> ScriptedProvider:
        assert isinstance(self.provider, ScriptedProvider)
        return self.provider

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def spec(model: str, adapter: str | None = None) -> ModelSpec:
    return ModelSpec("scripted", model, adapter=adapter)


def user(name: str = "ana", role: Role = "user") -> Principal:
    return Principal(name, name, role, frozenset(ALL_SCOPES), "session")


def ask(text: str = "one two three", model: str | None = None, **sampling: Any) -> GenerationRequest:
    return GenerationRequest((Message("user", text),), model, Sampling(**sampling))


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until ``condition`` holds; fails after `TIMEOUT_S`."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  # conditions of any kind, in tests only
            await asyncio.sleep(0)
