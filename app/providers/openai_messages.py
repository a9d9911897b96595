"""Our messages in words of the OpenAI format: Anthropic's markers stay here, its documents become texts and files. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
    return [_message(message, f"messages[{number}]", vendor, outside) for number, message in enumerate(messages)]


def without_marker(thing: Mapping[str, Any]) -> dict[str, Any]:
    """A part, tool or tool call without Anthropic's marker of a cacheable prefix, which this format does not have."""
    return {name: value for name, value in thing.items() if name != "cache_control"}


def _message(message: Message, where: str, vendor: bool, outside: bool) -> dict[str, Any]:
    wire = message.to_wire()
    if isinstance(message.content, list):
        wire["content"] = [_part(part, f"{where}.content[{number}]", outside) for number, part in enumerate(message.content)]
    if message.tool_calls:
        wire["tool_calls"] = [without_marker(call) for call in message.tool_calls]
    if message.role == "developer" and not vendor:
        wire["role"] = "system"
    return wire


def _part(part: Mapping[str, Any], where: str, outside: bool) -> Part:
    match part.get("type"):
        case "document":
            return _document(part, where)
        case "search_result":
            return _text("\n".join([f"{part.get('title', '')} ({part.get('source', '')})", *_texts(part.get("content"))]))
        case "image_url" if not outside and not _is_data(part):
            raise InvalidRequest(f"{where}: this model takes images as data only; send a data: URL.", field="messages")
    return without_marker(part)


def _is_data(part: Mapping[str, Any]) -> bool:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else None
    return isinstance(url, str) and url[:5].lower() == "data:"


def _document(part: Mapping[str, Any], where: str) -> Part:
    """A document of Anthropic's form: texts as text, with title and context before them; a PDF as a file."""
    source = part.get("source")
    kind = source.get("type") if isinstance(source, Mapping) else None
    if not isinstance(source, Mapping) or kind not in ("text", "content", "base64"):
        raise InvalidRequest(f"{where}: this model takes a document as such, not its address.", field="messages")
    if kind == "base64":
        media_type = source.get("media_type", "application/pdf")
        return {
            "type": "file",
            "file": {"filename": "document.pdf", "file_data": f"data:{media_type};base64,{source.get('data')}"},
        }
    head = [str(part[name]) for name in ("title", "context") if part.get(name)]
    return _text("\n".join([*head, *_texts(source.get("data") if kind == "text" else source.get("content"))]))


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, Sequence):
        yield from (piece["text"] for piece in content if isinstance(piece, Mapping) and isinstance(piece.get("text"), str))


def _text(text: str) -> Part:
    return {"type": "text", "text": text}
