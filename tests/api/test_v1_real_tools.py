"""Tools on the bundled model through the doors: OpenAI's and Anthropic's shapes, whole and streamed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}}
ASKED = {"role": "user", "content": "What is the weather in Paris?"}


def body(**more: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [ASKED], "max_tokens": 60, "temperature": 0, **more}


@pytest.mark.model
@pytest.mark.timeout(300)
def test_tools_on_a_real_model(serve: Serve, model_file: Path) -> None:
    service = serve(model={"provider": "llamacpp", "model": str(model_file), "context_tokens": 1024, "slots": 2, "threads": 2})
    with service.client(service.user()) as client:
        client.timeout = 120
        whole = client.post(CHAT, json=body(tools=[TOOL], tool_choice="required")).json()["choices"][0]
        assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
        (call,) = whole["message"]["tool_calls"]
        made = json.loads(call["function"]["arguments"])
        assert (call["function"]["name"], set(made)) == ("get_weather", {"city", "unit"})

        named = {"type": "function", "function": {"name": "get_weather"}}
        streamed = client.post(CHAT, json=body(tools=[TOOL], tool_choice=named, stream=True)).text
        chunks = [json.loads(line[6:])["choices"] for line in streamed.splitlines() if line.startswith("data: {")]
        deltas = [choice["delta"] for choices in chunks for choice in choices]
        pieces = [piece for delta in deltas for piece in delta.get("tool_calls") or ()]
        assert pieces[0]["function"]["name"] == "get_weather"
        assert json.loads("".join(piece["function"].get("arguments", "") for piece in pieces)) == made
        assert not any(delta.get("content") for delta in deltas)

        result = {"role": "tool", "tool_call_id": call["id"], "content": "22 degrees and sunny"}
        history = [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
        went_on = client.post(CHAT, json=body(messages=history, tools=[TOOL], max_tokens=16))
        assert went_on.status_code == 200, went_on.text
        assert went_on.json()["choices"][0]["message"]["content"]

        tool = {"name": "get_weather", "description": "Weather of a city", "input_schema": PARAMETERS}
        headers = {"anthropic-version": "2023-06-01"}
        answer = client.post(MESSAGES, json=body(tools=[tool], tool_choice={"type": "any"}), headers=headers).json()
        assert answer["stop_reason"] == "tool_use"
        (block,) = answer["content"]
        assert (block["type"], block["name"], block["input"]) == ("tool_use", "get_weather", made)
        counted = {"model": "default", "messages": [ASKED], "tools": [tool], "tool_choice": {"type": "any"}}
        count = client.post(f"{MESSAGES}/count_tokens", json=counted, headers=headers).json()
        usage = answer["usage"]
        assert count["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
        stopped = client.post(MESSAGES, json=body(stop_sequences=[" the", "the"]), headers=headers).json()
        assert (stopped["stop_reason"], stopped["stop_sequence"] in (" the", "the")) == ("stop_sequence", True)
        assert "the" not in stopped["content"][0]["text"]


@pytest.mark.model
@pytest.mark.timeout(300)
def test_what_a_real_model_refuses(serve: Serve, model_file: Path) -> None:
    service = serve(model={"provider": "llamacpp", "model": str(model_file), "context_tokens": 1024, "slots": 2, "threads": 2})
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    pattern = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}, "required": ["a"]}
    wide = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(500)}}
    with service.client(service.user()) as client:
        client.timeout = 120
        cases: list[tuple[dict[str, Any], str]] = [
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}},
                "response_format",
            )
            for schema in (loop, pattern, wide)
        ]
        cases.append(({"tools": [{"type": "function", "function": {"name": "f", "parameters": pattern}}]}, "tools"))
        cases.append(({"logit_bias": {"49152": 5}}, "logit_bias"))
        for sent, field in cases:
            answer = client.post(CHAT, json=body(**sent))
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"].startswith(field)
        fits = {"type": "function", "function": {"name": "f", "description": "word " * 1500}}
        long = client.post(CHAT, json=body(tools=[fits]))
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded"), "tools are counted"
        assert client.post(CHAT, json=body(max_tokens=1)).status_code == 200, "the engine lives on"
