"""The events of a streamed message, as Anthropic's API writes them: blocks that open, grow and close, one after the other.

Written by hand around the encoded text, for a stream has one such event a token: what is the same in all pieces of a block is
made once a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from app.api.v1.messages_answer import call_id
from app.core.types import Event, ReasoningDelta, TextDelta, ToolCallDelta

PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_END: Final = b"}}\n\n"
_encode = msgspec.json.Encoder().encode


def event(name: str, fields: Mapping[str, Any]) -> bytes:
    """One event; its type stands in its data too."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **fields}))


class BlockWriter:
    """Writes the blocks of one answer. One is open at a time.

    Args:
        prediction_id: for the ids of tool calls that came without one.
    """

    def __init__(self, prediction_id: str) -> None:
        self._prediction_id = prediction_id
        self._index = -1
        self._kind = ""
        self._calls: dict[int, int] = {}
        self._text = self._thinking = b""

    def write(self, events: Sequence[Event]) -> bytes:
        """The events of the next pieces."""
        if len(events) == 1 and self._kind == "text" and type(events[0]) is TextDelta:  # nearly all calls of nearly all streams
            return self._text + _encode(events[0].text) + _END
        found: list[bytes] = []
        for each in events:
            match each:
                case TextDelta(text):
                    if self._kind != "text":
                        found.append(self._open("text", {"type": "text", "text": ""}))
                        self._text = self._delta("text_delta", "text")
                    found.append(self._text + _encode(text) + _END)
                case ToolCallDelta():
                    found.append(self._call(each))
                case ReasoningDelta():
                    found.append(self._thought(each))
        return b"".join(found)

    def close(self) -> bytes:
        """The end of the open block, if there is one."""
        if not self._kind:
            return b""
        self._kind = ""
        return event("content_block_stop", {"index": self._index})

    def _open(self, kind: str, block: Mapping[str, Any]) -> bytes:
        closed = self.close()
        self._index += 1
        self._kind = kind
        return closed + event("content_block_start", {"index": self._index, "content_block": block})

    def _delta(self, kind: str, field: str, index: int | None = None) -> bytes:
        """What comes before the text of a piece."""
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":' % (
            self._index if index is None else index,
            kind.encode(),
            field.encode(),
        )

    def _thought(self, piece: ReasoningDelta) -> bytes:
        if piece.redacted is not None:
            opened = self._open("redacted_thinking", {"type": "redacted_thinking", "data": piece.redacted})
            return opened + self.close()
        found = b""
        if self._kind != "thinking":
            found = self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._thinking = self._delta("thinking_delta", "thinking")
        if piece.text:
            found += self._thinking + _encode(piece.text) + _END
        if piece.signature is not None:
            found += self._delta("signature_delta", "signature") + _encode(piece.signature) + _END + self.close()
        return found

    def _call(self, piece: ToolCallDelta) -> bytes:
        found = b""
        index = self._calls.get(piece.index)
        if index is None:
            identity = piece.id or call_id(self._prediction_id, piece.index)
            found = self._open("tool_use", {"type": "tool_use", "id": identity, "name": piece.name or "", "input": {}})
            index = self._calls[piece.index] = self._index
        if piece.arguments:
            found += self._delta("input_json_delta", "partial_json", index) + _encode(piece.arguments) + _END
        return found
