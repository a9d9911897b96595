"""Our requests as bodies of the Messages API: each field has its place or is refused by name, and the vendor would take it."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from app.core.errors import InvalidRequest
from app.core.types import GenerationRequest, Message, Sampling
from app.providers.claude_request import count_body, messages_body
from tests.vendors.anthropic_form import complaint

PNG = base64.b64encode(b"\x89PNG\r\n").decode()
MARK = {"type": "ephemeral", "ttl": "1h"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather of a place.", "parameters": {"type": "object"}, "strict": True},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


def user(text: str = "Hello") -> Message:
    return Message("user", text)


def parts(*content: dict[str, Any]) -> Message:
    return Message("user", list(content))


def call(number: int, arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": "weather", "arguments": arguments}, **more}


def body(*messages: Message, default: int = 100, **sampling: Any) -> dict[str, Any]:
    made = messages_body(
        GenerationRequest(messages or (user(),), sampling=Sampling(**sampling)), model="claude-x", max_tokens=default
    )
    assert complaint(made, counting=False) is None
    return made


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def test_the_least() -> None:
    assert body() == {"model": "claude-x", "max_tokens": 100, "messages": [{"role": "user", "content": [text("Hello")]}]}


def test_everything() -> None:
    made = body(
        Message("system", [text("Be brief.", cache_control=MARK)]),
        user(),
        max_tokens=3,
        temperature=1,
        top_p=0.9,
        top_k=40,
        stop=("END", "\nUser:"),
        tools=({**TOOL, "cache_control": MARK},),
        tool_choice="required",
        parallel_tool_calls=False,
        thinking={"type": "enabled", "budget_tokens": 1024},
        reasoning_effort="high",
        response_format=FORM,
        seed=7,
        presence_penalty=0.0,
        frequency_penalty=0,
    )
    assert made == {
        "model": "claude-x",
        "max_tokens": 3,
        "system": [text("Be brief.", cache_control=MARK)],
        "messages": [{"role": "user", "content": [text("Hello")]}],
        "temperature": 1,
        "top_p": 0.9,
        "top_k": 40,
        "stop_sequences": ["END", "\nUser:"],
        "tools": [
            {
                "name": "weather",
                "input_schema": {"type": "object"},
                "description": "Weather of a place.",
                "strict": True,
                "cache_control": MARK,
            }
        ],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
    }


def test_system_messages_go_to_the_top_and_turns_alternate() -> None:
    made = body(
        Message("system", "One."),
        user("a"),
        Message("developer", "Two."),
        user("b"),
        Message("assistant", "c"),
        Message("assistant", [text("d"), {"type": "refusal", "refusal": "No."}]),
        user("e"),
    )
    assert made["system"] == [text("One."), text("Two.")]
    assert made["messages"] == [
        {"role": "user", "content": [text("a"), text("b")]},
        {"role": "assistant", "content": [text("c"), text("d"), text("No.")]},
        {"role": "user", "content": [text("e")]},
    ]


def test_a_conversation_with_tools_and_thinking() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "sig=="}
    hidden = {"type": "redacted_thinking", "data": "x=="}
    made = body(
        user("Weather in León and Cádiz?"),
        Message(
            "assistant",
            "I look.",
            tool_calls=(call(1, '{"place": "León"}', cache_control=MARK), call(2, " ")),
            reasoning=(thought, hidden, {"type": "thinking", "thinking": "of another model"}),
        ),
        Message("tool", "rain", tool_call_id="call_1"),
        Message(
            "tool", [text("a map"), {"type": "image_url", "image_url": {"url": "https://e.org/m.png"}}], tool_call_id="call_2"
        ),
        user("And now?"),
    )
    assert made["messages"][1] == {
        "role": "assistant",
        "content": [
            thought,
            hidden,
            text("I look."),
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"place": "León"}, "cache_control": MARK},
            {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
        ],
    }
    assert made["messages"][2] == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": [text("rain")]},
            {
                "type": "tool_result",
                "tool_use_id": "call_2",
                "content": [text("a map"), {"type": "image", "source": {"type": "url", "url": "https://e.org/m.png"}}],
            },
            text("And now?"),
        ],
    }


def test_an_empty_result_and_empty_texts() -> None:
    made = body(
        user("a"),
        Message("assistant", "  "),
        parts(text(""), text("b")),
        Message("assistant", None, tool_calls=(call(1),)),
        Message("tool", "", tool_call_id="call_1"),
    )
    assert [turn["content"] for turn in made["messages"]] == [
        [text("a"), text("b")],
        [{"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}],
        [{"type": "tool_result", "tool_use_id": "call_1"}],
    ]


def test_a_tool_that_failed_and_a_cacheable_result() -> None:
    made = body(
        user(),
        Message("assistant", None, tool_calls=(call(1),)),
        Message("tool", "no such place", tool_call_id="call_1", is_error=True, cache_control=MARK),
    )
    assert made["messages"][2]["content"] == [
        {
            "type": "tool_result",
            "tool_use_id": "call_1",
            "content": [text("no such place")],
            "is_error": True,
            "cache_control": MARK,
        }
    ]


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (text("a", cache_control=MARK), text("a", cache_control=MARK)),
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}, "cache_control": MARK},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}, "cache_control": MARK},
        ),
        (
            {"type": "image_url", "image_url": {"url": "HTTPS://e.org/a.webp"}},
            {"type": "image", "source": {"type": "url", "url": "HTTPS://e.org/a.webp"}},
        ),
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PNG}"}},
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": PNG},
                "title": "a.pdf",
            },
        ),
        (
            {"type": "file", "file": {"file_data": "data:text/plain;charset=utf-8;base64," + base64.b64encode(b"hi").decode()}},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}},
        ),
        (
            {"type": "document", "source": {"type": "url", "url": "https://e.org/a.pdf"}, "title": "A"},
            {"type": "document", "source": {"type": "url", "url": "https://e.org/a.pdf"}, "title": "A"},
        ),
    ],
)
def test_parts(part: dict[str, Any], block: dict[str, Any]) -> None:
    assert body(parts(part))["messages"][0]["content"] == [block]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}},
        {"type": "video"},
        {"text": "no type"},
        {"type": ["text"], "text": "a"},
        {"type": "text"},
        {"type": "text", "text": 3},
        {"type": "image_url"},
        {"type": "image_url", "image_url": {"url": 3}},
        {"type": "image_url", "image_url": {"url": "http://e.org/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png,raw"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
        {"type": "image_url", "image_url": {"url": f"data:image/svg+xml;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": f"data:application/zip;base64,{PNG}"}},
        {"type": "file", "file": {"file_data": f"data:text/plain;base64,{PNG}"}},
    ],
)
def test_parts_that_the_vendor_does_not_have(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(user(), parts(text("a"), part))
    assert caught.value.field == "messages"
    assert "messages[1]" in caught.value.detail


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ((Message("system", "alone"),), "messages"),
        ((user(" "),), "messages"),
        ((Message("system", [{"type": "image_url", "image_url": {"url": "https://e.org/a.png"}}]), user()), "messages"),
        ((user(), Message("assistant", None, tool_calls=(call(1, "{"),))), "messages"),
        ((user(), Message("assistant", None, tool_calls=(call(1, "[1]"),))), "messages"),
        ((user(), Message("assistant", None, tool_calls=(call(1, "[" * 100_000),))), "messages"),
        ((user(), Message("assistant", None, tool_calls=({"id": "c", "type": "custom", "custom": {}},))), "messages"),
        ((user(), Message("assistant", None, tool_calls=({"id": "c", "type": "function", "function": {}},))), "messages"),
        ((user(), Message("tool", "a result of nothing")), "messages"),
    ],
)
def test_messages_that_cannot_be(messages: tuple[Message, ...], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(*messages)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"logprobs": 0}, "logprobs"),
        ({"logit_bias": {"1": 5.0}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -0.5}, "frequency_penalty"),
        ({"temperature": 1.01}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ("a", "\n")}, "stop"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": []}}, "response_format"),
        ({"tools": ({"type": "custom", "custom": {"name": "a"}},)}, "tools"),
        ({"tools": ({"type": "function", "function": {"name": ""}},)}, "tools"),
        ({"tools": ({"type": "function", "function": {"name": "a", "parameters": []}},)}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": (TOOL,), "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": (TOOL,), "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"reasoning_effort": "none", "thinking": {"type": "adaptive"}}, "reasoning_effort"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(sampling: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(**sampling)
    assert caught.value.field == field
    assert len(caught.value.detail) > 20


def test_a_bare_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages_body(GenerationRequest((user(),), raw=True), model="m", max_tokens=1)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("auto", True, {"type": "auto", "disable_parallel_tool_use": False}),
        ({"type": "function", "function": {"name": "weather"}}, None, {"type": "tool", "name": "weather"}),
    ],
)
def test_tool_choice(choice: Any, parallel: bool | None, expected: Any) -> None:
    assert body(tools=(TOOL,), tool_choice=choice, parallel_tool_calls=parallel).get("tool_choice") == expected


def test_without_tools_there_is_nothing_to_choose() -> None:
    assert "tool_choice" not in body(tool_choice="auto", parallel_tool_calls=False)
    assert "tool_choice" not in body(tool_choice="none")


def test_a_tool_without_parameters_takes_none() -> None:
    made = body(tools=({"type": "function", "function": {"name": "now", "cache_control": MARK}},))
    assert made["tools"] == [{"name": "now", "input_schema": {"type": "object", "properties": {}}, "cache_control": MARK}]


@pytest.mark.parametrize(
    ("sampling", "thinking", "effort"),
    [
        ({}, None, None),
        ({"reasoning_effort": "none"}, {"type": "disabled"}, None),
        ({"reasoning_effort": "minimal"}, None, "low"),
        ({"reasoning_effort": "medium"}, None, "medium"),
        ({"reasoning_effort": "xhigh"}, None, "xhigh"),
        ({"thinking": {"type": "adaptive"}}, {"type": "adaptive"}, None),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "none"}, {"type": "disabled"}, None),
    ],
)
def test_thinking_and_effort(sampling: dict[str, Any], thinking: Any, effort: str | None) -> None:
    made = body(**sampling)
    assert made.get("thinking") == thinking
    assert made.get("output_config", {}).get("effort") == effort


def test_text_is_no_format() -> None:
    assert "output_config" not in body(response_format={"type": "text"})


def test_counting_takes_what_is_read_and_not_how_to_sample() -> None:
    request = GenerationRequest(
        (Message("system", "S"), user()),
        sampling=Sampling(max_tokens=5, temperature=0.5, top_p=0.5, top_k=5, stop=("x",), tools=(TOOL,), response_format=FORM),
    )
    made = count_body(request, model="claude-x")
    assert sorted(made) == ["messages", "model", "output_config", "system", "tools"]
    assert complaint(made, counting=True) is None


def test_the_request_is_left_as_it_was() -> None:
    content = [text("a", cache_control=MARK)]
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    message = Message("assistant", content, reasoning=(thought,))
    made = body(user(), message)
    made["messages"][1]["content"][0]["thinking"] = made["messages"][1]["content"][1]["text"] = "changed"
    assert (content, thought["thinking"]) == ([text("a", cache_control=MARK)], "Hm.")
