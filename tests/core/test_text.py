"""What counts as text (test B7)."""

from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import InvalidRequest
from app.core.text import check_not_binary, check_text, storable

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe"), max_size=200)


@given(TEXT)
def test_ordinary_text_passes_unchanged(value: str) -> None:
    assert check_text(value, field="comment", limit=200, allow_blank=True) == value


@pytest.mark.parametrize("value", ["\x00", "a\x00b", "\x07", "\x1b[31m", "\r", "\x7f", "\ud800", "a\ufffe", "\x1f", "\x0b"])
def test_what_is_not_text_is_named(value: str) -> None:
    with pytest.raises(InvalidRequest, match=r"U\+[0-9A-F]{4}"):
        check_text(value, field="comment", limit=10, allow_blank=True)


def test_length_is_counted_in_code_points() -> None:
    assert check_text("🙂" * 5000, field="correction", limit=5000)
    with pytest.raises(InvalidRequest, match="5001 characters"):
        check_text("a" * 5001, field="correction", limit=5000)


@pytest.mark.parametrize("value", ["", " ", "\n\t ", "\u00a0", "\u200b\ufeff", " \u200b"])
def test_blank_is_refused_unless_allowed(value: str) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        check_text(value, field="comment", limit=10)


def test_a_prompt_may_hold_carriage_returns() -> None:
    assert check_text("a\r\nb", field="prompt", limit=10, prompt=True) == "a\r\nb"


@pytest.mark.parametrize(
    "head",
    [b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"PK\x03\x04", b"\x7fELF", b"\xff\xd8\xff\xe0", b"\x1f\x8b\x08"],
)
def test_files_in_disguise_are_refused(head: bytes) -> None:
    body = head + os.urandom(600)
    for value in (head.decode("latin-1"), base64.b64encode(body).decode(), "see: " + base64.b64encode(body).decode()):
        with pytest.raises(InvalidRequest):
            check_not_binary(value, field="correction")
    with pytest.raises(InvalidRequest):
        check_not_binary("data:image/png;base64,AAAA", field="correction")


@pytest.mark.parametrize(
    "value", ["a" * 5000, "0123456789abcdef" * 300, "una palabra tras otra " * 200, "日本語" * 1000, "=" * 500]
)
def test_odd_but_honest_text_passes(value: str) -> None:
    assert check_not_binary(value, field="correction") == value


def test_what_a_model_wrote_is_kept_in_a_form_that_can_be_stored() -> None:
    assert storable("a\x00b\ud800c\n🙂") == "a\ufffdb\ufffdc\n🙂"
