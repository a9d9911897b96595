"""Content blocks of Anthropic's Messages API as the parts of `Message.content`: checked, and never fetched by us.

Text and images become parts that every provider knows. Documents and search results stay as they came: only `Message.to_wire`,
for providers of another format, makes of them what those can read.
"""

from __future__ import annotations

from typing import Any

import msgspec

from app.api.v1.common import check_storable
from app.api.v1.messages_bodies import (
    Base64Image,
    Base64Pdf,
    Block,
    BlockContent,
    CacheControl,
    Citations,
    DocumentBlock,
    ImageBlock,
    PlainText,
    SearchResultBlock,
    TextBlock,
    UrlSource,
)
from app.api.v1.parts import MAX_FILE_BYTES, MAX_IMAGE_BYTES, check_base64, check_image_url
from app.core.errors import InvalidRequest

Part = dict[str, Any]


def content_of(parts: list[Part]) -> str | list[Part]:
    """``parts`` as `Message.content`: one plain text alone is a string, which every chat template understands."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        text: str = parts[0]["text"]
        return text
    return parts


def part_of(block: Block, where: str) -> Part:
    """One block as a part. Raises InvalidRequest."""
    match block:
        case TextBlock():
            part = {"type": "text", "text": check_storable(block.text, field=f"{where}.text")}
        case ImageBlock():
            part = _image(block, where)
        case DocumentBlock():
            part = _document(block, where)
        case SearchResultBlock():
            part = _search_result(block, where)
        case _:
            raise wrong(where, "this block is not allowed here")
    return with_marker(part, block.cache_control)


def marker_of(marker: CacheControl) -> Part:
    """The marker of a cacheable prefix as providers know it."""
    return {"type": marker.type} if marker.ttl is None else {"type": marker.type, "ttl": marker.ttl}


def with_marker(part: Part, marker: CacheControl | None) -> Part:
    """``part`` with the marker, if there is one."""
    if marker is not None:
        part["cache_control"] = marker_of(marker)
    return part


def wrong(place: str, why: str) -> InvalidRequest:
    """An error in the vendor's form: ``messages.0.content.1: why``."""
    return InvalidRequest(f"{place}: {why}", field=place)


def _image(block: ImageBlock, where: str) -> Part:
    if block.transformations is not None and block.transformations.oversized_image == "error":
        raise wrong(f"{where}.transformations.oversized_image", "this service cannot promise that; leave it out")
    source = block.source
    if isinstance(source, Base64Image):
        check_base64(source.data, kind=source.media_type, limit=MAX_IMAGE_BYTES, field=f"{where}.source.data")
        url = f"data:{source.media_type};base64,{source.data}"
    else:
        url = _web_address(source, where)
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: DocumentBlock, where: str) -> Part:
    _refuse_citations(block.citations, where)
    document: Part = {"type": "document", "source": _source(block.source, f"{where}.source")}
    for name in ("title", "context"):
        value = getattr(block, name)
        if value is not None:
            document[name] = check_storable(value, field=f"{where}.{name}")
    return document


def _source(source: Base64Pdf | PlainText | BlockContent | UrlSource, where: str) -> Part:
    match source:
        case PlainText():
            check_storable(source.data, field=f"{where}.data")
        case Base64Pdf():
            data = check_base64(source.data, kind=source.media_type, limit=MAX_FILE_BYTES, field=f"{where}.data")
            if not data.startswith(b"%PDF-"):
                raise wrong(f"{where}.data", "this is no PDF")
        case UrlSource():
            _web_address(source, where.removesuffix(".source"))
        case BlockContent(content):
            return {"type": "content", "content": _pieces(content, f"{where}.content")}
    fields: Part = msgspec.to_builtins(source)
    return fields


def _pieces(content: str | list[TextBlock | ImageBlock], where: str) -> str | list[Part]:
    """Text pieces of a document. Images in it would have to be in the vendor's form, which no other provider could read."""
    if isinstance(content, str):
        return check_storable(content, field=where)
    if any(isinstance(piece, ImageBlock) for piece in content):
        raise wrong(where, "send images beside the document, not in it")
    return [part_of(piece, f"{where}.{number}") for number, piece in enumerate(content)]


def _search_result(block: SearchResultBlock, where: str) -> Part:
    _refuse_citations(block.citations, where)
    return {
        "type": "search_result",
        "source": check_storable(block.source, field=f"{where}.source"),
        "title": check_storable(block.title, field=f"{where}.title"),
        "content": [part_of(piece, f"{where}.content.{number}") for number, piece in enumerate(block.content)],
    }


def _web_address(source: UrlSource, where: str) -> str:
    place = f"{where}.source.url"
    if source.url[:8].lower() != "https://":
        raise wrong(place, "only https addresses are supported")
    return check_image_url(source.url, field=place)


def _refuse_citations(citations: Citations | None, where: str) -> None:
    if citations is not None and citations.enabled:
        raise wrong(f"{where}.citations", "this service gives no citations; leave them out")
