"""Tools of Anthropic's Messages API, and the choice among them, in the form that `Sampling` holds. Pure functions.

Tools that the vendor runs itself, or knows by heart, are refused: nothing here could run them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.api.bodies import check_depth
from app.api.v1.common import check_storable
from app.api.v1.messages_bodies import Tool, ToolChoice, ToolChoiceAny, ToolChoiceNone, ToolChoiceTool, convert
from app.api.v1.messages_parts import with_marker, wrong
from app.api.v1.schemas import check_schema

Choice = str | Mapping[str, Any] | None
"""As `Sampling.tool_choice` holds it."""


def tools_of(tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The tools, checked one by one. Raises InvalidRequest."""
    found = tuple(_tool(tool, f"tools.{number}") for number, tool in enumerate(tools))
    if len({tool["function"]["name"] for tool in found}) != len(found):
        raise wrong("tools", "tool names must be unique")
    return found


def tool_choice(choice: ToolChoice | None, tools: Sequence[Mapping[str, Any]]) -> tuple[Choice, bool | None]:
    """``Sampling.tool_choice`` and ``.parallel_tool_calls``. Raises InvalidRequest for a choice of what is not there."""
    if choice is None or isinstance(choice, ToolChoiceNone):
        return ("none" if choice is not None and tools else None), None
    parallel = None if choice.disable_parallel_tool_use is None else not choice.disable_parallel_tool_use
    if not tools:
        if isinstance(choice, ToolChoiceAny | ToolChoiceTool):
            raise wrong("tool_choice", "it asks for a tool, and there are no tools")
        return None, None
    if isinstance(choice, ToolChoiceAny):
        return "required", parallel
    if isinstance(choice, ToolChoiceTool):
        if all(tool["function"]["name"] != choice.name for tool in tools):
            raise wrong("tool_choice.name", "no tool in tools has this name")
        return {"type": "function", "function": {"name": choice.name}}, parallel
    return "auto", parallel


def _tool(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    if raw.get("type") not in (None, "custom"):
        raise wrong(f"{where}.type", "this service runs no tools of the vendor's; describe one by name and input_schema")
    tool = convert(raw, Tool, where)
    if tool.defer_loading:
        raise wrong(f"{where}.defer_loading", "there is no search for tools here; leave it out")
    function: dict[str, Any] = {"name": tool.name, "parameters": _schema(tool, where)}
    if tool.description is not None:
        function["description"] = check_storable(tool.description, field=f"{where}.description")
    if tool.strict is not None:
        function["strict"] = tool.strict
    return with_marker({"type": "function", "function": function}, tool.cache_control)


def _schema(tool: Tool, where: str) -> Mapping[str, Any]:
    """The schema of the input; the caller's examples go where JSON schema has a place for them."""
    schema = tool.input_schema
    if schema.get("type") != "object":
        raise wrong(f"{where}.input_schema.type", "it must be object")
    check_schema(schema, field=f"{where}.input_schema")
    if not tool.input_examples:
        return schema
    check_depth(tool.input_examples, field=f"{where}.input_examples")
    return {**schema, "examples": tool.input_examples}
