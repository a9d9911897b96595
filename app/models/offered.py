"""Lets through only the tool calls that the caller offered. Whatever a document, a memory or an upstream makes a model say, a
call that nobody offered is not handed to a program that might carry it out; it is dropped, and the log says that there was one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from app.core.types import Event, Finished, Sampling, ToolCallDelta

logger = logging.getLogger(__name__)
_MOST_HELD: Final = 1 << 20
"""Characters of arguments that wait for their call's name; what is longer belongs to none."""


class OfferedCalls:
    """Filters the events of one answer. Remembers which calls were let in.

    Args:
        sampling: with the caller's tools; a choice of ``none`` offers none of them.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._names = frozenset() if sampling.tool_choice == "none" else frozenset(map(_name, sampling.tools))
        self._let_in: dict[int, bool] = {}
        self._held: dict[int, ToolCallDelta] = {}

    def only(self, batch: Sequence[Event]) -> Sequence[Event]:
        """``batch`` without calls of what was not offered; where none is left, the answer ended by itself."""
        if not any(type(event) is ToolCallDelta or type(event) is Finished for event in batch):
            return batch  # nearly all of them
        return [event for each in batch for event in self._passed(each)]

    def _passed(self, event: Event) -> Sequence[Event]:
        if isinstance(event, ToolCallDelta):
            return self._call(event)
        if isinstance(event, Finished) and event.reason == "tool_calls" and not any(self._let_in.values()):
            return [Finished("stop", event.usage, event.stop_sequence)]
        return [event]

    def _call(self, delta: ToolCallDelta) -> Sequence[Event]:
        known = self._let_in.get(delta.index)
        if known is not None:  # a second name would be read as the end of the first one
            return [ToolCallDelta(delta.index, arguments=delta.arguments)] if known and delta.arguments else []
        held = self._held.pop(delta.index, None)
        if held is not None:
            delta = ToolCallDelta(delta.index, delta.id or held.id, delta.name, held.arguments + delta.arguments)
        if not delta.name and len(delta.arguments) <= _MOST_HELD:
            self._held[delta.index] = delta
            return []
        self._let_in[delta.index] = offered = delta.name in self._names
        if not offered:
            logger.warning("a model called a tool that was not offered; the call was dropped")
        return [delta] if offered else []


def _name(tool: Mapping[str, Any]) -> str | None:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else tool.get("name")
    return name if isinstance(name, str) else None
