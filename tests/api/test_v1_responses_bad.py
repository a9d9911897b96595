"""What ``/v1/responses`` refuses: always a 4xx in the vendor's shape that names the field, and nothing that was sent."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from tests.api.responses_client import ABSENT, PATH, TOOL, ask, refused
from tests.conftest import Account, Service

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "x"}
SEALED = {"type": "reasoning", "summary": []}
TEXT = {"type": "input_text", "text": "x"}


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


def user_says(*parts: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": list(parts)}]}


def form(**fields: Any) -> dict[str, Any]:
    return {"text": {"format": fields}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 1}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{}]}, "input[0].id"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "x", "color": "red"}]}, "input[0].color"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
        ({"input": [{"type": "computer_call_output"}]}, "input[0].type"),
        ({"input": [{"type": "message", "role": "user", "content": []}]}, "input[0].content"),
        (user_says(TEXT, {"type": "input_audio"}), "input[0].content[1].type"),
        (user_says({"type": "output_text", "text": "x"}), "input[0].content[0].type"),
        (user_says({"type": "input_text"}), "input[0].content[0].text"),
        (user_says({"type": "input_text", "text": "a\x00"}), "input[0].content[0].text"),
        (user_says({"type": "input_image"}), "input[0].content[0].image_url"),
        (user_says({"type": "input_image", "image_url": "file:///etc/passwd"}), "input[0].content[0].image_url"),
        (user_says({"type": "input_image", "image_url": "data:image/png;base64,AAAA"}), "input[0].content[0].image_url"),
        (user_says({"type": "input_image", "file_id": "file_1"}), "input[0].content[0].file_id"),
        (user_says({"type": "input_file", "file_id": "file_1"}), "input[0].content[0].file_id"),
        (user_says({"type": "input_file", "file_url": "https://a.example/b.pdf"}), "input[0].content[0].file_url"),
        (user_says({"type": "input_file", "filename": "a"}), "input[0].content[0].file_data"),
        (user_says({"type": "input_file", "file_data": "data:text/html;base64,AAAA"}), "input[0].content[0].file_data"),
        ({"input": [{"role": "assistant", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [CALL]}, "input"),
        ({"input": [CALL, {"role": "user", "content": "x"}, OUTPUT]}, "input"),
        ({"input": [OUTPUT]}, "input"),
        ({"input": [CALL, OUTPUT, OUTPUT]}, "input"),
        ({"input": [{**CALL, "arguments": {}}, OUTPUT]}, "input[0].arguments"),
        ({"input": [{**CALL, "name": "a b"}, OUTPUT]}, "input[0].name"),
        ({"input": [{**CALL, "status": "gone"}, OUTPUT]}, "input[0].status"),
        ({"input": [CALL, {**OUTPUT, "output": None}]}, "input[1].output"),
        ({"input": [{"type": "reasoning", "summary": "x"}]}, "input[0].summary"),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "aprendiz.1.AAAA"}]},
            "input[0].encrypted_content",
        ),
        ({"input": [{"role": "user", "content": "x"}] * 1025}, "input"),
        ({"model": ""}, "model"),
        ({"model": "../x"}, "model"),
        ({"model": 3}, "model"),
        ({"instructions": 1}, "instructions"),
        ({"instructions": "\x00"}, "instructions"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"color": "red"}, "color"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"include": ["all"]}, "include[0]"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {str(number): "b" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "\x00"}}, "metadata"),
        ({"user": "\x00"}, "user"),
        ({"user": "u" * 513}, "user"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"truncation": "some"}, "truncation"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"stream_options": {"include_usage": True}, "stream": True}, "stream_options.include_usage"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"reasoning": {"budget": 3}}, "reasoning.budget"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity"),
        (form(type="xml"), "text.format.type"),
        (form(type="json_schema", name="x"), "text.format.schema"),
        (form(type="json_schema", schema={"type": "object"}), "text.format.name"),
        (form(type="json_schema", name="a b", schema={}), "text.format.name"),
        (form(type="json_schema", name="x", schema={"type": "thing"}), "text.format.schema.type"),
        (form(type="json_schema", name="x", schema={"$ref": "https://a.example"}), "text.format.schema.$ref"),
        (form(type="json_schema", name="x", schema={"enum": ["x" * 40_000]}), "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["a"]}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp", "server_label": "a"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "name": "a"}]}, "tools[0].type"),
        ({"tools": [TOOL, {"type": "code_interpreter"}]}, "tools[1].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function"),
        ({"tools": [{**TOOL, "color": "red"}]}, "tools[0].color"),
        ({"tools": [{**TOOL, "strict": "yes"}]}, "tools[0].strict"),
        ({"tools": [{**TOOL, "parameters": []}]}, "tools[0].parameters"),
        ({"tools": [{**TOOL, "parameters": {"type": "string"}}]}, "tools[0].parameters.type"),
        ({"tools": [{**TOOL, "parameters": {"properties": {"a": 3}}}]}, "tools[0].parameters.properties.a"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{**TOOL, "name": f"t{number}"} for number in range(129)]}, "tools"),
        ({"tools": "weather"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": [TOOL]}, "tool_choice.name"),
        ({"tool_choice": {"type": "web_search"}, "tools": [TOOL]}, "tool_choice.type"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}, "tools": [TOOL]}, "tool_choice.tools"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}, "tools": [TOOL]},
            "tool_choice.tools[0].type",
        ),
        ({"previous_response_id": ""}, "previous_response_id"),
        ({"previous_response_id": 3}, "previous_response_id"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_is_wrong_is_named(service: Service, user: Account, body: dict[str, Any], param: str) -> None:
    began = time.monotonic()
    for stream in (False, True) if "stream_options" not in body else (None,):
        more = {} if stream is None else {"stream": stream}
        message = refused(ask(service, user, **{"input": "x", **more, **body}), 400, param)
        assert message
    assert time.monotonic() - began < 5


NUMBERS = ["-1", "2147483648", "9223372036854775808", "1e308", "1e999", "NaN", "Infinity", '"1"', "[]", "{}"]


@pytest.mark.parametrize("field", ["max_output_tokens", "max_tool_calls", "temperature", "top_p", "top_logprobs"])
def test_numbers_have_both_bounds(service: Service, user: Account, field: str) -> None:
    good = {
        "max_output_tokens": ("1", "1048576"),
        "max_tool_calls": ("1", "1024"),
        "temperature": ("0", "2"),
        "top_p": ("0", "1"),
        "top_logprobs": ("0", "20"),
    }
    over = {"max_output_tokens": ("0", "1048577"), "max_tool_calls": ("0", "1025"), "temperature": ("-0.1", "2.01"),
            "top_p": ("-0.01", "1.01"), "top_logprobs": ("-1", "21")}  # fmt: skip
    with service.client(user) as client:
        for number in (*NUMBERS, *over[field], "true"):
            answer = client.post(
                PATH, content=f'{{"input":"x","{field}":{number}}}', headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 400, (number, answer.text)
            assert answer.json()["error"]["param"] in (field, None), (number, answer.text)
        for number in (*good[field], "null"):
            answer = client.post(
                PATH, content=f'{{"input":"x","{field}":{number}}}', headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 200, (number, answer.text)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"input":"\xff"}',
        b'{"input":' + b"[" * 100_000,
        b'{"input":"x","metadata":' + b'{"a":' * 50_000,
        b'{"input":"\\ud800"}',
        b'{"input":[{"role":"user","content":[{"type":"input_text","text":"x","prompt_cache_breakpoint":' + b"[" * 50_000,
        b'{"input":"x","tools":[{"type":"function","name":"f","parameters":' + b'{"not":' * 40 + b"{}" + b"}" * 41 + b"]}",
    ],
    ids=lambda value: str(value[:30]),
)
def test_what_is_no_proper_json_is_refused(service: Service, user: Account, content: bytes) -> None:
    with service.client(user) as client:
        answer = client.post(PATH, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert set(answer.json()) == {"error"}
        assert client.post(PATH, content=b'{"input":"x"}', headers={"Content-Type": "text/plain"}).status_code in (400, 415)


def test_nothing_that_was_sent_comes_back(service: Service, user: Account) -> None:
    canary = "canary-4711"
    for body in (
        {"input": [{"role": canary, "content": "x"}]},
        {"input": [{"type": canary}]},
        {"input": [{"role": "user", "content": [{"type": canary}]}]},
        {"input": "x", "tool_choice": canary},
        {"input": "x", "service_tier": canary},
        {"input": "x", "tools": [{"type": canary}]},
        {"input": "x", "previous_response_id": canary},
        {"input": [{"id": canary}]},
        {"input": "x", "text": {"format": {"type": canary}}},
    ):
        answer = ask(service, user, **body)
        assert 400 <= answer.status_code < 500
        assert canary not in answer.text


def test_strange_ids_are_absent(service: Service, user: Account) -> None:
    with service.client(user) as client:
        for name in ("x", "resp_123", ABSENT.upper(), ABSENT + "0", "..%2f..", "a" * 2000, "é"):
            for tail in ("", "/input_items"):
                answer = client.get(f"{PATH}/{name}{tail}")
                assert answer.status_code == 404, (name, answer.text)
                assert "error" in answer.json()


def test_a_large_picture_is_no_burden(service: Service, user: Account) -> None:
    picture = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(600_000)).decode()
    began = time.monotonic()
    answer = ask(service, user, input=[{"role": "user", "content": [{"type": "input_image", "image_url": picture}]}])
    assert answer.status_code in (200, 400)
    assert time.monotonic() - began < 5
    assert ask(service, user, input="x" * 4_200_000).status_code == 413
