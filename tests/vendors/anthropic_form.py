"""The documented form of a request to Anthropic's Messages API, as a check as strict as the vendor's: no extra fields."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

_Check = Callable[[Any], bool]
_Form = Mapping[str, _Check]

_CACHE = re.compile(r"5m|1h")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")


def complaint(body: Any, *, counting: bool, sampling: bool = True) -> str | None:
    """What the vendor would say against ``body``, or None. ``sampling``: in the version that still has temperatures."""
    if not isinstance(body, dict):
        return "Input should be a valid dictionary"
    absent = (_ONLY_TO_ANSWER if counting else ()) + (() if sampling else _SAMPLING)
    fields = {name: check for name, check in _FIELDS.items() if name not in absent}
    required = ("model", "messages") if counting else ("model", "messages", "max_tokens")
    for name in required:
        if name not in body:
            return f"{name}: Field required"
    for name, value in body.items():
        if name not in fields:
            return f"{name}: Extra inputs are not permitted"
        if not fields[name](value):
            return f"{name}: Input is not valid"
    return _turns_complaint(body["messages"])


def _turns_complaint(turns: list[dict[str, Any]]) -> str | None:
    calls: set[str] = set()
    for number, turn in enumerate(turns):
        content = turn["content"] if isinstance(turn["content"], list) else []
        kinds = [block["type"] for block in content]
        results = {block["tool_use_id"] for block in content if block["type"] == "tool_result"}
        if turn["role"] == "user" and (results != calls or "tool_result" in kinds[len(results) :]):
            return f"messages.{number}: each `tool_use` block must have a corresponding `tool_result` block in the next message"
        calls = {block["id"] for block in content if block["type"] == "tool_use"}
        if turn["role"] == "assistant" and "tool_result" in kinds:
            return f"messages.{number}: `tool_result` blocks can only be in `user` messages"
        if turn["role"] == "user" and {"tool_use", "thinking", "redacted_thinking"} & set(kinds):
            return f"messages.{number}: a block that is for `assistant` messages only"
    return None


def _is(kind: type | tuple[type, ...]) -> _Check:
    return lambda value: isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def _one_of(*values: Any) -> _Check:
    return lambda value: value in values


def _matches(pattern: re.Pattern[str]) -> _Check:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _list_of(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and bool(value) and all(check(each) for each in value)


def _form(required: _Form, optional: _Form | None = None) -> _Check:
    known = {**required, **(optional or {})}

    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and required.keys() <= value.keys() <= known.keys()
            and all(known[name](each) for name, each in value.items())
        )

    return check


def _any_form(*checks: _Check) -> _Check:
    return lambda value: any(check(value) for check in checks)


def _base64(value: Any) -> bool:
    return isinstance(value, str) and bool(base64.b64decode(value, validate=True))


_some_text: _Check = lambda value: isinstance(value, str) and bool(value.strip())  # noqa: E731
_number_to_one: _Check = lambda value: isinstance(value, int | float) and 0 <= value <= 1  # noqa: E731
_count: _Check = lambda value: isinstance(value, int) and value >= 1  # noqa: E731
_https: _Check = lambda value: isinstance(value, str) and value.lower().startswith("https://")  # noqa: E731

_cached = {"cache_control": _form({"type": _one_of("ephemeral")}, {"ttl": _matches(_CACHE)})}
_url = _form({"type": _one_of("url"), "url": _https})
_text = _form({"type": _one_of("text"), "text": _some_text}, {**_cached, "citations": _is(list)})
_image_bytes = _form({"type": _one_of("base64"), "media_type": _one_of(*_IMAGES), "data": _base64})
_image = _form({"type": _one_of("image"), "source": _any_form(_image_bytes, _url)}, _cached)
_pdf = _form({"type": _one_of("base64"), "media_type": _one_of("application/pdf"), "data": _base64})
_plain = _form({"type": _one_of("text"), "media_type": _one_of("text/plain"), "data": _is(str)})
_pieces = _form({"type": _one_of("content"), "content": _any_form(_is(str), _list_of(_any_form(_text, _image)))})
_document = _form(
    {"type": _one_of("document"), "source": _any_form(_pdf, _plain, _url, _pieces)},
    {**_cached, "title": _is(str), "context": _is(str), "citations": _is(dict)},
)
_tool_use = _form(
    {"type": _one_of("tool_use"), "id": _matches(_NAME), "name": _matches(_NAME), "input": _is(dict)}, {**_cached}
)
_thinking = _form({"type": _one_of("thinking"), "thinking": _is(str), "signature": _some_text})
_redacted = _form({"type": _one_of("redacted_thinking"), "data": _some_text})
_search_result = _form(
    {"type": _one_of("search_result"), "source": _some_text, "title": _some_text, "content": _list_of(_text)},
    {**_cached, "citations": _is(dict)},
)
_tool_result = _form(
    {"type": _one_of("tool_result"), "tool_use_id": _matches(_NAME)},
    {
        **_cached,
        "content": _any_form(_is(str), _list_of(_any_form(_text, _image, _document, _search_result))),
        "is_error": _is(bool),
    },
)
_block = _any_form(_text, _image, _document, _search_result, _tool_use, _tool_result, _thinking, _redacted)
_turn = _form({"role": _one_of("user", "assistant"), "content": _any_form(_some_text, _list_of(_block))})
_tool = _form(
    {"name": _matches(_NAME), "input_schema": _is(dict)},
    {**_cached, "description": _is(str), "strict": _is(bool), "type": _one_of("custom")},
)
_display = {"display": _one_of("summarized", "omitted")}
_parallel = {"disable_parallel_tool_use": _is(bool)}

_SAMPLING = ("temperature", "top_p", "top_k")
_ONLY_TO_ANSWER = ("max_tokens", "stream", "stop_sequences", "metadata", *_SAMPLING)
_FIELDS: _Form = {
    "model": _some_text,
    "messages": _list_of(_turn),
    "max_tokens": _count,
    "stream": _is(bool),
    "system": _any_form(_some_text, _list_of(_text)),
    "stop_sequences": _list_of(_some_text),
    "temperature": _number_to_one,
    "top_p": _number_to_one,
    "top_k": _count,
    "metadata": _is(dict),
    "tools": _list_of(_tool),
    "tool_choice": _any_form(
        _form({"type": _one_of("auto", "any")}, _parallel),
        _form({"type": _one_of("none")}),
        _form({"type": _one_of("tool"), "name": _matches(_NAME)}, _parallel),
    ),
    "thinking": _any_form(
        _form({"type": _one_of("enabled"), "budget_tokens": lambda value: isinstance(value, int) and value >= 1024}, _display),
        _form({"type": _one_of("adaptive")}, _display),
        _form({"type": _one_of("disabled", "between_tools")}),
    ),
    "output_config": _form(
        {},
        {
            "effort": _one_of("low", "medium", "high", "xhigh", "max"),
            "format": _form({"type": _one_of("json_schema"), "schema": _is(dict)}),
        },
    ),
}
