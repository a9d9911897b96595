"""A provider of "other people's" models that do, call after call, what their script says; and houses that route to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.errors import AprendizError
from app.core.settings import Model, Providers
from app.core.types import (
    EmbeddingRequest,
    Embeddings,
    EngineState,
    Event,
    Finished,
    GenerationRequest,
    ModelSpec,
    TextDelta,
    Usage,
    VersionInfo,
)
from app.providers.base import BaseLLMProvider, Capabilities, EngineStatus, LoadedModel, ProviderContext


@dataclass(frozen=True)
class Later:
    """Silence until ``go``, then ``error``."""

    error: AprendizError


Act = AprendizError | Exception | Later | str
"""An error to raise before anything; or ``ok``, ``hang`` (silence), ``cut`` (ends without its end), ``break`` (an error after
the first piece), ``stall`` (silence after the first piece), ``empty`` (ends at once)."""


class RemoteModel(LoadedModel):
    """Answers with its own name. ``script``: what the next calls get; the last one is for all that follow."""

    def __init__(self, spec: ModelSpec, capabilities: Capabilities) -> None:
        self.spec = spec
        self.script: list[Act] = ["ok"]
        self.capabilities = capabilities
        self.version = VersionInfo(f"{spec.provider}-{spec.model}", spec.provider, spec.model, None, None, None)
        self.calls: list[GenerationRequest] = []
        self.running = 0
        self.most_running = 0
        self.closed = False
        self.go = asyncio.Event()
        """Ends a ``hang``, with an answer."""

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        async for batch in self.batches(request):
            for event in batch:
                yield event

    async def batches(self, request: GenerationRequest) -> AsyncGenerator[Sequence[Event], None]:
        self.calls.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        act = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        try:
            await asyncio.sleep(0)
            if isinstance(act, Exception):
                raise act.again() if isinstance(act, AprendizError) else act
            if act == "hang":
                await self.go.wait()
            if isinstance(act, Later):
                await self.go.wait()
                raise act.error.again()
            if act == "empty":
                return
            yield (TextDelta(f"{self.spec.name} "), TextDelta("one "))
            if act == "stall":
                await asyncio.Event().wait()
            if act == "break":
                raise BREAK.again()
            if act == "cut":
                return
            yield (TextDelta("two"), Finished("stop", Usage(5, 3, cached_tokens=2)))
        finally:
            self.running -= 1

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        act = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(act, AprendizError):
            raise act.again()
        if act == "hang":
            await self.go.wait()
        return Embeddings(tuple((float(len(text)),) for text in request.inputs), 3)

    async def count_tokens(self, request: GenerationRequest) -> int:
        return sum(len(str(message.content).split()) for message in request.messages)

    def status(self) -> EngineStatus:
        return EngineStatus(EngineState.READY)

    async def aclose(self) -> None:
        self.closed = True


BREAK = AprendizError("broken")


class RemoteProvider(BaseLLMProvider):
    """Models of any name, made when they are first spoken of, so that a test can write their scripts."""

    def __init__(self, name: str = "far", **capabilities: Any) -> None:
        super().__init__(ProviderContext(Model(), Providers(), Path("/nonexistent"), Path("/nonexistent"), lambda name: None))
        self.name = name
        self._capabilities = Capabilities(**{"slots": 64, "context_tokens": None, "remote": True, **capabilities})
        self.models: dict[str, RemoteModel] = {}
        self.opened: list[str] = []

    def __getitem__(self, model: str) -> RemoteModel:
        return self.models.setdefault(model, RemoteModel(ModelSpec(self.name, model), self._capabilities))

    async def open(self, spec: ModelSpec, *, on_state: Callable[[EngineState], None]) -> LoadedModel:
        await asyncio.sleep(0)
        self.opened.append(spec.model)
        on_state(EngineState.READY)
        return self[spec.model]

    @property
    def running(self) -> int:
        return sum(model.running for model in self.models.values())


def route(*targets: str, **more: Any) -> dict[str, Any]:
    """A route to ``targets``, as in a configuration file; no second tries unless ``more`` says so."""
    return {"targets": [{"model": target} for target in targets], "retries": 0, **more}
