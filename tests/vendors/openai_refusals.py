"""What OpenAI refuses, in its words: the documented errors by name, and what it says to fields that it does not take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.vendors.replay import Reply, as_json

_REASONING = re.compile(r"o[0-9]|gpt-5")
_CHAT_FIELDS = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "stop",
        "seed",
        "n",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning_effort",
        "user",
        "metadata",
        "store",
        "service_tier",
        "verbosity",
        "modalities",
        "audio",
        "prediction",
        "safety_identifier",
        "prompt_cache_key",
    }
)
_PART_FIELDS = {
    "text": {"type", "text"},
    "refusal": {"type", "refusal"},
    "image_url": {"type", "image_url"},
    "input_audio": {"type", "input_audio"},
    "file": {"type", "file"},
}
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "audio", "function_call"})
LIMITS = {
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-limit-tokens": "30000000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-remaining-tokens": "29999987",
    "x-ratelimit-reset-requests": "6ms",
    "x-ratelimit-reset-tokens": "0s",
}
HEADERS = {"openai-organization": "org-test", "openai-processing-ms": "42", "openai-version": "2020-10-01", **LIMITS}


_FAILURES: dict[str, tuple[int, str, str, str | None, str | None, Mapping[str, str]]] = {
    "bad_parameter": (400, "Invalid value for 'temperature'.", "invalid_request_error", "temperature", "invalid_value", {}),
    "context_length": (
        400,
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 130011 tokens. "
        "Please reduce the length of the messages.",
        "invalid_request_error",
        "messages",
        "context_length_exceeded",
        {},
    ),
    "invalid_key": (401, "Incorrect API key provided: {key}.", "invalid_request_error", None, "invalid_api_key", {}),
    "region": (
        403,
        "Country, region, or territory not supported",
        "request_forbidden",
        None,
        "unsupported_country_region_territory",
        {},
    ),
    "no_model": (
        404,
        "The model `nope` does not exist or you do not have access to it.",
        "invalid_request_error",
        None,
        "model_not_found",
        {},
    ),
    "rate_limit": (
        429,
        "Rate limit reached for gpt-4o in organization org-test on requests per min (RPM): Limit 500, Used 500. "
        "Please try again in 7s.",
        "requests",
        None,
        "rate_limit_exceeded",
        {"retry-after": "7", "retry-after-ms": "7000", "x-ratelimit-remaining-requests": "0"},
    ),
    "rate_limit_bare": (429, "Rate limit reached.", "tokens", None, "rate_limit_exceeded", {}),
    "quota": (
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        None,
        "insufficient_quota",
        {},
    ),
    "server_error": (500, "The server had an error while processing your request.", "server_error", None, None, {}),
    "overloaded": (503, "The engine is currently overloaded, please try again later.", "server_error", None, None, {}),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One of the vendor's documented errors, by name."""

    name: str

    def reply(self, key: str) -> Reply:
        """The answer; some repeat the caller's ``key``."""
        status, message, kind, param, code, headers = _FAILURES[self.name]
        body = error_body(message.replace("{key}", key), kind, param, code)
        return as_json(body, status, {**HEADERS, **headers, "x-request-id": "req_test"})


def failure(name: str) -> Failure:
    """``bad_parameter``, ``context_length``, ``invalid_key``, ``region``, ``no_model``, ``rate_limit`` (with Retry-After),
    ``rate_limit_bare`` (without), ``quota``, ``server_error``, ``overloaded``.
    """
    assert name in _FAILURES
    return Failure(name)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The vendor's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(body: Mapping[str, Any]) -> Reply | None:
    """The vendor's 400 for fields it does not know, and for what reasoning models do not take."""
    for unknown in _unknown_fields(body):
        return as_json(
            error_body(f"Unknown parameter: '{unknown}'.", "invalid_request_error", unknown, "unknown_parameter"), 400
        )
    if not _REASONING.match(body["model"]):
        return None
    if "max_tokens" in body:
        text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return as_json(error_body(text, "invalid_request_error", "max_tokens", "unsupported_parameter"), 400)
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logprobs"):
        if body.get(name, 1) != 1:
            text = f"Unsupported value: '{name}' does not support {body[name]} with this model. Only the default is supported."
            return as_json(error_body(text, "invalid_request_error", name, "unsupported_value"), 400)
    return None


def _unknown_fields(body: Mapping[str, Any]) -> Iterator[str]:
    yield from sorted(body.keys() - _CHAT_FIELDS)
    for number, message in enumerate(body["messages"]):
        yield from (f"messages[{number}].{name}" for name in sorted(message.keys() - _MESSAGE_FIELDS))
        for place, part in enumerate(message["content"] if isinstance(message.get("content"), list) else ()):
            known = _PART_FIELDS.get(part["type"], set())
            yield from (f"messages[{number}].content[{place}].{name}" for name in sorted(part.keys() - known))
    for number, tool in enumerate(body.get("tools") or ()):
        yield from (f"tools[{number}].{name}" for name in sorted(tool.keys() - {"type", "function", "custom"}))
