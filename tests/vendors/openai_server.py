"""A double of OpenAI's API: the documented wire format of chat completions, completions, embeddings and models, with errors.

Unscripted, it behaves like a small model that says the last message back, one word a token, and refuses what the vendor
refuses (`strict`). Scripted by `push`, it says exactly what a test wants: a `Completion`, a `failure`, or HTTP of any shape.

    async with OpenAIServer(key="sk-x") as server:
        server.push(Completion(text="Hello", pieces=("Hel", "lo")), failure("rate_limit"))
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.providers.echo_json import smallest_json
from tests.vendors.openai_refusals import HEADERS, Failure, error_body, failure, refusal
from tests.vendors.replay import Received, ReplayServer, Reply, Scripted, as_events, as_json

__all__ = ["Completion", "Failure", "OpenAIServer", "ToolCall", "error_body", "failure", "logprob"]

CREATED = 1_770_000_000
_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """``pieces``: the JSON arguments as the stream cuts them; joined, they are the arguments."""

    name: str
    pieces: Sequence[str]
    id: str = "call_1"


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer, sent whole or as a stream as the request asks. ``pieces``: how the stream cuts the text; else in one.

    ``reasoning``: what vLLM, DeepSeek and llama-server show of thinking, under the name ``reasoning_field``.
    ``logprobs``: one entry a piece. ``cut_after``: the stream ends after so many events, without its end. ``error_after``: an
    error object comes after so many events.
    """

    text: str | None = None
    pieces: Sequence[str] = ()
    tool_calls: Sequence[ToolCall] = ()
    refusal: str | None = None
    reasoning: Sequence[str] = ()
    reasoning_field: str = "reasoning_content"
    logprobs: Sequence[Mapping[str, Any]] = ()
    finish_reason: str | None = None
    prompt_tokens: int = 9
    completion_tokens: int = 12
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    pause_s: float = 0
    cut_after: int | None = None
    error_after: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """Why it ended."""
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")

    @property
    def usage(self) -> dict[str, Any]:
        """The ``usage`` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


def logprob(token: str, value: float = -0.1, *others: tuple[str, float]) -> dict[str, Any]:
    """One entry of ``logprobs.content``."""
    top = [(token, value), *others]
    entry = {"token": token, "logprob": value, "bytes": list(token.encode())}
    return {**entry, "top_logprobs": [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in top]}


class OpenAIServer(ReplayServer):
    """See the module.

    Args:
        key: what ``Authorization: Bearer`` must hold; None takes anyone.
        context_tokens: longest prompt in words; None: no limit.
        strict: refuse fields that the vendor does not know, and what its reasoning models do not take.
        models: what ``GET /v1/models`` lists.
    """

    def __init__(
        self,
        *,
        key: str | None = None,
        context_tokens: int | None = None,
        strict: bool = True,
        models: Sequence[str] = ("gpt-4o",),
    ) -> None:
        super().__init__()
        self._key = key
        self._context = context_tokens
        self._strict = strict
        self._models = models

    async def answer(self, request: Received) -> Scripted:
        """The small model, and the vendor's refusals."""
        if self._key is not None and request.headers.get("authorization") != f"Bearer {self._key}":
            return self.render(Failure("invalid_key"), request)
        if request.path == "/v1/models" and request.method == "GET":
            rows = [{"id": name, "object": "model", "created": CREATED, "owned_by": "openai"} for name in self._models]
            return as_json({"object": "list", "data": rows})
        if request.method == "POST" and request.path in ("/v1/chat/completions", "/v1/completions"):
            refused = refusal(request.body) if self._strict and "messages" in request.body else None
            return refused or self.render(self._say(request.body), request)
        if request.method == "POST" and request.path == "/v1/embeddings":
            return _embeddings(request.body)
        return await super().answer(request)

    def render(self, scripted: Any, request: Received) -> Scripted:
        """A `Completion` as the request wants it, a `Failure` as the vendor words it."""
        if isinstance(scripted, Failure):
            return scripted.reply(request.headers.get("authorization", "").removeprefix("Bearer "))
        if not isinstance(scripted, Completion):
            return super().render(scripted, request)
        return _rendered(scripted, request.body)

    def _say(self, body: Mapping[str, Any]) -> Completion | Failure:
        text = _prompt(body)
        prompt_tokens = len(_all_text(body).split())
        if self._context is not None and prompt_tokens >= self._context:
            return Failure("context_length")
        form = body.get("response_format")
        said = smallest_json(form, text) if form and form.get("type") != "text" else text
        stops = body.get("stop") or ()
        for stop in [stops] if isinstance(stops, str) else stops:
            said = said.split(stop)[0]
        words = _WORD.findall(said) or [said]
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 4096
        reason = "length" if len(words) > limit else "stop"
        words = words[:limit]
        entries = [logprob(word) for word in words] if body.get("logprobs") not in (None, False) else ()
        return Completion(
            text="".join(words),
            pieces=words,
            logprobs=entries,
            finish_reason=reason,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(words),
        )


def _rendered(said: Completion, body: Mapping[str, Any]) -> Reply:
    legacy = "prompt" in body
    if not body.get("stream"):
        whole = _whole_text(said, body) if legacy else _whole_chat(said, body)
        return as_json(whole, 200, {**HEADERS, **said.headers})
    usage = bool((body.get("stream_options") or {}).get("include_usage"))
    events: list[Any] = list(_chunks(said, body, legacy=legacy, usage=usage))
    cut = said.cut_after is not None
    if said.error_after is not None:
        events = [*events[: said.error_after], error_body("The server had an error.", "server_error")]
    elif cut:
        events = events[: said.cut_after]
    else:
        events.append("[DONE]")
    reply = as_events(events, pause_s=said.pause_s, cut=cut)
    return Reply(200, reply.pieces, {**reply.headers, **HEADERS, **said.headers}, said.pause_s, cut)


def _chunks(said: Completion, body: Mapping[str, Any], *, legacy: bool, usage: bool) -> Iterator[dict[str, Any]]:
    base: dict[str, Any] = {
        "id": "cmpl-B9MBs" if legacy else "chatcmpl-B9MBs",
        "object": "text_completion" if legacy else "chat.completion.chunk",
        "created": CREATED,
        "model": body["model"],
        "system_fingerprint": "fp_test",
        **({"usage": None} if usage else {}),
    }
    for choice in _text_choices(said) if legacy else _chat_choices(said):
        yield {**base, "choices": [{"index": 0, "logprobs": None, "finish_reason": None, **choice}]}
    if usage:
        yield {**base, "choices": [], "usage": said.usage}


def _chat_choices(said: Completion) -> Iterator[dict[str, Any]]:
    yield {"delta": {"role": "assistant", "content": None if said.tool_calls else "", "refusal": None}}
    for piece in said.reasoning:
        yield {"delta": {said.reasoning_field: piece}}
    for number, piece in enumerate(said.pieces or ([said.text] if said.text else [])):
        entry = {"content": [said.logprobs[number]], "refusal": None} if said.logprobs else None
        yield {"delta": {"content": piece}, "logprobs": entry}
    if said.refusal:
        yield {"delta": {"refusal": said.refusal}}
    for index, call in enumerate(said.tool_calls):
        head = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield {"delta": {"tool_calls": [head]}}
        for piece in call.pieces:
            yield {"delta": {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}}
    yield {"delta": {}, "finish_reason": said.reason}


def _text_choices(said: Completion) -> Iterator[dict[str, Any]]:
    for number, piece in enumerate(said.pieces or ([said.text] if said.text else [])):
        yield {"text": piece, "logprobs": _legacy(said.logprobs[number : number + 1])}
    yield {"text": "", "finish_reason": said.reason}


def _whole_text(said: Completion, body: Mapping[str, Any]) -> dict[str, Any]:
    choice = {"text": said.text, "index": 0, "logprobs": _legacy(said.logprobs), "finish_reason": said.reason}
    base = {"id": "cmpl-B9MBs", "object": "text_completion", "created": CREATED, "model": body["model"]}
    return {**base, "choices": [choice], "usage": said.usage}


def _legacy(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Log-probabilities as ``/v1/completions`` has them: lists side by side."""
    if not entries:
        return None
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries],
        "text_offset": [0 for _ in entries],
    }


def _whole_chat(said: Completion, body: Mapping[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": said.refusal, "annotations": []}
    if said.reasoning:
        message[said.reasoning_field] = "".join(said.reasoning)
    if said.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(call.pieces)}}
            for call in said.tool_calls
        ]
    logprobs = {"content": list(said.logprobs), "refusal": None} if said.logprobs else None
    return {
        "id": "chatcmpl-B9MBs",
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": said.reason}],
        "usage": said.usage,
        "service_tier": "default",
        "system_fingerprint": "fp_test",
    }


def _prompt(body: Mapping[str, Any]) -> str:
    if "prompt" in body:
        return str(body["prompt"])
    users = [message for message in body["messages"] if message["role"] == "user"]
    return _text(users[-1]) if users else "Hello."


def _all_text(body: Mapping[str, Any]) -> str:
    return str(body["prompt"]) if "prompt" in body else " ".join(_text(message) for message in body["messages"])


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _embeddings(body: Mapping[str, Any]) -> Reply:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    vectors = [_vector(text, body.get("dimensions") or 8) for text in texts]
    shown: list[Any] = vectors
    if body.get("encoding_format") == "base64":
        shown = [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]
    rows = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(shown)]
    tokens = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return as_json({"object": "list", "data": rows, "model": body["model"], "usage": usage})


def _vector(text: str, length: int) -> list[float]:
    digest = hashlib.shake_128(text.encode()).digest(length)
    return [byte / 256 for byte in digest]
