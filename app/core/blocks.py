"""Anthropic's content blocks that the OpenAI chat format does not know, as parts that it does. Pure functions.

A text document or a search result becomes text under its title; a PDF becomes a file. What has no equivalent (a PDF by address)
stays as it is: the provider that cannot take it refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def to_part(block: Mapping[str, Any]) -> dict[str, Any]:
    """``block`` as a part of the OpenAI format; parts of that format come back as they are."""
    part = _CONVERSIONS.get(block.get("type", ""), dict)(block)
    if "cache_control" in block:
        part["cache_control"] = block["cache_control"]
    return part


def _document(block: Mapping[str, Any]) -> dict[str, Any]:
    source = block["source"]
    kind = source.get("type")
    if kind == "base64":
        name = block.get("title") or "document.pdf"
        return {"type": "file", "file": {"filename": name, "file_data": f"data:{source['media_type']};base64,{source['data']}"}}
    if kind not in ("text", "content"):
        return dict(block)
    return _text(block.get("title"), block.get("context"), _plain(source["data" if kind == "text" else "content"]))


def _search_result(block: Mapping[str, Any]) -> dict[str, Any]:
    return _text(block["title"], block["source"], _plain(block["content"]))


def _plain(content: Any) -> str:
    return content if isinstance(content, str) else "\n\n".join(piece["text"] for piece in content)


def _text(*texts: str | None) -> dict[str, Any]:
    return {"type": "text", "text": "\n\n".join(text for text in texts if text)}


_CONVERSIONS = {"document": _document, "search_result": _search_result}
