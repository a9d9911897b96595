"""What a model server can do wrong (B18), byte for byte, in both vendors' formats. `fault_server` plays it. No I/O."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Literal

TEXT = "all is well that ends well"
"""What a good answer says. When a model is asked again it says `All is well ...`, so that one sees which answer came."""
PIECES = ("all ", "is ", "well ", "that ", "ends ", "well")
SECRET = "canary-of-the-upstream"
"""Stands in every error that a server words itself: no caller may see it."""
End = Literal["keep", "close", "reset", "hang"]
Kind = Literal["openai", "claude"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as far as a fault wants to know. ``nth``: the how-manieth of its connection; ``again``: of its model."""

    kind: Kind
    model: str
    stream: bool
    nth: int
    again: int


@dataclass(frozen=True, slots=True)
class Play:
    """What a server does about a request: bytes piece by piece, then what becomes of the connection."""

    pieces: Iterable[bytes]
    end: End = "keep"
    before_s: float = 0
    pause_s: float = 0


def _event(kind: Kind, payload: Any) -> bytes:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    name = b"event: %b\n" % payload["type"].encode() if kind == "claude" else b""
    return b"%bdata: %b\n\n" % (name, data)


def _chunk(choice: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if choice is None else [{"index": 0, "finish_reason": None, **choice}]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}


def _openai_events() -> list[bytes]:
    payloads = [
        _chunk({"delta": {"role": "assistant", "content": ""}}),
        *(_chunk({"delta": {"content": piece}}) for piece in PIECES),
        _chunk({"delta": {}, "finish_reason": "stop"}),
        _chunk(usage={"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}),
        b"[DONE]",
    ]
    return [_event("openai", payload) for payload in payloads]


def _claude_message(content: list[Any], reason: str | None) -> dict[str, Any]:
    usage = {"input_tokens": 5, "output_tokens": 6}
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": content, "usage": usage} | {
        "stop_reason": reason,
        "stop_sequence": None,
    }


def _claude_events() -> list[bytes]:
    payloads = [
        {"type": "message_start", "message": _claude_message([], None)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}} for piece in PIECES),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 6}},
        {"type": "message_stop"},
    ]
    return [_event("claude", payload) for payload in payloads]


EVENTS: Mapping[Kind, list[bytes]] = {"openai": _openai_events(), "claude": _claude_events()}
FIRST_PIECE: Mapping[Kind, int] = {"openai": 1, "claude": 2}
"""Which of the `EVENTS` brings the first text."""
WHOLE: Mapping[Kind, bytes] = {
    "openai": json.dumps(
        {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
        | {"choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}]}
        | {"usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}}
    ).encode(),
    "claude": json.dumps(_claude_message([{"type": "text", "text": TEXT}], "end_turn")).encode(),
}
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BARE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def framed(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def reply(body: bytes, status: str = "200 OK", kind: str = "application/json", *more: str) -> bytes:
    """A response with its length. ``more``: further header lines."""
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more, "", "")
    return "\r\n".join(lines).encode() + body


def good(asked: Asked) -> list[bytes]:
    """A whole good response; of a stream, one piece for each event."""
    if not asked.stream:
        return [reply(WHOLE[asked.kind])]
    return [SSE_HEAD, *(framed(event) for event in EVENTS[asked.kind]), b"0\r\n\r\n"]


def beginning(asked: Asked, events: int = 3) -> list[bytes]:
    """The head, and some events with the first of the text; or half of a whole answer."""
    if asked.stream:
        return good(asked)[: 1 + FIRST_PIECE[asked.kind] + events]
    return [reply(WHOLE[asked.kind])[:-60]]


def error_body(asked: Asked, kind: str, code: str | None = None) -> bytes:
    """An error in the vendor's form, with words that nobody may see."""
    if asked.kind == "claude":
        return json.dumps({"type": "error", "error": {"type": kind, "message": SECRET}}).encode()
    return json.dumps({"error": {"message": SECRET, "type": kind, "param": None, "code": code}}).encode()


def _status(status: str, kind: str = "server_error", *more: str, code: str | None = None) -> Callable[[Asked], Play]:
    return lambda asked: Play([reply(error_body(asked, kind, code), status, "application/json", *more)])


def _stream(*events: bytes, head: bytes = SSE_HEAD, end: End = "keep") -> Callable[[Asked], Play]:
    """These events alone, with a proper end."""
    body = [framed(event) for event in events] + [b"0\r\n\r\n"] if head is SSE_HEAD else list(events)
    return lambda asked: Play([head, *body], end)


def _cut_events(asked: Asked, *, framing: bool, end: End) -> Play:
    """A stream without its end, in a body that has one (``framing``) or that the end of the connection ends."""
    if not asked.stream:
        body = WHOLE[asked.kind][:-60]
        return Play([reply(body) if framing else b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + body], end)
    events = EVENTS[asked.kind][: FIRST_PIECE[asked.kind] + 3]
    return Play([SSE_HEAD, *map(framed, events), b"0\r\n\r\n"] if framing else [BARE_HEAD, *events], end)


def _error_within(asked: Asked) -> Play:
    kind = "api_error" if asked.kind == "claude" else "server_error"
    raw = error_body(asked, kind)
    if not asked.stream:
        return Play([reply(raw)])
    event = b"event: error\ndata: %b\n\n" % raw
    return Play([*beginning(asked), framed(event), b"0\r\n\r\n"])


def _endless(asked: Asked) -> Play:
    """An answer without end: pieces of text, or a JSON string."""
    if not asked.stream:
        head = SSE_HEAD.replace(b"text/event-stream", b"application/json")
        return Play(itertools.chain([head], _forever(b'{"a":"' + b"x" * 65536)), "hang", pause_s=0.02)
    events = EVENTS[asked.kind]
    first = FIRST_PIECE[asked.kind]
    return Play(itertools.chain([SSE_HEAD, *map(framed, events[:first])], _forever(events[first])), "hang", pause_s=0.02)


def _drip_within(asked: Asked) -> Play:
    """An answer that begins well and then comes so slowly that it never ends, though it is never silent for long."""
    if asked.stream:
        return Play(itertools.chain([b"".join(beginning(asked))], _forever(b": hi\n\n")), "hang", pause_s=0.05)
    return Play((bytes([each]) for each in reply(WHOLE[asked.kind])), "hang", pause_s=0.05)


def _forever(data: bytes) -> Iterable[bytes]:
    return itertools.repeat(framed(data))


def _garbage(asked: Asked) -> Play:
    return Play([random.Random(asked.model).randbytes(300)], "hang")


def _cut_at(asked: Asked, end: End) -> Play:
    """The first thousandths of a good response, as the model's name says: ``FAULT--THOUSANDTHS--...``."""
    whole = b"".join(good(asked))
    size = max(1, min(len(whole) - 1, len(whole) * int(asked.model.split("--")[1]) // 1000))
    return Play([whole[:size]], end)


def truly_whole(kind: Kind, *, stream: bool, thousandths: int) -> bool:
    """Whether what `_cut_at` leaves of a stream still has its true end in it."""
    if not stream:
        return False
    asked = Asked(kind, "", True, 1, 1)
    whole = b"".join(good(asked))
    mark = b"data: [DONE]\n\n" if kind == "openai" else b'data: {"type": "message_stop"}\n\n'
    return len(whole) * thousandths // 1000 >= whole.index(mark) + len(mark)


FAULTS: Mapping[str, Callable[[Asked], Play]] = {
    "good": lambda asked: Play(good(asked)),
    "slow": lambda asked: Play(good(asked), before_s=0.3),
    "gentle": lambda asked: Play(good(asked), pause_s=0.1),
    "latency": lambda asked: Play(good(asked), before_s=30),
    "continue": lambda asked: Play([b"HTTP/1.1 100 Continue\r\n\r\n", *good(asked)]),
    "more": lambda asked: Play([*good(asked), b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"]),
    "stale": lambda asked: Play([], "close") if asked.nth > 1 else Play(good(asked)),
    "stale-reset": lambda asked: Play([], "reset") if asked.nth > 1 else Play(good(asked)),
    "hang": lambda asked: Play([], "hang"),
    "hang-in-head": lambda asked: Play([SSE_HEAD[:30]], "hang"),
    "hang-after-head": lambda asked: Play([SSE_HEAD], "hang"),
    "hang-within": lambda asked: Play(beginning(asked), "hang"),
    "drip": lambda asked: Play((bytes([each]) for each in b"".join(good(asked))), "hang", pause_s=1),
    "drip-within": _drip_within,
    "endless-head": lambda asked: Play(itertools.chain([SSE_HEAD[:-2]], itertools.repeat(b"X-More: of it\r\n" * 50)), "hang"),
    "endless-line": lambda asked: Play(itertools.chain([SSE_HEAD[:-2]], itertools.repeat(b"X" * 1024)), "hang"),
    "endless-body": _endless,
    "endless-comments": lambda asked: Play(itertools.chain([SSE_HEAD], _forever(b": hi\n\n")), "hang", pause_s=0.01),
    "endless-continue": lambda asked: Play(itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"), "hang", pause_s=0.01),
    "huge-event": lambda asked: Play([*beginning(asked)[: 3 if asked.stream else 0], *_huge(asked)], "hang"),
    "closed": lambda asked: Play([], "close"),
    "reset": lambda asked: Play([], "reset"),
    "cut": lambda asked: _cut_at(asked, "close"),
    "cut-reset": lambda asked: _cut_at(asked, "reset"),
    "no-end": lambda asked: _cut_events(asked, framing=True, end="keep"),
    "no-end-bare": lambda asked: _cut_events(asked, framing=False, end="close"),
    "empty": lambda asked: Play([reply(b"", kind="text/event-stream" if asked.stream else "application/json")]),
    "no-content": lambda asked: Play([b"HTTP/1.1 204 No Content\r\n\r\n"]),
    "garbage": _garbage,
    "garbage-within": lambda asked: Play([*beginning(asked), b"zz\r\nno chunk\r\n"] if asked.stream else [b"\x16\x03\x01"]),
    "two-lengths": lambda asked: Play([reply(WHOLE[asked.kind], "200 OK", "application/json", "Content-Length: 5")], "close"),
    "two-framings": lambda asked: Play([SSE_HEAD[:-2] + b"Content-Length: 5\r\n\r\n" + framed(b"data: x\n\n")], "close"),
    "upgrade": lambda asked: Play([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"], "hang"),
    "wrong-type": lambda asked: Play([reply(b"<h1>Welcome</h1>" + SECRET.encode(), kind="text/html")]),
    "no-json": lambda asked: Play(
        [reply(b"{nonsense")] if not asked.stream else [*beginning(asked, 1), framed(b"data: {x\n\n")]
    ),
    "wrong-shape": lambda asked: (
        Play([SSE_HEAD, framed(b'data: {"type": 5, "choices": "no"}\n\n'), b"0\r\n\r\n"])
        if asked.stream
        else Play([reply(b'{"type": "message", "choices": 7, "content": 7}')])
    ),
    "deep": lambda asked: Play(
        [SSE_HEAD, framed(b"data: " + b"[" * 100_000 + b"\n\n"), b"0\r\n\r\n"] if asked.stream else [reply(b"[" * 100_000)]
    ),
    "gzip": lambda asked: Play([reply(b"\x1f\x8b\x08\x00 packed", "200 OK", "application/json", "Content-Encoding: gzip")]),
    "error-with-200": lambda asked: Play([reply(error_body(asked, "api_error" if asked.kind == "claude" else "server_error"))]),
    "error-within": _error_within,
    "redirect": _status("307 Temporary Redirect", "server_error", "Location: /redirected"),
    "moved": _status("301 Moved Permanently", "server_error", "Location: /redirected"),
    "busy": _status("429 Too Many Requests", "rate_limit_error"),
    "busy-1": _status("429 Too Many Requests", "rate_limit_error", "Retry-After: 1"),
    "busy-60": _status("429 Too Many Requests", "rate_limit_error", "Retry-After: 60"),
    "busy-date": lambda asked: _status(
        "429 Too Many Requests", "rate_limit_error", f"Retry-After: {formatdate(time.time() + 40, usegmt=True)}"
    )(asked),
    "busy-nonsense": _status("503 Service Unavailable", "overloaded_error", "Retry-After: " + "9" * 400),
    "overloaded": _status("529 Overloaded", "overloaded_error", "Retry-After: 30"),
    "no-money": lambda asked: (
        _status("402 Payment Required", "billing_error")
        if asked.kind == "claude"
        else _status("429 Too Many Requests", "insufficient_quota", code="insufficient_quota")
    )(asked),
    "bad-key": _status("401 Unauthorized", "authentication_error"),
    "forbidden": _status("403 Forbidden", "permission_error"),
    "unknown": _status("404 Not Found", "not_found_error", code="model_not_found"),
    "bad-request": _status("400 Bad Request", "invalid_request_error"),
    "500": _status("500 Internal Server Error", "api_error"),
    "502": lambda asked: Play([reply(b"<html>Bad Gateway</html>", "502 Bad Gateway", "text/html")], "close"),
    "504": _status("504 Gateway Timeout", "timeout_error"),
    "slow-500": lambda asked: Play([reply(error_body(asked, "api_error"), "500 Internal Server Error")], before_s=0.4),
    "status-999": lambda asked: Play([reply(b"", "999 What")]),
    "hang-in-error": lambda asked: Play([reply(b"x" * 50, "500 Internal Server Error")[:-20]], "hang"),
}


def _huge(asked: Asked) -> list[bytes]:
    size = 6 << 20
    if asked.stream:
        return [framed(b'data: {"a": "' + b"x" * size)]
    return [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n", b"x" * size]
