"""Reads the calls that a model writes into its text (see `llamacpp_tools`) as they stream in. No I/O.

What stands outside of calls goes on as text at once, but for an end that may still become the mark of a call. It relies on the
grammar that the engine enforced; text that breaks the form is an error, never passed on as an answer. It validates no schema.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from app.core.errors import UpstreamError
from app.core.types import Event, Finished, ReasoningDelta, TextDelta, TokenLogprobs, ToolCallDelta

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
_HEAD = re.compile(r'\s*\{"name": "([A-Za-z0-9_-]{1,64})", "arguments": (?=\{)')
_MAX_HEAD = 200
"""Longer than any head that the grammar allows."""
_MARKS = re.compile(r'["\\{}\[\]]')


class CallReader:
    """Turns the events of one answer into those of an answer with calls."""

    def __init__(self) -> None:
        self._state: Literal["text", "head", "arguments", "tail"] = "text"
        self._buffer = ""
        self._logprobs: list[TokenLogprobs] = []
        self._index = -1
        self._pieces: list[str] = []
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def read(self, events: Iterable[Event]) -> Sequence[Event]:
        """The events that follow from ``events``; may be none. Raises UpstreamError for what is no call."""
        out: list[Event] = []
        for event in events:
            match event:
                case TextDelta(text):
                    self._buffer += text
                    self._advance(out)
                case TokenLogprobs():
                    self._keep(event, out)
                case Finished():
                    out.extend(self._finish(event))
                case ReasoningDelta() | ToolCallDelta():
                    out.append(event)
        return out

    def _keep(self, event: TokenLogprobs, out: list[Event]) -> None:
        """Probabilities are told of text alone, so they wait with it."""
        if self._state == "text":
            self._logprobs.append(event)
            if not self._buffer:
                self._release(out)

    def _release(self, out: list[Event]) -> None:
        out.extend(self._logprobs)
        self._logprobs.clear()

    def _advance(self, out: list[Event]) -> None:
        before = None
        while before != (self._state, self._buffer):
            before = (self._state, self._buffer)
            match self._state:
                case "text":
                    self._text(out)
                case "head":
                    self._head(out)
                case "arguments":
                    self._arguments(out)
                case "tail":
                    self._tail()

    def _text(self, out: list[Event]) -> None:
        said, mark, rest = self._buffer.partition(OPEN)
        if mark:
            self._state, self._buffer = "head", rest
            said = said.rstrip()
            self._logprobs.clear()
        else:
            said = _certain(said)
            self._buffer = self._buffer[len(said) :]
        if said:
            out.append(TextDelta(said))
            if not self._buffer:
                self._release(out)

    def _head(self, out: list[Event]) -> None:
        head = _HEAD.match(self._buffer)
        if head is None:
            if len(self._buffer) > _MAX_HEAD:
                raise _not_a_call()
            return
        self._index += 1
        out.append(ToolCallDelta(self._index, id=f"call_{secrets.token_hex(12)}", name=head.group(1)))
        self._state, self._buffer, self._depth = "arguments", self._buffer[head.end() :], 0

    def _arguments(self, out: list[Event]) -> None:
        end = self._end_of_arguments()
        piece = self._buffer if end is None else self._buffer[:end]
        self._buffer = "" if end is None else self._buffer[end:]
        if piece:
            self._pieces.append(piece)
            out.append(ToolCallDelta(self._index, arguments=piece))
        if end is not None:
            check_json("".join(self._pieces))
            self._pieces.clear()
            self._state = "tail"

    def _end_of_arguments(self) -> int | None:
        """Where the object of the arguments ends in the buffer, or None: not in it."""
        at, text = 0, self._buffer
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            mark = _MARKS.search(text, at)
            if mark is None:
                return None
            at = mark.end()
            self._take(mark.group())
            if self._depth == 0:
                return at
        return None

    def _take(self, mark: str) -> None:
        if self._quoted:
            self._escaped = mark == "\\"
            self._quoted = mark != '"'
        elif mark == '"':
            self._quoted = True
        else:
            self._depth += 1 if mark in "{[" else -1

    def _tail(self) -> None:
        """After the arguments only the close of this call and the mark of the next may come."""
        closed, mark, rest = self._buffer.partition(OPEN)
        if mark:
            self._state, self._buffer = "head", rest
        elif len(closed) > _MAX_HEAD:
            raise _not_a_call()

    def _finish(self, finished: Finished) -> Iterable[Event]:
        if self._state == "text":
            if self._buffer:
                yield TextDelta(self._buffer)
            yield from self._logprobs
        elif finished.reason == "stop" and self._state == "tail" and CLOSE in self._buffer:
            finished = Finished("tool_calls", finished.usage)
        yield finished


class JsonReader:
    """Passes events on, and holds the text to what its grammar promised: an answer that came to its end is JSON."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def read(self, events: Sequence[Event]) -> Sequence[Event]:
        """``events``. Raises UpstreamError in place of a `Finished` that would call half a value whole."""
        for event in events:
            if isinstance(event, TextDelta):
                self._pieces.append(event.text)
            elif isinstance(event, Finished) and event.reason == "stop" and event.stop_sequence is None:
                check_json("".join(self._pieces))
        return events


def check_json(text: str) -> None:
    """Raises UpstreamError unless ``text`` is JSON."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UpstreamError("The model's answer does not keep to its form. Try again.") from error


def _certain(text: str) -> str:
    """``text`` without an end that may be the beginning of a call: white space, and a part of the mark."""
    for size in range(min(len(OPEN) - 1, len(text)), 0, -1):
        if text.endswith(OPEN[:size]):
            text = text[:-size]
            break
    return text.rstrip()


def _not_a_call() -> UpstreamError:
    return UpstreamError("The model's answer is not a call that can be read. Try again.")
