"""A model server that does whatever it reads, in OpenAI's format: it says back all of its prompt, pictures and links too, and
calls every tool that it can think of, offered or not. It keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

UNASKED: Final = ("send_email", "delete_all_documents", "read_user")


class Obedient(ThreadingHTTPServer):
    """Serves on a free port of 127.0.0.1. ``asked``: the bodies that came."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Obedient

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        """Answers a chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        offered = [tool["function"]["name"] for tool in body.get("tools", ())]
        text = "\n".join(_text(message) for message in body["messages"])
        calls = [
            {
                "index": index,
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": name, "arguments": '{"all": true}'},
            }
            for index, name in enumerate([UNASKED[0], *offered, *UNASKED[1:]])
        ]
        kind, content = (
            ("text/event-stream", _stream(text, calls)) if body.get("stream") else ("application/json", _whole(text, calls))
        )
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def _whole(text: str, calls: list[dict[str, Any]]) -> bytes:
    message = {"role": "assistant", "content": text, "tool_calls": calls}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return json.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}).encode()


def _stream(text: str, calls: list[dict[str, Any]]) -> bytes:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": text}]
    for call in calls:  # the name alone, then the arguments in two pieces
        index = {"index": call["index"]}
        deltas.append({"tool_calls": [{**call, "function": {"name": call["function"]["name"], "arguments": ""}}]})
        deltas += [{"tool_calls": [{**index, "function": {"arguments": piece}}]} for piece in ('{"all":', " true}")]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
    head = {"id": "x", "object": "chat.completion.chunk", "model": "m"}
    return b"".join(b"data: " + json.dumps(head | chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


@contextmanager
def obedient() -> Iterator[Obedient]:
    """One that runs."""
    with Obedient() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
