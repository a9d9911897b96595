"""A response in the vendor's words while it is made: whole, or as the documented sequence of events.

Items of the output open as their first piece comes. Text and thinking close when another kind begins; calls stay open to the
end, since pieces of several may come in turns. Nothing is parsed: each delta is a few prepared bytes around the encoded text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from app.api import sse, vendor_errors
from app.api.problems import vendor_body
from app.api.v1.chat import call_id as missing_call_id
from app.api.v1.chat import extras_of
from app.api.v1.common import limit_headers
from app.api.v1.responses_body import name_field
from app.api.v1.responses_output import (
    INCOMPLETE,
    answer_items,
    call_item,
    ended,
    message_item,
    response,
    text_part,
    thinking_item,
)
from app.core.errors import InvalidRequest, TooManyRequests
from app.core.types import (
    Event,
    Finished,
    Folder,
    ReasoningDelta,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)

if TYPE_CHECKING:
    from app.api.door import Headers
    from app.core.settings import Settings
    from app.models.generation import Completed, Generation
    from app.security.rate_limit import RateState

_encode = msgspec.json.Encoder().encode
_BEGINNING = 2
"""Events before the first item: created, in_progress."""


class Counter:
    """Numbers the events."""

    def __init__(self) -> None:
        self.next = _BEGINNING

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event, with the next number."""
        number, self.next = self.next, self.next + 1
        return _event(kind, number, fields)

    def delta(self, head: bytes, text: str, tail: bytes = b"") -> bytes:
        """A prepared event around ``text``."""
        number, self.next = self.next, self.next + 1
        return b'%s%s%s,"sequence_number":%d}\n\n' % (head, _encode(text), tail, number)


class OpenItem(Protocol):
    """An output item in the making."""

    def close(self, status: str) -> bytes:
        """The events that end it."""

    def item(self, status: str) -> dict[str, Any]:
        """It, as it stands."""


class TextItem:
    """The message with the answer's text."""

    def __init__(self, events: Counter, item_id: str, index: int) -> None:
        self._events = events
        self._id = item_id
        self._place = {"item_id": item_id, "output_index": index, "content_index": 0}
        self._index = index
        self._text: list[str] = []
        self._logprobs: list[Mapping[str, Any]] = []
        self._head = _head("response.output_text.delta", self._place)

    def open(self) -> bytes:
        """The events that begin it."""
        item = message_item(self._id, None, status="in_progress")
        added = self._events.event("response.output_item.added", output_index=self._index, item=item)
        return added + self._events.event("response.content_part.added", **self._place, part=text_part(""))

    def add(self, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> bytes:
        """The event of the next piece."""
        self._text.append(text)
        self._logprobs.extend(logprobs)
        return self._events.delta(self._head, text, b',"logprobs":' + (_encode(logprobs) if logprobs else b"[]"))

    def add_plain(self, text: str) -> bytes:
        """The event of the next piece, without log-probabilities."""
        self._text.append(text)
        events = self._events
        events.next = number = events.next + 1
        return b'%b%b,"logprobs":[],"sequence_number":%d}\n\n' % (self._head, _encode(text), number - 1)

    def close(self, status: str) -> bytes:
        """See `OpenItem.close`."""
        text, events = "".join(self._text), self._events
        part = text_part(text, self._logprobs)
        return (
            events.event("response.output_text.done", **self._place, text=text, logprobs=self._logprobs)
            + events.event("response.content_part.done", **self._place, part=part)
            + events.event("response.output_item.done", output_index=self._index, item=self.item(status))
        )

    def item(self, status: str) -> dict[str, Any]:
        """See `OpenItem.item`."""
        return message_item(self._id, "".join(self._text), self._logprobs, status=status)


class ThinkingItem:
    """Visible thinking: as a summary where one was asked for, else as content."""

    def __init__(self, events: Counter, item_id: str, index: int, *, summary: bool, encrypted: bool) -> None:
        self._events = events
        self._id = item_id
        self._index = index
        self._summary, self._encrypted = summary, encrypted
        self._place = {"item_id": item_id, "output_index": index, "summary_index" if summary else "content_index": 0}
        self._part = "response.reasoning_summary_part" if summary else "response.content_part"
        self._kind = "response.reasoning_summary_text" if summary else "response.reasoning_text"
        self._head = _head(f"{self._kind}.delta", self._place)
        self._folder = Folder()
        self._text: list[str] = []

    def open(self) -> bytes:
        """The event that begins it."""
        item = thinking_item(self._id, (), summary=self._summary, encrypted=False, status="in_progress")
        return self._events.event("response.output_item.added", output_index=self._index, item=item)

    def add(self, delta: ReasoningDelta) -> bytes:
        """The events of the next piece; a signature has none."""
        self._folder.add(delta)
        if not delta.text:
            return b""
        begin = b"" if self._text else self._events.event(f"{self._part}.added", **self._place, part=self._as_part(""))
        self._text.append(delta.text)
        return begin + self._events.delta(self._head, delta.text)

    def close(self, status: str) -> bytes:
        """See `OpenItem.close`."""
        text, ends = "".join(self._text), b""
        if text:
            ends = self._events.event(f"{self._kind}.done", **self._place, text=text)
            ends += self._events.event(f"{self._part}.done", **self._place, part=self._as_part(text))
        return ends + self._events.event("response.output_item.done", output_index=self._index, item=self.item(status))

    def item(self, status: str) -> dict[str, Any]:
        """See `OpenItem.item`."""
        self._folder.add(Finished("stop", Usage()))
        blocks = self._folder.answer().thinking
        return thinking_item(self._id, blocks, summary=self._summary, encrypted=self._encrypted, status=status)

    def _as_part(self, text: str) -> dict[str, str]:
        return {"type": "summary_text" if self._summary else "reasoning_text", "text": text}


class FunctionItem:
    """The call of a function."""

    def __init__(self, events: Counter, item_id: str, index: int, *, call_id: str, name: str) -> None:
        self._events = events
        self._id = item_id
        self._index = index
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []
        self._head = _head("response.function_call_arguments.delta", {"item_id": item_id, "output_index": index})

    def open(self) -> bytes:
        """The event that begins it."""
        item = call_item(self._id, self._call_id, self._name, "", status="in_progress")
        return self._events.event("response.output_item.added", output_index=self._index, item=item)

    def add(self, delta: ToolCallDelta) -> bytes:
        """The event of the next piece of its arguments."""
        if not delta.arguments:
            return b""
        self._arguments.append(delta.arguments)
        return self._events.delta(self._head, delta.arguments)

    def close(self, status: str) -> bytes:
        """See `OpenItem.close`."""
        arguments = "".join(self._arguments)
        place = {"item_id": self._id, "output_index": self._index}
        done = self._events.event("response.function_call_arguments.done", **place, name=self._name, arguments=arguments)
        return done + self._events.event("response.output_item.done", output_index=self._index, item=self.item(status))

    def item(self, status: str) -> dict[str, Any]:
        """See `OpenItem.item`."""
        return call_item(self._id, self._call_id, self._name, "".join(self._arguments), status=status)


class ResponsesShape:
    """The vendor's words for one call; see `app.api.door.Shape`.

    Args:
        prediction_id: the id that the prediction will have, so that the first event can tell it.
        echo: what the response repeats of the call.
        model: what was asked for; stands in a response that fails before anybody answers.
        logprobs: each delta waits for its log-probabilities, which come after it.
    """

    heartbeat = sse.HEARTBEAT

    def __init__(
        self,
        prediction_id: str,
        echo: Mapping[str, Any],
        settings: Settings,
        *,
        model: str,
        summary: bool,
        encrypted: bool,
        logprobs: bool,
    ) -> None:
        self._id = prediction_id
        self._echo = echo
        self._settings = settings
        self._model = model
        self._summary, self._encrypted = summary, encrypted
        self._with_logprobs = logprobs
        self._begun = False
        self._events = Counter()
        self._items: list[OpenItem] = []
        self._open: TextItem | ThinkingItem | None = None
        self._calls: dict[int, FunctionItem] = {}
        self._closed: dict[int, dict[str, Any]] = {}
        self._numbers = {"msg": 0, "rs": 0}
        self._held: list[str] = []

    def headers(self, state: RateState) -> Headers:
        """See `Shape.headers`."""
        return limit_headers(state)

    def whole(self, answers: Sequence[Completed]) -> bytes:
        """See `Shape.whole`."""
        prediction, answer = answers[0].prediction, answers[0].answer
        items = answer_items(self._id, answer, summary=self._summary, encrypted=self._encrypted)
        return _encode(ended(prediction, self._echo, items, answer.usage, extras_of(answers[0], self._settings)))

    def first(self, generation: Generation) -> bytes:
        """See `Shape.first`."""
        self._model = generation.model
        return self._beginning()

    def piece(self, choice: int, events: Sequence[Event]) -> bytes:
        """See `Shape.piece`."""
        if len(events) == 1 and type(events[0]) is TextDelta and type(self._open) is TextItem and not self._with_logprobs:
            return self._open.add_plain(events[0].text)  # the hot path: a token of an answer under way
        return b"".join([self._piece(event) for event in events])

    def last(self, answers: Sequence[Completed]) -> bytes:
        """See `Shape.last`."""
        prediction, answer = answers[0].prediction, answers[0].answer
        begin = self._flush()
        if not self._items:
            begin += self._begin(TextItem(self._events, self._new_id("msg"), 0))
        incomplete = prediction.finish_reason in INCOMPLETE
        ends = [self._close(index, last=index == len(self._items) - 1, incomplete=incomplete) for index in self._unclosed()]
        output = [self._closed[index] for index in range(len(self._items))]
        body = ended(prediction, self._echo, output, answer.usage, extras_of(answers[0], self._settings))
        kind = "response.incomplete" if incomplete else "response.completed"
        return begin + b"".join(ends) + self._events.event(kind, response=body)

    def failure(self, error: BaseException) -> bytes:
        """See `Shape.failure`: the failed response, then the event that the SDKs raise."""
        name_field(error)
        begin = b"" if self._begun else self._beginning()
        told = vendor_body(error, vendor_errors.openai)["error"]
        code = "server_error"
        if isinstance(error, InvalidRequest):
            code = "invalid_prompt"
        elif isinstance(error, TooManyRequests):
            code = "rate_limit_exceeded"
        output = [self._closed.get(index) or item.item("incomplete") for index, item in enumerate(self._items)]
        failed = response(
            self._id,
            self._echo,
            status="failed",
            model=self._model,
            output=output,
            error={"code": code, "message": told["message"]},
        )
        flat = {name: told[name] for name in ("code", "message", "param")}
        return begin + self._events.event("response.failed", response=failed) + self._events.event("error", **flat, error=told)

    def _beginning(self) -> bytes:
        self._begun = True
        body = {"response": response(self._id, self._echo, status="in_progress", model=self._model)}
        return _event("response.created", 0, body) + _event("response.in_progress", 1, body)

    def _piece(self, event: Event) -> bytes:
        match event:
            case TextDelta(text):
                if not self._with_logprobs:
                    return self._say(text)
                before = self._flush()
                self._held.append(text)
                return before
            case TokenLogprobs(content):
                return self._flush(content)
            case ReasoningDelta():
                return self._flush() + self._think(event)
            case ToolCallDelta():
                return self._flush() + self._call(event)
            case _:
                return b""

    def _flush(self, logprobs: Sequence[Mapping[str, Any]] = ()) -> bytes:
        """What waits for its log-probabilities; they may come for text that is still to come (half a character)."""
        if not self._held and not logprobs:
            return b""
        text = "".join(self._held)
        self._held.clear()
        return self._say(text, logprobs)

    def _say(self, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> bytes:
        item, begin = self._open, b""
        if not isinstance(item, TextItem):
            item = TextItem(self._events, self._new_id("msg"), len(self._items))
            begin = self._begin(item)
        return begin + item.add(text, logprobs)

    def _think(self, delta: ReasoningDelta) -> bytes:
        item, begin = self._open, b""
        if not isinstance(item, ThinkingItem):
            item = ThinkingItem(
                self._events, self._new_id("rs"), len(self._items), summary=self._summary, encrypted=self._encrypted
            )
            begin = self._begin(item)
        return begin + item.add(delta)

    def _call(self, delta: ToolCallDelta) -> bytes:
        item, begin = self._calls.get(delta.index), b""
        if item is None:
            number = len(self._calls)
            item = FunctionItem(
                self._events,
                f"fc_{self._id}_{number}",
                len(self._items),
                call_id=delta.id or missing_call_id(self._id, number),
                name=delta.name or "",
            )
            self._calls[delta.index] = item
            begin = self._begin(item)
        return begin + item.add(delta)

    def _begin(self, item: TextItem | ThinkingItem | FunctionItem) -> bytes:
        """Closes the text or thinking before it, and opens it."""
        before = b""
        if self._open is not None:
            before = self._close(self._items.index(self._open), last=False, incomplete=False)
        self._open = None if isinstance(item, FunctionItem) else item
        self._items.append(item)
        return before + item.open()

    def _close(self, index: int, *, last: bool, incomplete: bool) -> bytes:
        status = "incomplete" if last and incomplete else "completed"
        ends = self._items[index].close(status)
        self._closed[index] = self._items[index].item(status)
        return ends

    def _unclosed(self) -> list[int]:
        return [index for index in range(len(self._items)) if index not in self._closed]

    def _new_id(self, prefix: str) -> str:
        number = self._numbers[prefix]
        self._numbers[prefix] += 1
        return f"{prefix}_{self._id}_{number}" if number else f"{prefix}_{self._id}"


def _head(kind: str, place: Mapping[str, Any]) -> bytes:
    """All of a delta event before its text."""
    return b"event: %s\ndata: %s" % (kind.encode(), _encode({"type": kind, **place})[:-1]) + b',"delta":'


def _event(kind: str, number: int, fields: Mapping[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), _encode({"type": kind, "sequence_number": number, **fields}))
