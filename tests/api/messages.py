"""What the tests of ``/v1/messages`` share: bodies, and readers of answers, streams and errors that check their form."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx

from tests.api.events import read_events

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 16).decode()
PDF = base64.b64encode(b"%PDF-1.7 and so on").decode()
MARK = {"type": "ephemeral"}
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}


def body(*content: Any, **more: Any) -> dict[str, Any]:
    """A request whose only turn has these blocks; texts may come as they are."""
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in content]
    return {"model": "default", "max_tokens": 100, "messages": [{"role": "user", "content": blocks or "good morning"}], **more}


def ask(client: httpx.Client, *content: Any, **more: Any) -> dict[str, Any]:
    """A whole answer."""
    answer = client.post(PATH, json=body(*content, **more))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream(client: httpx.Client, *content: Any, **more: Any) -> list[tuple[str, Any]]:
    """The events of an answer, whose names are checked against their data."""
    answer = client.post(PATH, json=body(*content, stream=True, **more))
    assert answer.status_code == 200, answer.text
    events = read_events(answer.text)
    assert all(name == data["type"] for name, data in events)
    return events


def folded(events: list[tuple[str, Any]]) -> dict[str, Any]:
    """What the vendor's SDKs make of the events; the order of events is checked on the way."""
    names = [name for name, _ in events]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    message: dict[str, Any] = dict(events[0][1]["message"])
    assert message["content"] == []
    assert message["stop_reason"] is None
    content: list[dict[str, Any]] = []
    written = ""
    is_open = False
    for name, data in events[1:-2]:
        if name == "content_block_start":
            assert not is_open
            assert data["index"] == len(content)
            content.append(dict(data["content_block"]))
            is_open, written = True, ""
            continue
        assert is_open
        assert data["index"] == len(content) - 1
        if name == "content_block_stop":
            is_open = False
            if written:
                content[-1]["input"] = json.loads(written)
            continue
        kind, delta = data["delta"]["type"], data["delta"]
        if kind == "input_json_delta":
            written += delta["partial_json"]
        else:
            field = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}[kind]
            content[-1][field] += delta[field]
    assert not is_open
    last = events[-2][1]
    return {**message, **last["delta"], "usage": last["usage"], "content": content}


def refused(client: httpx.Client, sent: Any, path: str = PATH, **options: Any) -> tuple[int, str]:
    """Status and message of an error, whose form is checked."""
    options = {"content": sent, "headers": {"Content-Type": "application/json"}} if isinstance(sent, bytes) else {"json": sent}
    answer = client.post(path, **options)
    error = answer.json()
    assert set(error) == {"type", "error", "request_id"}, answer.text
    assert error["type"] == "error"
    assert set(error["error"]) == {"type", "message"}
    assert error["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    assert error["error"]["type"] == {**kinds, 413: "request_too_large", 429: "rate_limit_error"}[answer.status_code]
    return answer.status_code, error["error"]["message"]
