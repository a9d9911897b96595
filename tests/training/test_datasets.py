"""The rows that TRL reads: the shapes of its guide "Dataset formats and types", conversational, with explicit prompts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, get_args

import pytest

from app.core.records import FeedbackRecord, PredictionRecord
from app.training.datasets import Format, Row, Triple, rows

NOW = datetime(2026, 1, 2, tzinfo=UTC)
COLUMNS = {"sft": {"prompt", "completion"}, "dpo": {"prompt", "chosen", "rejected"}, "kto": {"prompt", "completion", "label"}}
OURS = {"prediction_id", "feedback_id"}


def predicted(output: str = "green", messages: list[dict[str, Any]] | None = None, **more: Any) -> PredictionRecord:
    sampling = more.pop("sampling", {})
    values: dict[str, Any] = dict(
        id="p1", user_id="u", created_at=NOW, provider="echo", model="echo", version="v", output=output, finish_reason="stop",
        input={"messages": [{"role": "user", "content": "What color is the sky?"}] if messages is None else messages,
               "sampling": sampling},
        prompt_tokens=1, completion_tokens=1, queue_ms=0, first_token_ms=1, total_ms=1,
    )  # fmt: skip
    return PredictionRecord(**{**values, **more})


def feedback(**said: Any) -> FeedbackRecord:
    return FeedbackRecord(**{"id": "f1", "prediction_id": "p1", "rater": "u", "created_at": NOW, **said})


def made(format: Format, *triples: Triple) -> list[Row]:
    return list(rows(triples, format))


def is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(set(each) >= {"role", "content"} for each in value) and value != []


def check_shape(format: Format, row: Row) -> None:
    assert set(row) - {"tools"} == COLUMNS[format] | OURS
    for column in COLUMNS[format] - {"label"}:
        assert is_conversation(row[column]), column
    for column in COLUMNS[format] - {"prompt", "label"}:
        assert [each["role"] for each in row[column]] == ["assistant"]
    if format == "kto":
        assert isinstance(row["label"], bool)
    json.loads(json.dumps(row))


def test_a_correction_is_an_example_and_a_pair() -> None:
    triple: Triple = (feedback(correction="blue"), predicted(), None)
    prompt = [{"role": "user", "content": "What color is the sky?"}]
    [sft] = made("sft", triple)
    assert sft == {
        "prompt": prompt,
        "completion": [{"role": "assistant", "content": "blue"}],
        "prediction_id": "p1",
        "feedback_id": "f1",
    }
    [dpo] = made("dpo", triple)
    assert dpo["chosen"] == [{"role": "assistant", "content": "blue"}]
    assert dpo["rejected"] == [{"role": "assistant", "content": "green"}]
    assert made("kto", triple) == []


@pytest.mark.parametrize(("rating", "label"), [("up", True), ("down", False)])
def test_a_rating_is_a_label_and_nothing_else(rating: str, label: bool) -> None:
    triple: Triple = (feedback(rating=rating), predicted(), None)
    [kto] = made("kto", triple)
    assert kto["label"] is label
    assert kto["completion"] == [{"role": "assistant", "content": "green"}]
    assert made("sft", triple) == [], "an upvote says good enough, not: like this"
    assert made("dpo", triple) == []


def test_a_preference_is_a_pair() -> None:
    triple: Triple = (feedback(preferred_over="p2"), predicted("blue"), predicted("green", id="p2"))
    [dpo] = made("dpo", triple)
    assert (dpo["chosen"][0]["content"], dpo["rejected"][0]["content"]) == ("blue", "green")
    assert made("sft", triple) == made("kto", triple) == []


def test_one_feedback_may_give_several_rows_each_in_shape() -> None:
    said = feedback(rating="down", correction="deep blue", preferred_over="p2")
    triple: Triple = (said, predicted("blue"), predicted("green", id="p2"))
    assert [len(made(format, triple)) for format in get_args(Format)] == [1, 2, 1]
    for format in get_args(Format):
        for row in made(format, triple):
            check_shape(format, row)


@pytest.mark.parametrize("status", ["error", "cancelled"])
def test_a_cut_answer_is_no_example_of_the_model_but_its_correction_counts(status: str) -> None:
    triple: Triple = (feedback(correction="blue", rating="down"), predicted("gre", status=status), None)
    assert [len(made(format, triple)) for format in get_args(Format)] == [1, 0, 0]


def test_what_makes_no_sound_row_makes_none() -> None:
    other_prompt = predicted("green", [{"role": "user", "content": "Another question"}], id="p2")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    triples: list[Triple] = [
        (feedback(correction=" green\n"), predicted("green"), None),
        (feedback(preferred_over="p2"), predicted("blue"), other_prompt),
        (feedback(preferred_over="p2"), predicted("same"), predicted("same", id="p2")),
        (feedback(preferred_over="p2"), predicted("blue"), None),
        (feedback(rating="up"), predicted("  "), None),
        (feedback(comment="nice"), predicted(), None),
        (feedback(correction="blue", rating="up"), predicted(messages=image), None),
        (feedback(correction="blue", rating="up"), predicted(messages=[]), None),
        (feedback(correction="blue", rating="up", review="rejected"), predicted(), None),
    ]
    assert made("dpo", *triples) == []
    assert made("kto", *triples) == []
    assert [row["completion"][0]["content"] for row in made("sft", *triples)] == [" green\n"]


def test_messages_become_what_chat_templates_know() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "light", "arguments": '{"room": "hall"}'}}
    tool = {"type": "function", "function": {"name": "light", "parameters": {}}}
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Light "}, {"type": "text", "text": "on!"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_call_id": "c1"},
    ]
    [row] = made("sft", (feedback(correction="It is on."), predicted(messages=messages, sampling={"tools": [tool]}), None))
    check_shape("sft", row)
    assert row["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Light on!"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "light", "arguments": {"room": "hall"}}, "id": "c1"}],
        },
        {"role": "tool", "content": "done", "tool_call_id": "c1"},
    ]
    assert row["tools"] == [tool]


def test_a_tool_call_can_be_rated() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "light", "arguments": "not json"}}
    [row] = made("kto", (feedback(rating="down"), predicted("", tool_calls=(call,)), None))
    assert row["completion"][0]["tool_calls"][0]["function"]["arguments"] == {"text": "not json"}


@pytest.mark.parametrize(
    "arguments",
    [
        '{"x":"\\ud800"}',
        '{"x":NaN}',
        '{"x":1e999}',
        "[" * 20_000,
        "[" * 20_000 + "]" * 20_000,
        '{"a":' * 40 + "1" + "}" * 40,
        "9" * 5000,
    ],
    ids=lambda text: text[:12],
)
def test_arguments_that_a_hostile_caller_sent_make_a_sound_row(arguments: str) -> None:
    """One such prompt, voted on, would otherwise end every export, preview, snapshot and page of the review."""
    call = {"id": "c1", "type": "function", "function": {"name": "light", "arguments": arguments}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    [row] = made("kto", (feedback(rating="up"), predicted("b", input={"messages": messages}), None))
    assert json.loads(json.dumps(row, ensure_ascii=False, allow_nan=False).encode()) == row
    assert row["prompt"][1]["tool_calls"][0]["function"]["arguments"] == {"text": arguments}


def test_an_unknown_format_is_an_error() -> None:
    with pytest.raises(ValueError, match="sft, dpo or kto"):
        list(rows([], "orpo"))  # type: ignore[arg-type]
