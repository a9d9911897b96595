"""Answers of Anthropic's Messages API as our events: the events of a stream, or a whole message. No I/O.

A stream truly ends with ``message_stop`` alone, after a ``message_delta`` that said why; who feeds `EventReader` must take any
other end for a cut. Kinds of events that we do not know are skipped, as the vendor asks; blocks of a kind that we have no
event for (its own server-side tools) are skipped and noted in the log. Citations are skipped: they hang on text that stays.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar, cast

import msgspec

from app.core.errors import AprendizError, UpstreamError
from app.core.types import Event, Finished, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from app.providers.claude_errors import answer_error, stream_error

_T = TypeVar("_T")
_MAX_TOOL_CALLS = 128
_MAX_OPEN_BLOCKS = 128
_EVENTS = frozenset(
    {
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    }
)
_KINDS = frozenset({"text", "thinking", "redacted_thinking"})
_PIECES = frozenset({"text_delta", "thinking_delta", "signature_delta", "input_json_delta"})
_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

logger = logging.getLogger(__name__)


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Message(msgspec.Struct):
    type: str = ""
    content: list[msgspec.Raw] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None


class _Kind(msgspec.Struct):
    type: str = ""


class _Outline(msgspec.Struct):
    index: int = 0
    delta: _Kind | None = None
    content_block: _Kind | None = None


class _Count(msgspec.Struct):
    input_tokens: int


_event_decoder = msgspec.json.Decoder(_Event)


class EventReader:
    """Reads the events of one stream, in order; remembers what the closing event needs."""

    def __init__(self) -> None:
        self.done = False
        """Whether the stream came to its true end; `Finished` was then the last event of the last `read`."""
        self._blocks = _Blocks()
        self._ending = _Ending()

    def read(self, payload: bytes) -> list[Event]:
        """The events in the data of one server-sent event.

        Raises:
            UpstreamError: it cannot be read, or comes where it makes no sense.
            AprendizError: it is the vendor's ``error`` event; see `stream_error`.
        """
        try:
            event = _event_decoder.decode(payload)
        except msgspec.ValidationError:
            event = _unknown(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _nonsense() from None
        match event.type:
            case "content_block_delta":
                return self._blocks.delta(event.index, event.delta)
            case "content_block_start":
                return self._blocks.start(event.index, event.content_block)
            case "content_block_stop":
                return self._blocks.stop(event.index)
            case "message_start" if event.message is not None:
                self._ending.add(event.message.usage, None)
            case "message_delta":
                self._ending.add(event.usage, event.delta)
            case "message_stop":
                finished = self._ending.finished()
                self.done = True
                return [finished]
            case "error":
                raise stream_error(payload)
        return []


def whole(raw: bytes) -> list[Event]:
    """The events of a whole message, `Finished` last. Raises UpstreamError, and for an error in its place as `answer_error`."""
    message = _decoded(raw, _Message)
    if message.type != "message":
        raise answer_error(200, raw, {})
    blocks = _Blocks()
    events: list[Event] = []
    for index, block in enumerate(message.content or ()):
        events += blocks.start(index, _block(block))
        events += blocks.stop(index)
    ending = _Ending()
    ending.add(message.usage, _Delta(stop_reason=message.stop_reason, stop_sequence=message.stop_sequence))
    events.append(ending.finished())
    return events


def counted(raw: bytes) -> int:
    """The number in an answer of ``count_tokens``. Raises UpstreamError."""
    return max(_decoded(raw, _Count).input_tokens, 0)


def _unknown(payload: bytes) -> _Event:
    """An event that has not the form that we know: it may, where its kind, or that of what it carries, is a new one.

    Raises UpstreamError for the kinds that we know.
    """
    kind = _decoded(payload, _Kind).type
    if kind and kind not in _EVENTS:
        return _Event(kind)
    outline = _decoded(payload, _Outline)
    block, delta = outline.content_block, outline.delta
    if kind == "content_block_start" and block is not None and _is_new(block.type):
        return _Event(kind, outline.index, content_block=_Block(block.type))
    if kind == "content_block_delta" and delta is not None and delta.type not in _PIECES:
        return _Event(kind, outline.index, delta=_Delta(delta.type))
    raise _nonsense()


def _block(raw: msgspec.Raw) -> _Block:
    """A block of a whole message; of one of a new kind the kind alone. Raises UpstreamError."""
    try:
        return msgspec.json.decode(raw, type=_Block)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        kind = _decoded(bytes(raw), _Kind).type
        if not _is_new(kind):
            raise _nonsense() from None
        return _Block(kind)


def _is_new(kind: str) -> bool:
    return bool(kind) and kind not in _KINDS and kind != "tool_use"


def _decoded(raw: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _nonsense() from None


class _Blocks:
    """The blocks of one answer, and those of them that are open: between their start and their stop."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._calls = 0
        self._skipped = False

    def start(self, index: int, block: _Block | None) -> list[Event]:
        """What a block begins with; usually nothing yet but a tool call's id and name."""
        if block is None or index in self._open or len(self._open) >= _MAX_OPEN_BLOCKS:
            raise _nonsense()
        if block.type == "tool_use":
            return self._start_call(index, block)
        known = block.type in _KINDS
        if not known and not self._skipped:
            self._skipped = True
            logger.info("blocks of an answer are skipped", extra={"data": {"type": block.type[:50]}})
        self._open[index] = _Open(block, known=known)
        return _content(block.text, block.thinking, block.signature, block.data) if known else []

    def _start_call(self, index: int, block: _Block) -> list[Event]:
        if self._calls >= _MAX_TOOL_CALLS or not block.id or not block.name:
            raise _nonsense()
        self._open[index] = _Open(block, call=self._calls)
        self._calls += 1
        return [ToolCallDelta(self._calls - 1, id=block.id, name=block.name)]

    def delta(self, index: int, delta: _Delta | None) -> list[Event]:
        """The next piece of an open block. Pieces of a kind that we do not know (citations) are skipped."""
        block = self._open.get(index)
        if block is None or delta is None:
            raise _nonsense()
        if block.call is None:
            return _content(delta.text, delta.thinking, delta.signature, None) if block.known else []
        if not delta.partial_json:
            return []
        block.has_arguments = True
        return [ToolCallDelta(block.call, arguments=delta.partial_json)]

    def stop(self, index: int) -> list[Event]:
        """The end of a block. A tool call of which no piece came has its arguments in its start, if any."""
        block = self._open.pop(index, None)
        if block is None or block.call is None or block.has_arguments:
            return []
        return [ToolCallDelta(block.call, arguments=msgspec.json.encode(block.input or {}).decode())]


class _Open:
    """One open block. ``call``: the number of its tool call, if it is one."""

    __slots__ = ("call", "has_arguments", "input", "known")

    def __init__(self, block: _Block, *, known: bool = True, call: int | None = None) -> None:
        self.known = known
        self.call = call
        self.input = block.input
        self.has_arguments = False


class _Ending:
    """Why an answer ended, and what it cost. The vendor's counts are totals so far: later ones replace earlier ones."""

    def __init__(self) -> None:
        self._usage = _Usage()
        self._reason: str | None = None
        self._stop: str | None = None

    def add(self, usage: _Usage | None, delta: _Delta | None) -> None:
        """What an event says about either."""
        if usage is not None:
            for name in _Usage.__struct_fields__:
                value = getattr(usage, name)
                if value is not None:
                    setattr(self._usage, name, value)
        if delta is not None and delta.stop_reason:
            self._reason, self._stop = delta.stop_reason, delta.stop_sequence

    def finished(self) -> Finished:
        """The closing event. Raises UpstreamError where nothing said why the answer ended."""
        if self._reason is None:
            raise UpstreamError("The answer was cut off before its end. Try again.")
        reason = _REASONS.get(self._reason)
        if reason is None:
            logger.warning("an unknown stop reason counts as stop", extra={"data": {"reason": self._reason[:50]}})
            reason = "stop"
        return Finished(cast(FinishReason, reason), _counts(self._usage), self._stop)


def _content(text: str | None, thinking: str | None, signature: str | None, redacted: str | None) -> list[Event]:
    if text:
        return [TextDelta(text)]
    events: list[Event] = []
    if thinking:
        events.append(ReasoningDelta(thinking))
    if signature:
        events.append(ReasoningDelta("", signature=signature))
    if redacted:
        events.append(ReasoningDelta("", redacted=redacted))
    return events


def _counts(usage: _Usage) -> Usage:
    """``input_tokens`` counts what no cache had; ours is all of the prompt."""
    fresh = max(usage.input_tokens or 0, 0)
    read = max(usage.cache_read_input_tokens or 0, 0)
    written = max(usage.cache_creation_input_tokens or 0, 0)
    details = usage.output_tokens_details
    return Usage(
        prompt_tokens=fresh + read + written,
        completion_tokens=max(usage.output_tokens or 0, 0),
        cached_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=max((details.thinking_tokens or 0) if details is not None else 0, 0),
    )


def _nonsense() -> AprendizError:
    return UpstreamError("The model provider sent a piece of an answer that cannot be read.")
