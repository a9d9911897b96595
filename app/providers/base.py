"""The provider contract: one method opens a model, the open model has four. Abilities are data, never ``isinstance``.

A provider is a *kind* (``llamacpp``, ``hf``, ``echo``, ...). `BaseLLMProvider.open` gives one `LoadedModel`: for local
providers a supervised engine process, for remote ones a client. ``models`` decides when to open, share and close them;
providers know nothing of users, queues or storage. The contract suite in ``app/providers/contract.py`` states what each
must do, and ships, so that the author of a plug-in can run it.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.core.errors import InvalidRequest
from app.core.files import FileHashes
from app.core.settings import Model, Providers
from app.core.types import EmbeddingRequest, Embeddings, EngineState, Event, GenerationRequest, ModelSpec, VersionInfo


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a loaded model can do, as data."""

    slots: int
    """Requests that it works on at the same time; ``models`` admits no more."""
    context_tokens: int | None
    streaming: bool = True
    tools: bool = False
    json_schema: bool = False
    logprobs: bool = False
    embeddings: bool = False
    adapters: bool = False
    seed: bool = True
    raw_prompt: bool = False
    """Goes on from a prompt that is not templated (`GenerationRequest.raw`)."""
    images: bool = False
    top_k: bool = False
    remote: bool = False
    """Other people's machine: it has a price, a breaker, and failures that another target may survive."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What ``/model``, ``/health/ready`` and ``doctor`` show of an engine. ``log``: its last lines, for admins only."""

    state: EngineState
    pid: int | None = None
    restarts: int = 0
    rss_bytes: int | None = None
    device: str | None = None
    error: str | None = None
    log: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """What main gives to every provider when it builds it.

    ``resolve``: maps a catalogue name (or a path) to a local file or folder whose hash was checked, or None if it is not a
    local thing (a Hub name, say); given by ``models``. ``runtime_dir``: for sockets and other short-lived files, mode 0700.
    ``hashes``: those of the files that ``resolve`` gave are known there already.
    """

    model: Model
    providers: Providers
    models_dir: Path
    runtime_dir: Path
    resolve: Callable[[str], Path | None]
    hashes: FileHashes = field(default_factory=FileHashes)


async def flat(batches: AsyncGenerator[Sequence[Event], None]) -> AsyncGenerator[Event, None]:
    """The events of ``batches`` one by one, which is `LoadedModel.stream` for whoever makes batches."""
    async with contextlib.aclosing(batches):
        async for batch in batches:
            for event in batch:
                yield event


class LoadedModel(abc.ABC):
    """One model that is ready to answer."""

    version: VersionInfo
    capabilities: Capabilities

    @abc.abstractmethod
    def stream(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Answers one request: deltas, then exactly one `Finished`.

        Closing the generator cancels the work in the engine at once. Errors are `app.core.errors` types: EngineUnavailable
        when the engine died under the request, UpstreamError for nonsense, InvalidRequest for what the model cannot take
        (a prompt longer than its context, say).
        """

    async def batches(self, request: GenerationRequest) -> AsyncGenerator[Sequence[Event], None]:
        """`stream`, with events that came together in one list, never empty; `Finished` is the last of the last one.

        What ``models`` calls. Override it where events come in heaps: each hand-over costs as much as an event.
        """
        async with contextlib.aclosing(self.stream(request)) as events:
            async for event in events:
                yield (event,)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """One vector a text. Raises InvalidRequest where the model makes none (`Capabilities.embeddings`), else as `stream`."""
        raise InvalidRequest("This model makes no embeddings; ask one that does.", field="model")

    @abc.abstractmethod
    async def count_tokens(self, request: GenerationRequest) -> int:
        """Prompt tokens of ``request`` after templating, by the model's own tokenizer."""

    @abc.abstractmethod
    def status(self) -> EngineStatus:
        """The state now, without waiting for anything."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Ends it, engine process and all. Never raises; may be called twice."""


class BaseLLMProvider(abc.ABC):
    """A kind of model back end (M1, section 9)."""

    name: str

    def __init__(self, context: ProviderContext) -> None:
        self.context = context

    @abc.abstractmethod
    async def open(self, spec: ModelSpec, *, on_state: Callable[[EngineState], None]) -> LoadedModel:
        """Loads ``spec`` and returns when it can answer. ``on_state`` hears every later change of state.

        Raises:
            UnknownModel: there is no such model; the text says how to get one.
            ModelLoadFailed: it is there and cannot be loaded; the text says why, without paths or third-party traces.
        """
