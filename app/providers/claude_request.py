"""Our request as a body of Anthropic's Messages API. No I/O, no defaults but the obligatory ``max_tokens``.

What the format cannot say is refused by name, never left out in silence. No loss, and left out: ``seed`` (a wish by
definition), penalties of zero, names of speakers, and texts of white space alone, which the vendor refuses.
Thinking blocks go back unchanged, without those of other models: only a block with a signature is the vendor's.

Whether a value is one that this model of the vendor's takes (newer ones know no ``temperature``, older ones no effort) is the
vendor's to say; its refusal comes back as InvalidRequest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from app.core.errors import InvalidRequest
from app.core.types import GenerationRequest, Message, Sampling
from app.providers.claude_parts import Block, blocks, marked, text_blocks

_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_UNCOUNTED = ("max_tokens", "stop_sequences", "temperature", "top_p", "top_k")
"""What the counting of tokens does not take."""


def messages_body(request: GenerationRequest, *, model: str, max_tokens: int) -> dict[str, Any]:
    """The body of ``POST /v1/messages``, without ``stream``.

    Args:
        model: the vendor's name of the model.
        max_tokens: longest answer where the request names none; the format demands one.

    Raises:
        InvalidRequest: something that the format cannot say, or that is wrong by itself; ``field`` names it.
    """
    _check(request)
    sampling = request.sampling
    system, turns = _turns(request.messages)
    plain: dict[str, Any] = {
        "max_tokens": max_tokens if sampling.max_tokens is None else sampling.max_tokens,
        "messages": turns,
        "system": system or None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop_sequences": _stop(sampling.stop) or None,
        "tools": [_tool(tool) for tool in sampling.tools] or None,
        "tool_choice": _tool_choice(sampling),
        "thinking": _thinking(sampling),
        "output_config": _output_config(sampling) or None,
    }
    return {"model": model, **{name: value for name, value in plain.items() if value is not None}}


def count_body(request: GenerationRequest, *, model: str) -> dict[str, Any]:
    """The body of ``POST /v1/messages/count_tokens``. Raises as `messages_body`."""
    body = messages_body(request, model=model, max_tokens=1)
    return {name: value for name, value in body.items() if name not in _UNCOUNTED}


def _check(request: GenerationRequest) -> None:
    sampling = request.sampling
    for name, unsaid in (
        ("logprobs", sampling.logprobs is not None),
        ("logit_bias", bool(sampling.logit_bias)),
        ("presence_penalty", bool(sampling.presence_penalty)),
        ("frequency_penalty", bool(sampling.frequency_penalty)),
    ):
        if unsaid:
            raise InvalidRequest(f"This model's provider knows no {name}; leave it out.", field=name)
    if request.raw:
        raise InvalidRequest("This model takes messages, not a bare prompt; use a chat endpoint.", field="prompt")
    if sampling.temperature is not None and not 0 <= sampling.temperature <= 1:
        raise InvalidRequest("This model's provider takes a temperature between 0 and 1.", field="temperature")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise InvalidRequest("max_tokens must be at least 1.", field="max_tokens")


def _turns(messages: Sequence[Message]) -> tuple[list[Block], list[dict[str, Any]]]:
    """System blocks, and turns whose roles alternate. All system messages go to the top: the format has one place for them."""
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message.role in ("system", "developer"):
            system += text_blocks(message.content, where)
            continue
        role, content = _turn(message, where)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += content
        elif content:
            turns.append({"role": role, "content": content})
    if not turns:
        raise InvalidRequest("messages has no text for the model to answer.", field="messages")
    return system, turns


def _turn(message: Message, where: str) -> tuple[str, list[Block]]:
    if message.role == "tool":
        return "user", [_tool_result(message, where)]
    content = blocks(message.content, where)
    if message.role == "user":
        return "user", content
    thinking = [dict(block) for block in message.reasoning if _is_vendors(block)]
    return "assistant", thinking + content + [_tool_use(call, where) for call in message.tool_calls]


def _is_vendors(block: Mapping[str, Any]) -> bool:
    return bool(block.get("data") if block.get("type") == "redacted_thinking" else block.get("signature"))


def _tool_result(message: Message, where: str) -> Block:
    if not message.tool_call_id:
        raise InvalidRequest(f"{where}.tool_call_id must name the tool call that this is the result of.", field="messages")
    result: Block = {"type": "tool_result", "tool_use_id": message.tool_call_id}
    content = blocks(message.content, where)
    if content:
        result["content"] = content
    if message.is_error:
        result["is_error"] = True
    return marked(result, {"cache_control": message.cache_control})


def _tool_use(call: Mapping[str, Any], where: str) -> Block:
    function = call.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if call.get("type", "function") != "function" or not isinstance(function, Mapping) or not name:
        raise InvalidRequest(f"{where}.tool_calls: this model knows calls of functions only.", field="messages")
    block = {"type": "tool_use", "id": call.get("id"), "name": name, "input": _arguments(function.get("arguments"), where)}
    return marked(block, call)


def _arguments(written: Any, where: str) -> dict[str, Any]:
    """The arguments of a call as the object that they are in JSON; none at all are an empty one."""
    if not written or (isinstance(written, str) and not written.strip()):
        return {}
    try:
        value = msgspec.json.decode(written) if isinstance(written, str) else written
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}.tool_calls: the arguments must be a JSON object, as a string.", field="messages")
    return value


def _tool(tool: Mapping[str, Any]) -> Block:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, Mapping) or not function.get("name"):
        raise InvalidRequest("tools: this model knows functions with a name only.", field="tools")
    schema = function.get("parameters")
    if schema is not None and not isinstance(schema, Mapping):
        raise InvalidRequest("tools: parameters must be a JSON schema.", field="tools")
    made: Block = {"name": function["name"], "input_schema": schema or {"type": "object", "properties": {}}}
    for name in ("description", "strict"):
        if function.get(name) is not None:
            made[name] = function[name]
    return marked(marked(made, function), tool)


def _tool_choice(sampling: Sampling) -> dict[str, Any] | None:
    wanted = sampling.tool_choice
    if not sampling.tools:
        if wanted in (None, "auto", "none"):
            return None
        raise InvalidRequest("tool_choice asks for a tool, and tools has none.", field="tool_choice")
    choice = _chosen(wanted)
    if choice["type"] != "none" and sampling.parallel_tool_calls is not None:
        choice["disable_parallel_tool_use"] = not sampling.parallel_tool_calls
    elif wanted is None:
        return None
    return choice


def _chosen(wanted: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(wanted, Mapping):
        function = wanted.get("function")
        if wanted.get("type") == "function" and isinstance(function, Mapping) and function.get("name"):
            return {"type": "tool", "name": function["name"]}
    else:
        kind = {None: "auto", "auto": "auto", "none": "none", "required": "any"}.get(wanted)
        if kind is not None:
            return {"type": kind}
    raise InvalidRequest("tool_choice must be auto, none, required, or name a function.", field="tool_choice")


def _stop(stop: Sequence[str]) -> list[str]:
    if any(not each.strip() for each in stop):
        raise InvalidRequest("This model's provider takes no stop texts of white space alone.", field="stop")
    return list(stop)


def _thinking(sampling: Sampling) -> dict[str, Any] | None:
    """``thinking`` as given; an effort of ``none`` turns it off. With neither, the model's own habit."""
    if sampling.thinking is not None:
        if sampling.reasoning_effort == "none" and sampling.thinking.get("type") != "disabled":
            raise InvalidRequest("reasoning_effort is none, and thinking asks for some.", field="reasoning_effort")
        return dict(sampling.thinking)
    return {"type": "disabled"} if sampling.reasoning_effort == "none" else None


def _output_config(sampling: Sampling) -> dict[str, Any]:
    """Effort and form of the answer. The vendor's scale starts at ``low``, which stands for ``minimal`` too."""
    config: dict[str, Any] = {}
    effort = sampling.reasoning_effort
    if effort is not None and effort != "none":
        if effort not in _EFFORTS:
            raise InvalidRequest(f"reasoning_effort must be none or one of {', '.join(_EFFORTS)}.", field="reasoning_effort")
        config["effort"] = _EFFORTS[effort]
    schema = _schema(sampling.response_format)
    if schema is not None:
        config["format"] = {"type": "json_schema", "schema": schema}
    return config


def _schema(form: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if form is None or form.get("type") == "text":
        return None
    named = form.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if form.get("type") == "json_schema" and isinstance(schema, Mapping):
        return schema
    raise InvalidRequest(
        "This model's provider gives JSON by a schema only: use the type json_schema, with a schema.", field="response_format"
    )
