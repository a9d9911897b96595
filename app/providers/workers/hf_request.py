"""One request of the OpenAI chat format, checked and turned into what the batch works with. Pure data: no torch, no HTTP.

The worker's only caller is our own service, which has checked these bounds before; they are checked again because a worker
that a strange number can stop is a worker that one caller can stop for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MOST_STOPS = 16
_MOST_BIASES = 1024
_MOST_LOGPROBS = 20


class BadRequest(Exception):
    """The request cannot be worked on. ``kind`` is the error's type on the wire; ``extra`` more fields of it."""

    def __init__(self, message: str, *, kind: str = "invalid_request_error", **extra: Any) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.extra = extra


@dataclass(frozen=True, slots=True)
class Params:
    """How one answer is sampled. ``temperature`` 0 is greedy; ``logprobs`` None: none, else how many alternatives a token."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """A checked request: messages as a chat template takes them, sampling, and whether to stream."""

    messages: list[dict[str, Any]]
    params: Params
    stream: bool
    usage_chunk: bool


def parse_chat(body: object) -> Chat:
    """Reads a ``/v1/chat/completions`` body. Unknown fields are ignored, as all servers of the format do.

    Raises:
        BadRequest: a field is missing, of the wrong type or out of bounds, or asks for what this engine cannot do.
    """
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    _refuse_unsupported(body)
    options = body.get("stream_options")
    return Chat(
        messages=parse_messages(body),
        params=parse_params(body),
        stream=body.get("stream") is True,
        usage_chunk=isinstance(options, dict) and options.get("include_usage") is True,
    )


def parse_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages with text content only; a ``developer`` is a ``system`` to the models of this format."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message.")
    return [_message(message) for message in messages]


def parse_params(body: Mapping[str, Any]) -> Params:
    """The sampling fields of a body."""
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    return Params(
        max_tokens=None if most is None else _integer("max_tokens", most, 1, 1 << 31),
        temperature=_number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(body, "top_p", 1.0, 0.0, 1.0),
        stop=_stops(body.get("stop")),
        seed=None if body.get("seed") is None else _integer("seed", body["seed"], -(1 << 63), (1 << 64) - 1),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2.0, 2.0),
        logit_bias=_biases(body.get("logit_bias")),
        logprobs=_logprobs(body),
    )


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    if body.get("n") not in (None, 1):
        raise BadRequest("n must be 1.", param="n")
    if body.get("tools"):
        raise BadRequest("This engine does not call tools.", param="tools")
    wanted = body.get("response_format")
    if wanted is not None and (not isinstance(wanted, dict) or wanted.get("type", "text") != "text"):
        raise BadRequest("This engine gives plain text; it has no response_format.", param="response_format")


def _message(message: object) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest("Each message must be an object with a role.")
    role = "system" if message["role"] == "developer" else message["role"]
    if role not in ("system", "user", "assistant", "tool"):
        raise BadRequest("A message's role must be system, developer, user, assistant or tool.")
    out: dict[str, Any] = {"role": role, "content": _content(message.get("content"))}
    for key in ("name", "tool_call_id"):
        if isinstance(message.get(key), str):
            out[key] = message[key]
    if isinstance(message.get("tool_calls"), list) and message["tool_calls"]:
        out["tool_calls"] = message["tool_calls"]
    return out


def _content(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest("A message's content must be text or a list of text parts.")
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise BadRequest("This model takes text only; a message holds a part of another kind.")
        texts.append(part["text"])
    return "".join(texts)


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise BadRequest(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{name} must be a whole number from {low} to {high}.")
    return value


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequest(f"stop must be a string or a list of at most {_MOST_STOPS} strings, none of them empty.")
    return tuple(stops)


def _biases(value: object) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MOST_BIASES:
        raise BadRequest(f"logit_bias must be an object with at most {_MOST_BIASES} entries.")
    biases = {}
    for token, bias in value.items():
        if not (isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10):
            raise BadRequest("logit_bias must map token numbers to biases.", param="logit_bias")
        biases[int(token)] = _number({"logit_bias": bias}, "logit_bias", 0.0, -100.0, 100.0)
    return biases


def _logprobs(body: Mapping[str, Any]) -> int | None:
    wanted, top = body.get("logprobs"), body.get("top_logprobs")
    if wanted is None or wanted is False:
        if top:
            raise BadRequest("top_logprobs needs logprobs: true.")
        return None
    if wanted is not True:
        raise BadRequest("logprobs must be true or false.")
    return 0 if top is None else _integer("top_logprobs", top, 0, _MOST_LOGPROBS)
