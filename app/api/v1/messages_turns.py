"""What a body of Anthropic's Messages API asks for, in the words of `app.core.types`. Pure functions.

Nothing is lost on the way to a provider that speaks the same format: thinking, markers of cacheable prefixes, documents and the
order of blocks arrive as they came. Our messages hold thinking, then text, then tool calls; blocks in another order become
several messages of the same role. Refused is what contradicts itself, or has no meaning where it stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from app.api.bodies import check_depth
from app.api.v1.common import check_storable, model_name
from app.api.v1.messages_bodies import (
    Block,
    CountBody,
    MessagesBody,
    RedactedThinkingBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from app.api.v1.messages_parts import Part, content_of, marker_of, part_of, with_marker, wrong
from app.api.v1.messages_tools import tool_choice, tools_of
from app.api.v1.schemas import json_schema_format
from app.core.types import GenerationRequest, Message, Sampling

_ROLES: Final = {
    "text": ("user", "assistant", "system"),
    "image": ("user",),
    "document": ("user",),
    "search_result": ("user",),
    "tool_result": ("user",),
    "tool_use": ("assistant",),
    "thinking": ("assistant",),
    "redacted_thinking": ("assistant",),
}
_encode = msgspec.json.Encoder().encode


def to_request(
    body: CountBody,
    *,
    request_id: str,
    prediction_id: str | None = None,
    whole: bool = False,
) -> GenerationRequest:
    """The call as ``models`` takes it; all but ``body`` as in `GenerationRequest`. Raises InvalidRequest, with the place."""
    messages = _system(body)
    for number, turn in enumerate(body.messages):
        messages += _turn(turn, f"messages.{number}")
    if all(message.role == "system" for message in messages):
        raise wrong("messages", "at least one message must be the user's or the assistant's")
    if body.cache_control is not None:
        messages[-1] = _marked(messages[-1], marker_of(body.cache_control))
    return GenerationRequest(
        messages=tuple(messages),
        model=model_name(body.model),
        sampling=_sampling(body),
        request_id=request_id,
        prediction_id=prediction_id,
        whole=whole,
    )


def _sampling(body: CountBody) -> Sampling:
    tools = tools_of(body.tools or [])
    choice, parallel = tool_choice(body.tool_choice, tools)
    fields: dict[str, Any] = {
        "response_format": _response_format(body),
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "reasoning_effort": None if body.output_config is None else body.output_config.effort,
        "thinking": None if body.thinking is None else msgspec.to_builtins(body.thinking),
    }
    if isinstance(body, MessagesBody):
        fields |= {
            "max_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k or None,  # 0 is the vendor's word for no limit
            "stop": tuple(check_storable(stop, field="stop_sequences") for stop in body.stop_sequences or ()),
        }
    return Sampling(**fields)


def _response_format(body: CountBody) -> dict[str, Any] | None:
    """``output_config.format``, or ``output_format``, as it was called before."""
    inner = None if body.output_config is None else body.output_config.format
    if inner is not None and body.output_format is not None:
        raise wrong("output_format", "output_config.format says the same; send one of them")
    form = inner or body.output_format
    if form is None:
        return None
    place = "output_config.format.schema" if inner is not None else "output_format.schema"
    return json_schema_format(form.schema, name="answer", strict=True, description=None, field=place)


def _system(body: CountBody) -> list[Message]:
    if not body.system:
        return []
    if isinstance(body.system, str):
        return [Message("system", check_storable(body.system, field="system"))]
    return [Message("system", content_of([part_of(block, f"system.{n}") for n, block in enumerate(body.system)]))]


def _turn(turn: Turn, where: str) -> list[Message]:
    """One turn as messages; several where ours have no place for its order, or for the results of tools."""
    if turn.role != "assistant" and not (turn.content.strip() if isinstance(turn.content, str) else turn.content):
        raise wrong(f"{where}.content", f"{turn.role} messages must have non-empty content")
    if isinstance(turn.content, str):
        return [Message(turn.role, check_storable(turn.content, field=f"{where}.content"))]
    for number, block in enumerate(turn.content):
        kind = str(block.__struct_config__.tag)
        if turn.role not in _ROLES[kind]:
            raise wrong(f"{where}.content.{number}", f"{kind} blocks are not allowed in {turn.role} messages")
    if turn.role == "assistant":
        return _assistant(turn.content, where)
    if turn.role == "system":
        return [Message("system", content_of([part_of(block, f"{where}.content.{n}") for n, block in enumerate(turn.content)]))]
    return _user(turn.content, where)


def _user(blocks: Sequence[Block], where: str) -> list[Message]:
    """The results of tools are messages of their own, in their place among the others."""
    messages: list[Message] = []
    parts: list[Part] = []
    for number, block in enumerate(blocks):
        place = f"{where}.content.{number}"
        if not isinstance(block, ToolResultBlock):
            parts.append(part_of(block, place))
            continue
        if parts:
            messages.append(Message("user", content_of(parts)))
            parts = []
        messages.append(_tool_result(block, place))
    if parts:
        messages.append(Message("user", content_of(parts)))
    return messages


def _assistant(blocks: Sequence[Block], where: str) -> list[Message]:
    """Thinking, text and calls in this order make one message; what steps back in the order begins another."""
    messages: list[Message] = []
    thinking: list[Part] = []
    parts: list[Part] = []
    calls: list[Part] = []

    def close() -> None:
        content = content_of(parts) if parts or not calls else None
        messages.append(Message("assistant", content, tool_calls=tuple(calls), reasoning=tuple(thinking)))

    for number, block in enumerate(blocks):
        place = f"{where}.content.{number}"
        is_thought = isinstance(block, ThinkingBlock | RedactedThinkingBlock)
        if (calls and not isinstance(block, ToolUseBlock)) or (parts and is_thought):
            close()
            thinking, parts, calls = [], [], []
        if isinstance(block, ThinkingBlock | RedactedThinkingBlock):
            thinking.append(_thinking(block, place))
        elif isinstance(block, ToolUseBlock):
            calls.append(_tool_use(block, place))
        else:
            parts.append(part_of(block, place))
    close()
    return messages


def _thinking(block: ThinkingBlock | RedactedThinkingBlock, where: str) -> Part:
    fields: Part = msgspec.to_builtins(block)
    for name, value in fields.items():
        check_storable(value, field=f"{where}.{name}")
    return fields


def _tool_use(block: ToolUseBlock, where: str) -> Part:
    check_depth(block.input, field=f"{where}.input")
    function = {"name": check_storable(block.name, field=f"{where}.name"), "arguments": _encode(block.input).decode()}
    call = {"id": check_storable(block.id, field=f"{where}.id"), "type": "function", "function": function}
    return with_marker(call, block.cache_control)


def _tool_result(block: ToolResultBlock, where: str) -> Message:
    if block.content is None or isinstance(block.content, str):
        content: str | list[Part] = check_storable(block.content or "", field=f"{where}.content")
    else:
        content = content_of([part_of(part, f"{where}.content.{n}") for n, part in enumerate(block.content)])
    return Message(
        "tool",
        content,
        tool_call_id=check_storable(block.tool_use_id, field=f"{where}.tool_use_id"),
        is_error=bool(block.is_error),
        cache_control=None if block.cache_control is None else marker_of(block.cache_control),
    )


def _marked(message: Message, marker: Part) -> Message:
    """``message`` with the marker on its last block, unless that has one."""
    if message.role == "tool":
        return dataclasses.replace(message, cache_control=message.cache_control or marker)
    if message.tool_calls:
        *calls, last = message.tool_calls
        return dataclasses.replace(message, tool_calls=(*calls, {"cache_control": marker, **last}))
    if not message.content:
        return message
    parts = [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content
    return dataclasses.replace(message, content=[*parts[:-1], {"cache_control": marker, **parts[-1]}])
