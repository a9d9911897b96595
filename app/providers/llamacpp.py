"""The provider ``llamacpp``: a GGUF file behind llama.cpp, in a supervised worker process. The default.

``models`` gives the checked file (`ProviderContext.resolve`); the worker parses it. This side looks at four bytes, no more.
All versions of one file, with different adapters or none, are served by one engine (`llamacpp_shared`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from app.core.errors import AprendizError, EngineUnavailable, ModelLoadFailed, UnknownModel, UpstreamError
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
from app.providers.llamacpp_grammar import Trials
from app.providers.llamacpp_messages import prompt_of
from app.providers.llamacpp_request import Asked, Forms, chat, raw
from app.providers.llamacpp_score import score
from app.providers.llamacpp_shared import Base, Member, Run, gguf_hash
from app.providers.versions import text_hash, version_info

_WORKER = "app.providers.workers.llamacpp_worker"
_MAGIC = b"GGUF"
_TRIAL_TOKENS = 64
_NO_TEMPLATE = ("stream", "stream_options", "lora", "grammar", "logprobs", "top_logprobs", "response_format", "return_progress")
"""Fields that say nothing of the prompt."""
_THINKS = re.compile(r"think|reasoning")
"""Templates of models that think before they answer say so."""

T = TypeVar("T")


class LlamaCppProvider(BaseLLMProvider):
    """``llamacpp/NAME``: a catalogue name or a GGUF file.

    Args:
        timings: when supervision acts; tests use shorter ones.
    """

    name = "llamacpp"

    def __init__(self, context: ProviderContext, *, timings: Timings | None = None) -> None:
        super().__init__(context)
        self._timings = timings
        self._bases: dict[tuple[str | int, ...], Base] = {}

    async def open(self, spec: ModelSpec, *, on_state: Callable[[EngineState], None]) -> LoadedModel:
        path = await asyncio.to_thread(self._file, spec)
        adapter = None if spec.adapter is None else await asyncio.to_thread(self._adapter, spec.adapter, path)
        base = self._base(spec, path)
        member = Member(adapter, on_state)
        run = await base.join(member)
        return LlamaCppModel(_version(spec, run.about, adapter), base, member, self.context, forms=run.about.forms)

    def _adapter(self, name: str, path: Path) -> AdapterFiles:
        adapter = self.context.adapter(name)
        gguf_hash(adapter)
        if adapter.base_hash != self._hash(path):
            raise ModelLoadFailed("The adapter was trained on another base model than this; load it with its own.")
        return adapter

    def _hash(self, path: Path) -> str:
        try:
            return self.context.hashes.sha256(path)
        except OSError as error:
            raise ModelLoadFailed(f"The model file cannot be read ({error.strerror}).") from error

    def _base(self, spec: ModelSpec, path: Path) -> Base:
        """The engine of this file as it is now, on this device: other content under the same name is another base."""
        try:
            stat = path.stat()
        except OSError as error:
            raise ModelLoadFailed(f"The model file cannot be read ({error.strerror}).") from error
        key = (str(path), spec.device, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

        def forget() -> None:
            self._bases.pop(key, None)

        if key not in self._bases:
            self._bases[key] = Base(
                make=lambda adapters, on_state: self._make(spec, path, adapters, on_state),
                start=lambda run: self._start(run, path),
                on_empty=forget,
            )
        return self._bases[key]

    def _make(
        self, spec: ModelSpec, path: Path, adapters: Sequence[AdapterFiles], on_state: Callable[[EngineState], None]
    ) -> Run:
        model = self.context.model
        config = {
            "model_path": str(path),
            "device": spec.device,
            "slots": model.slots,
            "context_tokens": model.context_tokens,
            "threads": model.threads,
            "adapters": [{"path": str(each.gguf), "sha256": gguf_hash(each)} for each in adapters],
        }
        engine = Engine(
            _WORKER,
            config,
            label=spec.public_name,
            runtime_dir=self.context.runtime_dir,
            load_timeout_s=model.load_timeout_s,
            read_timeout_s=model.answer_timeout_s,
            memory_mb=self.context.providers.engine_memory_mb,
            on_state=on_state,
            timings=self._timings,
        )
        return Run(engine, adapters, asyncio.Semaphore(model.slots))

    async def _start(self, run: Run, path: Path) -> None:
        hashing = asyncio.create_task(asyncio.to_thread(self._hash, path))
        try:
            await run.engine.start()
            if run.adapters:
                await _try(run, run.adapters[-1])
            run.about = await _describe(run.engine, await hashing)
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


@dataclass(frozen=True, slots=True)
class _About:
    """What an engine says of its base."""

    base_hash: str
    template_hash: str
    context_tokens: int
    build: str
    forms: Forms


async def _describe(engine: Engine, base_hash: str) -> _About:
    """What really answers, as the engine tells it, and how its answers can be held to a form."""
    try:
        props = await engine.client().json("GET", "/props")
        native_tools = bool(props["chat_template_caps"]["supports_tools"])
        template = str(props["chat_template"])
        context = int(props["default_generation_settings"]["n_ctx"])
        vocabulary = int((await engine.client().json("GET", "/v1/models"))["data"][0]["meta"]["n_vocab"])
    except (LookupError, TypeError, ValueError, AprendizError) as error:
        raise ModelLoadFailed("The engine loaded the model and does not say what it is.") from error
    forms = Forms(
        native_tools=native_tools,
        grammars=engine.facts.get("llguidance") is True,
        thinks=_THINKS.search(template) is not None,
        vocabulary=vocabulary,
    )
    build = f"xllamacpp {engine.facts.get('build', '')}".strip()
    return _About(base_hash, text_hash(template), context, build, forms)


async def _try(run: Run, adapter: AdapterFiles) -> None:
    """One answer with ``adapter``, before anybody depends on the engine: numbers that are no numbers end some engines."""
    refused = run.engine.facts.get("refused", {}).get(gguf_hash(adapter))
    if refused is not None:
        raise ModelLoadFailed(f"{refused} Restore it from a backup or train again; the version without it serves on.")
    try:
        lora = run.lora(adapter)
        await score(run.engine.client(), "Once upon a", " time", lora, context_tokens=_TRIAL_TOKENS, grammars=False)
    except AprendizError as error:
        raise ModelLoadFailed("The adapter's answers are no answers; train again. The version without it serves on.") from error


def _version(spec: ModelSpec, about: _About, adapter: AdapterFiles | None) -> VersionInfo:
    return version_info(
        "llamacpp",
        spec.model,
        base_hash=about.base_hash,
        adapter_hash=None if adapter is None else adapter.adapter_hash,
        template_hash=about.template_hash,
        context_tokens=about.context_tokens,
        details={"engine": about.build} | ({} if adapter is None else {"adapter": adapter.name}),
    )


class LlamaCppModel(LoadedModel):
    """One version of a GGUF, in an engine that it may share with others of the same base."""

    def __init__(self, version: VersionInfo, base: Base, member: Member, context: ProviderContext, *, forms: Forms) -> None:
        self.version = version
        self.capabilities = Capabilities(
            slots=context.model.slots,
            context_tokens=version.context_tokens,
            tools=forms.native_tools or forms.grammars,
            json_schema=True,
            logprobs=True,
            adapters=True,
            raw_prompt=True,
            top_k=True,
            scores=True,
        )
        self._base = base
        self._member = member
        self._model = context.model
        self._forms = forms
        self._trials = Trials()
        self._waits: set[asyncio.Timeout] = set()

    def stream(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """See `LoadedModel.stream`."""
        return flat(self.batches(request))

    async def batches(self, request: GenerationRequest) -> AsyncGenerator[Sequence[Event], None]:
        """See `LoadedModel.batches`. Always a stream, even where the answer is wanted whole: so leaving ends the work."""
        asked = self._asked(request)
        async with contextlib.AsyncExitStack() as stack:
            run = await self._unless_closed(stack.enter_async_context(self._base.seat(self._member)))
            client = run.engine.client()
            asked.body["lora"] = run.lora(self._member.adapter)
            if asked.grammar is not None:
                await self._unless_closed(self._trials.check(asked.grammar, client))
            reader = asked.reader()
            batches = await stack.enter_async_context(contextlib.aclosing(client.batches_chat(asked.body, path=asked.path)))
            while (batch := await self._unless_closed(anext(batches, None))) is not None:
                events = batch if reader is None else reader.read(batch)
                if events:
                    yield events

    async def count_tokens(self, request: GenerationRequest) -> int:
        """See `LoadedModel.count_tokens`."""
        client = self._base.run(self._member).engine.client()
        try:
            if request.raw:
                found = await client.json("POST", "/tokenize", {"content": prompt_of(request), "add_special": True})
                return len(found["tokens"])
            counted = await client.json("POST", "/v1/chat/completions/input_tokens", self._asked(request).body)
            return int(counted["input_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise UpstreamError("The engine does not say how many tokens the prompt has.") from error

    async def score(self, request: GenerationRequest, completion: str) -> Scores:
        """See `LoadedModel.score`. It takes a seat, and as long as to write the answer would."""
        prompt = await self.prompt(request)
        async with contextlib.AsyncExitStack() as stack:
            run = await self._unless_closed(stack.enter_async_context(self._base.seat(self._member)))
            return await self._unless_closed(
                score(
                    run.engine.client(),
                    prompt,
                    completion,
                    run.lora(self._member.adapter),
                    context_tokens=self.version.context_tokens or 0,
                    grammars=self._forms.grammars,
                )
            )

    async def prompt(self, request: GenerationRequest) -> str:
        """See `LoadedModel.prompt`."""
        if request.raw:
            return prompt_of(request)
        body = {name: value for name, value in self._asked(request).body.items() if name not in _NO_TEMPLATE}
        answer = await self._base.run(self._member).engine.client().json("POST", "/apply-template", body)
        prompt = answer.get("prompt") if isinstance(answer, dict) else None
        if not isinstance(prompt, str):
            raise UpstreamError("The engine does not say what the prompt is.")
        return prompt

    def _asked(self, request: GenerationRequest) -> Asked:
        return (raw if request.raw else chat)(request, self._model, self._forms)

    async def _unless_closed(self, work: Awaitable[T]) -> T:
        """What ``work`` gives; `aclose` breaks it off. The engine that it shares with others may live on."""
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                return await work
        except TimeoutError:
            if not wait.expired():
                raise
            raise EngineUnavailable("The model engine is stopped.", retry_after=1) from None
        finally:
            self._waits.discard(wait)

    def status(self) -> EngineStatus:
        """See `LoadedModel.status`."""
        return self._base.status(self._member)

    async def aclose(self) -> None:
        """See `LoadedModel.aclose`."""
        for wait in self._waits:
            wait.reschedule(asyncio.get_running_loop().time())
        await self._base.leave(self._member)
