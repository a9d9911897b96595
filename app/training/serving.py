"""What serves now, for lineage and erasure, and how it leaves what may not serve any more."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

from app.core.errors import AprendizError, Conflict, EngineUnavailable
from app.core.records import AliasRecord, CanaryRecord
from app.core.types import ModelSpec, Principal
from app.models.status import ManagerStatus
from app.training.lineage import CANARY

_DEFAULT: Final = "default"
_MOST_BACK: Final = 20
_DRAIN_S: Final = 30.0
_LOOK_S: Final = 0.1
_WHY: Final = "a person's data is erased"


class Models(Protocol):
    """What is used of `app.models.model_manager.ModelManager`."""

    def status(self) -> ManagerStatus: ...
    def current(self, alias: str = ...) -> tuple[ModelSpec, str | None]: ...
    async def rollback(
        self, *, actor: Principal | None, note: Mapping[str, Any] = ..., anywhere: bool = ...
    ) -> AliasRecord: ...
    async def switch(self, spec: ModelSpec, *, actor: Principal | None, alias: str = ...) -> AliasRecord: ...
    async def reload(self, *, actor: Principal | None) -> AliasRecord: ...


class Promotion(Protocol):
    """What is used of `app.training.promotion.Promotion`."""

    async def stop_canary(self, *, actor: Principal | None) -> CanaryRecord: ...


class CanaryStore(Protocol):
    """What is used of `app.db.runs.Canaries`."""

    async def running(self, alias: str) -> CanaryRecord | None: ...


class AliasStore(Protocol):
    """What is used of `app.db.versions.Aliases`."""

    async def list(self) -> list[AliasRecord]: ...


class Serving:
    """The models of this process."""

    def __init__(self, models: Models, promotion: Promotion) -> None:
        self._models = models
        self._promotion = promotion

    async def uses(self) -> Mapping[str, tuple[str, ...]]:
        """By version: the aliases that mean it, and ``canary`` where it is on trial."""
        status = self._models.status()
        pairs = [(alias.version, alias.name) for alias in status.aliases]
        if status.canary is not None:
            pairs.append((status.canary.canary.version, CANARY))
        return _grouped(pairs)

    async def leave(self, adapters: Collection[str], *, actor: Principal | None) -> Mapping[str, str]:
        """Takes every alias, and a canary, away from these adapters, and waits until no engine holds one of them.

        `default` goes to the newest version before that is none of them, else to what is configured; another alias to the bare
        base. Returns which version each alias that was moved means now. Done again, it finds nothing to do.

        Raises as `ModelManager.switch`, and EngineUnavailable where an engine does not let go in time.
        """
        await self._end_canary(adapters, actor)
        moved: dict[str, str] = {}
        held = self._held(adapters)
        for alias in [each.name for each in self._models.status().aliases]:
            spec, _ = self._models.current(alias)
            if spec.adapter in adapters:
                moved[alias] = (await self._move(alias, spec, adapters, actor)).version
        deadline = time.monotonic() + _DRAIN_S
        while self._held(adapters):
            if time.monotonic() > deadline:
                raise EngineUnavailable("A version that has to go still answers. The erasure goes on by itself.", retry_after=5)
            await asyncio.sleep(_LOOK_S)
        if moved or held:
            await self._models.reload(actor=actor)  # an engine that served several versions still lists what it began with
        return moved

    def _held(self, adapters: Collection[str]) -> bool:
        return any(engine.adapter in adapters for engine in self._models.status().engines)

    async def _end_canary(self, adapters: Collection[str], actor: Principal | None) -> None:
        status = self._models.status().canary
        if status is not None and status.canary.spec.adapter in adapters:
            with contextlib.suppress(Conflict):  # it has ended by itself just now
                await self._promotion.stop_canary(actor=actor)

    async def _move(
        self, alias: str, spec: ModelSpec, adapters: Collection[str], actor: Principal | None
    ) -> AliasRecord:  # fmt: skip
        if alias == _DEFAULT:
            for _ in range(_MOST_BACK):
                try:
                    record = await self._models.rollback(actor=actor, note={"why": _WHY}, anywhere=True)
                except AprendizError:
                    break
                if record.adapter not in adapters:
                    return record
        return await self._models.switch(ModelSpec(spec.provider, spec.model, spec.device), actor=actor, alias=alias)


class Stored:
    """What the rows say, where no models run: for the command line. A service that starts later moves the aliases itself."""

    def __init__(self, aliases: AliasStore, canaries: CanaryStore) -> None:
        self._aliases = aliases
        self._canaries = canaries

    async def uses(self) -> Mapping[str, tuple[str, ...]]:
        """As `Serving.uses`."""
        pairs: list[tuple[str | None, str]] = [(alias.version, alias.name) for alias in await self._aliases.list()]
        canary = await self._canaries.running(_DEFAULT)
        return _grouped([*pairs, (canary.version, CANARY)] if canary is not None else pairs)


def _grouped(pairs: list[tuple[str | None, str]]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for version, name in pairs:
        if version is not None:
            found[version] = (*found.get(version, ()), name)
    return found
