"""The bodies of the OpenAI chat format: what our request says, what its stream's chunks mean. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import msgspec

from app.core.errors import AprendizError, EngineUnavailable, InvalidRequest, Overloaded, UpstreamError
from app.core.types import (
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Sampling,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)

_MAX_TOOL_CALLS = 128
_LOGGED_CHARACTERS = 500
_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}

logger = logging.getLogger(__name__)


_NOTHING = msgspec.Raw(b"null")  # msgspec knows no `Raw | None`


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct):
    content: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class WireError(msgspec.Struct):
    """The ``error`` object of the format, as far as we read it."""

    type: str | None = None
    code: str | int | None = None
    message: str | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = _NOTHING


class _ErrorBody(msgspec.Struct):
    error: msgspec.Raw = _NOTHING


_chunk_decoder = msgspec.json.Decoder(_Chunk)


class ChunkReader:
    """Reads the chunks of one stream; remembers what the closing event needs."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._usage: _Usage | None = None

    def read(self, payload: bytes) -> Iterator[Event]:
        """The events in one chunk. Raises UpstreamError for nonsense and for an error inside the stream."""
        try:
            chunk = _chunk_decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamError("The model provider sent a piece of an answer that cannot be read.") from error
        if chunk.error != _NOTHING:
            raise stream_error(bytes(chunk.error))
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices:
            if choice.index == 0:
                yield from self._choice(choice)

    def _choice(self, choice: _Choice) -> Iterator[Event]:
        if choice.finish_reason:
            self._reason = choice.finish_reason
        delta = choice.delta
        if delta is not None:
            if delta.reasoning_content:
                yield ReasoningDelta(delta.reasoning_content)
            if delta.content:
                yield TextDelta(delta.content)
            for call in delta.tool_calls or ():
                yield _tool_call(call)
        if choice.logprobs is not None and choice.logprobs.content:
            yield TokenLogprobs(tuple(choice.logprobs.content))

    def finish(self) -> Finished:
        """The closing event. Raises UpstreamError where no chunk said why the answer ended: it was cut."""
        if self._reason is None:
            raise UpstreamError("The answer was cut off before its end. Try again.")
        reason = _REASONS.get(self._reason)
        if reason is None:
            logger.warning("an unknown finish reason counts as stop", extra={"data": {"reason": self._reason[:50]}})
            reason = "stop"
        usage = self._usage or _Usage()
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        return Finished(
            cast(FinishReason, reason),
            Usage(
                prompt_tokens=max(usage.prompt_tokens, 0),
                completion_tokens=max(usage.completion_tokens, 0),
                cached_tokens=max(cached, 0),
            ),
        )


def _tool_call(call: _ToolCall) -> ToolCallDelta:
    if not 0 <= call.index < _MAX_TOOL_CALLS:
        raise UpstreamError("The model provider sent a piece of an answer that cannot be read.")
    function = call.function or _Function()
    return ToolCallDelta(call.index, id=call.id, name=function.name, arguments=function.arguments or "")


def error_of(raw: bytes) -> WireError:
    """The ``error`` object in a body; an empty one where there is none."""
    try:
        body = msgspec.json.decode(raw, type=_ErrorBody)
        return WireError() if body.error == _NOTHING else msgspec.json.decode(body.error, type=WireError)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return WireError()


def stream_error(raw: bytes) -> AprendizError:
    """Our error for an ``error`` object that came inside a stream with status 200."""
    error = error_of(b'{"error":' + raw + b"}")
    logger.warning("a model server broke off a stream", extra={"data": {"type": error.type, "code": error.code}})
    logger.debug("its words", extra={"data": {"error": raw[:_LOGGED_CHARACTERS].decode("utf-8", "replace")}})
    if error.type == "exceed_context_size_error" or error.code == "context_length_exceeded":
        limit = f" (at most {error.n_ctx} tokens)" if error.n_ctx else ""
        return InvalidRequest(f"The prompt does not fit into the model's context{limit}. Shorten it.", field="messages")
    if error.code in (429, 529) or error.type in ("rate_limit_error", "overloaded_error"):
        return Overloaded("The model provider is busy. Try again later.", retry_after=5)
    if error.code == 503:
        return EngineUnavailable("The model engine is not ready. Try again.", retry_after=2)
    return UpstreamError("The model provider broke off the answer with an error. Try again.")


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """The fields of the format for what the caller named; nothing for what they left open."""
    plain = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": dict(sampling.logit_bias) if sampling.logit_bias else None,
        "response_format": sampling.response_format,
        "tools": [dict(tool) for tool in sampling.tools] or None,
        "tool_choice": sampling.tool_choice,
        "parallel_tool_calls": sampling.parallel_tool_calls,
    }
    fields = {name: value for name, value in plain.items() if value is not None}
    if sampling.logprobs is not None:
        fields["logprobs"] = True
        fields["top_logprobs"] = sampling.logprobs
    return fields
