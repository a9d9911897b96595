"""Anthropic's content blocks that the OpenAI chat format does not know, as parts that it does. Pure functions.

A text document or a search result becomes text under its title; a PDF becomes a file. What has no equivalent (a PDF by address)
stays as it is: the provider that cannot take it refuses it. In that format the result of a tool is text alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_FOLLOWS = "The result is in the next message of the user."


def to_part(block: Mapping[str, Any]) -> dict[str, Any]:
    """``block`` as a part of the OpenAI format; parts of that format come back as they are."""
    part = _CONVERSIONS.get(block.get("type", ""), dict)(block)
    if "cache_control" in block:
        part["cache_control"] = block["cache_control"]
    return part


def results_as_text(messages: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """``messages`` of the OpenAI format, with what is no text in the results of tools in a user's message after all of them."""
    waiting: list[Any] = []
    for message in messages:
        content = message["content"]
        if message["role"] == "tool" and isinstance(content, list):
            waiting += [part for part in content if part["type"] != "text"]
            yield {**message, "content": [part for part in content if part["type"] == "text"] or _FOLLOWS}
            continue
        if message["role"] != "tool" and waiting:
            yield {"role": "user", "content": waiting}
            waiting = []
        yield message
    if waiting:
        yield {"role": "user", "content": waiting}


def _document(block: Mapping[str, Any]) -> dict[str, Any]:
    source = block["source"]
    kind = source.get("type")
    if kind == "base64":
        name = block.get("title") or "document.pdf"
        return {"type": "file", "file": {"filename": name, "file_data": f"data:{source['media_type']};base64,{source['data']}"}}
    if kind not in ("text", "content"):
        return dict(block)
    return _text(block.get("title"), block.get("context"), *_texts(source["data" if kind == "text" else "content"]))


def _search_result(block: Mapping[str, Any]) -> dict[str, Any]:
    return _text(f"{block['title']} ({block['source']})", *_texts(block["content"]))


def _texts(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [piece["text"] for piece in content]


def _text(*texts: str | None) -> dict[str, Any]:
    return {"type": "text", "text": "\n".join(text for text in texts if text)}


_CONVERSIONS = {"document": _document, "search_result": _search_result}
