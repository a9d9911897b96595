"""One call through each door to an answer, whole or streamed, and how it ended, as a strict client of that vendor reads it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

Door = Literal["predict", "chat", "messages", "responses"]
DOORS: tuple[Door, ...] = ("predict", "chat", "messages", "responses")
PATHS = {"predict": "/predict", "chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
_ENDS = {"done", "[DONE]", "message_stop", "response.completed", "response.incomplete"}
_STATUS = {
    "upstream-unreachable": 502,
    "upstream-error": 502,
    "upstream-refused": 502,
    "upstream-timeout": 504,
    "upstream-busy": 503,
    "upstream-cooling-down": 503,
    "unknown-model": 404,
    "invalid-request": 422,
}


@dataclass(slots=True)
class Outcome:
    """How a call ended. ``ended``: with its normal end; ``slug``: which error it told, as far as the door names it."""

    door: Door
    model: str
    stream: bool
    status: int = 0
    text: str = ""
    ended: bool = False
    failed: bool = False
    slug: str | None = None
    seconds: float = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    raw: str = ""
    complaints: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        how = "stream" if self.stream else "whole"
        what = (
            f"{self.status} {self.slug or ''} ended={self.ended} failed={self.failed} {self.text!r} after {self.seconds:.2f} s"
        )
        return f"{self.door} {how} {self.model}: {what}\n    {self.raw[:400]!r}"


def body_of(door: Door, model: str, *, stream: bool, max_tokens: int = 16) -> dict[str, Any]:
    """The simplest request of that door."""
    plain: dict[str, Any] = {"model": model, "stream": stream}
    if door == "predict":
        return plain | {"prompt": "hello", "max_tokens": max_tokens}
    if door == "responses":
        return plain | {"input": "hello", "max_output_tokens": max_tokens, "store": False}
    return plain | {"messages": [{"role": "user", "content": "hello"}], "max_tokens": max_tokens}


@dataclass(frozen=True, slots=True)
class Client:
    """A client that costs little, one connection a call: what is measured is the service. ``headers`` go with every call."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def connected(self, path: str, body: Any = None) -> AsyncIterator[asyncio.StreamReader]:
        """A request sent; the block reads what comes, and leaves when it ends."""
        data = b"" if body is None else json.dumps(body).encode()
        at = urlsplit(self.url)
        lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Host: {at.netloc}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        reader, writer = await asyncio.open_connection(at.hostname, at.port, limit=1 << 20)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + data)
            yield reader
        finally:
            writer.transport.abort()

    async def ask(self, path: str, body: Any = None) -> tuple[int, dict[str, str], str]:
        """Status, headers and body. Raises OSError or ValueError where the response is not whole."""
        async with asyncio.timeout(30), self.connected(path, body) as reader:
            raw = await reader.read()
            while more := await reader.read():
                raw += more
        head, found, rest = raw.partition(b"\r\n\r\n")
        if not found:
            raise ValueError(f"no whole head: {raw[:100]!r}")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            rest = _joined(rest)
        elif len(rest) != int(headers["content-length"]):
            raise ValueError("the body is not as long as the head says")
        return int(status.split(" ")[1]), headers, rest.decode()


def _joined(chunked: bytes) -> bytes:
    """The content of a chunked body; ValueError where it has no end."""
    parts, at = [], 0
    while True:
        end = chunked.index(b"\r\n", at)
        size = int(chunked[at:end], 16)
        parts.append(chunked[end + 2 : end + 2 + size])
        at = end + size + 4
        if not size:
            return b"".join(parts)


async def call(client: Client, door: Door, model: str, *, stream: bool, max_tokens: int = 16) -> Outcome:
    """Calls, reads to the end and judges the form. A connection that is cut under us is a complaint."""
    outcome = Outcome(door, model, stream)
    begun = time.monotonic()
    try:
        body = body_of(door, model, stream=stream, max_tokens=max_tokens)
        outcome.status, outcome.headers, outcome.raw = await client.ask(PATHS[door], body)
    except (OSError, ValueError) as error:
        outcome.complaints.append(f"our own connection: {error!r}")
        return outcome
    finally:
        outcome.seconds = time.monotonic() - begun
    try:
        _read(outcome)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        outcome.complaints.append(f"not the documented form: {error!r}")
    return outcome


def _read(outcome: Outcome) -> None:
    kind = outcome.headers.get("content-type", "")
    if outcome.status == 200 and outcome.stream:
        _must(outcome, kind.startswith("text/event-stream"), f"a stream is {kind}")
        _read_stream(outcome)
        return
    outcome.body = json.loads(outcome.raw)
    if outcome.status == 200:
        outcome.text, outcome.ended = _text_of(outcome.door, outcome.body), True
        return
    outcome.failed = True
    wanted = "application/problem+json" if outcome.door == "predict" else "application/json"
    _must(outcome, kind.startswith(wanted), f"an error is {kind}")
    _read_error(outcome, outcome.body)
    status = _STATUS.get(outcome.slug or "")
    if status is not None:
        allowed = {status, 400} if status == 422 else {status}
        _must(outcome, outcome.status in allowed, f"{outcome.slug} with status {outcome.status}")


def _text_of(door: Door, body: Any) -> str:
    match door:
        case "predict":
            return str(body["text"])
        case "chat":
            return str(body["choices"][0]["message"]["content"])
        case "messages":
            return "".join(block["text"] for block in body["content"])
        case "responses":
            assert body["status"] == "completed"
            return "".join(part["text"] for item in body["output"] for part in item["content"])


def _read_error(outcome: Outcome, body: Any) -> None:
    if outcome.door == "predict":
        outcome.slug = str(body["type"]).removeprefix("urn:aprendiz:problem:")
        _must(outcome, bool(body["detail"] and body["title"]) and body["status"] >= 400, "a problem without words")
    elif outcome.door == "messages":
        _must(outcome, body["type"] == "error" and bool(body["error"]["type"] and body["error"]["message"]), "no error")
    else:
        error = body["error"]
        _must(outcome, {"message", "type", "param", "code"} <= error.keys() and bool(error["message"]), "no error")
        outcome.slug = None if error["code"] is None else str(error["code"]).replace("_", "-")


def _read_stream(outcome: Outcome) -> None:
    _must(outcome, outcome.raw.endswith("\n\n"), "the stream ends within an event")
    for block in outcome.raw.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.split("\n") if line and not line.startswith(":"))
        if not fields:
            continue
        _must(outcome, not outcome.ended, "something after the normal end")
        name, data = fields.get("event", ""), fields["data"]
        if data == "[DONE]":
            outcome.ended = True
            continue
        _read_event(outcome, name, json.loads(data))
    _must(outcome, outcome.ended != outcome.failed, "neither an end nor an error, or both")


def _read_event(outcome: Outcome, name: str, data: Any) -> None:
    if name in _ENDS:
        outcome.ended, outcome.body = True, data
    elif name in ("problem", "error") or (outcome.door == "chat" and "error" in data):
        outcome.failed = True
        _read_error(outcome, data)
    elif name == "response.failed":
        outcome.failed = True
        _must(outcome, data["response"]["status"] == "failed" and bool(data["response"]["error"]["message"]), "no error")
    elif name == "delta":
        outcome.text += data["text"]
    elif name == "content_block_delta":
        outcome.text += data["delta"]["text"]
    elif name == "response.output_text.delta":
        outcome.text += data["delta"]
    elif outcome.door == "chat":
        for choice in data["choices"]:
            outcome.text += choice["delta"].get("content") or ""
            _must(outcome, not outcome.failed, "a piece after an error")
        outcome.body = data


def _must(outcome: Outcome, holds: bool, complaint: str) -> None:
    if not holds:
        outcome.complaints.append(complaint)
