"""Parts of a message, as the OpenAI format has them, as content blocks of Anthropic's: text, images, documents.

A part keeps its ``cache_control``. A part of a kind that the vendor has no block for is refused by name.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.core.errors import InvalidRequest

Block = dict[str, Any]

_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_NATIVE = ("document", "search_result")
"""Blocks in the vendor's own form, from our door for it; passed on as they are."""


def marked(block: Block, source: Mapping[str, Any]) -> Block:
    """``block`` with the marker of a cacheable prefix that ``source`` has, if any."""
    if source.get("cache_control") is not None:
        block["cache_control"] = source["cache_control"]
    return block


def text_blocks(content: str | list[dict[str, Any]] | None, where: str) -> list[Block]:
    """Blocks of a message that may hold text alone. Raises InvalidRequest for other parts."""
    if isinstance(content, list) and any(part.get("type") != "text" for part in content):
        raise InvalidRequest(f"{where}.content: a system message holds text only.", field="messages")
    return blocks(content, where)


def blocks(content: str | list[dict[str, Any]] | None, where: str) -> list[Block]:
    """The blocks of one message's content, without those that would be empty.

    Args:
        where: the message's place, for errors: ``messages[3]``.

    Raises:
        InvalidRequest: a part that the vendor has no block for, or a malformed one.
    """
    if content is None:
        return []
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    made = (_block(part, f"{where}.content[{number}]") for number, part in enumerate(parts))
    return [block for block in made if block is not None]


def refuse_addresses(content: Sequence[Mapping[str, Any]]) -> None:
    """Raises InvalidRequest for blocks that name an address: a server within a private network would fetch it from there."""
    for block in content:
        source, inner = block.get("source"), block.get("content")
        if isinstance(source, Mapping) and source.get("type") == "url":
            raise InvalidRequest("This model takes images and documents as data only; send them in base64.", field="messages")
        if isinstance(inner, list):
            refuse_addresses(inner)


def _block(part: Mapping[str, Any], where: str) -> Block | None:
    kind = part.get("type")
    if kind in _NATIVE:
        return dict(part)
    make = _MAKERS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise InvalidRequest(f"{where}: this model takes text, images by image_url, and files.", field="messages")
    block = make(part, where)
    return None if block is None else marked(block, part)


def _text(part: Mapping[str, Any], where: str) -> Block | None:
    text = part.get("refusal" if part["type"] == "refusal" else "text")
    if not isinstance(text, str):
        raise _malformed(where, "text")
    return {"type": "text", "text": text} if text.strip() else None


def _image(part: Mapping[str, Any], where: str) -> Block:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str):
        raise _malformed(where, "image_url")
    if url[:8].lower() == "https://":
        return {"type": "image", "source": {"type": "url", "url": url}}
    media_type, data = _data_url(url, where)
    if media_type not in _IMAGES:
        raise InvalidRequest(f"{where}: images may be {', '.join(_IMAGES)}.", field="messages")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _document(part: Mapping[str, Any], where: str) -> Block:
    file = part.get("file")
    url = file.get("file_data") if isinstance(file, Mapping) else None
    if not isinstance(file, Mapping) or not isinstance(url, str):
        raise InvalidRequest(f"{where}: a file needs its content in file_data, as a data: URL.", field="messages")
    media_type, data = _data_url(url, where)
    block: Block = {"type": "document", "source": _source(media_type, data, where)}
    if file.get("filename"):
        block["title"] = file["filename"]
    return block


def _source(media_type: str, data: str, where: str) -> Block:
    if media_type == "application/pdf":
        return {"type": "base64", "media_type": media_type, "data": data}
    if media_type == "text/plain":
        try:
            return {"type": "text", "media_type": media_type, "data": base64.b64decode(data).decode()}
        except UnicodeDecodeError:
            raise InvalidRequest(f"{where}: a text file must be in UTF-8.", field="messages") from None
    raise InvalidRequest(f"{where}: files may be application/pdf or text/plain.", field="messages")


def _data_url(url: str, where: str) -> tuple[str, str]:
    """Media type and base64 text of a ``data:`` URL."""
    head, comma, data = url.partition(",")
    scheme, _, described = head.partition(":")
    media_type, *parameters = described.lower().split(";")
    if scheme.lower() != "data" or not comma or "base64" not in parameters:
        raise InvalidRequest(f"{where}: give a data: URL in base64, or for an image an https: URL.", field="messages")
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{where}: the data: URL is not proper base64.", field="messages") from None
    return media_type, data


def _malformed(where: str, name: str) -> InvalidRequest:
    return InvalidRequest(f"{where}.{name} is missing or of the wrong type.", field="messages")


_MAKERS: dict[str, Callable[[Mapping[str, Any], str], Block | None]] = {
    "text": _text,
    "refusal": _text,
    "image_url": _image,
    "file": _document,
}
