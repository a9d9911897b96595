"""The response object: a prediction in the vendor's words, new or stored, whole or in the making. Pure functions.

One prediction is one response. Its items have ids made of the prediction's: ``rs_`` for thinking, ``msg_`` for the text,
``fc_`` for calls of functions. What the object repeats of the call (`echo`) is stored with the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import UNSET, Struct, UnsetType

from app.api.v1.chat import call_id as missing_call_id
from app.api.v1.common import AprendizOut
from app.api.v1.responses_turns import seal
from app.core.records import PredictionRecord
from app.core.types import Answer, Usage

Item = dict[str, Any]
"""An item of the output, as the vendor writes it."""
Echo = Mapping[str, Any]
"""What a response repeats of its call."""
INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reasons of answers that are not whole, in the vendor's words."""


class UsageOut(Struct, frozen=True):
    """Tokens as the model's own tokenizer counts them."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseOut(Struct, frozen=True, kw_only=True):
    """A response. What stands after ``usage`` repeats the call; ``aprendiz`` is ours, and absent until it has ended."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["completed", "incomplete", "failed", "in_progress", "cancelled"]
    error: dict[str, str] | None = None
    incomplete_details: dict[str, str] | None = None
    model: str
    output: Sequence[Item]
    usage: UsageOut | None = None
    background: bool = False
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: dict[str, str | None] = {}
    safety_identifier: str | None = None
    service_tier: str = "default"
    store: bool = True
    temperature: float | None = None
    text: dict[str, Any] = {}
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: str = "disabled"
    user: str | None = None
    aprendiz: AprendizOut | UnsetType = UNSET


def response(prediction_id: str, echo: Echo, **fields: Any) -> ResponseOut:
    """A response in the making; ``fields``: at least status and model."""
    return ResponseOut(id=prediction_id, created_at=created_at(prediction_id), **{"output": (), **echo, **fields})


def ended(prediction: PredictionRecord, echo: Echo, output: Sequence[Item], usage: Usage, marks: AprendizOut) -> ResponseOut:
    """The response of a stored prediction."""
    fields: dict[str, Any] = {"status": "completed"}
    match prediction.status:
        case "error":
            message = (prediction.error or "").partition(": ")[2] or "The answer failed."
            fields = {"status": "failed", "error": {"code": "server_error", "message": message}}
        case "cancelled":
            fields["status"] = "cancelled"
        case _ if prediction.finish_reason in INCOMPLETE:
            fields = {"status": "incomplete", "incomplete_details": {"reason": INCOMPLETE[prediction.finish_reason]}}
        case _:
            fields["completed_at"] = int(prediction.created_at.timestamp() + prediction.total_ms / 1000)
    return response(
        prediction.id,
        echo,
        model=f"{prediction.provider}/{prediction.model}",
        output=output,
        usage=usage_of(usage),
        aprendiz=marks,
        **fields,
    )


def answer_items(prediction_id: str, answer: Answer, *, summary: bool, encrypted: bool) -> list[Item]:
    """The items of a whole answer: thinking, text, calls. At least one; the last is incomplete where the answer is.

    Args:
        summary: thinking is shown as a summary; else as content.
        encrypted: thinking is sealed too, also where its blocks have no signature to be kept.
    """
    items: list[Item] = []
    if answer.thinking:
        items.append(thinking_item(f"rs_{prediction_id}", answer.thinking, summary=summary, encrypted=encrypted))
    if answer.text or not (answer.thinking or answer.tool_calls):
        items.append(message_item(f"msg_{prediction_id}", answer.text, answer.logprobs))
    for number, call in enumerate(answer.tool_calls):
        function = call["function"]
        call_id = call["id"] or missing_call_id(prediction_id, number)
        items.append(call_item(f"fc_{prediction_id}_{number}", call_id, function["name"], function["arguments"]))
    if answer.finish_reason not in ("stop", "tool_calls"):
        items[-1]["status"] = "incomplete"
    return items


def thinking_item(
    item_id: str, blocks: Sequence[Mapping[str, Any]], *, summary: bool, encrypted: bool, status: str = "completed"
) -> Item:
    """Thinking as an item."""
    text = "".join(block.get("thinking", "") for block in blocks)
    sealed = encrypted or any("signature" in block or "data" in block for block in blocks)
    return {
        "id": item_id,
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text}] if summary and text else [],
        "content": [{"type": "reasoning_text", "text": text}] if text and not summary else [],
        "encrypted_content": seal(blocks) if sealed and blocks else None,
        "status": status,
    }


def message_item(
    item_id: str, text: str | None, logprobs: Sequence[Mapping[str, Any]] = (), *, status: str = "completed"
) -> Item:
    """Text as an item; None: none has come."""
    content = [] if text is None else [text_part(text, logprobs)]
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def text_part(text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> Item:
    """Text as a part of a message."""
    return {"type": "output_text", "annotations": [], "logprobs": logprobs, "text": text}


def call_item(item_id: str, call_id: str, name: str, arguments: str, *, status: str = "completed") -> Item:
    """The call of a function as an item."""
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "arguments": arguments,
        "call_id": call_id,
        "name": name,
    }


def usage_of(usage: Usage) -> UsageOut:
    """Tokens in the vendor's words."""
    return UsageOut(
        input_tokens=usage.prompt_tokens,
        input_tokens_details={"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.cache_write_tokens},
        output_tokens=usage.completion_tokens,
        output_tokens_details={"reasoning_tokens": usage.reasoning_tokens},
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def created_at(prediction_id: str) -> int:
    """Seconds since the epoch, from the UUIDv7 itself: the same before and after the prediction is stored."""
    return int(prediction_id.replace("-", "")[:12], 16) // 1000
