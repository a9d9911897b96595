"""Our messages in words of the OpenAI format: Anthropic's markers stay here, images of tools' results follow them. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.core.blocks import results_as_text
from app.core.errors import InvalidRequest
from app.core.types import Message

Part = dict[str, Any]


def wire_messages(messages: Sequence[Message], *, vendor: bool, outside: bool) -> list[dict[str, Any]]:
    """The field ``messages``.

    Args:
        vendor: for OpenAI itself, which knows the role ``developer``; the chat templates of open models know ``system`` only.
        outside: the server stands in the open internet. One within a private network is given no addresses of images: it
            would fetch for a caller what the caller cannot reach.

    Raises:
        InvalidRequest: a part that the format, or that server, cannot take; it says which.
    """
    made = (_message(message, f"messages[{number}]", vendor, outside) for number, message in enumerate(messages))
    return [dict(message) for message in results_as_text(made)]


def without_marker(thing: Mapping[str, Any]) -> dict[str, Any]:
    """A part or tool without Anthropic's marker of a cacheable prefix, which this format does not have."""
    return {name: value for name, value in thing.items() if name != "cache_control"}


def _message(message: Message, where: str, vendor: bool, outside: bool) -> dict[str, Any]:
    wire = message.to_wire()
    if isinstance(message.content, list):
        wire["content"] = [_part(part, f"{where}.content[{number}]", outside) for number, part in enumerate(wire["content"])]
    if message.role == "developer" and not vendor:
        wire["role"] = "system"
    return wire


def _part(part: Mapping[str, Any], where: str, outside: bool) -> Part:
    if part.get("type") == "document":
        raise InvalidRequest(f"{where}: this model takes a document as such, not its address.", field="messages")
    if part.get("type") == "image_url" and not outside and not _is_data(part):
        raise InvalidRequest(f"{where}: this model takes images as data only; send a data: URL.", field="messages")
    return without_marker(part)


def _is_data(part: Mapping[str, Any]) -> bool:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else None
    return isinstance(url, str) and url[:5].lower() == "data:"
