"""The items of a Responses call, read strictly; each is one struct. What an item means is `app.api.v1.responses_turns`'s.

An item without a ``type`` is a message where it has a role, else a reference to an item of an earlier response.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from app.api.v1.common import Text, read
from app.core.errors import InvalidRequest

MAX_ITEMS: Final = 1024
Status = Literal["in_progress", "completed", "incomplete"]
Id = Annotated[str, Meta(min_length=1, max_length=256)]
FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,128}$", max_length=128)]
_Any = Annotated[list[Any], Meta(max_length=100_000)]


class Part(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """One part of a content list. ``prompt_cache_breakpoint`` is a hint that nothing here needs."""

    prompt_cache_breakpoint: Any = None


class InputText(Part, frozen=True, tag="input_text", kw_only=True):
    """Text of whoever asks."""

    text: Text


class OutputText(Part, frozen=True, tag="output_text", kw_only=True):
    """Text of the model, as it was answered."""

    text: Text
    annotations: _Any | None = None
    logprobs: _Any | None = None


class Refusal(Part, frozen=True, tag="refusal", kw_only=True):
    """A refusal of the model's."""

    refusal: Text


class InputImage(Part, frozen=True, tag="input_image", kw_only=True):
    """An image, as an https or data URL."""

    image_url: Text | None = None
    file_id: Any = None
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputFile(Part, frozen=True, tag="input_file", kw_only=True):
    """A file with its content."""

    file_data: Text | None = None
    filename: Annotated[str, Meta(max_length=256)] | None = None
    file_id: Any = None
    file_url: Any = None
    detail: Literal["auto", "low", "high"] | None = None


AnyPart = InputText | OutputText | Refusal | InputImage | InputFile
Parts = Annotated[list[AnyPart], Meta(max_length=256)]


class Item(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What any item may carry."""

    type: str = "message"
    id: Id | None = None
    status: Status | None = None


class MessageItem(Item, frozen=True, kw_only=True):
    """A message: of the caller's (text, images, files), or an answer that is handed back."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Text | Parts
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Item, frozen=True, kw_only=True):
    """A call of a function that the model made."""

    call_id: Id
    name: FunctionName
    arguments: Text
    namespace: None = None
    caller: None = None


class CallOutputItem(Item, frozen=True, kw_only=True):
    """What a function that the model called gave."""

    call_id: Id
    output: Text | Parts
    name: FunctionName | None = None
    namespace: None = None
    caller: None = None


class Thought(Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of thinking."""

    type: Literal["summary_text", "reasoning_text"]
    text: Text


class ReasoningItem(Item, frozen=True, kw_only=True):
    """Thinking of the model's, handed back."""

    summary: Annotated[list[Thought], Meta(max_length=256)] = []
    content: Annotated[list[Thought], Meta(max_length=256)] | None = None
    encrypted_content: Text | None = None


class ReferenceItem(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An item of an earlier response, by its id."""

    id: Id
    type: Literal["item_reference"] | None = None


AnyItem = MessageItem | CallItem | CallOutputItem | ReasoningItem | ReferenceItem


class _Peek(Struct, frozen=True):
    type: str | None = None
    role: Any = None


_peek: Final = msgspec.json.Decoder(_Peek)
_decoders: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    "message": msgspec.json.Decoder(MessageItem),
    "function_call": msgspec.json.Decoder(CallItem),
    "function_call_output": msgspec.json.Decoder(CallOutputItem),
    "reasoning": msgspec.json.Decoder(ReasoningItem),
    "item_reference": msgspec.json.Decoder(ReferenceItem),
}


def items_of(body_input: str | Sequence[Raw]) -> list[AnyItem]:
    """The items of ``input``; a text is a message of the user's. Raises InvalidRequest whose field leads to the place."""
    if isinstance(body_input, str):
        return [MessageItem(role="user", content=body_input)]
    return [item_of(raw, f"input[{index}]") for index, raw in enumerate(body_input)]


@contextlib.contextmanager
def placed(where: str) -> Iterator[None]:
    """Around the reading of a part of the body: an InvalidRequest tells its place in the whole."""
    try:
        yield
    except InvalidRequest as error:
        if error.field is None:
            raise InvalidRequest(error.detail.replace("the body", where, 1), field=where) from None
        place = f"{where}.{error.field}"
        raise InvalidRequest(error.detail.replace(error.field, place, 1), field=place) from None


def item_of(raw: Raw, where: str) -> AnyItem:
    data = bytes(raw)
    with placed(where):
        peek = read(data, _peek)
        kind = peek.type or ("message" if peek.role is not None else "item_reference")
        if kind not in _decoders:
            raise InvalidRequest(f"Invalid value for type: items may be {', '.join(sorted(_decoders))}.", field="type")
        item: AnyItem = read(data, _decoders[kind])
        return item
