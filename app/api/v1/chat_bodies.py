"""The body of ``POST /v1/chat/completions``: every documented field of the vendor's, and one of ours (``top_k``).

What cannot be kept is refused by name; what is only a hint to the vendor's own machines is accepted and has no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from app.api.v1.common import (
    MAX_MESSAGES,
    MAX_TEXT,
    Choices,
    Label,
    LogitBias,
    Metadata,
    ModelName,
    Penalty,
    Seed,
    Stop,
    StreamOptionsBody,
    Temperature,
    Text,
    Tokens,
    TopK,
    TopP,
    check_storable,
    refuse,
    refuse_given,
    stop_words,
)
from app.api.v1.parts import MAX_PARTS, AudioPart, FilePart, ImagePart, RefusalPart, TextPart, content_of, length_of
from app.api.v1.schemas import json_schema_format
from app.api.v1.tools import MAX_TOOLS, Description, ToolBody, ToolChoiceBody, ToolName, chosen, tools_of
from app.core.errors import InvalidRequest
from app.core.types import Message, Sampling

CallId = Annotated[str, Meta(min_length=1, max_length=256)]
PersonName = Annotated[str, Meta(min_length=1, max_length=64)]
TextParts = Annotated[list[TextPart], Meta(min_length=1, max_length=MAX_PARTS)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

_FUNCTIONS: Final = "Use tools and tool_choice."
_AUDIO: Final = "Answers are text."
REFUSED: Final = {
    "audio": _AUDIO,
    "prediction": "Leave it out; the answer is the same.",
    "web_search_options": "Search yourself, and offer it as a tool.",
    "functions": _FUNCTIONS,
    "function_call": _FUNCTIONS,
    "moderation": "Check the text before you send it, or the answer.",
}
"""Fields of the vendor's that this service cannot keep, and what to do instead."""


class MessageBody(Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", kw_only=True):
    """What messages of all roles have."""

    name: PersonName | None = None


class SystemMessage(MessageBody, frozen=True, tag="system"):
    """Instructions."""

    content: Text | TextParts


class DeveloperMessage(MessageBody, frozen=True, tag="developer"):
    """Instructions, as newer models call them."""

    content: Text | TextParts


class UserMessage(MessageBody, frozen=True, tag="user"):
    """What the person says."""

    content: Text | Annotated[list[TextPart | ImagePart | AudioPart | FilePart], Meta(min_length=1, max_length=MAX_PARTS)]


class CalledFunction(Struct, frozen=True, forbid_unknown_fields=True):
    """Name and arguments of a call that the model made. ``parsed_arguments``: the vendor's SDKs add them for themselves."""

    name: ToolName
    arguments: Text
    parsed_arguments: Any = None


class ToolCallBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A call that the model made earlier."""

    id: CallId
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class AssistantMessage(MessageBody, frozen=True, tag="assistant"):
    """What the model said; a message of an answer may be sent back as it came, and with the ``parsed`` of the vendor's SDKs."""

    content: Text | Annotated[list[TextPart | RefusalPart], Meta(min_length=1, max_length=MAX_PARTS)] | None = None
    tool_calls: Annotated[list[ToolCallBody], Meta(max_length=MAX_TOOLS)] | None = None
    refusal: Text | None = None
    reasoning_content: Text | None = None
    annotations: Any = None
    parsed: Any = None
    audio: Any = None
    function_call: Any = None


class ToolMessage(MessageBody, frozen=True, tag="tool"):
    """What a tool gave back."""

    content: Text | TextParts
    tool_call_id: CallId


AnyMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class JsonSchemaBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON schema of at most 32 KiB and 32 levels that the answer's text has to satisfy."""

    name: ToolName
    schema: dict[str, Any]
    description: Description | None = None
    strict: bool | None = None


class ResponseFormatBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


class ChatBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``POST /v1/chat/completions`` takes."""

    model: ModelName
    messages: Annotated[list[AnyMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    n: Choices | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormatBody | None = None
    tools: Annotated[list[ToolBody], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Meta(min_length=1, max_length=2)] | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    functions: Any = None
    function_call: Any = None
    moderation: Any = None

    def check(self) -> None:
        """Raises InvalidRequest for what the types alone do not refuse."""
        refuse_given(self, REFUSED)
        if self.modalities is not None and "audio" in self.modalities:
            refuse("modalities", _AUDIO)
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidRequest("Send max_completion_tokens or max_tokens, not both.", field="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs goes with logprobs: true.", field="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options goes with stream: true.", field="stream_options")

    def to_messages(self) -> tuple[Message, ...]:
        """The conversation, checked as a whole."""
        found = tuple(_message(body, f"messages[{index}]") for index, body in enumerate(self.messages))
        if sum(length_of(message.content) for message in found) > MAX_TEXT:
            raise InvalidRequest(f"messages hold more than {MAX_TEXT} characters together.", field="messages")
        _check_answers(found)
        return found

    def to_sampling(self) -> Sampling:
        """How to sample, for the first choice."""
        tools, choice = chosen(tools_of(self.tools), self.tool_choice)
        return Sampling(
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=stop_words(self.stop),
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias or None,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            response_format=None if self.response_format is None else _response_format(self.response_format),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls if tools else None,
            reasoning_effort=self.reasoning_effort,
        )


CHAT: Final = msgspec.json.Decoder(ChatBody)


def _message(body: AnyMessage, field: str) -> Message:
    name = None if body.name is None else check_storable(body.name, field=f"{field}.name")
    match body:
        case SystemMessage():
            return Message("system", content_of(body.content, field=f"{field}.content"), name)
        case DeveloperMessage():
            return Message("developer", content_of(body.content, field=f"{field}.content"), name)
        case UserMessage():
            return Message("user", content_of(body.content, field=f"{field}.content"), name)
        case ToolMessage():
            call_id = check_storable(body.tool_call_id, field=f"{field}.tool_call_id")
            return Message("tool", content_of(body.content, field=f"{field}.content"), name, tool_call_id=call_id)
        case AssistantMessage():
            return _assistant(body, name, field)


def _assistant(body: AssistantMessage, name: str | None, field: str) -> Message:
    refuse_given(body, {"audio": _AUDIO, "function_call": "Send tool_calls."})
    said = body.refusal if body.content is None else body.content
    content = None if said is None else content_of(said, field=f"{field}.content")
    calls = tuple(
        {
            "id": check_storable(call.id, field=f"{field}.tool_calls[{index}].id"),
            "type": "function",
            "function": {
                "name": call.function.name,
                "arguments": check_storable(call.function.arguments, field=f"{field}.tool_calls[{index}].function.arguments"),
            },
        }
        for index, call in enumerate(body.tool_calls or ())
    )
    if content is None and not calls:
        raise InvalidRequest(f"{field}.content is required, unless there are tool_calls.", field=f"{field}.content")
    return Message("assistant", content, name, tool_calls=calls)


def _check_answers(messages: tuple[Message, ...]) -> None:
    """Raises InvalidRequest where a tool answers a call that nobody made."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        called.update(call["id"] for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in called:
            place = f"messages[{index}].tool_call_id"
            raise InvalidRequest(f"{place} answers no call of an assistant's message before it.", field=place)


def _response_format(body: ResponseFormatBody) -> dict[str, Any] | None:
    if body.type == "json_schema" and body.json_schema is None:
        place = "response_format.json_schema"
        raise InvalidRequest(f"Missing required parameter: '{place}'.", field=place)
    if body.json_schema is None:
        return None if body.type == "text" else {"type": body.type}
    if body.type != "json_schema":
        raise InvalidRequest("json_schema goes with the type json_schema.", field="response_format.type")
    wanted = body.json_schema
    return json_schema_format(
        wanted.schema,
        name=wanted.name,
        strict=wanted.strict,
        description=wanted.description,
        field="response_format.json_schema.schema",
    )
