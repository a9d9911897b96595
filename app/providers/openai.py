"""The provider ``openai``: any server of the OpenAI format, over HTTP. OpenAI itself, vLLM, Ollama, llama-server, a gateway.

One `OpenAIProvider` an upstream of ``providers.upstreams``. It says what the caller said and nothing more: no default
temperature, no default length. It holds no retry, no fallback and no price.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from app.core.errors import InvalidRequest, UpstreamTimeout
from app.core.settings import Upstream
from app.core.types import (
    EmbeddingRequest,
    Embeddings,
    EngineState,
    Event,
    GenerationRequest,
    Sampling,
    VersionInfo,
)
from app.providers.base import Capabilities
from app.providers.chunks import sampling_fields
from app.providers.embeddings import read_embeddings
from app.providers.estimate import prompt_tokens
from app.providers.openai_messages import wire_messages, without_marker
from app.providers.upstreams import RemoteModel, RemoteProvider, is_inside, is_vendor, whole_is_safe, wire_client
from app.providers.wire import CHAT

_COMPLETIONS = "/v1/completions"
_EMBEDDINGS = "/v1/embeddings"


class OpenAIProvider(RemoteProvider):
    """The models of one upstream; see `RemoteProvider`."""

    name = "openai"

    def model(self, version: VersionInfo, *, on_state: Callable[[EngineState], None]) -> OpenAIModel:
        """See `RemoteProvider.model`."""
        deadline_s = self.context.model.answer_timeout_s
        name, upstream = self._upstream_name, self._upstream
        return OpenAIModel(version, name, upstream, gate=self._gate, on_state=on_state, deadline_s=deadline_s)


class OpenAIModel(RemoteModel):
    """One model of an upstream, with connections of its own.

    Args:
        deadline_s: longest time for embeddings; ``models`` minds that of answers.
    """

    def __init__(
        self,
        version: VersionInfo,
        name: str,
        upstream: Upstream,
        *,
        gate: asyncio.Semaphore,
        on_state: Callable[[EngineState], None],
        deadline_s: float,
    ) -> None:
        self._upstream = upstream
        self._deadline_s = deadline_s
        self._vendor = is_vendor(upstream)
        self._outside = not is_inside(name, upstream)
        capabilities = Capabilities(
            slots=upstream.max_concurrency,
            context_tokens=upstream.context_tokens,
            tools=True,
            json_schema=True,
            logprobs=True,
            embeddings=True,
            raw_prompt=True,
            images=True,
            top_k=not self._vendor,
            remote=True,
        )
        super().__init__(version, capabilities, gate=gate, on_state=on_state)
        self._client = wire_client(name, upstream)

    async def batches(self, request: GenerationRequest) -> AsyncGenerator[Sequence[Event], None]:
        """See `LoadedModel.batches`."""
        path, body = self._body(request)
        async with self._gate:
            if request.whole and whole_is_safe(self._upstream, request.sampling.max_tokens):
                yield await self._client.whole_chat(body, path=path)
                return
            async with contextlib.aclosing(self._client.batches_chat(body, path=path)) as batches:
                async for batch in batches:
                    yield batch

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See `LoadedModel.embed`."""
        # A third of the bytes; servers other than the vendor's do not all know it.
        encoding = "base64" if self._vendor else "float"
        body: dict[str, Any] = {"model": self.version.model, "input": list(request.inputs), "encoding_format": encoding}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        try:
            async with asyncio.timeout(self._deadline_s), self._gate:
                answer = await self._client.json("POST", _EMBEDDINGS, body)
        except TimeoutError:
            raise UpstreamTimeout("The model provider did not send the embeddings in time. Try again.") from None
        return read_embeddings(answer, count=len(request.inputs), dimensions=request.dimensions)

    async def count_tokens(self, request: GenerationRequest) -> int:
        """An estimate, rather too high than too low: the format has no way to ask. See `estimate.prompt_tokens`."""
        return prompt_tokens(request)

    async def _disconnect(self) -> None:
        await self._client.aclose()

    def _body(self, request: GenerationRequest) -> tuple[str, dict[str, Any]]:
        """Where to post, and what."""
        fields = self._fields(request.sampling)
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        if request.raw:
            return _COMPLETIONS, {"model": self.version.model, "prompt": _prompt(request), **stream, **_for_prompt(fields)}
        messages = wire_messages(request.messages, vendor=self._vendor, outside=self._outside)
        if self._vendor and "max_tokens" in fields:  # its reasoning models refuse max_tokens; others know no other name
            fields["max_completion_tokens"] = fields.pop("max_tokens")
        return CHAT, {"model": self.version.model, "messages": messages, **stream, **fields}

    def _fields(self, sampling: Sampling) -> dict[str, Any]:
        if sampling.top_k is not None and not self.capabilities.top_k:
            raise InvalidRequest("This model knows no top_k; leave it out.", field="top_k")
        fields = sampling_fields(sampling)
        if sampling.tools:
            fields["tools"] = [without_marker(tool) for tool in sampling.tools]
        return fields


def _prompt(request: GenerationRequest) -> str:
    content = request.messages[0].content if len(request.messages) == 1 else None
    if not isinstance(content, str):
        raise InvalidRequest("A prompt to go on from is one text.", field="prompt")
    return content


def _for_prompt(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``/v1/completions``, which counts log-probabilities by one number and knows nothing of chats."""
    unknown = sorted(fields.keys() & {"tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort"})
    if unknown:
        raise InvalidRequest(f"A prompt to go on from takes no {unknown[0]}.", field=unknown[0])
    top = fields.pop("top_logprobs", None)
    if top is not None:
        fields["logprobs"] = top
    return fields
