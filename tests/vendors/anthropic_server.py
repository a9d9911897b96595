"""Anthropic's Messages API as documented in November 2026, on this machine: events, whole messages, errors, counting.

Scripted with messages (a dict as the vendor answers it, made by `message`), it sends each as the stream or the JSON that the
request asked for. Unscripted it is a small model: it says the last user text back, under the limits of the request. Either
way a request that breaks the documented form is refused, in the vendor's manner.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.providers.echo_json import smallest_json
from tests.vendors.anthropic_form import complaint
from tests.vendors.replay import Received, ReplayServer, Reply, Scripted

KEY = "sk-ant-canary-0123456789"
MODEL = "claude-test-1"
_STATUS_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_WORD = re.compile(r"\s*\S+")


def text(said: str) -> dict[str, Any]:
    """A text block of an answer."""
    return {"type": "text", "text": said, "citations": None}


def thinking(thought: str, signature: str) -> dict[str, Any]:
    """A thinking block; an empty thought is one that is not shown."""
    return {"type": "thinking", "thinking": thought, "signature": signature}


def tool_use(call: str, name: str, **arguments: Any) -> dict[str, Any]:
    """A tool call."""
    return {"type": "tool_use", "id": call, "name": name, "input": arguments}


def message(*content: Mapping[str, Any], stop_reason: str = "end_turn", stop_sequence: str | None = None, **usage: Any) -> Any:
    """A whole message; ``usage`` replaces or adds counts."""
    return {
        "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": list(content),
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": {"input_tokens": 25, "output_tokens": 15, "service_tier": "standard", **usage},
    }


def events(whole: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The stream of a message: the documented order, with a ping where the vendor likes to send one."""
    usage = dict(whole["usage"])
    first = {**whole, "content": [], "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": first}
    for index, block in enumerate(whole["content"]):
        start, deltas = _pieces(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        if index == 0:
            yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]}
    last = {name: usage[name] for name in usage if name != "input_tokens" and name != "service_tier"}
    yield {"type": "message_delta", "delta": delta, "usage": last}
    yield {"type": "message_stop"}


def _pieces(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    match block["type"]:
        case "text":
            words = _WORD.findall(block["text"])
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": word} for word in words]
        case "thinking":
            words = _WORD.findall(block["thinking"])
            deltas: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": word} for word in words]
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signature]
        case "tool_use":
            written = json.dumps(block["input"], ensure_ascii=False)
            parts = ["", *re.findall(r".{1,7}", written, re.DOTALL)] if block["input"] else []
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]
    return dict(block), []


def sse(payloads: Iterator[Mapping[str, Any]] | Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Each event as it goes over the wire."""
    return [f"event: {payload['type']}\ndata: {json.dumps(payload, ensure_ascii=False)}\n\n".encode() for payload in payloads]


def as_stream(pieces: Sequence[bytes], **options: Any) -> Reply:
    """An answer of these events."""
    return Reply(200, pieces, {"Content-Type": "text/event-stream; charset=utf-8", "request-id": "req_011CSH"}, **options)


def failure(status: int, said: str = "Some words of the vendor's.", *, kind: str = "", code: str = "", **headers: str) -> Reply:
    """An error in the documented form; underscores in the names of ``headers`` stand for dashes."""
    error: dict[str, Any] = {"type": kind or _STATUS_TYPES[status], "message": said}
    if code:
        error["details"] = {"error_code": code}
    body = {"type": "error", "error": error, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}
    return _json(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def error_event(kind: str, said: str = "Some words of the vendor's.") -> dict[str, Any]:
    """An error inside a stream."""
    return {"type": "error", "error": {"details": None, "type": kind, "message": said}, "request_id": "req_011CSHoEeqs5C35K2UU"}


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    fixed = {"Content-Type": "application/json", "request-id": "req_011CSHoEeqs5C35K2UUqR7Fy"}
    return Reply(status, (json.dumps(value).encode(),), {**fixed, **(headers or {})})


class AnthropicServer(ReplayServer):
    """The double. ``context_tokens``: longest prompt of its model, in words."""

    def __init__(self, *, context_tokens: int = 2048) -> None:
        super().__init__()
        self._context = context_tokens

    def render(self, scripted: Any, request: Received) -> Scripted:
        """A message as the request wants it; a list of events as a stream; replies as they are."""
        if isinstance(scripted, Reply):
            return scripted
        if isinstance(scripted, list):
            return as_stream(sse(scripted))
        if isinstance(scripted, dict):
            return as_stream(sse(events(scripted))) if request.body.get("stream") else _json(scripted)
        return super().render(scripted, request)

    async def answer(self, request: Received) -> Scripted:
        """The small model."""
        counting = request.path == "/v1/messages/count_tokens"
        if request.method != "POST" or not (counting or request.path == "/v1/messages"):
            return failure(404, "Not Found")
        if request.headers.get("x-api-key", request.headers.get("authorization", "").removeprefix("Bearer ")) != KEY:
            return failure(401, "invalid x-api-key")
        version = request.headers.get("anthropic-version")
        if version not in ("2023-06-01", "2026-10-21"):
            return failure(400, "anthropic-version: header is required")
        body = request.body
        wrong = complaint(body, counting=counting, sampling=version == "2023-06-01")
        if wrong is not None:
            return failure(400, wrong)
        if body["model"] != MODEL:
            return failure(404, f"model: {body['model']}")
        prompt = len(_WORD.findall(" ".join(_texts(body))))
        if counting:
            return _json({"input_tokens": prompt})
        if prompt >= self._context:
            return failure(400, f"prompt is too long: {prompt} tokens > {self._context} maximum")
        return self.render(_said(body, prompt), request)


def _said(body: Mapping[str, Any], prompt: int) -> Any:
    forced = body.get("tool_choice", {}).get("type") in ("any", "tool")
    if forced:
        tool = next(each for each in body["tools"] if each["name"] == body["tool_choice"].get("name", each["name"]))
        made = json.loads(_fitting(tool["input_schema"], ""))
        return message(tool_use("toolu_01A", tool["name"], **made), stop_reason="tool_use", input_tokens=prompt)
    answer = list(_texts({"messages": [body["messages"][-1]]}))[-1]
    form = body.get("output_config", {}).get("format")
    if form is not None:
        answer = _fitting(form["schema"], answer)
    reason, stop = "end_turn", None
    ends = sorted((answer.find(each), each) for each in body.get("stop_sequences", ()) if each in answer)
    if ends:
        answer, stop, reason = answer[: ends[0][0]], ends[0][1], "stop_sequence"
    words = _WORD.findall(answer)
    if len(words) > body["max_tokens"]:
        words, reason, stop = words[: body["max_tokens"]], "max_tokens", None
    content = (text("".join(words)),) if words else ()
    return message(*content, stop_reason=reason, stop_sequence=stop, input_tokens=prompt, output_tokens=max(len(words), 1))


def _fitting(schema: Mapping[str, Any], answer: str) -> str:
    return smallest_json({"type": "json_schema", "json_schema": {"schema": schema}}, answer)


def _texts(thing: Any) -> Iterator[str]:
    """All texts of a request that a model reads."""
    if isinstance(thing, str):
        yield thing
    elif isinstance(thing, list):
        for each in thing:
            yield from _texts(each)
    elif isinstance(thing, dict):
        for name in ("system", "messages", "content", "text"):
            if name in thing:
                yield from _texts(thing[name])
