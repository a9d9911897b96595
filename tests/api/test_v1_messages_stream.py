"""The events of a streamed message, where providers send their pieces in an order of their own. No service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from app.api.v1.messages_answer import INVALID_JSON, content_of, ending_of, usage_of
from app.api.v1.messages_stream import BlockWriter
from app.core.types import (
    Answer,
    Event,
    Finished,
    FinishReason,
    Folder,
    ReasoningDelta,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from tests.api.events import read_events

ID = "01934f00-0000-7000-8000-000000000001"


def written(*batches: Sequence[Event]) -> list[tuple[str, int, Any]]:
    """``(what, index, data)`` of each event."""
    writer = BlockWriter(ID)
    text = b"".join([*(writer.write(batch) for batch in batches), writer.close()]).decode()
    found = []
    for name, data in read_events(text):
        assert name == data["type"]
        found.append((name.removeprefix("content_block_"), data["index"], data.get("content_block", data.get("delta"))))
    return found


def answer(*events: Event, reason: FinishReason = "stop", stop: str | None = None) -> Answer:
    folder = Folder()
    for event in (*events, Finished(reason, Usage(10, 2), stop)):
        folder.add(event)
    return folder.answer()


def test_nothing_is_no_block() -> None:
    assert written([], [TokenLogprobs(({"token": "a"},))]) == []
    assert content_of(answer(), ID) == []


def test_calls_in_turns_keep_their_own_arguments() -> None:
    """No known server mixes the pieces of two calls; where one does, each piece still names its block."""
    events: list[Event] = [
        ToolCallDelta(0, id="a", name="f"),
        ToolCallDelta(1, id="b", name="g", arguments="{"),
        ToolCallDelta(0, arguments='{"x":1}'),
        ToolCallDelta(1, arguments="}"),
    ]
    found = written(events)
    pieces = [(index, data["partial_json"]) for what, index, data in found if what == "delta"]
    assert pieces == [(1, "{"), (0, '{"x":1}'), (1, "}")]
    others = [(what, index) for what, index, _ in found if what != "delta"]
    assert others == [("start", 0), ("stop", 0), ("start", 1), ("stop", 1)]
    assert [block["input"] for block in content_of(answer(*events), ID)] == [{"x": 1}, {}]


def test_a_call_without_an_id_gets_the_same_one_everywhere() -> None:
    events: list[Event] = [ToolCallDelta(0, name="f", arguments="{}")]
    (start, *_) = written(events)
    (block,) = content_of(answer(*events), ID)
    assert start[2]["id"] == block["id"] == f"toolu_{ID.replace('-', '')}_0"


def test_thinking_in_all_its_forms() -> None:
    events: list[Event] = [
        ReasoningDelta("a"),
        ReasoningDelta("", signature="s"),
        ReasoningDelta("", signature="unseen"),
        ReasoningDelta("", redacted="r"),
        TextDelta("t"),
        ReasoningDelta("b"),
    ]
    found = written(events[:1], events[1:4], events[4:])
    kinds = "start delta delta stop start delta stop start stop start delta stop start delta stop"
    assert [what for what, _, _ in found] == kinds.split()
    assert [index for _, index, _ in found] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    assert content_of(answer(*events), ID) == [
        {"type": "thinking", "thinking": "a", "signature": "s"},
        {"type": "thinking", "thinking": "", "signature": "unseen"},
        {"type": "redacted_thinking", "data": "r"},
        {"type": "text", "text": "t"},
        {"type": "thinking", "thinking": "b", "signature": ""},
    ]


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", '"a"', "nan", "{'a': 1}", '{"a":1}{', "[" * 5000])
def test_arguments_that_are_no_object_are_kept(arguments: str) -> None:
    (block,) = content_of(answer(ToolCallDelta(0, id="a", name="f", arguments=arguments), reason="tool_calls"), ID)
    assert block["input"] == {INVALID_JSON: arguments}


def test_arguments_that_are_none_are_empty() -> None:
    (block,) = content_of(answer(ToolCallDelta(0, id="a", name="f", arguments=" ")), ID)
    assert block["input"] == {}


@pytest.mark.parametrize(
    ("reason", "stop", "told"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", None, ("max_tokens", None)),
        ("length", "END", ("max_tokens", None)),
        ("tool_calls", None, ("tool_use", None)),
        ("content_filter", None, ("refusal", None)),
    ],
)
def test_reasons(reason: FinishReason, stop: str | None, told: tuple[str, str | None]) -> None:
    ending = ending_of(answer(reason=reason, stop=stop))
    assert (ending.stop_reason, ending.stop_sequence) == told


def test_tokens_of_a_cache_are_no_input_tokens() -> None:
    usage = usage_of(Usage(100, 7, cached_tokens=60, cache_write_tokens=30))
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (10, 60, 30)
    assert usage_of(Usage(5, 1, cached_tokens=9)).input_tokens == 0
