"""The bodies of Anthropic's Messages API as msgspec structs: every documented field, bounded, nothing else.

What this service has no equivalent for (containers, servers and files on the vendor's side) may be null, so that a refusal says
what is not offered rather than that a field is unknown. What the types do not say is checked in `app.api.v1.messages_turns`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from app.api.bodies import MAX_DEPTH
from app.api.v1.common import MAX_MESSAGES, MAX_TOKENS, ModelName, StopWord, Text, Tokens
from app.api.v1.parts import MAX_URL, Data
from app.core.errors import InvalidRequest

MAX_BLOCKS: Final = 1024
MAX_TOOLS: Final = 512
MIN_BUDGET: Final = 1024

T = TypeVar("T")
_Label = Annotated[str, Meta(max_length=4096)]
_Id = Annotated[str, Meta(min_length=1, max_length=256)]
_Url = Annotated[str, Meta(max_length=MAX_URL)]
_Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
_Ratio = Annotated[float, Meta(ge=0, le=1)]


class CacheControl(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The marker of a cacheable prefix. ``scope`` is a vendor's beta that its own client sends; it ends here."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None
    scope: Annotated[str, Meta(max_length=64)] | None = None


class Citations(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to cite."""

    enabled: bool | None = None


class TextBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Text. ``citations`` belong to an earlier answer of the vendor's and say nothing to a model: left out."""

    text: Text
    cache_control: CacheControl | None = None
    citations: list[msgspec.Raw] | None = None


class Base64Image(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="base64"):
    """An image in base64."""

    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: Data


class UrlSource(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="url"):
    """An image or PDF that the model's provider fetches."""

    url: _Url


class Transformations(Struct, frozen=True, forbid_unknown_fields=True):
    """What to do with an image that is too large."""

    oversized_image: Literal["downsize", "error"] | None = None


class ImageBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="image"):
    """An image."""

    source: Base64Image | UrlSource
    cache_control: CacheControl | None = None
    transformations: Transformations | None = None


class Base64Pdf(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="base64"):
    """A PDF in base64."""

    media_type: Literal["application/pdf"]
    data: Data


class PlainText(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A document that is text."""

    media_type: Literal["text/plain"]
    data: Text


class BlockContent(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="content"):
    """A document in pieces."""

    content: Text | Annotated[list[TextBlock | ImageBlock], Meta(max_length=MAX_BLOCKS)]


class DocumentBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="document"):
    """A document."""

    source: Base64Pdf | PlainText | BlockContent | UrlSource
    title: _Label | None = None
    context: Text | None = None
    citations: Citations | None = None
    cache_control: CacheControl | None = None


class SearchResultBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="search_result"):
    """What a search of the caller's found."""

    content: Annotated[list[TextBlock], Meta(min_length=1, max_length=MAX_BLOCKS)]
    source: _Label
    title: _Label
    citations: Citations | None = None
    cache_control: CacheControl | None = None


class ToolCaller(Struct, frozen=True, forbid_unknown_fields=True):
    """Who used a tool; without tools on the vendor's side it is the model itself."""

    type: Literal["direct"]


class ToolUseBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    """A call of a tool, from an earlier answer."""

    id: _Id
    name: _Id
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: ToolCaller | None = None
    toolset_name: None = None


class ToolResultBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool_result"):
    """What a tool gave."""

    tool_use_id: _Id
    content: (
        Text | Annotated[list[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock], Meta(max_length=MAX_BLOCKS)] | None
    ) = None
    is_error: bool | None = None
    toolset_name: None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="thinking"):
    """Thinking of an earlier answer, to be handed back unchanged."""

    thinking: Text
    signature: Text


class RedactedThinkingBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="redacted_thinking"):
    """The same, encrypted."""

    data: Text


Block = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ToolUseBlock
    | ToolResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
)


class Turn(Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Text | Annotated[list[Block], Meta(max_length=MAX_BLOCKS)]


class Tool(Struct, frozen=True, forbid_unknown_fields=True):
    """A tool that the caller runs."""

    name: _Name
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: Text | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    input_examples: Annotated[list[dict[str, Any]], Meta(max_length=32)] | None = None
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: Annotated[list[Literal["direct"]], Meta(max_length=1)] | None = None


class ToolChoiceAuto(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="auto"):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class ToolChoiceAny(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="any"):
    """The model must use one."""

    disable_parallel_tool_use: bool | None = None


class ToolChoiceTool(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool"):
    """The model must use this one."""

    name: _Name
    disable_parallel_tool_use: bool | None = None


class ToolChoiceNone(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="none"):
    """The model must use none."""


ToolChoice = ToolChoiceAuto | ToolChoiceAny | ToolChoiceTool | ToolChoiceNone
_Display = Literal["summarized", "omitted"]


class ThinkingEnabled(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="enabled", omit_defaults=True):
    """Think, within a budget."""

    budget_tokens: Annotated[int, Meta(ge=MIN_BUDGET, le=MAX_TOKENS)]
    display: _Display | None = None


class ThinkingAdaptive(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="adaptive", omit_defaults=True):
    """Think as the model sees fit."""

    display: _Display | None = None


class ThinkingBetweenTools(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="between_tools"):
    """Think between tool calls."""


class ThinkingDisabled(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="disabled"):
    """Do not think."""


class JsonFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """An answer that satisfies a JSON schema."""

    schema: dict[str, Any]


class OutputConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How much effort, and what form."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Metadata(Struct, frozen=True, forbid_unknown_fields=True):
    """``user_id``: the caller's own name for its user. Not passed on: no provider learns who our callers' users are."""

    user_id: Annotated[str, Meta(max_length=512)] | None = None


class ContextManagement(Struct, frozen=True):
    """Edits of the context before the model reads it. None is ever applied, and the answer says so."""

    edits: Annotated[list[msgspec.Raw], Meta(max_length=32)] | None = None


class CountBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``POST /v1/messages/count_tokens`` takes."""

    model: ModelName
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: Text | Annotated[list[TextBlock], Meta(max_length=MAX_BLOCKS)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingEnabled | ThinkingAdaptive | ThinkingBetweenTools | ThinkingDisabled | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    cache_control: CacheControl | None = None
    context_management: ContextManagement | None = None
    speed: Literal["standard"] | None = None
    mcp_servers: Annotated[list[msgspec.Raw], Meta(max_length=0)] | None = None
    billing_policy: None = None
    compaction: None = None
    container: None = None
    diagnostics: None = None
    fallback_credit_token: None = None
    fallbacks: None = None
    inference_geo: None = None
    thread: None = None
    user_profile_id: None = None
    workspace_id: None = None


class MessagesBody(CountBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``POST /v1/messages`` takes."""

    max_tokens: Tokens
    stream: bool | None = None
    temperature: _Ratio | None = None
    top_p: _Ratio | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    stop_sequences: Annotated[list[StopWord], Meta(max_length=16)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


MESSAGES: Final = msgspec.json.Decoder(MessagesBody)
COUNT: Final = msgspec.json.Decoder(CountBody)

_TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"
_PLACE: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]{0,200})`$")
_FIELD: Final = re.compile(r"^(Object (?:contains unknown|missing required) field) `(.*)`$", re.DOTALL)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_BLOCK_KIND: Final = re.compile(r"content\.\d+\.type$")
_KINDS: Final = "text, image, document, search_result, tool_use, tool_result, thinking and redacted_thinking"
_NOT_OFFERED: Final = "this service does not offer it; leave it out"


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decodes strictly.

    Raises:
        InvalidRequest: in the vendor's words (``messages.0.content: Field required``), with nothing of what was sent.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeError):
        raise InvalidRequest("The body is not valid JSON in UTF-8.", field="body") from None
    except RecursionError:
        raise InvalidRequest(f"The body is {_TOO_DEEP}.", field="body") from None


def convert(value: Any, kind: type[T], where: str) -> T:
    """``value``, as it was decoded from JSON, as a struct. Raises as `decode`; ``where`` is its place."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), where) from None


def _refusal(complaint: str, where: str = "") -> InvalidRequest:
    """msgspec's message in the vendor's form. It quotes what was sent in a few cases, which must not come back."""
    place = _PLACE.search(complaint)
    path = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", place.group(1)) if place else ""
    reason = complaint[: place.start()] if place else complaint
    named = _FIELD.match(reason)
    if named:
        path = f"{path}.{named.group(2)}"
        reason = "Extra inputs are not permitted" if "unknown" in named.group(1) else "Field required"
    elif reason.startswith("Expected `null`") or path == "mcp_servers":
        reason = _NOT_OFFERED
    elif reason.startswith("Invalid value") and _BLOCK_KIND.search(path):
        reason = f"this service takes no such block here; its blocks are {_KINDS}"
    elif reason.startswith(("Invalid value", "Invalid enum value")):
        reason = "this is none of the allowed values"
    parts = [part if _PLAIN.fullmatch(part) else "…" for part in f"{where}.{path}".split(".") if part]
    field = ".".join(parts) or "body"
    return InvalidRequest(f"{field}: {reason[:200]}", field=field)
