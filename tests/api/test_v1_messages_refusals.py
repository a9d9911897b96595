"""What ``/v1/messages`` refuses: by name, in the vendor's form, quoting nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.messages import COUNT, PATH, PDF, PNG, TIME, ask, body, refused
from tests.conftest import Serve, Service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client(service.user()) as connected:
        yield connected


BAD_BODIES: list[tuple[bytes, str]] = [
    (b"", "The body is not valid JSON"),
    (b"[]", "body"),
    (b"{", "The body is not valid JSON"),
    (b'{"model":"default","max_tokens":1,"messages":[{"role":"user","content":"\\ud800"}]}', "The body is not valid JSON"),
    (b'{"model":"default","max_tokens":1,"messages":[{"role":"user","content":"\xff"}]}', "The body is not valid JSON"),
    (b'{"model":"default","max_tokens":NaN,"messages":[{"role":"user","content":"a"}]}', "The body is not valid JSON"),
    (b'{"model":"default","max_tokens":1,"temperature":1e999,"messages":[{"role":"user","content":"a"}]}', "temperature: "),
    (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
    (b'{"model":"default","max_tokens":1,"messages":[{"role":"user","content":"a"}],"tools":[{"name":"a","input_schema":'
     b'{"type":"object","not":' + b'{"not":' * 40 + b"{}" + b"}" * 42 + b"]}", "tools.0.input_schema"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "message"), BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_bodies_that_are_none(client: httpx.Client, sent: bytes, message: str) -> None:
    for path in (PATH, COUNT):
        status, said = refused(client, sent, path)
        assert status == 400
        if path == PATH:
            assert said.startswith(message)


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def result(*blocks: Any) -> dict[str, Any]:
    return user({"type": "tool_result", "tool_use_id": "a", "content": list(blocks)})


def image(data: str, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def document(**more: Any) -> dict[str, Any]:
    return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}, **more}


def schema(**more: Any) -> dict[str, Any]:
    return {"tools": [{"name": "a", "input_schema": {"type": "object", **more}}]}


SEARCH = {"type": "search_result", "source": "s", "title": "t", "content": []}
NO_PDF = {"type": "base64", "media_type": "application/pdf", "data": PNG}
NO_INPUT = {"type": "tool_use", "id": "a", "name": "b"}
JSON_FORM = {"type": "json_schema", "schema": {"type": "object", "required": "n"}}
BAD_NUMBERS: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 2**31, 2**63, 2**80, 1.5, "1", None, True],
    "temperature": [-0.1, 1.1, 1e308, "1", []],
    "top_p": [-0.1, 1.1, "1"],
    "top_k": [-1, 2**31, 2**63, 0.5],
    "stream": ["yes", 1],
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"foo": 1}, "foo: Extra inputs are not permitted"),
    ({"n": 2}, "n: Extra inputs are not permitted"),
    ({"model": None}, "model: "),
    ({"model": ""}, "model: "),
    ({"model": "../../etc/passwd"}, "model is not a model name"),
    ({"model": "a" * 300}, "model: "),
    *(({name: value}, f"{name}: ") for name, values in BAD_NUMBERS.items() for value in values),
    ({"stop_sequences": "a"}, "stop_sequences: "),
    ({"stop_sequences": ["a"] * 17}, "stop_sequences: "),
    ({"stop_sequences": ["a" * 300]}, "stop_sequences.0: "),
    ({"stop_sequences": [""]}, "stop_sequences.0: "),
    ({"stop_sequences": ["\x00"]}, "stop_sequences"),
    ({"metadata": {"user": "a"}}, "metadata.user: Extra inputs"),
    ({"metadata": {"user_id": "a" * 600}}, "metadata.user_id: "),
    ({"service_tier": "priority"}, "service_tier: "),
    ({"speed": "fast"}, "speed: "),
    ({"inference_geo": "eu"}, "inference_geo: this service does not offer it"),
    ({"container": "c"}, "container: this service does not offer it"),
    ({"mcp_servers": [{"type": "url", "url": "https://e.org", "name": "a"}]}, "mcp_servers: this service does not offer it"),
    ({"diagnostics": {}}, "diagnostics: this service does not offer it"),
    ({"thinking": {"type": "sometimes"}}, "thinking.type: "),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens: Field required"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1000}}, "thinking.budget_tokens: "),
    ({"thinking": {"type": "adaptive", "display": "all"}}, "thinking.display: "),
    ({"cache_control": {"type": "permanent"}}, "cache_control.type: "),
    ({"cache_control": {"type": "ephemeral", "ttl": "1d"}}, "cache_control.ttl: "),
    ({"output_config": {"effort": "huge"}}, "output_config.effort: "),
    ({"output_config": {"format": JSON_FORM}}, "output_config.format.schema.required "),
    ({"output_format": JSON_FORM}, "output_format.schema.required "),
    ({"output_format": {"type": "json_schema"}}, "output_format.schema: Field required"),
    ({"output_format": JSON_FORM, "output_config": {"format": JSON_FORM}}, "output_format: "),
    ({"system": 1}, "system: "),
    ({"system": "a\x00"}, "system"),
    ({"system": [{"type": "image"}]}, "system.0"),
    ({"messages": None}, "messages: "),
    ({"messages": []}, "messages: "),
    ({"messages": "a"}, "messages: "),
    ({"messages": [{"role": "user", "content": "a"}] * 3000}, "messages: "),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role: "),
    ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content: "),
    ({"messages": [{"role": "user", "content": " \n"}]}, "messages.0.content: user messages must have non-empty content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content: user messages must have non-empty content"),
    ({"messages": [{"role": "system", "content": "a"}]}, "messages: at least one"),
    ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages.0.name: Extra inputs"),
    (user({"type": "text"}), "messages.0.content.0.text: Field required"),
    (user({"type": "text", "text": "a\x00"}), "messages.0.content.0.text"),
    (user({"type": "text", "text": "a", "data": 1}), "messages.0.content.0.data: Extra inputs"),
    (user({"text": "a"}), "messages.0.content.0.type: Field required"),
    (user({"type": "text", "text": "a"}, {"type": "video"}), "messages.0.content.1.type: this service takes no such block"),
    (user({"type": "server_tool_use", "id": "a"}), "messages.0.content.0.type: this service takes no such block"),
    (user({"type": "text", "text": "a"}, "b"), "messages.0.content.1: "),
    (user(*[{"type": "text", "text": "a"}] * 1100), "messages.0.content: "),
    (user({"type": "tool_use", "id": "a", "name": "b", "input": {}}), "messages.0.content.0: tool_use blocks are not allowed"),
    (user({"type": "thinking", "thinking": "a", "signature": ""}), "messages.0.content.0: thinking blocks are not allowed"),
    ({"messages": [{"role": "assistant", "content": [image(PNG)]}]}, "messages.0.content.0: image blocks are not allowed"),
    ({"messages": [{"role": "system", "content": [image(PNG)]}]}, "messages.0.content.0: image blocks are not allowed"),
    (user(image("???")), "messages.0.content.0.source.data"),
    (user(image("")), "messages.0.content.0.source.data: "),
    (user(image(PDF)), "messages.0.content.0.source.data"),
    (user(image(PNG, "image/tiff")), "messages.0.content.0.source.media_type: "),
    (user({"type": "image", "source": {"type": "file", "file_id": "f"}}), "messages.0.content.0.source.type: "),
    (user({"type": "image", "source": {"type": "url", "url": "http://e.org/a.png"}}), "messages.0.content.0.source.url: only"),
    (user({"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}), "messages.0.content.0.source.url: only"),
    (user({"type": "image", "source": {"type": "url", "url": "https://a b/"}}), "messages.0.content.0.source.url"),
    (user({**image(PNG), "transformations": {"oversized_image": "error"}}), "messages.0.content.0.transformations"),
    (user(document(citations={"enabled": True})), "messages.0.content.0.citations: "),
    (user(document(title=1)), "messages.0.content.0.title: "),
    (
        user(document(source={"type": "base64", "media_type": "application/pdf", "data": PNG})),
        "messages.0.content.0.source.data: ",
    ),
    (user(document(source={"type": "content", "content": [image(PNG)]})), "messages.0.content.0.source.content: "),
    (user(SEARCH), "messages.0.content.0.content: "),
    (result({"type": "tool_reference", "tool_name": "a"}), "messages.0.content.0.content.0.type: "),
    (result({"type": "thinking", "thinking": "", "signature": ""}), "messages.0.content.0.content.0.type: "),
    (result(image("???")), "messages.0.content.0.content.0.source.data"),
    (user({"type": "tool_result"}), "messages.0.content.0.tool_use_id: Field required"),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b"}]}]},
        "messages.0.content.0.input",
    ),
    ({"tools": {}}, "tools: "),
    ({"tools": [1]}, "tools.0: "),
    ({"tools": [{"name": "a"}]}, "tools.0.input_schema: Field required"),
    ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools.0.name: "),
    (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "tools.0.type: this service runs no tools of the vendor's",
    ),
    ({"tools": [{"type": {}, "name": "web_search"}]}, "tools.0.type: "),
    ({"tools": [{**TIME, "defer_loading": True}]}, "tools.0.defer_loading: "),
    ({"tools": [{**TIME, "allowed_callers": ["code_execution_20260120"]}]}, "tools.0.allowed_callers.0: "),
    ({"tools": [{**TIME, "foo": True}]}, "tools.0.foo: Extra inputs"),
    ({"tools": [TIME, TIME]}, "tools: tool names must be unique"),
    ({"tools": [{"name": f"t{n}", "input_schema": {"type": "object"}} for n in range(600)]}, "tools: "),
    (schema(type="array"), "tools.0.input_schema.type: "),
    (schema(properties={"a": {"type": "text"}}), "tools.0.input_schema.properties.a.type"),
    (schema(properties={"a": {"$ref": "#/nowhere"}}), "tools.0.input_schema.properties.a.$ref"),
    (schema(description="a" * 40_000), "tools.0.input_schema"),
    ({"tool_choice": "auto"}, "tool_choice: "),
    ({"tool_choice": {"type": "any"}}, "tool_choice: "),
    ({"tools": [TIME], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name: "),
    ({"tools": [TIME], "tool_choice": {"type": "tool"}}, "tool_choice.name: Field required"),
    ({"tools": [TIME], "tool_choice": {"type": "some"}}, "tool_choice.type: "),
]


@pytest.mark.parametrize(("more", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_off_is_refused_by_name(client: httpx.Client, more: dict[str, Any], message: str) -> None:
    for stream_it in (False, True):
        status, said = refused(client, {**body(), "stream": stream_it, **more})
        assert status == 400
        assert message in said
        assert len(said) < 400


def test_a_refusal_quotes_nothing_that_was_sent(client: httpx.Client) -> None:
    canary = "canary\n`$.x`-0123"
    for more in (
        {canary: 1},
        {"service_tier": canary},
        {"messages": [{"role": canary, "content": "a"}]},
        user({"type": canary}),
        {"tools": [{"type": canary, "name": "a"}]},
        {"metadata": {canary: "a"}},
        schema(properties={canary: 1}),
    ):
        assert "canary" not in refused(client, {**body(), **more})[1]


def test_clients_with_threads_are_told_to_go_on_without(client: httpx.Client) -> None:
    answer = client.post(PATH, json={**body(), "thread": {"type": "create"}})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}


def test_unknown_models_and_wrong_media_types(client: httpx.Client) -> None:
    assert refused(client, body(model="claude-nowhere"))[0] == 404
    answer = client.post(PATH, content=json.dumps(body()), headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert refused(client, body("a" * 4_200_000))[0] == 413
    missing = client.get(PATH)
    assert (missing.status_code, missing.json()["type"], missing.headers["allow"]) == (405, "error", "POST")
    assert client.post(f"{PATH}/batches", json={}).json()["error"]["type"] == "not_found_error"


def test_a_prompt_beyond_the_context(serve: Serve) -> None:
    service = serve(model={"context_tokens": 256})
    with service.client(service.user()) as client:
        status, said = refused(client, body("word " * 400))
        assert (status, "tokens" in said) == (400, True)
        assert ask(client, "word " * 100, max_tokens=100_000)["stop_reason"] == "end_turn"
