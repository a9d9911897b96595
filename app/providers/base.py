"""The provider contract: one method opens a model, the open model has a handful. Abilities are data, never ``isinstance``.

A provider is a *kind* (``llamacpp``, ``hf``, ``echo``, ...). `BaseLLMProvider.open` gives one `LoadedModel`: for local
providers a supervised engine process, for remote ones a client. ``models`` decides when to open, share and close them;
providers know nothing of users, queues or storage. The contract suite in ``app/providers/contract.py`` states what each
must do, and ships, so that the author of a plug-in can run it.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.core.errors import InvalidRequest, ModelLoadFailed
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
    chat: bool = True
    """Answers at all; False: it only makes vectors, and `LoadedModel.stream` raises InvalidRequest."""
    scores: bool = False
    """`LoadedModel.score` tells how probable a given answer is, and `LoadedModel.prompt` the templated prompt."""


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
class AdapterFiles:
    """A checked adapter on disk. ``models`` makes it (`ProviderContext.adapter`): every file has the hash that its manifest
    says.

    ``adapter_hash``: SHA-256 of its safetensors file, which names the version. ``base_hash``: SHA-256 of the weights that it
    was trained on, and fits alone.
    """

    name: str
    folder: Path
    adapter_hash: str
    base_hash: str
    files: Mapping[str, str]
    """SHA-256 hex by file name, for whoever reads a file later and must know that it is still the same."""
    peft: Path
    """The folder with ``adapter_config.json`` and ``adapter_model.safetensors``."""
    gguf: Path | None = None
    """The same adapter for llama.cpp, where it was converted."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How probable a given answer is: natural logarithms, one for each of its tokens, and their sum."""

    logprob: float
    tokens: tuple[float, ...]


def no_adapters(name: str) -> AdapterFiles:
    """Stands for `ProviderContext.adapter` where there are no adapters."""
    raise ModelLoadFailed("There is no such adapter here.")


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """What main gives to every provider when it builds it.

    ``resolve``: maps a catalogue name (or a path) to a local file or folder whose hash was checked, or None if it is not a
    local thing (a Hub name, say); given by ``models``. ``runtime_dir``: for sockets and other short-lived files, mode 0700.
    ``hashes``: those of the files that ``resolve`` gave are known there already. ``adapter``: the checked files of an adapter
    by its name, given by ``models``; it reads them, so call it in a thread, and raises ModelLoadFailed.
    """

    model: Model
    providers: Providers
    models_dir: Path
    runtime_dir: Path
    resolve: Callable[[str], Path | None]
    hashes: FileHashes = field(default_factory=FileHashes)
    adapter: Callable[[str], AdapterFiles] = no_adapters


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

    async def score(self, request: GenerationRequest, completion: str) -> Scores:
        """How probable ``completion`` is as the answer to ``request``, before any sampling setting.

        The tokens are those of ``completion`` on its own, read as plain text, behind the templated prompt; the token that ends
        a turn is not among them. Raises InvalidRequest where the model tells no scores (`Capabilities.scores`), ContextOverflow
        where both together do not fit, else as `stream`.
        """
        raise InvalidRequest("This model does not tell how probable a given answer is.", field="model")

    async def prompt(self, request: GenerationRequest) -> str:
        """The templated prompt, as text. Raises InvalidRequest where the model does not tell it (`Capabilities.scores`)."""
        raise InvalidRequest("This model does not tell its templated prompt.", field="model")

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
