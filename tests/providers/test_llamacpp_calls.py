"""Calls that a model writes into its text, read in pieces of every size."""

from __future__ import annotations

import json

import pytest

from app.core.errors import UpstreamError
from app.core.types import Answer, Event, Finished, Folder, TextDelta, TokenLogprobs, ToolCallDelta, Usage
from app.providers.llamacpp_calls import CallReader, JsonReader

USAGE = Usage(3, 4)
DEEP = {"a": 'brace } quote " slash \\ tag </tool_call>', "b": [{"c": "]"}], "é": "🙂"}


def call(name: str, arguments: object) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'


def read(text: str, size: int, reason: str = "stop") -> tuple[Answer, list[Event]]:
    reader, folder, seen = CallReader(), Folder(), []
    pieces: list[Event] = [TextDelta(text[at : at + size]) for at in range(0, len(text), size)]
    for event in [*pieces, Finished(reason, USAGE)]:  # type: ignore[arg-type]
        for found in reader.read([event]):
            folder.add(found)
            seen.append(found)
    return folder.answer(), seen


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_calls_in_pieces(size: int) -> None:
    answer, seen = read("Let me see.\n" + call("look_up", DEEP) + "\n" + call("b-2", {}), size)
    assert answer.text == "Let me see."
    assert [each["function"]["name"] for each in answer.tool_calls] == ["look_up", "b-2"]
    assert [json.loads(each["function"]["arguments"]) for each in answer.tool_calls] == [DEEP, {}]
    assert (answer.finish_reason, answer.usage) == ("tool_calls", USAGE)
    assert len({each["id"] for each in answer.tool_calls}) == 2
    first = next(event for event in seen if isinstance(event, ToolCallDelta))
    assert (first.index, first.name, first.arguments) == (0, "look_up", ""), "id and name come before any argument"
    assert all(event.text for event in seen if isinstance(event, TextDelta))


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize("text", ["plain words", "a <tool_cal", "a < b <tool b>", "  spaces  \n", "<tool_response>"])
def test_text_is_text(size: int, text: str) -> None:
    answer, seen = read(text, size)
    assert (answer.text, answer.finish_reason, answer.tool_calls) == (text, "stop", ())
    assert isinstance(seen[-1], Finished)


def test_text_goes_on_at_once() -> None:
    reader = CallReader()
    assert list(reader.read([TextDelta("Hello <")])) == [TextDelta("Hello")]
    assert list(reader.read([TextDelta("b> you")])) == [TextDelta(" <b> you")]


def test_a_cut_call_is_no_finished_one() -> None:
    whole = call("f", {"a": "bcd"})
    for end in range(1, len(whole)):
        answer, _ = read(whole[:end], 3, "length")
        assert answer.finish_reason == "length"
        stopped, _ = read(whole[:end], 3, "stop")
        assert stopped.finish_reason == "stop", "a stop word in a call ends it before its end"


@pytest.mark.parametrize(
    "text",
    ["<tool_call>" + "word " * 60, call("f", {}) + "word " * 60, '<tool_call>\n{"name": "f", "arguments": {a b}}'],
)
def test_what_breaks_the_form_is_an_error(text: str) -> None:
    with pytest.raises(UpstreamError):
        read(text, 5)


def test_probabilities_are_of_the_text() -> None:
    reader, folder = CallReader(), Folder()
    for number, piece in enumerate(["Hi", " ", "<", "tool_call>", '\n{"name": "f", "arguments": {}}\n</tool_call>']):
        for event in reader.read([TextDelta(piece), TokenLogprobs(({"token": piece, "number": number},))]):
            folder.add(event)
    for event in reader.read([Finished("stop", USAGE)]):
        folder.add(event)
    assert [entry["number"] for entry in folder.answer().logprobs] == [0]
    plain = CallReader().read([TextDelta("a "), TokenLogprobs(({"token": "a "},)), Finished("stop", USAGE)])
    assert [type(event) for event in plain] == [TextDelta, TextDelta, TokenLogprobs, Finished]


def test_an_answer_that_is_no_json_is_an_error() -> None:
    for reason, word, text, good in [
        ("stop", None, '{"a": 1}', True),
        ("stop", None, '{"a": 1} and more', False),
        ("length", None, '{"a', True),
        ("stop", "a", '{"', True),
    ]:
        reader = JsonReader()
        events: list[Event] = [TextDelta(text[:3]), TextDelta(text[3:]), Finished(reason, USAGE, word)]  # type: ignore[arg-type]
        if good:
            assert reader.read(events) == events
        else:
            with pytest.raises(UpstreamError):
                reader.read(events)
