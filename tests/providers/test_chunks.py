"""What chunks and whole answers of the OpenAI format mean, in the words of the servers that send them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.core.errors import UpstreamBusy, UpstreamError, UpstreamRefused
from app.core.types import Event, Finished, ReasoningDelta, Sampling, TextDelta, TokenLogprobs, ToolCallDelta, Usage
from app.providers.chunks import ChunkReader, sampling_fields


def read(*chunks: dict[str, Any], stops: tuple[str, ...] = ()) -> list[Event]:
    reader = ChunkReader(stops)
    events = reader.read([*(json.dumps(chunk).encode() for chunk in chunks), b"[DONE]"])
    assert reader.done
    return events


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}], "usage": None, "error": None}


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thinking_comes_before_the_text_of_its_chunk(name: str) -> None:
    events = read(delta(**{name: "hm"}), delta(**{name: "so", "content": "x"}), delta("stop"))
    assert events == [ReasoningDelta("hm"), ReasoningDelta("so"), TextDelta("x"), Finished("stop", Usage())]


def test_thinking_under_both_names_counts_once() -> None:
    assert read(delta(reasoning="hm", reasoning_content="hm"), delta("stop"))[:-1] == [ReasoningDelta("hm")]


def test_a_refusal_is_text_that_was_filtered() -> None:
    assert read(delta(refusal="I can"), delta(refusal="not."), delta("stop")) == [
        TextDelta("I can"),
        TextDelta("not."),
        Finished("content_filter", Usage()),
    ]


def test_usage_in_parts_and_within_bounds() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert read(delta("stop"), {"choices": [], "usage": usage}) == [Finished("stop", Usage(10, 5, 4, 3, 2))]
    strange = {"prompt_tokens": 10**30, "completion_tokens": -1, "completion_tokens_details": {"reasoning_tokens": 7}}
    assert read(delta("stop"), {"usage": strange}) == [Finished("stop", Usage(2**31 - 1, 0))]
    assert read(delta("stop"), {"usage": {"prompt_tokens": None, "prompt_tokens_details": None}}) == [Finished("stop", Usage())]


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("stop_reason", "END", "END"),
        ("matched_stop", "END", "END"),
        ("stop_reason", 128009, None),
        ("stop_reason", "other", None),
    ],
)
def test_the_stop_word_where_the_server_tells(field: str, value: Any, word: str | None) -> None:
    chunk = {"choices": [{"delta": {}, "finish_reason": "stop", field: value}]}
    assert read(chunk, stops=("END",)) == [Finished("stop", Usage(), word)]


def test_tool_calls_without_a_number() -> None:
    def call(**fields: Any) -> dict[str, Any]:
        return delta(tool_calls=[fields])

    events = read(
        call(id="a", function={"name": "f", "arguments": "{"}),
        call(function={"arguments": "}"}),
        call(id="b", function={"name": "g", "arguments": "{}"}),
        delta("tool_calls"),
    )
    assert events[:-1] == [
        ToolCallDelta(0, "a", "f", "{"),
        ToolCallDelta(0, None, None, "}"),
        ToolCallDelta(1, "b", "g", "{}"),
    ]


def test_what_came_before_a_fault_is_not_lost() -> None:
    reader = ChunkReader()
    assert reader.read([json.dumps(delta(content="a")).encode(), b"nonsense"]) == [TextDelta("a")]
    assert not reader.done
    assert type(reader.error) is UpstreamError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429}, UpstreamBusy),
        ({"type": "overloaded_error"}, UpstreamBusy),
        ({"code": "insufficient_quota"}, UpstreamRefused),
        ({"code": 401}, UpstreamRefused),
        ({"code": 500, "type": "server_error"}, UpstreamError),
        ("words", UpstreamError),
        ([1], UpstreamError),
    ],
)
def test_errors_inside_a_stream(error: Any, kind: type[UpstreamError]) -> None:
    reader = ChunkReader()
    assert reader.read([json.dumps({"error": error}).encode()]) == []
    assert type(reader.error) is kind


def test_a_whole_answer() -> None:
    message = {
        "role": "assistant",
        "content": "Hi",
        "reasoning_content": "hm",
        "refusal": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    logprobs = {"content": [{"token": "Hi", "logprob": -0.5}], "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "tool_calls"}
    raw = json.dumps({"object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    assert ChunkReader().whole(raw.encode()) == [
        ReasoningDelta("hm"),
        TextDelta("Hi"),
        ToolCallDelta(0, "a", "f", "{}"),
        ToolCallDelta(1, "b", "g", "{}"),
        TokenLogprobs(({"token": "Hi", "logprob": -0.5},)),
        Finished("tool_calls", Usage(3, 4)),
    ]


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b'{"choices":[]}', b'{"choices":[{"message":{"content":"x"}}]}', b'{"error":{}}']
)
def test_what_is_no_whole_answer(raw: bytes) -> None:
    with pytest.raises(UpstreamError):
        ChunkReader().whole(raw)


def test_a_prompt_that_was_gone_on_from() -> None:
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": [None, {"b": -1.0, "c": -2.0}]}
    events = read({"choices": [{"text": "ab", "logprobs": logprobs, "finish_reason": "length"}]})
    assert events[0] == TextDelta("ab")
    assert isinstance(events[1], TokenLogprobs)
    assert [(entry["token"], len(entry["top_logprobs"])) for entry in events[1].content] == [("b", 2)]
    assert events[2] == Finished("length", Usage())


def test_sampling_says_what_was_named() -> None:
    assert sampling_fields(Sampling()) == {}
    assert sampling_fields(Sampling(top_k=40, reasoning_effort="low")) == {"top_k": 40, "reasoning_effort": "low"}
