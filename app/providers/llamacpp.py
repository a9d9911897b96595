"""The provider ``llamacpp``: a GGUF file behind llama.cpp, in a supervised worker process. The default.

``models`` gives the checked file (`ProviderContext.resolve`); the worker parses it. This side looks at four bytes, no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from app.core.errors import AprendizError, ModelLoadFailed, UnknownModel, UpstreamError
from app.core.types import EngineState, Event, GenerationRequest, ModelSpec, VersionInfo
from app.providers.base import BaseLLMProvider, Capabilities, EngineStatus, LoadedModel, ProviderContext, flat
from app.providers.engine import Engine, Timings
from app.providers.llamacpp_grammar import Trials
from app.providers.llamacpp_messages import prompt_of
from app.providers.llamacpp_request import Forms, chat, raw
from app.providers.versions import text_hash, version_info

_WORKER = "app.providers.workers.llamacpp_worker"
_MAGIC = b"GGUF"
_THINKS = re.compile(r"think|reasoning")
"""Templates of models that think before they answer say so."""


class LlamaCppProvider(BaseLLMProvider):
    """``llamacpp/NAME``: a catalogue name or a GGUF file.

    Args:
        timings: when supervision acts; tests use shorter ones.
    """

    name = "llamacpp"

    def __init__(self, context: ProviderContext, *, timings: Timings | None = None) -> None:
        super().__init__(context)
        self._timings = timings

    async def open(self, spec: ModelSpec, *, on_state: Callable[[EngineState], None]) -> LoadedModel:
        if spec.adapter is not None:
            raise ModelLoadFailed("The llamacpp provider does not take adapters yet; load the model without one.")
        path = await asyncio.to_thread(self._file, spec)
        model = self.context.model
        engine = Engine(
            _WORKER,
            {
                "model_path": str(path),
                "device": spec.device,
                "slots": model.slots,
                "context_tokens": model.context_tokens,
                "threads": model.threads,
            },
            label=spec.public_name,
            runtime_dir=self.context.runtime_dir,
            load_timeout_s=model.load_timeout_s,
            read_timeout_s=model.answer_timeout_s,
            memory_mb=self.context.providers.engine_memory_mb,
            on_state=on_state,
            timings=self._timings,
        )
        hashing = asyncio.create_task(asyncio.to_thread(self.context.hashes.sha256, path))
        try:
            await engine.start()
            version, forms = await _describe(spec, engine, await hashing)
            return LlamaCppModel(version, engine, self.context, forms=forms)
        except OSError as error:
            await engine.aclose()
            raise ModelLoadFailed(f"The model file cannot be read ({error.strerror}).") from error
        except BaseException:
            await engine.aclose()
            raise
        finally:
            hashing.cancel()
            await asyncio.gather(hashing, return_exceptions=True)

    def _file(self, spec: ModelSpec) -> Path:
        path = self.context.resolve(spec.model)
        if path is None:
            raise UnknownModel(
                f"There is no model {spec.public_name[:100]} here. `aprendiz models list` shows what there is, "
                f"`aprendiz models pull NAME` fetches one.",
                field="model",
            )
        try:
            if not path.is_file():
                raise ModelLoadFailed("The llamacpp provider takes a GGUF file; this is not a file.")
            with path.open("rb") as file:
                magic = file.read(len(_MAGIC))
        except OSError as error:
            raise ModelLoadFailed(f"The model file cannot be read ({error.strerror}).") from error
        if magic != _MAGIC:
            raise ModelLoadFailed("The llamacpp provider takes GGUF files; this file is of another kind.")
        return path.absolute()


async def _describe(spec: ModelSpec, engine: Engine, base_hash: str) -> tuple[VersionInfo, Forms]:
    """What really answers, as the engine tells it, and how its answers can be held to a form."""
    try:
        props = await engine.client().json("GET", "/props")
        native_tools = bool(props["chat_template_caps"]["supports_tools"])
        template = str(props["chat_template"])
        context = int(props["default_generation_settings"]["n_ctx"])
        vocabulary = int((await engine.client().json("GET", "/v1/models"))["data"][0]["meta"]["n_vocab"])
    except (LookupError, TypeError, ValueError, AprendizError) as error:
        raise ModelLoadFailed("The engine loaded the model and does not say what it is.") from error
    version = version_info(
        "llamacpp",
        spec.model,
        base_hash=base_hash,
        template_hash=text_hash(template),
        context_tokens=context,
        details={"engine": f"xllamacpp {engine.facts.get('build', '')}".strip()},
    )
    forms = Forms(
        native_tools=native_tools,
        grammars=engine.facts.get("llguidance") is True,
        thinks=_THINKS.search(template) is not None,
        vocabulary=vocabulary,
    )
    return version, forms


class LlamaCppModel(LoadedModel):
    """A GGUF in a running engine."""

    def __init__(self, version: VersionInfo, engine: Engine, context: ProviderContext, *, forms: Forms) -> None:
        self.version = version
        self.capabilities = Capabilities(
            slots=context.model.slots,
            context_tokens=version.context_tokens,
            tools=forms.native_tools or forms.grammars,
            json_schema=True,
            logprobs=True,
            raw_prompt=True,
            top_k=True,
        )
        self._engine = engine
        self._model = context.model
        self._forms = forms
        self._trials = Trials()

    def stream(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """See `LoadedModel.stream`."""
        return flat(self.batches(request))

    async def batches(self, request: GenerationRequest) -> AsyncGenerator[Sequence[Event], None]:
        """See `LoadedModel.batches`. Always a stream, even where the answer is wanted whole: so leaving ends the work."""
        client = self._engine.client()
        asked = (raw if request.raw else chat)(request, self._model, self._forms)
        if asked.grammar is not None:
            await self._trials.check(asked.grammar, client)
        reader = asked.reader()
        async with contextlib.aclosing(client.batches_chat(asked.body, path=asked.path)) as batches:
            async for batch in batches:
                events = batch if reader is None else reader.read(batch)
                if events:
                    yield events

    async def count_tokens(self, request: GenerationRequest) -> int:
        """See `LoadedModel.count_tokens`."""
        client = self._engine.client()
        try:
            if request.raw:
                found = await client.json("POST", "/tokenize", {"content": prompt_of(request), "add_special": True})
                return len(found["tokens"])
            asked = chat(request, self._model, self._forms)
            counted = await client.json("POST", "/v1/chat/completions/input_tokens", asked.body)
            return int(counted["input_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise UpstreamError("The engine does not say how many tokens the prompt has.") from error

    def status(self) -> EngineStatus:
        """See `LoadedModel.status`."""
        return self._engine.status()

    async def aclose(self) -> None:
        """See `LoadedModel.aclose`."""
        await self._engine.aclose()
