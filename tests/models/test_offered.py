"""A call of a tool that nobody offered goes nowhere, however it comes."""

from __future__ import annotations

from collections.abc import Sequence

from app.core.types import Event, Finished, Folder, Sampling, TextDelta, ToolCallDelta, Usage
from app.models.offered import OfferedCalls

TOOLS = ({"type": "function", "function": {"name": "look"}}, {"type": "function", "function": {"name": "lock"}})


def passed(events: Sequence[Event], sampling: Sampling) -> list[Event]:
    offered = OfferedCalls(sampling)
    return [event for each in events for event in offered.only([each])]


def calls(events: Sequence[Event], sampling: Sampling) -> list[tuple[str, str]]:
    folder = Folder()
    for event in passed([*events, Finished("tool_calls", Usage())], sampling):
        folder.add(event)
    answer = folder.answer()
    assert (answer.finish_reason == "tool_calls") == bool(answer.tool_calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in answer.tool_calls]


def test_offered_calls_pass_as_they_came() -> None:
    events: list[Event] = [
        TextDelta("I look."), ToolCallDelta(0, "a", "look"), ToolCallDelta(0, arguments='{"x"'),
        ToolCallDelta(1, "b", "lock", "{}"), ToolCallDelta(0, arguments=":1}"), Finished("tool_calls", Usage()),
    ]  # fmt: skip
    assert passed(events, Sampling(tools=TOOLS)) == events
    batch = [TextDelta("a"), TextDelta("b")]
    assert OfferedCalls(Sampling()).only(batch) is batch


def test_others_are_dropped_with_their_arguments() -> None:
    events = [ToolCallDelta(0, "a", "send", "{"), ToolCallDelta(1, "b", "look"), ToolCallDelta(0, arguments="}"),
              ToolCallDelta(1, arguments="{}")]  # fmt: skip
    assert calls(events, Sampling(tools=TOOLS)) == [("look", "{}")]
    assert calls(events, Sampling()) == []
    assert calls(events, Sampling(tools=TOOLS, tool_choice="none")) == []


def test_a_name_that_comes_late_or_in_pieces_is_no_way_around() -> None:
    late = [ToolCallDelta(0, "a", arguments="{"), ToolCallDelta(0, name="look", arguments="}")]
    assert calls(late, Sampling(tools=TOOLS)) == [("look", "{}")]
    assert calls([ToolCallDelta(0, "a", arguments="{"), ToolCallDelta(0, name="send")], Sampling(tools=TOOLS)) == []
    grown = [ToolCallDelta(0, "a", "look"), ToolCallDelta(0, name="_and_send", arguments="{}")]
    assert calls(grown, Sampling(tools=TOOLS)) == [("look", "{}")]
    assert calls([ToolCallDelta(0, "a", "lo"), ToolCallDelta(0, name="ok")], Sampling(tools=TOOLS)) == []
    assert calls([ToolCallDelta(0, "a", arguments="{}")], Sampling(tools=TOOLS)) == [], "no name at all"


def test_an_answer_without_calls_ended_by_itself() -> None:
    usage = Usage(1, 2)
    assert passed([Finished("tool_calls", usage)], Sampling(tools=TOOLS)) == [Finished("stop", usage)]
    assert passed([Finished("length", usage)], Sampling()) == [Finished("length", usage)]
