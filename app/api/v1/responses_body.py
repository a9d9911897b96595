"""The body of ``POST /v1/responses`` (and of its token count): every documented field, each taken, refused by name, or a hint.

Hints are taken and change nothing here: ``prompt_cache_*``, ``service_tier``, ``safety_identifier``, ``user``, ``verbosity``,
``include`` of what no tool here gives. Reads no database and resolves nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from app.api.v1.common import (
    Label,
    Metadata,
    ModelName,
    Temperature,
    Text,
    Tokens,
    TopP,
    check_storable,
    model_name,
    read,
    refuse,
    refuse_given,
)
from app.api.v1.responses_input import MAX_ITEMS, Id, items_of, placed
from app.api.v1.schemas import json_schema_format
from app.api.v1.tools import MAX_TOOLS, Choice, Description, ToolName, among, check_unique, function_tool
from app.core.errors import AprendizError, InvalidRequest
from app.core.types import Sampling

T = TypeVar("T")

LOGPROBS: Final = "message.output_text.logprobs"
ENCRYPTED: Final = "reasoning.encrypted_content"
_REFUSED: Final = {
    "conversation": "Continue with previous_response_id.",
    "prompt": "Send instructions and input.",
    "background_options": "Leave it out.",
    "context_management": "Use truncation.",
    "moderation": "Leave it out.",
    "access_programs": "Leave it out.",
    "image": "Leave it out.",
    "personality": "Say it in instructions.",
}
_Summary = Literal["auto", "concise", "detailed"]
_Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class ReasoningBody(Struct, frozen=True, forbid_unknown_fields=True):
    """How much to think, and whether to show it as a summary; what is shown is the thinking itself, as the model gives it."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: _Summary | None = None
    generate_summary: _Summary | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class FormatBody(Struct, frozen=True, forbid_unknown_fields=True):
    """The form of the answer's text: free, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$", max_length=64)] | None = None
    description: Description | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextBody(Struct, frozen=True, forbid_unknown_fields=True):
    """How the text of the answer shall be."""

    format: FormatBody | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ToolBody(Struct, frozen=True):
    """A tool. Only functions are supported; what another kind holds is not looked at."""

    type: Annotated[str, Meta(max_length=64)]


class FunctionBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: Description | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    output_schema: dict[str, Any] | None = None


class AllowedBody(Struct, frozen=True, forbid_unknown_fields=True):
    """One of the allowed tools."""

    type: Literal["function"]
    name: ToolName


class ChoiceBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A choice that names tools."""

    type: Annotated[str, Meta(max_length=64)]
    name: ToolName | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[AllowedBody], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None


class StreamOptionsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Events carry no obfuscation, whatever is asked."""

    include_obfuscation: bool | None = None


class CacheOptionsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A hint for a vendor's prompt cache."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m", "12h"] | None = None
    comparison_response_id: Id | None = None
    prewarm: Literal[False] | None = None


class InputBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model reads: all that decides the number of its tokens. The body of ``POST /v1/responses/input_tokens``."""

    model: ModelName | None = None
    input: Text | Annotated[list[Raw], Meta(max_length=MAX_ITEMS)] | None = None
    instructions: Text | None = None
    previous_response_id: Id | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningBody | None = None
    text: TextBody | None = None
    tool_choice: Literal["none", "auto", "required"] | ChoiceBody | None = None
    tools: Annotated[list[Raw], Meta(max_length=MAX_TOOLS)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: Any = None
    personality: Any = None


class ResponsesBody(InputBody, frozen=True, kw_only=True):
    """The body of ``POST /v1/responses``."""

    background: bool | None = None
    include: Annotated[list[_Include], Meta(max_length=8)] | None = None
    max_output_tokens: Tokens | None = None
    max_tool_calls: Annotated[int, Meta(ge=1, le=1024)] | None = None
    metadata: Metadata | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_options: CacheOptionsBody | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    safety_identifier: Label | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    temperature: Temperature | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: TopP | None = None
    user: Label | None = None
    prompt: Any = None
    background_options: Any = None
    context_management: Any = None
    moderation: Any = None
    access_programs: Any = None
    image: Any = None


RESPONSES: Final = msgspec.json.Decoder(ResponsesBody)
TOKENS: Final = msgspec.json.Decoder(InputBody)
_tool: Final = msgspec.json.Decoder(ToolBody)
_function: Final = msgspec.json.Decoder(FunctionBody)


class Asked:
    """What decides the prompt, checked. Raises InvalidRequest for whatever the types alone do not refuse."""

    def __init__(self, body: InputBody) -> None:
        refuse_given(body, {name: why for name, why in _REFUSED.items() if hasattr(body, name)})
        self.previous_response_id = body.previous_response_id
        self.truncate = body.truncation == "auto"
        self.instructions = None if body.instructions is None else check_storable(body.instructions, field="instructions")
        if body.input is None:
            raise InvalidRequest("Missing required parameter: 'input'.", field="input")
        self.items = items_of(body.input)
        self.model = None if body.model is None else model_name(body.model)
        self.functions = [_function_of(raw, f"tools[{index}]") for index, raw in enumerate(body.tools or ())]
        self.tools, self.choice = _chosen(_tools(self.functions), body.tool_choice)
        self.format = body.text.format if body.text is not None else None
        self._body = body

    def sampling(self) -> Sampling:
        """What a provider is told."""
        body = self._body
        return Sampling(
            tools=self.tools,
            tool_choice=self.choice,
            parallel_tool_calls=body.parallel_tool_calls if self.tools else None,
            response_format=_response_format(self.format),
            reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
        )


class AskedResponse(Asked):
    """A whole call: how to answer too."""

    def __init__(self, body: ResponsesBody) -> None:
        super().__init__(body)
        if body.background:
            refuse("background", "Ask without it, and stream where the answer takes long.")
        if body.stream_options is not None and not body.stream:
            raise InvalidRequest("stream_options goes with stream: true.", field="stream_options")
        include = body.include or ()
        self.stream = bool(body.stream)
        self.store = body.store is not False
        self.encrypted = ENCRYPTED in include
        summary = body.reasoning.summary or body.reasoning.generate_summary if body.reasoning is not None else None
        self.summary = summary is not None
        self.logprobs = body.top_logprobs or 0 if body.top_logprobs or LOGPROBS in include else None
        self._whole = body
        _check_labels(body)

    def sampling(self) -> Sampling:
        """What a provider is told."""
        body = self._whole
        return dataclasses.replace(
            super().sampling(),
            max_tokens=body.max_output_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            logprobs=self.logprobs,
        )

    def echo(self) -> dict[str, Any]:
        """What the response repeats of the call, in the vendor's order, its defaults filled in."""
        body, reasoning, text = self._whole, self._whole.reasoning or ReasoningBody(), self._whole.text or TextBody()
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": self.store,
            "temperature": body.temperature,
            "text": {"format": _format_echo(self.format), "verbosity": text.verbosity or "medium"},
            "tool_choice": _choice_echo(body.tool_choice),
            "tools": [_function_echo(each) for each in self.functions],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": body.truncation or "disabled",
            "user": body.user,
        }


_FIELDS: Final = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""What models, which know one format, call the fields of this one."""


def name_field(error: BaseException) -> None:
    """Lets an error of a model's name the field as this format does."""
    if isinstance(error, AprendizError):
        error.field = _FIELDS.get(error.field or "", error.field)


def _check_labels(body: ResponsesBody) -> None:
    for field in ("prompt_cache_key", "safety_identifier", "user"):
        check_storable(getattr(body, field) or "", field=field)
    for name, value in (body.metadata or {}).items():
        check_storable(name + value, field="metadata")


def _function_of(raw: Raw, where: str) -> FunctionBody:
    data = bytes(raw)
    with placed(where):
        if read(data, _tool).type != "function":
            refuse("type", "Describe the tool as a function and call it yourself.")
        return read(data, _function)


def _tools(functions: Sequence[FunctionBody]) -> tuple[dict[str, Any], ...]:
    tools = tuple(
        function_tool(
            each.name, description=each.description, parameters=each.parameters, strict=each.strict, field=f"tools[{index}]"
        )
        for index, each in enumerate(functions)
    )
    check_unique(tools, field="tools")
    return tools


def _chosen(tools: tuple[dict[str, Any], ...], choice: str | ChoiceBody | None) -> tuple[tuple[dict[str, Any], ...], Choice]:
    if choice is None or isinstance(choice, str):
        return among(tools, choice)
    match choice.type:
        case "function":
            name = _there(choice.name, "tool_choice.name")
            return among(tools, {"type": "function", "function": {"name": name}}, named=name)
        case "allowed_tools":
            names = [tool.name for tool in _there(choice.tools, "tool_choice.tools")]
            return among(tools, _there(choice.mode, "tool_choice.mode"), names=names)
        case _:
            refuse("tool_choice.type", "Choose a function, allowed_tools, none, auto or required.")


def _there(value: T | None, field: str) -> T:
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{field}'.", field=field)
    return value


def _response_format(form: FormatBody | None) -> Mapping[str, Any] | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    name, schema = _there(form.name, "text.format.name"), _there(form.schema, "text.format.schema")
    return json_schema_format(schema, name=name, strict=form.strict, description=form.description, field="text.format.schema")


def _format_echo(form: FormatBody | None) -> dict[str, Any]:
    if form is None or form.type != "json_schema":
        return {"type": "text" if form is None else form.type}
    return {
        "type": "json_schema",
        "name": form.name,
        "description": form.description,
        "schema": form.schema,
        "strict": bool(form.strict),
    }


def _choice_echo(choice: str | ChoiceBody | None) -> Any:
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    return {name: value for name, value in msgspec.to_builtins(choice).items() if value is not None}


def _function_echo(function: FunctionBody) -> dict[str, Any]:
    return {
        "type": "function",
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
        "strict": function.strict,
    }
