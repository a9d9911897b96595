"""Responses of earlier calls: found only by their owner, as conversations to go on from, or as items.

What is stored is a prediction like any other; its ``door`` says that it was a response, and how many of its last messages are
the conversation (what stands before them are the instructions, which are not carried over). With ``store: false`` a prediction
is kept all the same, so that it can be rated; as a response it cannot be found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from app.api.v1.chat import call_id as missing_call_id
from app.api.v1.responses_input import AnyItem, ReferenceItem, item_of
from app.api.v1.responses_output import answer_items
from app.api.v1.responses_turns import message_items
from app.core.errors import InvalidRequest, NotFound
from app.core.ids import is_uuid7
from app.core.records import PredictionRecord
from app.core.types import Answer, Context, Message, Principal, Usage
from app.memory.private import shows_private

if TYPE_CHECKING:
    from app.api.deps import Services

KIND: Final = "responses"
MAX_REFERENCES: Final = 64
"""Most responses that the references of one call may lead to."""
_ITEM = re.compile(r"(?:msg|rs|fc|fco)_([0-9a-f-]{36})(?:_[0-9]{1,4}|_in[0-9]{1,4})?")
NO_RESPONSE: Final = "There is no such response."


def door_of(echo: Mapping[str, Any], conversation: Sequence[Message], *, summary: bool) -> dict[str, Any]:
    """What is stored beside a prediction's messages, to show it as a response again and to go on from it."""
    length = len(conversation)
    # Counted from the end: where a conversation is too long for the model, it is its beginning that goes.
    thinking = [[length - index, list(each.reasoning)] for index, each in enumerate(conversation) if each.reasoning]
    door: dict[str, Any] = {
        "kind": KIND,
        "store": echo["store"],
        "conversation": length,
        "system": any(message.role in ("system", "developer") for message in conversation),
        "summary": summary,
        "response": dict(echo),
    }
    return {**door, "thinking": thinking} if thinking else door


async def find(services: Services, principal: Principal, response_id: str) -> PredictionRecord:
    """A stored response of the caller's. Raises NotFound, in the same words whatever the reason."""
    record = None
    if is_uuid7(response_id):
        record = await services.predictions.get(response_id, user_id=principal.user_id)
    if record is None or not _is_stored(record):
        raise NotFound(NO_RESPONSE, field="response_id")
    return record


async def conversation(
    services: Services, principal: Principal, response_id: str
) -> tuple[tuple[Message, ...], Context | None]:
    """What went into a stored response and what came out, to go on from; and that it was private, where it was.

    Raises NotFound, and InvalidRequest where it has no end, or takes more than a body may.
    """
    field = "previous_response_id"
    try:
        record = await find(services, principal, response_id)
    except NotFound:
        raise NotFound("Previous response not found. It was never stored, or is deleted.", field=field) from None
    if record.status != "ok":
        raise InvalidRequest("That response did not come to its end; continue from the one before it.", field=field)
    limit = services.settings.server.max_body_bytes
    if len(msgspec.json.encode(record.input["messages"])) + len(record.output) > limit:
        raise InvalidRequest(f"The conversation takes more than {limit} bytes by now; begin a new one.", field=field)
    context = Context(private=True) if shows_private(record.input) else None
    return (*input_of(record), _answer_message(record)), context


def input_of(record: PredictionRecord) -> tuple[Message, ...]:
    """The conversation that a stored response answered, without instructions."""
    door, stored = record.input["door"], record.input["messages"]
    # Instructions, or the system message that every model here gets where there is none.
    lead = door["response"]["instructions"] is not None or (not door["system"] and stored[0]["role"] == "system")
    wire = stored[-min(door["conversation"], len(stored) - lead) :]
    thinking = {from_end: tuple(blocks) for from_end, blocks in door.get("thinking", ())}
    return tuple(_message(each, thinking.get(len(wire) - index, ())) for index, each in enumerate(wire))


def answer_of(record: PredictionRecord) -> Answer:
    """The answer as far as it is stored: log-probabilities and the count of thinking tokens are not."""
    thinking = ({"type": "thinking", "thinking": record.reasoning},) if record.reasoning else ()
    return Answer(
        text=record.output,
        finish_reason="error" if record.status == "error" else record.finish_reason,  # type: ignore[arg-type]
        usage=Usage(record.prompt_tokens, record.completion_tokens, record.cached_tokens),
        reasoning=record.reasoning,
        tool_calls=tuple(
            {**call, "id": call["id"] or missing_call_id(record.id, number)} for number, call in enumerate(record.tool_calls)
        ),
        thinking=thinking,
    )


def output_of(record: PredictionRecord) -> list[dict[str, Any]]:
    """The output items of a stored response."""
    return answer_items(record.id, answer_of(record), summary=record.input["door"]["summary"], encrypted=False)


async def resolve(services: Services, principal: Principal, items: Sequence[AnyItem]) -> list[AnyItem]:
    """``items`` with what they refer to in the place of references.

    Raises NotFound, and InvalidRequest where that would take more than a body may: a reference is short, what it brings is not.
    """
    known = await _referenced(services, principal, items)
    resolved: list[AnyItem] = []
    for index, item in enumerate(items):
        if not isinstance(item, ReferenceItem):
            resolved.append(item)
        elif item.id in known:
            resolved.append(item_of(msgspec.Raw(known[item.id]), f"input[{index}]"))
        else:
            where = f"input[{index}].id"
            raise NotFound("There is no such item. Send its content, or continue with previous_response_id.", field=where)
    return resolved


async def _referenced(services: Services, principal: Principal, items: Sequence[AnyItem]) -> dict[str, bytes]:
    """The items that ``items`` refer to, by id, as JSON."""
    uses = Counter(item.id for item in items if isinstance(item, ReferenceItem))
    wanted: dict[str, list[str]] = {}
    for item_id in uses:
        match = _ITEM.fullmatch(item_id)
        wanted.setdefault(match.group(1) if match else "", []).append(item_id)
    if len(wanted) > MAX_REFERENCES:
        raise InvalidRequest(f"input refers to items of more than {MAX_REFERENCES} responses.", field="input")
    found: dict[str, bytes] = {}
    limit, size = services.settings.server.max_body_bytes, 0
    for response_id, item_ids in wanted.items():
        known = await _items_of(services, principal, response_id)
        for item_id in item_ids:
            if item_id in known:
                found[item_id] = msgspec.json.encode(known[item_id])
                size += len(found[item_id]) * uses[item_id]
        if size > limit:
            raise InvalidRequest(f"The items that input refers to take more than {limit} bytes. Refer to fewer.", field="input")
    return found


async def _items_of(services: Services, principal: Principal, response_id: str) -> dict[str, Mapping[str, Any]]:
    try:
        record = await find(services, principal, response_id)
    except NotFound:
        return {}
    return {item["id"]: item for item in (*message_items(input_of(record), record.id), *output_of(record))}


def _is_stored(record: PredictionRecord) -> bool:
    door = record.input.get("door")
    return isinstance(door, Mapping) and door.get("kind") == KIND and door.get("store") is True


def _answer_message(record: PredictionRecord) -> Message:
    answer = answer_of(record)
    content = None if answer.tool_calls and not answer.text else answer.text
    return Message("assistant", content, tool_calls=answer.tool_calls, reasoning=answer.thinking)


def _message(wire: Mapping[str, Any], thinking: tuple[Mapping[str, Any], ...]) -> Message:
    return Message(
        wire["role"],
        wire.get("content"),
        wire.get("name"),
        tuple(wire.get("tool_calls") or ()),
        wire.get("tool_call_id"),
        thinking,
    )
