"""What other formats get of Anthropic's blocks."""

from __future__ import annotations

from typing import Any

import pytest

from app.core.blocks import to_part
from app.core.types import Message

MARK = {"type": "ephemeral"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (_text("a"), _text("a")),
        (IMAGE, IMAGE),
        (
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "body"}, "title": "T"},
            _text("T\n\nbody"),
        ),
        (
            {"type": "document", "source": {"type": "content", "content": [_text("a"), _text("b")]}, "context": "C"},
            _text("C\n\na\n\nb"),
        ),
        ({"type": "document", "source": {"type": "content", "content": "a"}}, _text("a")),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
            {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        ),
        (
            {"type": "search_result", "source": "https://e.org", "title": "T", "content": [_text("found")]},
            _text("T\n\nhttps://e.org\n\nfound"),
        ),
    ],
)
def test_a_block_as_a_part(block: dict[str, Any], part: dict[str, Any]) -> None:
    assert to_part(block) == part
    assert to_part({**block, "cache_control": MARK}) == {**part, "cache_control": MARK}
    assert Message("user", [block]).to_wire()["content"] == [part]


def test_a_pdf_by_address_stays_for_the_provider_to_refuse() -> None:
    block = {"type": "document", "source": {"type": "url", "url": "https://e.org/a.pdf"}}
    assert to_part(block) == block


def test_markers_of_calls_stay_out_of_the_format() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}, "cache_control": MARK}
    assert Message("assistant", None, tool_calls=(call,)).to_wire()["tool_calls"][0].keys() == {"id", "type", "function"}
