"""The provider ``hf``: transformers models in a supervised child process, by Hub name, folder or GGUF file.

Nothing of torch runs in the service's process; the child (`workers.hf_worker`) loads, batches and answers. The extra ``hf``
must be installed. The network is used only for a Hub name that is not in the local cache yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.core.errors import UnknownModel, UpstreamError
from app.core.types import EngineState, Event, GenerationRequest, ModelSpec, VersionInfo
from app.providers.base import (
    AdapterFiles,
    BaseLLMProvider,
    Capabilities,
    EngineStatus,
    LoadedModel,
    ProviderContext,
    Scores,
    flat,
)
from app.providers.engine import Engine, Timings
from app.providers.versions import version_info
from app.providers.wire import chat_body

_WORKER = "app.providers.workers.hf_worker"
_PACKAGES = ("torch", "transformers", "safetensors")
_HUB_VARIABLES = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"),
    *("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)
"""Where the hub and its cache are, under the names that all programs of that world use. None is a secret of ours."""


class HuggingFaceProvider(BaseLLMProvider):
    """``hf/NAME``: a Hub name, a catalogue name, a folder or a GGUF file.

    Args:
        timings: when supervision acts; tests use shorter ones.
        dtype: auto (bfloat16 where the hardware computes with it, else float32), or one of float32, bfloat16, float16.
    """

    name = "hf"

    def __init__(self, context: ProviderContext, *, timings: Timings | None = None, dtype: str = "auto") -> None:
        super().__init__(context)
        self._timings = timings
        self._dtype = dtype

    async def open(self, spec: ModelSpec, *, on_state: Callable[[EngineState], None]) -> LoadedModel:
        """See `BaseLLMProvider.open`. ``spec.model``: a catalogue name, a folder, a GGUF file or a Hub name."""
        missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
        if missing:
            raise UnknownModel(
                f"The provider hf is not installed ({', '.join(missing)} missing): pip install 'aprendiz[hf]'.",
                field="provider",
            )
        adapter = None if spec.adapter is None else await asyncio.to_thread(self.context.adapter, spec.adapter)
        path = await asyncio.to_thread(self.context.resolve, spec.model)
        settings = self.context.model
        engine = Engine(
            _WORKER,
            self._config(spec, path, adapter),
            label=spec.public_name,
            runtime_dir=self.context.runtime_dir,
            load_timeout_s=settings.load_timeout_s,
            read_timeout_s=settings.answer_timeout_s,
            memory_mb=self.context.providers.engine_memory_mb,
            env={name: os.environ[name] for name in _HUB_VARIABLES if name in os.environ},
            on_state=on_state,
            timings=self._timings,
        )
        await engine.start()
        try:
            return HuggingFaceModel(engine, spec, adapter, max_tokens=settings.max_tokens, temperature=settings.temperature)
        except BaseException:  # a worker that reports something else: it must not stay behind
            await engine.aclose()
            raise

    def _config(self, spec: ModelSpec, path: Path | None, adapter: AdapterFiles | None) -> dict[str, Any]:
        settings = self.context.model
        own = None
        if adapter is not None:
            own = {"folder": str(adapter.peft), "adapter_hash": adapter.adapter_hash, "base_hash": adapter.base_hash}
        return {
            "name": spec.model,
            "path": None if path is None else str(path),
            "device": spec.device,
            "dtype": self._dtype,
            "context_tokens": settings.context_tokens,
            "slots": settings.slots,
            "threads": settings.threads,
            "cache": str(self.context.models_dir / "hf"),
            "hub_token": os.environ.get("HF_TOKEN"),
            "adapter": own,
        }


class HuggingFaceModel(LoadedModel):
    """A model in its own process."""

    def __init__(
        self, engine: Engine, spec: ModelSpec, adapter: AdapterFiles | None, *, max_tokens: int, temperature: float
    ) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._temperature = temperature
        facts = engine.facts
        self.version = _version(spec, facts, adapter)
        self.capabilities = Capabilities(
            slots=int(facts["slots"]),
            context_tokens=int(facts["context_tokens"]),
            logprobs=True,
            adapters=True,
            seed=True,
            scores=True,
        )

    def stream(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """See `LoadedModel.stream`."""
        return flat(self.batches(request))

    async def batches(self, request: GenerationRequest) -> AsyncGenerator[Sequence[Event], None]:
        """See `LoadedModel.batches`. Always a stream, even where the answer is wanted whole: so leaving ends the work."""
        body = chat_body(request, max_tokens=self._max_tokens, temperature=self._temperature)
        async with contextlib.aclosing(self._engine.client().batches_chat(body)) as batches:
            async for batch in batches:
                yield batch

    async def count_tokens(self, request: GenerationRequest) -> int:
        """See `LoadedModel.count_tokens`."""
        body = {"messages": [message.to_wire() for message in request.messages]}
        answer = await self._engine.client().json("POST", "/tokenize", body)
        return int(answer["tokens"])

    async def score(self, request: GenerationRequest, completion: str) -> Scores:
        """See `LoadedModel.score`. One forward pass, and one at a time."""
        body = {"messages": [message.to_wire() for message in request.messages], "completion": completion}
        answer = await self._engine.client().json("POST", "/score", body)
        try:
            tokens = tuple(float(each) for each in answer["logprobs"])
        except (LookupError, TypeError, ValueError) as error:
            raise UpstreamError("The engine does not say how probable the answer is.") from error
        return Scores(sum(tokens), tokens)

    async def prompt(self, request: GenerationRequest) -> str:
        """See `LoadedModel.prompt`."""
        answer = await self._engine.client().json(
            "POST", "/prompt", {"messages": [message.to_wire() for message in request.messages]}
        )
        prompt = answer.get("prompt") if isinstance(answer, dict) else None
        if not isinstance(prompt, str):
            raise UpstreamError("The engine does not say what the prompt is.")
        return prompt

    def status(self) -> EngineStatus:
        """See `LoadedModel.status`."""
        return self._engine.status()

    async def aclose(self) -> None:
        """See `LoadedModel.aclose`."""
        await self._engine.aclose()


def _version(spec: ModelSpec, facts: Mapping[str, Any], adapter: AdapterFiles | None) -> VersionInfo:
    details = {name: facts[name] for name in ("device", "dtype", "revision") if facts.get(name)}
    return version_info(
        spec.provider,
        spec.model,
        base_hash=facts["base_hash"],
        adapter_hash=None if adapter is None else adapter.adapter_hash,
        template_hash=facts["template_hash"],
        context_tokens=facts["context_tokens"],
        details=details | ({} if adapter is None else {"adapter": adapter.name}),
    )
