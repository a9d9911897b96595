"""Ids, the fold over events, and bounded metric labels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import pytest

from app.core.errors import UpstreamError
from app.core.ids import is_uuid7, uuid7
from app.core.metrics import Metrics
from app.core.types import EngineState, Event, Finished, Folder, ReasoningDelta, TextDelta, ToolCallDelta, Usage, fold


async def stream(events: Iterable[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


async def test_a_whole_answer_is_a_fold_over_its_events() -> None:
    answer = await fold(
        stream(
            [
                ReasoningDelta("hm"),
                TextDelta("Ho"),
                ToolCallDelta(1, id="b", name="two", arguments="{}"),
                ToolCallDelta(0, id="a", name="one", arguments='{"x"'),
                ToolCallDelta(0, arguments=":1}"),
                TextDelta("la"),
                Finished("tool_calls", Usage(3, 2)),
            ]
        )
    )
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("Hola", "hm", "tool_calls")
    assert [call["function"] for call in answer.tool_calls] == [
        {"name": "one", "arguments": '{"x":1}'},
        {"name": "two", "arguments": "{}"},
    ]


async def test_a_stream_without_its_end_is_an_error() -> None:
    with pytest.raises(UpstreamError, match="cut off"):
        await fold(stream([TextDelta("Ho")]))
    folder = Folder()
    folder.add(TextDelta("Ho"))
    assert folder.text == "Ho"
    assert folder.finished is None


def test_ids_sort_by_time_and_have_the_form_of_uuid7() -> None:
    ids = [uuid7(now_ms=1_700_000_000_000 + step) for step in range(50)]
    assert ids == sorted(ids)
    assert all(is_uuid7(each) for each in ids)
    assert not is_uuid7("0" * 36)
    assert len({uuid7() for _ in range(10_000)}) == 10_000


def test_model_labels_are_bounded() -> None:
    metrics = Metrics()
    labels = {metrics.model_label(f"m{number}") for number in range(10_000)}
    assert len(labels) == 17
    assert "other" in labels


def test_configured_models_have_labels_of_their_own() -> None:
    metrics = Metrics()
    mine = {metrics.model_label(f"mine{number}", configured=True) for number in range(50)}
    assert len(mine) == 50
    assert len({metrics.model_label(f"m{number}") for number in range(10_000)}) == 17
    assert {metrics.model_label(name) for name in mine} == mine


def test_one_engine_state_holds() -> None:
    metrics = Metrics()
    metrics.set_engine_state("echo/echo", EngineState.STARTING)
    metrics.set_engine_state("echo/echo", EngineState.READY)
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith("aprendiz_engine_state{")]
    assert [line for line in lines if line.endswith(" 1.0")] == ['aprendiz_engine_state{model="echo/echo",state="ready"} 1.0']


async def test_a_fold_keeps_the_order_of_blocks() -> None:
    answer = await fold(
        stream(
            [
                ReasoningDelta("a"),
                ReasoningDelta("b"),
                ReasoningDelta("", signature="s"),
                ReasoningDelta("", redacted="r"),
                TextDelta("one "),
                TextDelta("two "),
                ReasoningDelta("c"),
                ToolCallDelta(7, id="x", name="f"),
                ToolCallDelta(3, id="y", name="g"),
                ToolCallDelta(7, arguments="{}"),
                TextDelta("three"),
                Finished("stop", Usage()),
            ]
        )
    )
    assert answer.order == (
        ("thinking", 0), ("thinking", 1), ("text", 0), ("thinking", 2), ("call", 1), ("call", 0), ("text", 8)
    )  # fmt: skip
    assert [block.get("thinking") for block in answer.thinking] == ["ab", None, "c"]
    assert [call["id"] for call in answer.tool_calls] == ["y", "x"]
    assert answer.text[8:] == "three"
