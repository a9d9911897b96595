"""What the worker accepts as a request, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from app.providers.workers.hf_request import BadRequest, parse_chat

USER = [{"role": "user", "content": "hi"}]


def test_a_full_request() -> None:
    chat = parse_chat(
        {
            "messages": [{"role": "developer", "content": "be brief"}, *USER], "max_tokens": 5, "temperature": 0, "top_p": 0.5,
            "stop": ["a", "b"], "seed": 7, "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"12": -100},
            "logprobs": True, "top_logprobs": 3, "stream": True, "stream_options": {"include_usage": True}, "unknown": 1,
            "response_format": {"type": "text"}, "tools": [], "n": 1,
        }
    )  # fmt: skip
    assert chat.messages[0] == {"role": "system", "content": "be brief"}
    assert (chat.stream, chat.usage_chunk) == (True, True)
    params = chat.params
    assert (params.max_tokens, params.temperature, params.top_p, params.stop, params.seed) == (5, 0.0, 0.5, ("a", "b"), 7)
    assert (params.presence_penalty, params.frequency_penalty, dict(params.logit_bias), params.logprobs) == (
        1,
        -1,
        {12: -100},
        3,
    )


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse_chat({"messages": [{"role": "user", "content": parts}]}).messages[0]["content"] == "ab"


@pytest.mark.parametrize(
    "bad",
    [
        {"messages": []}, {"messages": "hi"}, {"messages": [1]}, {"messages": [{"role": "root", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {"messages": [{"role": "user", "content": 3}]},
        {"max_tokens": 0}, {"max_tokens": True}, {"max_tokens": "5"}, {"temperature": float("nan")}, {"temperature": 3},
        {"top_p": -0.1}, {"stop": [""]}, {"stop": 5}, {"stop": ["a"] * 17}, {"seed": 1.5}, {"seed": 1 << 70}, {"n": 2},
        {"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}, {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": "x"}}, {"logit_bias": []}, {"logprobs": 3}, {"logprobs": True, "top_logprobs": 21},
        {"top_logprobs": 2}, {"logit_bias": {"²": 1}},
    ],
)  # fmt: skip
def test_what_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        parse_chat({"messages": USER, **bad})


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", [{"type": "function"}]), ("response_format", {"type": "json_object"}), ("n", 2), ("logit_bias", {"x": 1})],
)
def test_what_it_cannot_do_is_named(field: str, value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_chat({"messages": USER, field: value})
    assert caught.value.extra == {"param": field}


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(BadRequest):
        parse_chat([1])
