"""What other formats get of Anthropic's blocks."""

from __future__ import annotations

from typing import Any

import pytest

from app.core.blocks import results_as_text, to_part
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
            _text("T\nbody"),
        ),
        (
            {"type": "document", "source": {"type": "content", "content": [_text("a"), _text("b")]}, "context": "C"},
            _text("C\na\nb"),
        ),
        ({"type": "document", "source": {"type": "content", "content": "a"}}, _text("a")),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
            {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        ),
        (
            {"type": "search_result", "source": "https://e.org", "title": "T", "content": [_text("found")]},
            _text("T (https://e.org)\nfound"),
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


def test_images_of_results_follow_all_results() -> None:
    asked: dict[str, Any] = {"role": "assistant", "content": None}
    first = {"role": "tool", "tool_call_id": "a", "content": [_text("seen"), IMAGE]}
    second = {"role": "tool", "tool_call_id": "b", "content": [IMAGE]}
    third = {"role": "tool", "tool_call_id": "c", "content": "plain"}
    last = {"role": "user", "content": "and?"}
    *results, images, question = results_as_text([asked, first, second, third, last])
    assert results[0] == asked
    assert [each["tool_call_id"] for each in results[1:]] == ["a", "b", "c"]
    assert results[1]["content"] == [_text("seen")]
    assert isinstance(results[2]["content"], str)
    assert results[3] == third
    assert images == {"role": "user", "content": [IMAGE, IMAGE]}
    assert question == last
    assert list(results_as_text([first]))[-1] == {"role": "user", "content": [IMAGE]}


def test_markers_of_calls_stay_out_of_the_format() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}, "cache_control": MARK}
    assert Message("assistant", None, tool_calls=(call,)).to_wire()["tool_calls"][0].keys() == {"id", "type", "function"}
