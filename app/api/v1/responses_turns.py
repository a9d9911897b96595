"""Items of a Responses call as the messages that a model reads, and messages as items again.

An assistant's turn may come in several items (thinking, text, function calls); here it is one message, as every provider wants
it. Thinking that nothing follows is left out: it led to nothing that could be continued. Refuses a call without its output and
an output without its call, as the vendor does: no model can go on from there.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, assert_never

import msgspec
from msgspec import Struct

from app.api.v1.common import check_storable, refuse
from app.api.v1.parts import MAX_FILE_BYTES, check_data_url, check_image_url
from app.api.v1.responses_input import (
    AnyItem,
    AnyPart,
    CallItem,
    CallOutputItem,
    InputFile,
    InputImage,
    InputText,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReferenceItem,
    Refusal,
)
from app.core.errors import InvalidRequest
from app.core.types import Message

MAX_MESSAGES: Final = 2048
"""Most messages of a conversation, earlier responses included."""
Content = str | list[dict[str, Any]] | None
FILES: Final = ("application/pdf", "text/plain")
_SEAL: Final = "aprendiz.1."


class _Thinking(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="thinking", omit_defaults=True):
    thinking: str
    signature: str | None = None


class _Redacted(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="redacted_thinking"):
    data: str


_blocks: Final = msgspec.json.Decoder(list[_Thinking | _Redacted])


class Turns:
    """Folds items, in their order, into messages, after those of ``earlier``."""

    def __init__(self, earlier: Iterable[Message] = ()) -> None:
        self._messages = list(earlier)
        self._content: str | None = None
        self._calls: list[Mapping[str, Any]] = []
        self._reasoning: list[Mapping[str, Any]] = []

    def add(self, item: AnyItem, where: str) -> None:
        """Takes the next item; ``where`` is its place, for errors. References are to be resolved before."""
        match item:
            case MessageItem(role="assistant"):
                self._say(_spoken(item.content, f"{where}.content"))
            case MessageItem():
                self._close()
                self._messages.append(Message(item.role, _asked(item.content, f"{where}.content")))
            case CallItem():
                self._call(item, where)
            case CallOutputItem():
                self._close()
                content = _asked(item.output, f"{where}.output")
                self._messages.append(Message("tool", content, tool_call_id=check_storable(item.call_id, field=where)))
            case ReasoningItem():
                self._think(_thoughts(item, where))
            case ReferenceItem():
                refuse(where, "There is no such item.")
            case _:
                assert_never(item)

    def messages(self) -> tuple[Message, ...]:
        """The conversation. Raises InvalidRequest where calls and outputs do not match, or it is empty or too long."""
        self._close()
        if not self._messages:
            raise InvalidRequest("input is empty.", field="input")
        if len(self._messages) > MAX_MESSAGES:
            raise InvalidRequest(f"The conversation has more than {MAX_MESSAGES} messages; begin a new one.", field="input")
        _check_calls(self._messages)
        return tuple(self._messages)

    def _say(self, text: str) -> None:
        if self._content is not None and not self._calls:
            self._close()
        self._content = (self._content or "") + text

    def _call(self, item: CallItem, where: str) -> None:
        check_storable(item.call_id, field=f"{where}.call_id")
        arguments = check_storable(item.arguments, field=f"{where}.arguments")
        self._calls.append({"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": arguments}})

    def _think(self, blocks: list[dict[str, Any]]) -> None:
        if self._content is not None or self._calls:
            self._close()
        self._reasoning += blocks

    def _close(self) -> None:
        if self._content is not None or self._calls:
            self._messages.append(
                Message("assistant", self._content, tool_calls=tuple(self._calls), reasoning=tuple(self._reasoning))
            )
        self._content, self._calls, self._reasoning = None, [], []


def seal(blocks: Sequence[Mapping[str, Any]]) -> str:
    """Thinking blocks as the text of ``encrypted_content``: opaque to clients, but not secret; the client got the thinking."""
    return _SEAL + base64.urlsafe_b64encode(msgspec.json.encode(blocks)).decode()


def _thoughts(item: ReasoningItem, where: str) -> list[dict[str, Any]]:
    """The blocks that `seal` wrote, else the visible text. What another service sealed means nothing here."""
    sealed = item.encrypted_content
    if sealed is not None and sealed.startswith(_SEAL):
        try:
            found = _blocks.decode(base64.urlsafe_b64decode(sealed.removeprefix(_SEAL)))
        except (ValueError, msgspec.MsgspecError):
            place = f"{where}.encrypted_content"
            raise InvalidRequest(f"{place} was changed on its way.", field=place) from None
        blocks: list[dict[str, Any]] = msgspec.to_builtins(found)
        check_storable(msgspec.json.encode(blocks).decode(), field=where)
        return blocks
    text = "".join(check_storable(thought.text, field=where) for thought in item.content or item.summary)
    return [{"type": "thinking", "thinking": text}] if text else []


def _spoken(content: str | list[AnyPart], where: str) -> str:
    """An answer that is handed back."""
    if isinstance(content, str):
        return check_storable(content, field=where)
    found: list[str] = []
    for index, part in enumerate(content):
        match part:
            case OutputText() | InputText():
                found.append(part.text)
            case Refusal():
                found.append(part.refusal)
            case _:
                raise _misplaced(f"{where}[{index}]", "output_text and refusal")
    return check_storable("".join(found), field=where)


def _asked(content: str | list[AnyPart], where: str) -> Content:
    """What whoever asks says, or a function gave. One text stays a text."""
    if isinstance(content, str):
        return check_storable(content, field=where)
    parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if not parts:
        raise InvalidRequest(f"{where} is empty.", field=where)
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: AnyPart, where: str) -> dict[str, Any]:
    match part:
        case InputText():
            return {"type": "text", "text": check_storable(part.text, field=f"{where}.text")}
        case InputImage():
            return _image(part, where)
        case InputFile():
            return _file(part, where)
        case _:
            raise _misplaced(where, "input_text, input_image and input_file")


def _misplaced(where: str, allowed: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for {where}.type: {allowed} may stand here.", field=f"{where}.type")


def _image(part: InputImage, where: str) -> dict[str, Any]:
    if part.file_id is not None:
        refuse(f"{where}.file_id", "There is no store of files; send image_url.")
    place = f"{where}.image_url"
    if part.image_url is None:
        raise InvalidRequest(f"Missing required parameter: '{place}'.", field=place)
    image = {"url": check_image_url(part.image_url, field=place)}
    if part.detail is not None:
        image["detail"] = part.detail
    return {"type": "image_url", "image_url": image}


def _file(part: InputFile, where: str) -> dict[str, Any]:
    for name in ("file_id", "file_url"):
        if getattr(part, name) is not None:
            refuse(f"{where}.{name}", "There is no store of files, and none is fetched; send file_data.")
    place = f"{where}.file_data"
    if part.file_data is None:
        raise InvalidRequest(f"Missing required parameter: '{place}'.", field=place)
    check_data_url(part.file_data, kinds=FILES, limit=MAX_FILE_BYTES, field=place)
    file = {"file_data": part.file_data}
    if part.filename is not None:
        file["filename"] = check_storable(part.filename, field=f"{where}.filename")
    return {"type": "file", "file": file}


def _check_calls(messages: Sequence[Message]) -> None:
    waiting: set[str] = set()
    for message in messages:
        if message.role == "tool":
            if message.tool_call_id not in waiting:
                raise InvalidRequest("No tool call found for a function_call_output; its call_id is wrong.", field="input")
            waiting.discard(str(message.tool_call_id))
            continue
        if waiting:
            break
        waiting = {str(call["id"]) for call in message.tool_calls}
    if waiting:
        raise InvalidRequest(
            "No tool output found for a function call; send a function_call_output with its call_id right after the calls.",
            field="input",
        )


def message_items(messages: Sequence[Message], prediction_id: str) -> list[dict[str, Any]]:
    """The items of a conversation, as they are listed; their ids tell the response and the place."""
    found: list[dict[str, Any]] = []
    for message in messages:
        for item in _items(message):
            found.append({"id": f"{_PREFIX[item['type']]}_{prediction_id}_in{len(found)}", **item, "status": "completed"})
    return found


_PREFIX: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


def _items(message: Message) -> Iterable[dict[str, Any]]:
    if message.role == "tool":
        content = message.content
        output = content if isinstance(content, str) else [_input_part(part) for part in content or ()]
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": output}
        return
    if message.role != "assistant":
        parts = [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content or ()
        yield {"type": "message", "role": message.role, "content": [_input_part(part) for part in parts]}
        return
    if message.content is not None:
        text = {"type": "output_text", "text": message.content, "annotations": [], "logprobs": []}
        yield {"type": "message", "role": "assistant", "content": [text]}
    for call in message.tool_calls:
        yield {"type": "function_call", "call_id": call["id"], **call["function"]}


def _input_part(part: Mapping[str, Any]) -> dict[str, Any]:
    match part["type"]:
        case "image_url":
            image = part["image_url"]
            return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail", "auto"), "file_id": None}
        case "file":
            return {"type": "input_file", **part["file"]}
        case _:
            return {"type": "input_text", "text": part["text"]}
