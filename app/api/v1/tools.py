"""Tools and the choice among them, as OpenAI's formats send them: checked, and brought into the form that `Sampling` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from app.api.v1.common import check_storable, refuse
from app.api.v1.schemas import check_schema
from app.core.errors import InvalidRequest

MAX_TOOLS: Final = 128
MAX_DESCRIPTION: Final = 16_384
ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$", max_length=64)]
Description = Annotated[str, Meta(max_length=MAX_DESCRIPTION)]
Choice = str | Mapping[str, Any] | None
"""As `Sampling.tool_choice` holds it."""


class FunctionBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A function that the model may call. ``parameters``: a JSON schema of at most 32 KiB and 32 levels."""

    name: ToolName
    description: Description | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A tool; only functions are supported."""

    type: Literal["function", "custom"]
    function: FunctionBody | None = None
    custom: Any = None


class NameBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A function by name."""

    name: ToolName


class AllowedToolBody(Struct, frozen=True, forbid_unknown_fields=True):
    """One of the allowed tools."""

    type: Literal["function"]
    function: NameBody


class AllowedToolsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A choice among some of the tools."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedToolBody], Meta(min_length=1, max_length=MAX_TOOLS)]


class ToolChoiceBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A choice that names tools."""

    type: Literal["function", "allowed_tools", "custom"]
    function: NameBody | None = None
    allowed_tools: AllowedToolsBody | None = None
    custom: Any = None


def function_tool(
    name: str, *, description: str | None, parameters: Mapping[str, Any] | None, strict: bool | None, field: str
) -> dict[str, Any]:
    """A tool as `Sampling.tools` holds it: ``{"type": "function", "function": {…}}``. ``field``: where the function came.

    Raises InvalidRequest for parameters that are no schema of an object.
    """
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = check_storable(description, field=f"{field}.description")
    if parameters is not None:
        place = f"{field}.parameters"
        if parameters.get("type", "object") != "object":
            raise InvalidRequest(f'Invalid schema: {place}.type must be "object".', field=f"{place}.type")
        function["parameters"] = check_schema(parameters, field=place)
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def tools_of(bodies: Sequence[ToolBody] | None) -> tuple[dict[str, Any], ...]:
    """The tools of a chat body, checked one by one."""
    found: list[dict[str, Any]] = []
    for index, body in enumerate(bodies or ()):
        if body.type == "custom":
            refuse(f"tools[{index}].type", "Describe the tool as a function with a parameter of type string.")
        if body.function is None:
            place = f"tools[{index}].function"
            raise InvalidRequest(f"Missing required parameter: '{place}'.", field=place)
        function = body.function
        found.append(
            function_tool(
                function.name,
                description=function.description,
                parameters=function.parameters,
                strict=function.strict,
                field=f"tools[{index}].function",
            )
        )
    check_unique(found, field="tools")
    return tuple(found)


def check_unique(tools: Sequence[Mapping[str, Any]], *, field: str) -> None:
    """Raises InvalidRequest where two tools have one name."""
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) != len(names):
        raise InvalidRequest(f"{field} holds two tools of one name.", field=field)


def chosen(tools: tuple[dict[str, Any], ...], choice: str | ToolChoiceBody | None) -> tuple[tuple[dict[str, Any], ...], Choice]:
    """The tools and the choice that a model gets: a choice among some of the tools becomes those tools alone."""
    if choice is None or isinstance(choice, str):
        return among(tools, choice)
    if choice.type == "custom":
        refuse("tool_choice.type", "Choose a function.")
    if choice.type == "allowed_tools":
        if choice.allowed_tools is None:
            raise InvalidRequest("Missing required parameter: 'tool_choice.allowed_tools'.", field="tool_choice.allowed_tools")
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        return among(tools, choice.allowed_tools.mode, names=names)
    if choice.function is None:
        raise InvalidRequest("Missing required parameter: 'tool_choice.function'.", field="tool_choice.function")
    name = choice.function.name
    return among(tools, {"type": "function", "function": {"name": name}}, names=None, named=name)


def among(
    tools: tuple[dict[str, Any], ...],
    choice: str | Mapping[str, Any] | None,
    *,
    names: Sequence[str] | None = None,
    named: str | None = None,
) -> tuple[tuple[dict[str, Any], ...], Choice]:
    """``tools`` (only those in ``names``, where given) and ``choice``. Raises InvalidRequest for a choice of what is not there.

    Args:
        choice: ``none``, ``auto``, ``required``, or the object that names a function.
        names: the allowed tools.
        named: the function that ``choice`` names.
    """
    known = {tool["function"]["name"] for tool in tools}
    for name in [*(names or ()), *([] if named is None else [named])]:
        if name not in known:
            raise InvalidRequest("tool_choice names a tool that is not in tools.", field="tool_choice")
    if not tools:
        if choice == "required":
            raise InvalidRequest("tool_choice asks for a tool, and there are no tools.", field="tool_choice")
        return (), None
    if names is not None:
        tools = tuple(tool for tool in tools if tool["function"]["name"] in names)
    return tools, choice
