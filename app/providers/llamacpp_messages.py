"""A conversation in the words that llama.cpp's templates take: text only, nothing that speaks as another role.

For models whose chat template knows no tools, the system message tells of them, and calls and results stand in plain turns, in
the form that Hermes and Qwen models were trained on (ADR 0014). Only what the engine gets is rewritten, never the caller's own
messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.core.errors import InvalidRequest
from app.core.types import GenerationRequest, Message
from app.providers.llamacpp_calls import CLOSE, OPEN

_CONTROL = re.compile(
    r"<(?=\|[^|<>\s]{1,64}\|>|/?s>|/?(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn|tool_call|tool_response)>)|\[(?=/?INST\])"
)
_RESULT = "<tool_response>\n{}\n</tool_response>"
_INTRODUCTION = f"""You can call functions. To call one, write:
{OPEN}
{{"name": "function-name", "arguments": {{"parameter": "value"}}}}
{CLOSE}
Its result comes back as <tool_response>. {{when}}
Functions:
{{functions}}"""
_WHEN_AUTO = "Call a function when it helps to answer; else answer in plain words."
_WHEN_REQUIRED = "Now you must call a function."
_ONE = " Call one function at a time."


def inert(content: Any) -> Any:
    """Content whose words cannot be read as control tokens (``<|im_end|>``, ``</s>``, ``[INST]``).

    llama.cpp tokenizes the rendered template as a whole, so a text, a document or a memory that spells such a token could end
    its own turn and speak as another role. A zero-width space after the bracket keeps it readable and makes it plain text.
    """
    if isinstance(content, str):
        return _CONTROL.sub(lambda match: match.group() + "\u200b", content)
    if isinstance(content, list):
        return [{**part, "text": inert(part["text"])} if "text" in part else part for part in content]
    return content


def inert_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``tools`` whose descriptions are `inert`. Raises InvalidRequest where another of their texts spells a control token."""
    found = []
    for tool in tools:
        function = {name: value for name, value in tool["function"].items() if name in ("name", "description", "parameters")}
        found.append({"type": "function", "function": _inert_schema(function)})
    return found


def _inert_schema(value: Any, key: str | None = None) -> Any:
    if isinstance(value, dict):
        for name in value:
            _refuse_control(name)
        return {name: _inert_schema(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_inert_schema(item) for item in value]
    if isinstance(value, str):
        if key in ("description", "title", "$comment"):
            return inert(value)
        _refuse_control(value)
    return value


def _refuse_control(text: str) -> None:
    """Names and values must come back as they are, so they cannot be made harmless."""
    if _CONTROL.search(text):
        raise InvalidRequest("A tool's schema spells a control token of a model; write it otherwise.", field="tools")


def check_text_only(request: GenerationRequest) -> None:
    """Images and files are refused here: the engine would fetch what their addresses name."""
    for message in request.messages:
        if isinstance(message.content, list) and any(part.get("type") != "text" for part in message.content):
            raise InvalidRequest("This model takes text only; leave images, audio and files out.", field="messages")


def prompt_of(request: GenerationRequest) -> str:
    """The one text of a request with ``raw``."""
    content = request.messages[0].content if len(request.messages) == 1 else None
    if not isinstance(content, str):
        raise InvalidRequest("A prompt to go on from is one text.", field="prompt")
    return content


def native_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """For templates that know tools."""
    return [{**wire, "content": inert(wire["content"])} for wire in (message.to_wire() for message in messages)]


def plain_turns(messages: Sequence[Message], introduction: str | None) -> list[dict[str, Any]]:
    """For templates that know no tools: calls and results as text.

    Args:
        introduction: of the tools; joins the first system message, or becomes one.
    """
    turns: list[dict[str, Any]] = []
    results_last = False  # results and what the user says next are one turn: some templates want roles to alternate
    for message in messages:
        turn = _plain(message)
        if results_last and turn["role"] == "user":
            turns[-1]["content"] += "\n" + _text(turn["content"])
        else:
            turns.append(turn)
        results_last = message.role == "tool"
    if introduction is not None:
        _introduce(turns, introduction)
    return turns


def introduction_of(tools: Sequence[Mapping[str, Any]], *, forced: bool, parallel: bool) -> str:
    """What the model is told of ``tools`` (see `inert_tools`), one JSON line each."""
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    when = (_WHEN_REQUIRED if forced else _WHEN_AUTO) + ("" if parallel else _ONE)
    return _INTRODUCTION.replace("{when}", when).replace("{functions}", functions)


def _introduce(turns: list[dict[str, Any]], introduction: str) -> None:
    for turn in turns:
        if turn["role"] in ("system", "developer"):
            turn["content"] = f"{_text(turn['content'])}\n\n{introduction}"
            return
    turns.insert(0, {"role": "system", "content": introduction})


def _plain(message: Message) -> dict[str, Any]:
    wire = message.to_wire()
    content = inert(wire["content"])
    if message.role == "tool":
        text = _text(content)
        return {"role": "user", "content": _RESULT.format(f"Error: {text}" if message.is_error else text)}
    if message.tool_calls:
        parts = [text] if (text := _text(content)) else []
        return {"role": "assistant", "content": "\n".join([*parts, *map(_call, wire["tool_calls"])])}
    return {**wire, "content": content}


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function") or {}
    arguments = function.get("arguments") or "{}"
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f'{OPEN}\n{{"name": {json.dumps(inert(str(function.get("name", ""))))}, "arguments": {inert(arguments)}}}\n{CLOSE}'


def _text(content: Any) -> str:
    """Content (made of text parts only, see `check_text_only`) as one text."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else ""
