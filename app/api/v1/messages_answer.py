"""A whole message, as Anthropic's API writes it. Pure functions from our answer to the vendor's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from app.api.v1.common import AprendizOut
from app.core.types import Answer, FinishReason, Usage

INVALID_JSON: Final = "INVALID_JSON"
"""The vendor's name for arguments of a tool call that are no JSON: ``{"INVALID_JSON": "what the model wrote"}``."""
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]
_REASONS: Final[Mapping[FinishReason, StopReason]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class OutputDetailsOut(Struct, frozen=True):
    """Parts of ``output_tokens``."""

    thinking_tokens: int


class MessageUsageOut(Struct, frozen=True):
    """Tokens as the vendor counts them: ``input_tokens`` without those that a cache had or took."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens_details: OutputDetailsOut | UnsetType = UNSET


class EndingOut(Struct, frozen=True):
    """Why an answer ended, and at which of the caller's stop sequences; null while it has not."""

    stop_reason: StopReason | None = None
    stop_sequence: str | None = None


class AppliedEditsOut(Struct, frozen=True):
    """What was done to the context before the model read it: nothing, whatever was asked."""

    applied_edits: tuple[()] = ()


class MessageOut(Struct, frozen=True):
    """An answer. ``id`` is the prediction's and works for feedback at once.

    ``content``: blocks of the types ``thinking``, ``redacted_thinking``, ``text`` and ``tool_use``.
    """

    id: str
    model: str
    content: Sequence[Mapping[str, Any]]
    usage: MessageUsageOut
    aprendiz: AprendizOut
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    context_management: AppliedEditsOut | UnsetType = UNSET


class TokenCountOut(Struct, frozen=True):
    """Tokens of a prompt: messages, system and tools."""

    input_tokens: int


def usage_of(usage: Usage) -> MessageUsageOut:
    """Tokens of one answer."""
    return MessageUsageOut(
        input_tokens=max(usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens, 0),
        output_tokens=usage.completion_tokens,
        cache_creation_input_tokens=usage.cache_write_tokens,
        cache_read_input_tokens=usage.cached_tokens,
        output_tokens_details=OutputDetailsOut(usage.reasoning_tokens) if usage.reasoning_tokens else UNSET,
    )


def ending_of(answer: Answer) -> EndingOut:
    """How an answer ended."""
    reason = _REASONS.get(answer.finish_reason, "end_turn")
    if reason == "end_turn" and answer.stop_sequence is not None:
        return EndingOut("stop_sequence", answer.stop_sequence)
    return EndingOut(reason)


def content_of(answer: Answer, prediction_id: str) -> list[dict[str, Any]]:
    """The blocks of a whole answer, in their order."""
    ends = dict(pairwise([*(at for kind, at in answer.order if kind == "text"), len(answer.text)]))
    blocks: list[dict[str, Any]] = []
    for kind, at in answer.order:
        match kind:
            case "text":
                blocks.append({"type": "text", "text": answer.text[at : ends[at]]})
            case "thinking":
                block = answer.thinking[at]
                blocks.append({"signature": "", **block} if block["type"] == "thinking" else dict(block))
            case "call":
                blocks.append(_tool_use(answer.tool_calls[at], call_id(prediction_id, at)))
    return blocks


def call_id(prediction_id: str, number: int) -> str:
    """The id of a tool call whose provider gave none."""
    return f"toolu_{prediction_id.replace('-', '')}_{number}"


def _tool_use(call: Mapping[str, Any], else_id: str) -> dict[str, Any]:
    function = call["function"]
    arguments = _arguments(function["arguments"])
    return {"type": "tool_use", "id": call["id"] or else_id, "name": function["name"], "input": arguments}


def _arguments(written: str) -> dict[str, Any]:
    """The arguments of a tool call as an object; what is none is kept for the caller to see, under `INVALID_JSON`."""
    if not written.strip():
        return {}
    try:
        return msgspec.json.decode(written, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {INVALID_JSON: written}
