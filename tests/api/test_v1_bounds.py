"""Bad input to the vendors' shapes of OpenAI: always 400 in their form, with the place, and never what was sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Service

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
ASKED: dict[str, str] = {
    CHAT: '"messages":[{"role":"user","content":"a"}]',
    COMPLETIONS: '"prompt":"a"',
    EMBEDDINGS: '"input":"a"',
}
CANARY = "canary-93c1"
HUGE = ["-1", "2147483648", "9223372036854775808", "1e308", "1e999", "NaN", "Infinity", "-Infinity", '"1"', "true", "[]", "{}"]
"""What no count may be."""
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client(service.user()) as connected:
        yield connected


def post(client: httpx.Client, path: str, content: str | bytes) -> httpx.Response:
    return client.post(path, content=content, headers={"Content-Type": "application/json"})


def refused(client: httpx.Client, path: str, content: str | bytes, status: int = 400) -> dict[str, Any]:
    """The error of a request that is refused in OpenAI's form."""
    answer = post(client, path, content)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert CANARY not in answer.text
    found: dict[str, Any] = error
    return found


def with_field(path: str, field: str, value: str) -> str:
    return f'{{"model":"default",{ASKED[path]},"{field}":{value}}}'


COUNTS = [(CHAT, name) for name in ("n", "max_tokens", "max_completion_tokens", "top_k", "top_logprobs")]
COUNTS += [(COMPLETIONS, name) for name in ("n", "best_of", "max_tokens", "top_k", "logprobs")]
COUNTS += [(EMBEDDINGS, "dimensions")]
ZERO_IS_FINE = {"top_logprobs", "logprobs"}
ABOVE = {
    "n": 9, "best_of": 9, "max_tokens": 1_048_577, "max_completion_tokens": 1_048_577, "top_k": 1001, "top_logprobs": 21,
    "logprobs": 6, "dimensions": 65_537,
}  # fmt: skip


@pytest.mark.parametrize(("path", "field"), COUNTS)
def test_counts_are_bounded(client: httpx.Client, path: str, field: str) -> None:
    values = [*HUGE, str(ABOVE[field]), "1.5", *([] if field in ZERO_IS_FINE else ["0"])]
    for value in values:
        param = refused(client, path, with_field(path, field, value))["param"]
        assert param == field or (param is None and value in ("NaN", "Infinity", "-Infinity", "1e999")), (value, param)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", ["-0.1", "2.1", "1e308", "1e999", "NaN", '"1"', "[]"]),
        ("top_p", ["-0.01", "-1", "1.1", "NaN", '"1"']),
        ("presence_penalty", ["-2.1", "2.1", "Infinity", '"1"']),
        ("frequency_penalty", ["-2.1", "2.1", "1e308", '"1"']),
        ("seed", ["-9223372036854775809", "9223372036854775808", "1.5", "1e308", "NaN", '"1"', "true"]),
        ("stop", ['""', "[1]", '["a","b","c","d","e"]', '[""]', "1", "{}", '"' + "a" * 257 + '"', '"\\u0000"', '["\\ud800"]']),
        ("logit_bias", ['{"a":1}', '{"1":101}', '{"1":-101}', '{"1":"1"}', "[]", '{"12345678":1}', '{"1":NaN}']),
        ("stream", ['"yes"', "1"]),
        ("stream_options", ["true", '{"include_usage":1}', '{"x":1}', "{}"]),
        ("user", ["1", '"' + "a" * 513 + '"']),
        ("model", ["null", "1", '""', '"../x"', '"a b"', '"' + "x" * 257 + '"', '"~root"', '"a\\u0000b"']),
    ],
)
def test_fields_of_both_are_bounded(client: httpx.Client, path: str, field: str, values: list[str]) -> None:
    for value in values:
        content = with_field(path, field, value)
        if field == "model":
            content = f'{{"model":{value},{ASKED[path]}}}'
        param = refused(client, path, content)["param"]
        assert param is None or param.startswith(field), (value, param)


def test_logit_bias_has_at_most_300_entries(client: httpx.Client) -> None:
    for count, status in ((300, 200), (301, 400)):
        bias = json.dumps({str(token): 1 for token in range(count)})
        assert post(client, CHAT, with_field(CHAT, "logit_bias", bias)).status_code == status


BODIES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("not json", b"prompt=a"),
    ("array", b"[]"),
    ("cut", b'{"model":"default"'),
    ("trailing", b"{}x"),
    ("invalid utf-8", b'{"model":"\xff"}'),
    ("utf-16", '{"model":"default"}'.encode("utf-16")),
    ("deep", b'{"model":' + b"[" * 100_000),
    ("deep in a field that is passed over", b'{"model":"default","prediction":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("nothing", b"{}"),
    ("unknown", b'{"model":"default","' + CANARY.encode() + b'\\u0000":1}'),
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize(("name", "body"), BODIES, ids=[name for name, _ in BODIES])
def test_bad_bodies(client: httpx.Client, path: str, name: str, body: bytes) -> None:
    refused(client, path, body)


MANY = json.dumps([[]] * 100_001)
BODIES_OF_MANY_LISTS = [
    (CHAT, f'{{"model":"default",{ASKED[CHAT]},"prediction":{MANY}}}'),
    (
        CHAT,
        f'{{"model":"default",{ASKED[CHAT]},"tools":[{{"type":"function","function":{{"name":"a","parameters":{{"a":{MANY}}}}}}}]}}',
    ),
    ("/v1/responses", f'{{"input":"a","conversation":{MANY}}}'),
    ("/v1/responses/input_tokens", f'{{"input":"a","conversation":{MANY}}}'),
    (EMBEDDINGS, f'{{"model":"default","input":{MANY}}}'),
]


@pytest.mark.parametrize(("path", "body"), BODIES_OF_MANY_LISTS)
def test_a_body_of_very_many_lists_is_refused_before_it_is_read(client: httpx.Client, path: str, body: str) -> None:
    assert refused(client, path, body)["param"] == "body"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_what_is_around_the_body(client: httpx.Client, path: str) -> None:
    assert client.post(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 400
    error = refused(client, path, b'{"a":"' + b"a" * 4_200_000 + b'"}', 413)
    assert error["type"] == "invalid_request_error"
    unknown = refused(client, path, with_field(path, "frobnicate", "1"))
    assert (unknown["message"], unknown["param"]) == ("Unrecognized request argument supplied: frobnicate", "frobnicate")
    missing = refused(client, path, f"{{{ASKED[path]}}}")
    assert (missing["message"], missing["param"]) == ("Missing required parameter: 'model'.", "model")
    absent = refused(client, path, f'{{"model":"nope",{ASKED[path]}}}', 404)
    assert (absent["code"], absent["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    "field", ["audio", "prediction", "web_search_options", "functions", "function_call", "moderation", "modalities"]
)
def test_what_cannot_be_kept_is_refused_by_name(client: httpx.Client, field: str) -> None:
    value = '["text","audio"]' if field == "modalities" else '{"a":1}'
    error = refused(client, CHAT, with_field(CHAT, field, value))
    assert error["param"] == field
    assert error["message"].startswith(f"{field} is not supported here. ")


def message(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "a"}, fields]


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BAD_MESSAGES: list[tuple[list[Any], str]] = [
    ([], "messages"),
    ([{"role": "user", "content": "a"}] * 2049, "messages"),
    ([1], "messages[0]"),
    ([{"content": "a"}], "messages[0].role"),
    ([{"role": CANARY, "content": "a"}], "messages[0].role"),
    ([{"role": "function", "name": "f", "content": "a"}], "messages[0].role"),
    (message(role="user"), "messages[1].content"),
    (message(role="user", content=None), "messages[1].content"),
    (message(role="user", content=1), "messages[1].content"),
    (message(role="user", content=[]), "messages[1].content"),
    (message(role="user", content=[{"type": CANARY}]), "messages[1].content[0].type"),
    (message(role="user", content=[{"type": "text"}]), "messages[1].content[0].text"),
    (message(role="user", content=[{"type": "text", "text": "a\0"}]), "messages[1].content[0].text"),
    (message(role="user", content="a\0"), "messages[1].content"),
    (message(role="user", content=[{"type": "text", "text": "a", "x": 1}]), "messages[1].content[0].x"),
    (message(role="user", content=[{"type": "text", "text": "a"}] * 257), "messages[1].content"),
    (message(role="user", content="a", name=""), "messages[1].name"),
    (message(role="user", content="a", name="n" * 65), "messages[1].name"),
    (message(role="user", content="a", tool_calls=[]), "messages[1].tool_calls"),
    (message(role="system", content=[{"type": "image_url", "image_url": {"url": "https://a"}}]), "messages[1].content[0].type"),
    (message(role="assistant"), "messages[1].content"),
    (message(role="assistant", content=None, tool_calls=[]), "messages[1].content"),
    (message(role="assistant", tool_calls=[{**CALL, "id": ""}]), "messages[1].tool_calls[0].id"),
    (message(role="assistant", tool_calls=[{**CALL, "type": "custom"}]), "messages[1].tool_calls[0].type"),
    (message(role="assistant", tool_calls=[{"id": "c", "type": "function"}]), "messages[1].tool_calls[0].function"),
    (
        message(role="assistant", tool_calls=[{**CALL, "function": {"name": "a b", "arguments": ""}}]),
        "messages[1].tool_calls[0].function.name",
    ),
    (
        message(role="assistant", tool_calls=[{**CALL, "function": {"name": "f", "arguments": {}}}]),
        "messages[1].tool_calls[0].function.arguments",
    ),
    (message(role="assistant", content="a", function_call={"name": "f"}), "function_call"),
    (message(role="tool", content="a"), "messages[1].tool_call_id"),
    (message(role="tool", content="a", tool_call_id="c"), "messages[1].tool_call_id"),
]


@pytest.mark.parametrize(("messages", "param"), BAD_MESSAGES)
def test_bad_messages_are_named(client: httpx.Client, messages: list[Any], param: str) -> None:
    assert refused(client, CHAT, json.dumps({"model": "default", "messages": messages}))["param"] == param


IMAGE = "messages[1].content[0].image_url.url"
BAD_IMAGES = [
    "data:image/png;base64,", "data:image/png;base64,AAAA", "data:image/png;base64,%%%%", "data:image/png;base64,AA=A",
    "data:image/png,AAAA", "data:;base64,AAAA", "data:image/svg+xml;base64,PHN2Zz4=", "data:text/html;base64,PGI+", "data:",
    "file:///etc/passwd", "ftp://example.org/a.png", "gopher://a", "javascript:alert(1)", "//example.org/a.png", "/a.png", "a",
    "http://", "https:///a.png", "http://user:secret@example.org/a.png", "http://exa mple.org", "http://example.org/\n",
    "http://[::1", "http://example.org:99999/", "http://a\\b", "https://example.org/" + "a" * 4100,
    "data:image/png;base64,\n" + base64.b64encode(PNG).decode(),
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_IMAGES)
def test_bad_images_are_named(client: httpx.Client, url: str) -> None:
    content = message(role="user", content=[{"type": "image_url", "image_url": {"url": url}}])
    assert refused(client, CHAT, json.dumps({"model": "default", "messages": content}))["param"] == IMAGE


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": "https://a"}, "image_url"),
        ({"type": "image_url", "image_url": {"url": "https://a.org", "detail": "x"}}, "image_url.detail"),
        ({"type": "input_audio", "input_audio": {"data": "%", "format": "wav"}}, "input_audio.data"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "ogg"}}, "input_audio.format"),
        ({"type": "file", "file": {}}, "file.file_data"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file.file_id"),
        ({"type": "file", "file": {"file_data": "data:application/zip;base64,AAAA"}}, "file.file_data"),
        ({"type": "file", "file": {"file_data": "data:application/pdf;base64,!"}}, "file.file_data"),
        ({"type": "text", "text": "a", "cache_control": {"type": "forever"}}, "cache_control.type"),
    ],
)
def test_other_bad_parts_are_named(client: httpx.Client, part: dict[str, Any], param: str) -> None:
    content = json.dumps({"model": "default", "messages": message(role="user", content=[part])})
    assert refused(client, CHAT, content)["param"] == f"messages[1].content[0].{param}"


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


BAD_SCHEMAS: list[tuple[dict[str, Any], str]] = [
    ({"type": "object", "properties": {"a": {"type": "text"}}}, ".properties.a.type"),
    ({"type": "object", "properties": {"a": {"type": ["string", "string"]}}}, ".properties.a.type"),
    ({"type": "object", "properties": {"a": {"type": []}}}, ".properties.a.type"),
    ({"type": "object", "properties": []}, ".properties"),
    ({"type": "object", "properties": {"a": 1}}, ".properties.a"),
    ({"type": "object", "properties": {CANARY + " ": 1}}, ".properties.…"),
    ({"type": "object", "required": "a"}, ".required"),
    ({"type": "object", "required": ["a", "a"]}, ".required"),
    ({"type": "object", "required": [1]}, ".required"),
    ({"type": "object", "properties": {"a": {"enum": []}}}, ".properties.a.enum"),
    ({"type": "object", "properties": {"a": {"enum": "x"}}}, ".properties.a.enum"),
    ({"type": "object", "properties": {"a": {"anyOf": []}}}, ".properties.a.anyOf"),
    ({"type": "object", "properties": {"a": {"oneOf": [{}, 1]}}}, ".properties.a.oneOf[1]"),
    ({"type": "object", "properties": {"a": {"items": 1}}}, ".properties.a.items"),
    ({"type": "object", "properties": {"a": {"prefixItems": {}}}}, ".properties.a.prefixItems"),
    ({"type": "object", "additionalProperties": "no"}, ".additionalProperties"),
    ({"type": "object", "properties": {"a": {"$ref": "https://example.org/schema"}}}, ".properties.a.$ref"),
    ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, ".properties.a.$ref"),
    ({"type": "object", "properties": {"a": {"$ref": 1}}}, ".properties.a.$ref"),
    ({"type": "object", "properties": {"a": {"$dynamicRef": "#a"}}}, ".properties.a.$dynamicRef"),
    ({"type": "object", "properties": {"a": {"pattern": "a" * 513}}}, ".properties.a.pattern"),
    ({"type": "object", "properties": {"a": {"pattern": 1}}}, ".properties.a.pattern"),
    ({"type": "object", "patternProperties": {"a" * 513: {}}}, ".patternProperties"),
    ({"type": "object", "properties": {"a": {"minLength": -1}}}, ".properties.a.minLength"),
    ({"type": "object", "properties": {"a": {"maxItems": 1.5}}}, ".properties.a.maxItems"),
    ({"type": "object", "properties": {"a": {"maxItems": 2**31}}}, ".properties.a.maxItems"),
    ({"type": "object", "properties": {"a": {"minimum": "1"}}}, ".properties.a.minimum"),
    ({"type": "object", "properties": {"a": {"multipleOf": 0}}}, ".properties.a.multipleOf"),
    ({"type": "object", "properties": {"a": {"description": 1}}}, ".properties.a.description"),
    ({"type": "object", "dependentRequired": {"a": "b"}}, ".dependentRequired"),
    (nested(17), ""),
    ({"type": "object", "description": "x" * 33_000}, ""),
]


@pytest.mark.parametrize(("schema", "place"), BAD_SCHEMAS)
def test_bad_schemas_are_named(client: httpx.Client, schema: dict[str, Any], place: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    error = refused(client, CHAT, with_field(CHAT, "tools", json.dumps([tool])))
    assert error["param"] == "tools[0].function.parameters" + place
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    error = refused(client, CHAT, with_field(CHAT, "response_format", json.dumps(form)))
    assert error["param"] == "response_format.json_schema.schema" + place


def test_good_schemas_are_taken(client: httpx.Client) -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "title": "All",
        "$defs": {"node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}},
        "properties": {
            "a": {"type": ["string", "null"], "pattern": "^a+$", "minLength": 0, "maxLength": 5, "format": "x", "x-own": 1},
            "b": {"type": "array", "items": {"$ref": "#/$defs/node"}, "minItems": 0, "uniqueItems": True},
            "c": {"enum": [1, "a", None]},
            "d": {"const": {"a": 1}},
            "e": {"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5, "default": 1},
            "f": True,
            "g": {"items": [{"type": "string"}, {}], "additionalItems": False},
        },
        "required": ["a"],
        "additionalProperties": False,
    }
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": schema}},
        {"type": "function", "function": {"name": "g", "parameters": {}}},
    ]
    assert post(client, CHAT, with_field(CHAT, "tools", json.dumps(tools))).status_code == 200
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    assert post(client, CHAT, with_field(CHAT, "response_format", json.dumps(form))).status_code == 200


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [function("a b")]}, "tools[0].function.name"),
        ({"tools": [function("")]}, "tools[0].function.name"),
        ({"tools": [function("a" * 65)]}, "tools[0].function.name"),
        ({"tools": [function("a"), function("a")]}, "tools"),
        ({"tools": [function(f"f{number}") for number in range(129)]}, "tools"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools[0].function.parameters"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters.type",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": 1}}]}, "tools[0].function.strict"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": function("a")}, "tool_choice"),
        ({"tool_choice": function("b"), "tools": [function("a")]}, "tool_choice"),
        ({"tool_choice": CANARY, "tools": [function("a")]}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": [function("a")]}, "tool_choice.function"),
        ({"tool_choice": {"type": "custom"}, "tools": [function("a")]}, "tool_choice.type"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": [function("a")]}, "tool_choice.allowed_tools"),
        (
            {
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("b")]}},
                "tools": [function("a")],
            },
            "tool_choice",
        ),
        ({"response_format": {"type": CANARY}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}}, "response_format.type"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"a" * 65: "a"}}, "metadata"),
        ({"metadata": {str(number): "a" for number in range(17)}}, "metadata"),
        ({"reasoning_effort": CANARY}, "reasoning_effort"),
        ({"service_tier": CANARY}, "service_tier"),
        ({"verbosity": "loud"}, "verbosity"),
    ],
)
def test_what_does_not_fit_together_is_named(client: httpx.Client, more: dict[str, Any], param: str) -> None:
    body = {"model": "default", "messages": [{"role": "user", "content": "a"}], **more}
    assert refused(client, CHAT, json.dumps(body))["param"] == param
