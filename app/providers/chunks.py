"""The bodies of the OpenAI format: what our request says, what the chunks of a stream or a whole answer mean. No I/O.

Reading runs for every token of every answer: one pass over a chunk, by a typed decoder.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Any, cast

import msgspec

from app.core.errors import AprendizError, UpstreamError
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
from app.providers.wire_errors import body_error

_DONE = b"[DONE]"
_MAX_TOOL_CALLS = 128
_MAX_TOKENS = 2**31 - 1
_LOGGED_CHARACTERS = 50
_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_NOTHING = msgspec.Raw(b"null")  # msgspec knows no `Raw | None`

logger = logging.getLogger(__name__)


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    """Also the message of a whole answer. Thinking is ``reasoning_content`` to most servers and ``reasoning`` to vLLM."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    """``content`` in chats; the three lists in ``/v1/completions``."""

    content: list[dict[str, Any]] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    stop_reason: Any = None
    matched_stop: Any = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Verbose(msgspec.Struct, gc=False):
    stopping_word: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    """``verbose``: where llama.cpp's server, asked for it, names the stop word."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    verbose: _Verbose | None = msgspec.field(name="__verbose", default=None)
    error: msgspec.Raw = _NOTHING


_decode = msgspec.json.Decoder(_Chunk).decode


class ChunkReader:
    """Reads one answer; remembers what its closing event needs.

    Args:
        stops: the request's stop words: the closing event names the one that the server says ended the answer.
    """

    def __init__(self, stops: Collection[str] = ()) -> None:
        self._stops = stops
        self._reason: str | None = None
        self._usage: _Usage | None = None
        self._stop_word: str | None = None
        self._refused = False
        self._calls = 0
        self.done = False
        """The answer is whole: its closing event was among those that `read` gave last."""
        self.error: AprendizError | None = None
        """Why nothing after the events that `read` gave last can be read."""

    def read(self, payloads: Iterable[bytes]) -> list[Event]:
        """The events in chunks that came together. Never raises: see `error` and `done`."""
        events: list[Event] = []
        try:
            for payload in payloads:
                if payload == _DONE:
                    events.append(self.finish())
                    self.done = True
                    break
                self._chunk(payload, events)
        except AprendizError as error:
            self.error = error.again()  # without the frames that hold this reader
        return events

    def whole(self, raw: bytes) -> list[Event]:
        """The events of an answer that came in one piece. Raises UpstreamError for nonsense, or as `wire_errors.body_error`."""
        events: list[Event] = []
        self._chunk(raw, events)
        events.append(self.finish())
        return events

    def finish(self) -> Finished:
        """The closing event. Raises UpstreamError where nothing said why the answer ended: it was cut."""
        if self._reason is None:
            raise UpstreamError("The answer was cut off before its end. Try again.")
        reason = _REASONS.get(self._reason)
        if reason is None:
            logger.warning(
                "an unknown finish reason counts as stop", extra={"data": {"reason": self._reason[:_LOGGED_CHARACTERS]}}
            )
            reason = "stop"
        if self._refused and reason == "stop":
            reason = "content_filter"
        return Finished(cast(FinishReason, reason), _usage(self._usage), self._stop_word)

    def _chunk(self, payload: bytes, events: list[Event]) -> None:
        try:
            chunk = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _unreadable() from error
        if chunk.error is not _NOTHING and chunk.error != _NOTHING:
            raise body_error(payload)
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.verbose is not None and chunk.verbose.stopping_word in self._stops:
            self._stop_word = chunk.verbose.stopping_word
        for choice in chunk.choices or ():
            if choice.index == 0:
                self._choice(choice, events)

    def _choice(self, choice: _Choice, events: list[Event]) -> None:
        delta = choice.delta or choice.message
        if delta is not None:
            if delta.content:
                events.append(TextDelta(delta.content))
            if delta.reasoning_content or delta.reasoning or delta.refusal or delta.tool_calls:
                self._rare(delta, events)
        elif choice.text:
            events.append(TextDelta(choice.text))
        if choice.logprobs is not None:
            content = choice.logprobs.content or _paired(choice.logprobs)
            if content:
                events.append(TokenLogprobs(tuple(content)))
        if choice.finish_reason:
            self._reason = choice.finish_reason
            word = choice.stop_reason if choice.stop_reason is not None else choice.matched_stop
            if isinstance(word, str) and word in self._stops:
                self._stop_word = word

    def _rare(self, delta: _Delta, events: list[Event]) -> None:
        """What most chunks have not. Thinking comes before the text of the same chunk."""
        reasoning = delta.reasoning_content or delta.reasoning
        if reasoning:
            events.insert(len(events) - 1 if delta.content else len(events), ReasoningDelta(reasoning))
        if delta.refusal:
            self._refused = True
            events.append(TextDelta(delta.refusal))
        for call in delta.tool_calls or ():
            events.append(self._tool_call(call))

    def _tool_call(self, call: _ToolCall) -> ToolCallDelta:
        index = call.index
        if index is None:  # whole answers, and servers that send each call in one piece: an id begins the next call
            index = self._calls if call.id or not self._calls else self._calls - 1
        if not 0 <= index < _MAX_TOOL_CALLS:
            raise _unreadable()
        self._calls = max(self._calls, index + 1)
        function = call.function or _Function()
        return ToolCallDelta(index, id=call.id, name=function.name, arguments=function.arguments or "")


def _unreadable() -> UpstreamError:
    return UpstreamError("The model provider sent a piece of an answer that cannot be read.")


def _usage(usage: _Usage | None) -> Usage:
    """Counts within bounds: a part is never more than its whole."""
    if usage is None:
        return Usage()
    prompt, completion = _count(usage.prompt_tokens), _count(usage.completion_tokens)
    read, said = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = written = reasoning = 0
    if read is not None:
        cached = min(_count(read.cached_tokens), prompt)
        written = min(_count(read.cache_write_tokens), prompt - cached)
    if said is not None:
        reasoning = min(_count(said.reasoning_tokens), completion)
    return Usage(prompt, completion, cached, written, reasoning)


def _count(number: int | None) -> int:
    return min(max(number or 0, 0), _MAX_TOKENS)


def _paired(logprobs: _Logprobs) -> list[dict[str, Any]]:
    """The three lists of ``/v1/completions`` in the form of the chats."""
    tokens, scores, tops = logprobs.tokens or [], logprobs.token_logprobs or [], logprobs.top_logprobs or []
    return [
        {
            "token": token,
            "logprob": score,
            "bytes": list(token.encode()),
            "top_logprobs": [
                {"token": other, "logprob": value, "bytes": list(other.encode())}
                for other, value in ((tops[at] if at < len(tops) else None) or {}).items()
            ],
        }
        for at, (token, score) in enumerate(zip(tokens, scores, strict=False))
        if score is not None  # the first token of a prompt that was asked to be echoed
    ]


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """The fields of the format for what the caller named; nothing for what they left open."""
    plain = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": dict(sampling.logit_bias) if sampling.logit_bias else None,
        "response_format": sampling.response_format,
        "tools": [dict(tool) for tool in sampling.tools] or None,
        "tool_choice": sampling.tool_choice,
        "parallel_tool_calls": sampling.parallel_tool_calls,
        "reasoning_effort": sampling.reasoning_effort,
    }
    fields = {name: value for name, value in plain.items() if value is not None}
    if sampling.logprobs is not None:
        fields["logprobs"] = True
        fields["top_logprobs"] = sampling.logprobs
    return fields
