"""The provider ``llamacpp``: a GGUF file behind llama.cpp, in a supervised worker process. The default.

``models`` gives the checked file (`ProviderContext.resolve`); the worker parses it. This side looks at four bytes, no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.core.errors import AprendizError, InvalidRequest, ModelLoadFailed, UnknownModel, UpstreamError
from app.core.types import EngineState, Event, GenerationRequest, ModelSpec, VersionInfo
from app.providers.base import BaseLLMProvider, Capabilities, EngineStatus, LoadedModel, ProviderContext
from app.providers.engine import Engine, Timings
from app.providers.versions import text_hash, version_info
from app.providers.wire import CHAT, chat_body

_WORKER = "app.providers.workers.llamacpp_worker"
_MAGIC = b"GGUF"
_CONTROL = re.compile(
    r"<(?=\|[^|<>\s]{1,64}\|>|/?s>|/?(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn|tool_call|tool_response)>)|\[(?=/?INST\])"
)
_MAX_SEED = 0xFFFF_FFFE
"""llama.cpp takes 32 bits, and all ones mean "choose one"."""


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
            version, tools = await _describe(spec, engine, await hashing)
            return LlamaCppModel(version, engine, self.context, tools=tools)
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


async def _describe(spec: ModelSpec, engine: Engine, base_hash: str) -> tuple[VersionInfo, bool]:
    """What really answers, as the engine tells it, and whether its template knows tools."""
    try:
        props = await engine.client().json("GET", "/props")
        tools = bool(props["chat_template_caps"]["supports_tools"])
        template = str(props["chat_template"])
        context = int(props["default_generation_settings"]["n_ctx"])
    except (KeyError, TypeError, ValueError, AprendizError) as error:
        raise ModelLoadFailed("The engine loaded the model and does not say what it is.") from error
    version = version_info(
        "llamacpp",
        spec.model,
        base_hash=base_hash,
        template_hash=text_hash(template),
        context_tokens=context,
        details={"engine": f"xllamacpp {engine.facts.get('build', '')}".strip()},
    )
    return version, tools


class LlamaCppModel(LoadedModel):
    """A GGUF in a running engine."""

    def __init__(self, version: VersionInfo, engine: Engine, context: ProviderContext, *, tools: bool) -> None:
        self.version = version
        self.capabilities = Capabilities(
            slots=context.model.slots,
            context_tokens=version.context_tokens,
            tools=tools,
            json_schema=True,
            logprobs=True,
            raw_prompt=True,
            top_k=True,
        )
        self._engine = engine
        self._model = context.model

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """See `LoadedModel.stream`."""
        async with contextlib.aclosing(self.batches(request)) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    async def batches(self, request: GenerationRequest) -> AsyncGenerator[Sequence[Event], None]:
        """See `LoadedModel.batches`. Always a stream, even where the answer is wanted whole: so leaving ends the work."""
        client = self._engine.client()
        path, body = ("/v1/completions", self._raw_body(request)) if request.raw else (CHAT, self._body(request))
        async with contextlib.aclosing(client.batches_chat(body, path=path)) as batches:
            async for batch in batches:
                yield batch

    async def count_tokens(self, request: GenerationRequest) -> int:
        """See `LoadedModel.count_tokens`."""
        client = self._engine.client()
        try:
            if request.raw:
                found = await client.json("POST", "/tokenize", {"content": _prompt(request), "add_special": True})
                return len(found["tokens"])
            counted = await client.json("POST", "/v1/chat/completions/input_tokens", self._body(request))
            return int(counted["input_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise UpstreamError("The engine does not say how many tokens the prompt has.") from error

    def status(self) -> EngineStatus:
        """See `LoadedModel.status`."""
        return self._engine.status()

    async def aclose(self) -> None:
        """See `LoadedModel.aclose`."""
        await self._engine.aclose()

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        _check_text_only(request)
        body = chat_body(request, max_tokens=self._model.max_tokens, temperature=self._model.temperature)
        body["messages"] = [{**message, "content": _inert(message["content"])} for message in body["messages"]]
        self._fit_tools(body)
        return _fitted(body)

    def _raw_body(self, request: GenerationRequest) -> dict[str, Any]:
        """For a prompt that is not templated. What it spells is the caller's own affair: there are no roles to speak as."""
        body = chat_body(request, max_tokens=self._model.max_tokens, temperature=self._model.temperature)
        del body["messages"]
        body = _fitted(body)
        if body.pop("logprobs", False):
            body["logprobs"] = body.pop("top_logprobs")  # one number there
        return {**body, "prompt": _prompt(request)}

    def _fit_tools(self, body: dict[str, Any]) -> None:
        choice = body.pop("tool_choice", None)
        if choice == "none":
            body.pop("tools", None)
        if "tools" not in body:
            return
        if not self.capabilities.tools:
            raise InvalidRequest(
                "This model's chat template knows no tools; take another model, or leave tools out.", field="tools"
            )
        if isinstance(choice, Mapping):  # llama.cpp takes words only: one function, and required, is the same
            name = choice.get("function", {}).get("name")
            body["tools"] = [tool for tool in body["tools"] if tool.get("function", {}).get("name") == name]
            if not body["tools"]:
                raise InvalidRequest("tool_choice names a function that is not among the tools.", field="tool_choice")
            choice = "required"
        if choice is not None:
            body["tool_choice"] = choice


def _fitted(body: dict[str, Any]) -> dict[str, Any]:
    """``body`` with what this engine needs told, whatever the shape."""
    seed = body.get("seed")
    if seed is not None:
        body["seed"] = seed % _MAX_SEED
    if body.get("top_logprobs") == 0:
        body["top_logprobs"] = 1  # llama.cpp tells no probability at all where no alternative is asked for
    body["return_progress"] = True  # otherwise the engine notices only at the first token that the client has gone
    body["cache_prompt"] = True
    body["lora"] = []  # said each time: a request without the field would reuse another's adapted cache
    return body


def _prompt(request: GenerationRequest) -> str:
    content = request.messages[0].content if len(request.messages) == 1 else None
    if not isinstance(content, str):
        raise InvalidRequest("A prompt to go on from is one text.", field="prompt")
    return content


def _inert(content: Any) -> Any:
    """Content whose words cannot be read as control tokens (``<|im_end|>``, ``</s>``, ``[INST]``).

    llama.cpp tokenizes the rendered template as a whole, so a text, a document or a memory that spells such a token could end
    its own turn and speak as another role. A zero-width space after the bracket keeps it readable and makes it plain text.
    """
    if isinstance(content, str):
        return _CONTROL.sub(lambda match: match.group() + "\u200b", content)
    if isinstance(content, list):
        return [{**part, "text": _inert(part["text"])} if "text" in part else part for part in content]
    return content


def _check_text_only(request: GenerationRequest) -> None:
    """Images and files are refused here: the engine would fetch what their addresses name."""
    for message in request.messages:
        if isinstance(message.content, list) and any(part.get("type") != "text" for part in message.content):
            raise InvalidRequest("This model takes text only; leave images, audio and files out.", field="messages")
